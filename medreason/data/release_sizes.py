"""Questions and bytes of published releases, for plans before anything is downloaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medreason import config as configuration
from medreason.config import Config
from medreason.data import silvar_med, slake, splits
from medreason.data.names import MED_R1_FILES
from medreason.samples import MODALITIES, TASKS

_ROWS = {
    "silvar_med": (sum(silvar_med.RELEASED_ROWS.values()), 0),
    "vqa_rad": (1_797, 451),
    "slake": (4_918, 1_061),
    "vqa_med_2019": (12_792, 500),
    "path_vqa": (19_755, 6_761),
}
"""Training and test rows of sets without cells of their own, validation rows left out; of
SLAKE the English ones, of Silvar-Med all rows. Source: medreason/data/README.md."""

_ALL_SLAKE = tuple(slake.RELEASED_ROWS[file] for file in ("train.json", "test.json"))

_BYTES = {"omnimedvqa": 10_700_000_000, "slake": 216_000_000}
"""To download, where it is known. Source: the pages of foreverbeliever/OmniMedVQA (OmniMedVQA.zip,
10.7 GB) and BoKelvin/SLAKE (imgs.zip, 212 MB, and 4 MB of questions) on the hub."""


class Counts(NamedTuple):
    """Questions as published; those that `data` leaves out are among them."""

    training: int
    test: int
    note: str = ""
    """What is estimated or missing in them."""


def downloads(config: Config) -> dict[str, int | None]:
    """Bytes of each release that a data set known to `counts` is made of, packed as published."""
    if sets := config.data.get("sets"):
        used = {*config.data["train"], *config.data["test"]}
        releases = [name for name in sets if name in used]
    else:
        name = _release(config)
        releases = [name if name in _ROWS else "omnimedvqa"]
    return {name: _BYTES.get(name) for name in releases}


def counts(config: Config) -> Counts | None:
    """Of the configured cells; None where the data set is no known release, or is there."""
    root = config.data.get("root")
    if root and Path(root).is_dir():
        return None
    if "sets" in config.data:
        return _rarl(config)
    match name := _release(config):
        case "omnimedvqa":
            return _med_r1(config, "modality")
        case "med_r1_modality" | "med_r1_question_type":
            return _med_r1(config, name.removeprefix("med_r1_"))
        case _ if name in _ROWS:
            return _single(config, name)
    return None


def _release(config: Config) -> str:
    """`omnimedvqa`, also of a folder that `action=prepare` would write; "" of one's own data."""
    module = str(config.data.get("_target_")).removeprefix("medreason.data.").split(".")[0]
    if module == "prepared":
        return re.sub(r"-\d+-(stretch|pad)$", "", Path(config.data.get("root") or "").name)
    files = str(config.data.get("files"))
    family = re.search(r"Splits/(modality|question_type)/", files)
    return f"med_r1_{family[1]}" if family else module


def _med_r1(config: Config, family: str) -> Counts:
    """Of Med-R1's files of one family, and of OmniMedVQA, from whose questions they were drawn."""
    rows = list(MED_R1_FILES.values())
    files = dict(zip(MODALITIES, rows, strict=False))
    others = dict(zip(TASKS, rows[len(MODALITIES) :], strict=True))
    trained = config.modality.members, config.task.members
    tested = config.evaluation.modalities, config.evaluation.tasks
    if family == "question_type":
        files, others, trained, tested = others, files, trained[::-1], tested[::-1]
    files = {name: _divided(config, count) for name, count in files.items()}
    most = config.evaluation.samples_per_cell
    cells = {*others} - {*trained[1]} or {*others} - {*tested[1]} or most
    return Counts(
        _of_cells(files, others, 0, trained),
        _of_cells(files, others, 1, tested, most),
        _SHARED_OUT if cells else "",
    )


_SHARED_OUT = (
    "counts of single cells are not published: estimated, each modality with the question types of "
    "all together"
)


def _of_cells(
    files: Mapping[str, tuple[int, int]],
    others: Mapping[str, tuple[int, int]],
    side: int,
    chosen: Sequence[Collection[str]],
    most: int | None = None,
) -> int:
    """Questions of the chosen cells, at most so many of each: a cell has the share of its file that
    the other family's file has in all questions."""
    whole = sum(map(sum, others.values()))
    shares = [sum(count) / whole for name, count in others.items() if name in chosen[1]]
    rows = [count[side] for name, count in files.items() if name in chosen[0]]
    return round(sum(min(row * share, most or row) for row in rows for share in shares))


def _divided(config: Config, rows: tuple[int, int]) -> tuple[int, int]:
    """Training and test rows as `data.split` divides those published."""
    handling, reader = configuration.handling(config.data)
    unsplit = _release(config) == "omnimedvqa" and not reader.get("splits_from")
    if handling.split == "low_data":
        return min(rows[0], splits.LOW_DATA["train"]), min(rows[1], splits.LOW_DATA["test"])
    if unsplit or handling.split in ("by_image", "by_patient"):
        test = round(sum(rows) * handling.test_share)
        return sum(rows) - test, test
    return rows


def _single(config: Config, name: str) -> Counts:
    """Of a set whose cells nobody counted."""
    training, test = _divided(config, _rows(config, name))
    handling, _ = configuration.handling(config.data)
    selections = config.modality.members, config.evaluation.modalities
    selections += config.task.members, config.evaluation.tasks
    names = (MODALITIES, MODALITIES, TASKS, TASKS)
    parts = any({*whole} - {*chosen} for whole, chosen in zip(names, selections, strict=True))
    notes = [_AT_MOST] if parts or handling.questions != "all" else []
    notes += [_NO_TESTS] if name == "silvar_med" else []
    return Counts(training, test, "; ".join(notes))


_AT_MOST = "at most: those of its cells and of closed questions alone are not published"
_NO_TESTS = "without Silvar-Med's own test questions, whose number is not published"


def _rows(config: Config, name: str) -> tuple[int, int]:
    language = config.data.get("language", "en")
    if name != "slake" or language == "en":
        return _ROWS[name]
    english = _ROWS["slake"] if language == "zh" else (0, 0)
    return _ALL_SLAKE[0] - english[0], _ALL_SLAKE[1] - english[1]


def _rarl(config: Config) -> Counts:
    training, _ = _ROWS["silvar_med"]
    tested = config.data["test"]
    return Counts(
        min(config.data.get("train_rows") or training, training),
        sum(_ROWS[name][1] for name in tested if name in _ROWS),
        _NO_TESTS if "silvar_med" in tested else "",
    )
