"""Data sets: one module each, whose `read` yields a `rows.Row` for every row of its files."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medreason import config as configuration
from medreason.config import Config, Handling, Validation
from medreason.config.targets import described, place
from medreason.console import counted
from medreason.data import checks, image_cache, options, splits
from medreason.data.rows import LeftOut, Loaded, Remark, Row, SplitColumn, counts_text
from medreason.samples import Sample

NO_VALIDATION = Validation()


def load(
    spec: dict[str, Any], cache: Path, validation: Validation = NO_VALIDATION
) -> tuple[Sample, ...]:
    """All samples of the data set that `spec`, the group `data`, names; cached in the process.

    Raises:
        ValueError: the data cannot be used; the message names file, row and remedy.
    """
    return tuple(_load(*_cached_by(spec, validation), cache).samples)


def samples_of(config: Config) -> tuple[Sample, ...]:
    """`load` as the configuration says, with its validation rows."""
    return load(config.data, config.folder / "cache", config.validation)


def split_columns(config: Config) -> list[SplitColumn]:
    """The columns of the data set's own split."""
    return _load(*_cached_by(config.data, config.validation), config.folder / "cache").split_columns


def row_counts(
    spec: dict[str, Any], cache: Path, validation: Validation = NO_VALIDATION
) -> dict[str, int]:
    """`Loaded.counts` of the data set."""
    return _load(*_cached_by(spec, validation), cache).counts


def _cached_by(spec: dict[str, Any], validation: Validation) -> tuple[str, _ThirdSide | None]:
    return json.dumps(spec, sort_keys=True), _third_side(validation)


class _ThirdSide(NamedTuple):
    """What of `validation` decides which rows are its."""

    source: str
    share: float
    seed: int


def _third_side(validation: Validation) -> _ThirdSide | None:
    settings = validation
    return _ThirdSide(settings.source, settings.share, settings.seed) if settings.is_on else None


def reading_notes(config: Config) -> list[str]:
    """Sentences about what was read: counts, remarks of the reader, and questions of the data set
    that the configuration does not select."""
    loaded = _load(*_cached_by(config.data, config.validation), config.folder / "cache")
    notes = [counts_text(loaded.counts)] if len(loaded.counts) > 2 else []
    remarks = sorted(loaded.remarks, key=lambda remark: not remark.is_warning)
    notes += [str(remark) for remark in remarks[:_REMARKS]]
    if (more := len(loaded.remarks) - _REMARKS) > 0:
        notes.append(f"and {more:,} more such remarks")
    return [*notes, *_not_selected(config, loaded.samples)]


_REMARKS = 5


def _not_selected(config: Config, samples: Sequence[Sample]) -> Iterator[str]:
    """Which questions of each side a run does not use, where there are some, and why."""
    sides = {"test": (tested_on(config, samples), _TESTED_BY)}
    if config.method.algorithm != "none":
        sides["train"] = trained_on(config, samples), "modality and task"
    for side, (selected, keys) in sides.items():
        of_side = sum(sample.split == side for sample in samples)
        if len(selected) < of_side:
            are, them = ("is", "it") if len(selected) == 1 else ("are", "them")
            questions = counted(of_side, f"{side} question")
            yield f"{len(selected):,} of {questions} {are} used: {keys} select {them}"


_TESTED_BY = "evaluation.modalities, evaluation.tasks and evaluation.samples_per_cell"


@functools.lru_cache(maxsize=2)
def _load(spec_json: str, third_side: _ThirdSide | None, cache: Path) -> Loaded:
    spec = json.loads(spec_json)
    handling, reader = configuration.handling(spec)
    loaded = _rows(handling, reader, cache, third_side)
    if handling.contradictions == "error":
        checks.refuse_contradictions(loaded.samples)
    loaded = checks.without_contradictions(loaded)
    if handling.images == "decode":
        loaded = checks.with_readable_images(loaded, root_of(reader), cache)
    checks.refuse_bad_rows(loaded, handling.bad_rows, _where(reader))
    checks.refuse_same_ids(loaded.samples)
    loaded = _split_and_select(loaded, handling, reader, cache, third_side)
    checks.refuse_mixed_families(loaded.samples)
    return loaded


def read(spec: dict[str, Any], cache: Path, validation: Validation = NO_VALIDATION) -> Loaded:
    """All rows of the data set, split and with `data.options`, without the checks of `load`.

    Contradicting rows are left out where `data.contradictions` says so.

    Raises:
        ValueError: a file cannot be read at all, or the rows lack what the split needs.
    """
    handling, reader = configuration.handling(spec)
    third_side = _third_side(validation)
    loaded = _rows(handling, reader, cache, third_side)
    if handling.contradictions == "leave_out":
        loaded = checks.without_contradictions(loaded)
    return _split_and_select(loaded, handling, reader, cache, third_side)


def _rows(
    handling: Handling, reader: dict[str, Any], cache: Path, third_side: _ThirdSide | None
) -> Loaded:
    """All rows that the data set's function yields.

    Raises ValueError where published validation rows are asked for and there are none.
    """
    published = third_side is not None and third_side.source == "published"
    if published and "validation" in _parameters(reader):
        reader = reader | {"validation": "validation"}
    anew = handling.split in splits.DIVIDES_ANEW
    shared = {**vars(handling), "cache": cache, "divided_anew": anew}
    arguments = {name: value for name, value in shared.items() if name in _parameters(reader)}
    loaded = _loaded(reader, arguments)
    if published and not any(sample.split == "validation" for sample in loaded.samples):
        with checks.bad_rows_first(loaded.bad_rows, _where(reader)):
            raise ValueError(f"validation.source='published': {_no_validation(loaded, reader)}")
    return loaded


def _no_validation(loaded: Loaded, reader: dict[str, Any]) -> str:
    """Why no published validation row can be asked, and what to do."""
    held_back = "set validation.source=train, which holds rows back from train"
    if loaded.bad_rows:
        return f"no usable row of {_named(reader)} is for validation; repair those, or {held_back}"
    return f"{_named(reader)} has no validation rows of its own; {_remedy(reader)}{held_back}"


def _named(reader: dict[str, Any]) -> str:
    """The data as the command line names them: the folder or table, else the data set."""
    places = [f"data.{key}={reader[key]}" for key in ("root", "hub") if reader.get(key)]
    module = reader["_target_"].rpartition(".")[0]
    return places[0] if places else f"the data set {module.rpartition('.')[2]}"


def _remedy(reader: dict[str, Any]) -> str:
    """What brings validation rows into a prepared folder; empty for other data."""
    if reader["_target_"] != "medreason.data.prepared.read":
        return ""
    return (
        "where the set it was made of has some, repeat its action=prepare with "
        "validation=in_domain validation.source=published prepare.folder=ANOTHER, or "
    )


def _loaded(reader: dict[str, Any], arguments: dict[str, Any]) -> Loaded:
    """What the data set's function yields.

    Raises ValueError with the function's place where it is a user's and fails.
    """
    function = configuration.function(reader)
    yielded: list[Row] = []  # with those before an error
    try:
        if (rows := function(**arguments)) is None:
            raise ValueError("gives None; a reader yields a Sample or a BadRow of each row")
        with checks.bad_rows_first(yielded, _where(reader)):
            yielded += rows
        loaded = Loaded.of(yielded)
    except Exception as error:
        if reader["_target_"].startswith("medreason."):
            raise
        described_error = f"raised {described(error, function.func)}"
        problem = str(error) if type(error) is ValueError else described_error
        raise ValueError(f"data: {place(function.func)} {problem}") from error
    if not any(vars(loaded).values()):
        raise ValueError(f"data: {place(function.func)} yields no rows; does it read its files?")
    loaded = checks.with_unread_yes_or_no_named(checks.with_known_cells(loaded))
    return checks.with_release_named(loaded, reader)


def _split_and_select(
    loaded: Loaded,
    handling: Handling,
    reader: dict[str, Any],
    cache: Path,
    third_side: _ThirdSide | None,
) -> Loaded:
    if "split" not in _parameters(reader):  # a reader with this parameter splits by itself
        images = {sample.image for sample in loaded.samples}
        if splits.keeps_published(loaded.samples, handling.split):
            images = set[Path]()
        digests = image_cache.digests(images, cache, root_of(reader), handling.ct_window)
        with checks.bad_rows_first(loaded.bad_rows, _where(reader)):
            split = splits.split(
                loaded.samples,
                handling.split,
                test_share=handling.test_share,
                seed=handling.seed,
                image_digests=digests,
            )
        remarks = _overruled_split(loaded, split, handling.split, _where(reader))
        loaded = replace(loaded, remarks=[*loaded.remarks, *remarks])
        loaded = _selected(loaded, split, f"left out by data.split={handling.split}")
    if handling.questions != "all":
        closed = handling.questions == "closed"
        of_kind = [s for s in loaded.samples if s.closed == closed]
        loaded = _selected(loaded, of_kind, f"left out by data.questions={handling.questions}")
    if third_side and third_side.source == "train":
        train = {sample.image for sample in loaded.samples if sample.split == "train"}
        digests = image_cache.digests(train, cache, root_of(reader), handling.ct_window)
        _, share, seed = third_side
        held_back = splits.hold_back(loaded.samples, share=share, seed=seed, image_digests=digests)
        loaded = replace(loaded, samples=held_back)
    samples = [replace(s, window=handling.ct_window) for s in loaded.samples]
    return replace(loaded, samples=[_with_options(s, handling) for s in samples])


def _overruled_split(
    loaded: Loaded, divided: Sequence[Sample], how: str, where: object
) -> Iterator[Remark]:
    """A warning where `divided` has rows on another side than the data themselves, whose split
    could be kept: two families of files that were split independently have none of one piece."""
    columns = dict.fromkeys(f"the column {column.column!r}" for column in loaded.split_columns)
    files = {column.file for column in loaded.split_columns}
    file = files.pop() if len(files) == 1 else str(where)
    whose = " and ".join(columns) or "the data set itself"
    text = splits.overruled(loaded.samples, divided, how, whose)
    if text and not checks.mixed_families(loaded.samples):
        yield Remark(file, -1, text, is_warning=True)


def _selected(loaded: Loaded, samples: list[Sample], reason: str) -> Loaded:
    """The rows with these samples in place of theirs; those that are missing are left out."""
    ids = {sample.id for sample in samples}
    places = [checks.file_and_row(s) for s in loaded.samples if s.id not in ids]
    others = [LeftOut(*place, reason, reason) for place in places]
    return replace(loaded, samples=samples, left_out=[*loaded.left_out, *others])


def _parameters(reader: dict[str, Any]) -> Collection[str]:
    return inspect.signature(configuration.target(reader["_target_"])).parameters


def root_of(reader: dict[str, Any]) -> Path | None:
    """The folder of a data set's files; None where it has no files."""
    return Path(reader["root"]) if "root" in reader else None


def _where(reader: dict[str, Any]) -> object:
    """What names the data in a message: its folder or id, else the reader's function."""
    keys = [key for key in ("root", "hub", "_target_") if key in reader]
    return reader[keys[0]]


def _with_options(sample: Sample, handling: Handling) -> Sample:
    match handling.options:
        case "shuffled":  # other questions keep their order, so that runs stay comparable
            train = sample.split == "train"
            return options.shuffled(sample, handling.seed) if train else sample
        case "normalised":
            return options.normalised(sample)
        case _:
            return sample


def trained_on(config: Config, samples: Iterable[Sample]) -> list[Sample]:
    """The training samples that the configuration selects; none for the base model."""
    if config.method.algorithm == "none":
        return []
    return select(samples, "train", config.modality.members, config.task.members)


def tested_on(config: Config, samples: Iterable[Sample]) -> list[Sample]:
    """The test samples that the configuration selects."""
    selected = select(samples, "test", config.evaluation.modalities, config.evaluation.tasks)
    return at_most(selected, config.evaluation.samples_per_cell, config.seed)


def read_for_prior(config: Config, samples: Iterable[Sample]) -> list[Sample]:
    """The samples that the options-only baseline is fitted to: those that the run trains on.

    For the base model, which is not trained, those of all cells: as many as a run of all trains on.
    """
    if config.method.algorithm == "none":
        return [sample for sample in samples if sample.split == "train"]
    return trained_on(config, samples)


def select(
    samples: Iterable[Sample], split: str, modalities: Sequence[str], tasks: Sequence[str]
) -> list[Sample]:
    """The samples of one split and of these cells."""
    return [s for s in samples if s.split == split and s.modality in modalities and s.task in tasks]


def at_most(samples: Iterable[Sample], per_cell: int | None, seed: int) -> list[Sample]:
    """At most `per_cell` samples of each cell: a random subset, in their order."""
    if per_cell is None:
        return list(samples)
    cells: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        cells.setdefault(sample.cell, []).append(sample)
    subset: list[Sample] = []
    for cell, members in cells.items():
        rng = np.random.default_rng([seed, *"/".join(cell).encode()])
        indices = rng.permutation(len(members))[:per_cell]
        subset += [members[i] for i in sorted(indices)]
    return subset


def image_digests(spec: dict[str, Any], cache: Path, samples: Iterable[Sample]) -> dict[Path, str]:
    """The digest of the content of each image that the samples are about.

    `data.window` is part of that of a DICOM file, whose grey values it decides.
    """
    handling, reader = configuration.handling(spec)
    images = (sample.image for sample in samples)
    return image_cache.digests(images, cache, root_of(reader), handling.ct_window)


def known_digests(spec: dict[str, Any], cache: Path, samples: Iterable[Sample]) -> dict[Path, str]:
    """`image_digests` as far as they are cached, of other images as of missing ones: reads none."""
    handling, reader = configuration.handling(spec)
    images = (sample.image for sample in samples)
    return image_cache.known(images, cache, root_of(reader), handling.ct_window)


def digest(samples: Iterable[Sample], image_digests: Mapping[Path, str]) -> str:
    """A hash of the samples and of their images' content, 16 digits; wherever the images lie."""
    state = hashlib.sha256()
    for s in samples:
        row = (s.id, s.problem, s.answer, s.explanation, *s.cell, s.patient, s.split)
        row = (*row, s.alternatives, s.answer_type) if s.alternatives or s.answer_type else row
        state.update(repr((row, image_digests[s.image])).encode())
    return state.hexdigest()[:16]


def question_digest(sample: Sample, image_digest: str) -> str:
    """A hash of image content, question, options and gold answer, 16 digits; whatever its id."""
    parts = (image_digest, sample.question, sample.options, sample.answer)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def cluster(clusters: str, patient: str | None, image_digest: str, question_digest: str) -> str:
    """What `statistics.clusters` counts: questions of different clusters are independent."""
    if clusters == "question":
        return question_digest
    return f"patient {patient}" if clusters == "patient" and patient else image_digest
