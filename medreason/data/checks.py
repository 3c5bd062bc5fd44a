"""Checks before anything is trained: bad rows, unreadable images, contradictory files."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason.config.rules import one_of
from medreason.console import counted
from medreason.data import image_cache
from medreason.data.names import task_of
from medreason.data.rows import BadRow, LeftOut, Loaded, Remark, Row, once_each, plain_word
from medreason.samples import MODALITY_NAMES, TASK_NAMES, YES_NO, YES_NO_ELSEWHERE, Sample

UNREADABLE = "unreadable image"
"""What rows are counted as whose image cannot be used."""
CONTRADICTING = "contradicting"
"""What rows are counted as that give one question about one image different answers."""


def with_readable_images(loaded: Loaded, root: Path | None, cache: Path) -> Loaded:
    """Samples whose image cannot be decoded, or is outside of the root, become bad rows."""
    return without(loaded, image_problems({s.image for s in loaded.samples}, root, cache))


def without(loaded: Loaded, problems: Mapping[Path, str]) -> Loaded:
    """Samples whose image has a problem become bad rows."""
    return _without(loaded, [problems.get(s.image, "") for s in loaded.samples], UNREADABLE)


def with_known_cells(loaded: Loaded) -> Loaded:
    """Samples of a modality or task that no configuration can select become bad rows."""
    return _without(loaded, map(_cell_problem, loaded.samples), BadRow.count)


def with_unread_yes_or_no_named(loaded: Loaded) -> Loaded:
    """The rows with a warning where some are open questions though their answers mean yes or no: by
    the words of a language that is not read, or mistyped as `yse` where their question is answered
    by yes or no elsewhere. Those called open are meant so."""
    remarks = list(loaded.remarks)
    open_ones = [s for s in loaded.samples if not s.options and s.answer_type != "open"]
    foreign = _of_other_languages(loaded.samples, open_ones)
    for words, rows in foreign:
        named = " and ".join(map(repr, words))
        text = _OTHER_LANGUAGE.format(counted(len(rows), "row"), named)
        remarks.append(Remark(*file_and_row(rows[0]), text, is_warning=True))
    named_ids = {s.id for _, rows in foreign for s in rows}
    closed = {s.question for s in loaded.samples if s.options in _YES_OR_NO}
    mistyped = [s for s in open_ones if s.question in closed and s.id not in named_ids]
    if mistyped:
        first = mistyped[0]
        text = _NOT_YES_OR_NO.format(counted(len(mistyped), "row"), first.answer)
        remarks.append(Remark(*file_and_row(first), text, is_warning=True))
    return replace(loaded, remarks=remarks)


def _of_other_languages(
    samples: Sequence[Sample], open_ones: Sequence[Sample]
) -> list[tuple[list[str], list[Sample]]]:
    """(words as they stand, open questions answered by them) of each language of which the data
    have both words; the `no` of Spanish or Italian was read as that of English."""
    by_word: dict[str, list[Sample]] = defaultdict(list)
    for sample in open_ones:
        by_word[plain_word(sample.answer)].append(sample)
    has_no = any(s.options in _YES_OR_NO and s.answer_text == "No" for s in samples)
    found: dict[tuple[str, ...], tuple[list[str], list[Sample]]] = {}
    for yes, no in YES_NO_ELSEWHERE:
        if any(word in by_word for word in yes) and (
            any(word in by_word for word in no) or (has_no and "no" in no)
        ):
            rows = [s for s in open_ones if plain_word(s.answer) in yes | no]
            words = [*dict.fromkeys(plain_word(s.answer) for s in rows)]
            found.setdefault(tuple(s.id for s in rows), (words, rows))
    return list(found.values())


_YES_OR_NO = {order for pair in YES_NO for order in (pair, pair[::-1])}
_NOT_YES_OR_NO = (
    "{} without options whose question has Yes/No elsewhere, the first with the answer {!r}: an "
    "open question as it is; correct it to yes or no, or set the row's answer_type to open"
)
_OTHER_LANGUAGE = (
    "{} without options answered by {}, this the first: open questions as they are; answer yes and "
    "no, give both words as options (option_A, option_B), or set answer_type to open"
)


def _cell_problem(sample: Sample) -> str:
    try:
        one_of("modality", sample.modality, MODALITY_NAMES)
        one_of("task", sample.task, TASK_NAMES)
    except ValueError as error:
        return str(error)
    return ""


def _without(loaded: Loaded, problems: Iterable[str], count: str) -> Loaded:
    """Samples become bad rows where `problems`, which are in their order, are not empty."""
    samples, bad = [], list(loaded.bad_rows)
    for sample, problem in zip(loaded.samples, problems, strict=True):
        if problem:
            bad.append(BadRow(*file_and_row(sample), problem, count))
        else:
            samples.append(sample)
    bad.sort(key=lambda row: (row.file, row.row))
    return replace(loaded, samples=samples, bad_rows=bad)


def file_and_row(sample: Sample) -> tuple[str, int]:
    """(file, row) of the sample's id; row -1 where the id names no row."""
    file, _, row = sample.id.rpartition(":")
    return (file, int(row)) if row.isdigit() else (sample.id, -1)


def refuse_bad_rows(loaded: Loaded, rule: str, where: object) -> None:
    """Raise ValueError with the first bad rows, unless `data.bad_rows=skip` and others remain."""
    if loaded.bad_rows and (rule == "error" or not loaded.samples):
        raise ValueError(
            f"{_listed(loaded.bad_rows, where)}\n"
            "repair them, or leave them out with data.bad_rows=skip where others remain"
        )


@contextlib.contextmanager
def bad_rows_first(rows: Iterable[Row], where: object) -> Iterator[None]:
    """Put the bad rows of `rows` before a ValueError, whose cause they may be: without them too few
    may be left to split."""
    try:
        yield
    except ValueError as error:
        bad = [row for row in rows if isinstance(row, BadRow)]
        if not bad:
            raise
        raise ValueError(f"{_listed(bad, where)}\n{error}") from error


def _listed(bad_rows: Sequence[BadRow], where: object) -> str:
    each = once_each((bad.file, bad.row, bad.problem) for bad in bad_rows)
    first = "\n  ".join(each[:10])
    return f"{counted(len(bad_rows), 'bad row')} in {where}, the first:\n  {first}"


def refuse_same_ids(samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"two samples have the id {sample.id!r}; is a file listed twice?")
        seen.add(sample.id)


def refuse_contradictions(samples: Sequence[Sample]) -> None:
    """Raise ValueError for a closed question with two answers about one image."""
    if contradictions := _contradictions(samples):
        raise ValueError(f"{_contradiction(contradictions)}, or set data.contradictions=leave_out")


def _contradiction(contradictions: Sequence[Sequence[Sample]]) -> str:
    """How many questions have two answers, and two rows that disagree on the first."""
    first, *others = contradictions[0]
    other = next(s for s in others if s.answer_text != first.answer_text)
    return (
        f"{counted(len(contradictions), 'question')} with two answers about one image: "
        f"{place_of(first)} and {place_of(other)} disagree on {first.problem!r} about "
        f"{first.image.name}: {first.answer_text!r} and {other.answer_text!r}; correct one of them"
    )


def without_contradictions(loaded: Loaded) -> Loaded:
    """All rows of closed questions with two answers about one image are left out, with a warning.

    Where those of the test agree with each other they stay, so that the published test is whole.
    """
    if not (contradictions := _contradictions(loaded.samples)):
        return loaded
    left_out: list[Sample] = []
    for rows in contradictions:
        test = [s for s in rows if s.split == "test"]
        agree = len({s.answer_text for s in test}) == 1
        left_out += [s for s in rows if s not in test] if agree else rows
    ids = {sample.id for sample in left_out}
    reason = "another row gives this question about this image another answer"
    text = f"{counted(len(left_out), 'row')} left out because of {_contradiction(contradictions)}"
    file, _ = file_and_row(left_out[0])
    return replace(
        loaded,
        samples=[s for s in loaded.samples if s.id not in ids],
        left_out=[
            *loaded.left_out,
            *(LeftOut(*file_and_row(s), reason, CONTRADICTING) for s in left_out),
        ],
        remarks=[*loaded.remarks, Remark(file, -1, text, is_warning=True)],
        contradictory=[rows[0] for rows in contradictions],
    )


def _contradictions(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The rows of each closed question that has two answers, whatever the order of its options."""
    asked: dict[tuple[str, str, tuple[str, ...]], list[Sample]] = defaultdict(list)
    for s in samples:
        if s.options:
            asked[str(s.image), s.question, tuple(sorted(s.options))].append(s)
    return [rows for rows in asked.values() if len({s.answer_text for s in rows}) > 1]


DRAWN = "DRAWN_PHANTOMS"
"""File in a folder of phantoms that are laid out as a release, or as several below it."""


def with_release_named(loaded: Loaded, reader: Mapping[str, Any]) -> Loaded:
    """The rows with a remark for each file, or pattern of files, that has not as many as the
    release that papers report on: the RELEASED_ROWS of the module that the reader's function is
    of, where it has that constant. Of drawn phantoms one remark says what they are."""
    if root := reader.get("root"):
        if (Path(root) / DRAWN).exists():
            return replace(loaded, remarks=[*loaded.remarks, Remark(DRAWN, -1, _ARE_DRAWN)])
        if (Path(root).parent / DRAWN).exists():  # which is told of all sets at once
            return loaded
    module = sys.modules[configuration.target(reader["_target_"]).__module__]
    released: Mapping[str, int] = getattr(module, "RELEASED_ROWS", {})
    others = (row.file for row in (*loaded.bad_rows, *loaded.left_out))
    counts = Counter([*(file_and_row(sample)[0] for sample in loaded.samples), *others])
    remarks = []
    for pattern, expected in released.items():
        files = [file for file in counts if fnmatch(file, pattern)]
        if files and (found := sum(counts[file] for file in files)) != expected:
            name = files[0] if len(files) == 1 else pattern
            remarks.append(Remark(name, -1, _OTHER_RELEASE.format(found, expected)))
    return replace(loaded, remarks=[*loaded.remarks, *remarks])


_ARE_DRAWN = "phantoms that are laid out as the release, for a rehearsal"
_OTHER_RELEASE = (
    "{:,} rows, and {:,} in the release that papers report on: another version, whose results do "
    "not compare with theirs; download that release, or name the version with your results"
)


def refuse_mixed_families(samples: Sequence[Sample]) -> None:
    """Raise ValueError for a question that two families of files put in train and in test.

    A question that one family has in train and test is a leak, which the audit counts.
    """
    if split_apart := mixed_families(samples):
        a, b = split_apart[0]
        raise ValueError(
            f"{counted(len(split_apart), 'question')} {'is' if len(split_apart) == 1 else 'are'} "
            f"in train and in test, the first in {place_of(a)} "
            f"({a.split}) and {place_of(b)} ({b.split}): the files were split independently. Name "
            "one family in data.files, e.g. data.files=['modality/*/*.json'], or set "
            "data.split=joint, by_image or by_patient to use both"
        )


def mixed_families(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """The rows of each question that two families of files put on different sides."""
    first: dict[tuple[str, str, tuple[str, ...]], Sample] = {}
    split_apart: list[tuple[Sample, Sample]] = []
    for sample in samples:
        other = first.setdefault((str(sample.image), sample.question, sample.options), sample)
        if other.split != sample.split and _is_of_tasks(other) != _is_of_tasks(sample):
            split_apart.append((other, sample))
    return split_apart


def _is_of_tasks(sample: Sample) -> bool:
    """Whether the sample's file is named after a question type, not a modality."""
    return bool(task_of(Path(file_and_row(sample)[0]).stem))


def place_of(sample: Sample) -> str:
    """File and row of a sample, for messages."""
    file, row = file_and_row(sample)
    return file if row < 0 else f"{file}, row {row}"


def path_problems(paths: Iterable[Path], root: Path | None) -> dict[Path, str]:
    """Why images' paths cannot be used, of those that cannot."""
    resolved = root and root.resolve()
    return {path: problem for path in paths if (problem := _path_problem(path, resolved))}


def _path_problem(path: Path, root: Path | None) -> str:
    try:
        target = path.resolve()
        path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # endless link, NUL, name too long
        return f"image {str(path)!r} is not a path ({error}); correct it"
    if root and not target.is_relative_to(root):
        return f"image {path} leaves the data root by a link; copy it below {root}"
    return ""


def image_problems(paths: Collection[Path], root: Path | None, cache: Path) -> dict[Path, str]:
    """Why images cannot be used, of those that cannot."""
    problems = path_problems(paths, root)
    others = [path for path in paths if path not in problems]
    unreadable = image_cache.problems(others, cache)
    return problems | {path: f"image {problem}" for path, problem in unreadable.items()}
