"""Questions and bytes of the papers' releases, for plans before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from medreason.config import Config
from medreason.data import silvar_med
from medreason.data.names import MED_R1_FILES
from medreason.samples import MODALITIES, TASKS

_TESTS = {"vqa_rad": 451, "slake": 1_061, "vqa_med_2019": 500, "path_vqa": 6_761}
"""Test questions of RARL's unseen sets. Source: the released files; SLAKE's English ones."""

_BYTES = {"omnimedvqa": 10_700_000_000, "slake": 216_000_000}
"""To download, where it is known. Source: the pages of foreverbeliever/OmniMedVQA (OmniMedVQA.zip,
10.7 GB) and BoKelvin/SLAKE (imgs.zip, 212 MB, and 4 MB of questions) on the hub."""


class Counts(NamedTuple):
    """Questions as published; those that `data` leaves out are among them."""

    training: int
    test: int


def downloads(config: Config) -> dict[str, int | None]:
    """Bytes of each release that a data set known to `counts` is made of, packed as published."""
    sets = config.data.get("sets")
    releases = [name for name in sets if name in _used(config)] if sets else ["omnimedvqa"]
    return {name: _BYTES.get(name) for name in releases}


def _used(config: Config) -> set[str]:
    """Sets of RARL's that are trained or tested on."""
    return {*config.data["train"], *config.data["test"]}


def counts(config: Config) -> Counts | None:
    """Of the configured cells; None where the data set is none of the papers', or is there.

    Source: experiments/med_r1/README.md and experiments/rarl/README.md, "Data".
    """
    root = config.data.get("root")
    if root and Path(root).is_dir():
        return None
    if "sets" in config.data:
        return _rarl(config)
    names = f"{root} {config.data.get('files')}"
    if "Splits/modality" in names or "med_r1_modality" in names:
        return _med_r1(config, list(MODALITIES), config.modality.members, 0)
    if "Splits/question_type" in names or "med_r1_question_type" in names:
        return _med_r1(config, list(TASKS), config.task.members, len(MODALITIES))
    return None


def _med_r1(config: Config, domains: list[str], trained: list[str], first: int) -> Counts:
    """Files of one family stand in the order of its domains."""
    files = dict(zip(domains, list(MED_R1_FILES.values())[first:], strict=False))
    evaluation = config.evaluation
    tested = evaluation.tasks if first else evaluation.modalities
    test = {domain: files[domain][1] for domain in domains if not tested or domain in tested}
    most = evaluation.samples_per_cell
    return Counts(
        sum(files[domain][0] for domain in domains if not trained or domain in trained),
        sum(min(count, most) if most else count for count in test.values()),
    )


def _rarl(config: Config) -> Counts:
    (training,) = silvar_med.RELEASED_ROWS.values()
    test = sum(_TESTS.get(name, 0) for name in config.data["test"])
    return Counts(min(config.data.get("train_rows") or training, training), test)
