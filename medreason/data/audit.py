"""Counts of a data set before a model sees it, and the warnings that follow from them.

`README.md` says what each key holds. Shares are from 0 to 1, accuracies in percent.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medreason.console import counted
from medreason.data import image_cache
from medreason.data.checks import CONTRADICTING, place_of
from medreason.data.pictures import Picture
from medreason.data.rows import SIDES, Loaded, SplitColumn, once_each
from medreason.data.splits import DIVIDES_ANEW
from medreason.option_prior import fit_option_prior, guessing
from medreason.samples import MODALITY_NAMES, TASK_NAMES, YES_NO, Sample, letter_at
from medreason.stats import wilson

LOWER_CASE = "only option that starts in lower case"
PERIOD = "only option with or without a trailing period"


def audit(
    loaded: Loaded,
    digest: str,
    image_digests: Mapping[Path, str],
    pictures: Mapping[str, Picture] | None = None,
    *,
    split: str = "published",
) -> dict[str, Any]:
    """`audit.json`. `pictures` describes each image; None where images were not read; `split` is
    `data.split`.

    Images of one digest are one where leaks are counted.
    A cell, modality or pair without rows is left out, never counted as 0.
    """
    samples, sides = loaded.samples, sides_of(loaded.samples)
    return {
        "rows": sum(loaded.counts.values()),
        "row_counts": loaded.counts,
        "split": _split(loaded, split),
        "cells": cells(samples),
        "options": _counts(str(len(s.options)) for s in samples),
        "letters": {
            split: _counts(s.answer for s in samples if s.options and s.split == split)
            for split in sides
        },
        "unparsed": [
            {"file": bad.file, "row": bad.row, "reason": bad.problem} for bad in loaded.bad_rows
        ],
        "left_out": [
            {"file": row.file, "row": row.row, "reason": row.reason} for row in loaded.left_out
        ],
        "remarks": [
            {"file": remark.file, "row": remark.row, "remark": remark.text}
            | ({"warning": True} if remark.is_warning else {})
            for remark in loaded.remarks
        ],
        "answer_types": _counts(
            f"{s.split} {'closed' if s.closed else 'open'}" for s in samples if s.split in sides
        ),
        "duplicates": _duplicates(samples, loaded.contradictory),
        "leakage": leakage(samples, image_digests),
        "validation_leakage": validation_leakage(samples, image_digests),
        "images_by_path": _count_by_path(samples, image_digests),
        "cross_family_leakage": _cross_family_leakage(samples),
        "option_prior": _priors(samples, "modality", list(MODALITY_NAMES)),
        "option_prior_task": _priors(samples, "task", list(TASK_NAMES)),
        "guessing": _guessing(samples, "modality"),
        "guessing_task": _guessing(samples, "task"),
        "typography": _typography(samples),
        "images": _images(samples, pictures),
        "digest": digest,
    }


def overlap_warnings(
    loaded: Loaded, image_digests: Mapping[Path, str], *, split: str = "published"
) -> list[str]:
    """The warnings of `audit` about images and patients on two sides, and about test rows that
    repeat another, without its tables, which take longer."""
    samples = loaded.samples
    report = {
        "split": _split(loaded, split),
        "duplicates": _duplicates(samples, loaded.contradictory),
        "leakage": leakage(samples, image_digests),
        "validation_leakage": validation_leakage(samples, image_digests),
        "images_by_path": _count_by_path(samples, image_digests),
        "images": _images(samples, None),
    }
    line = repeats(report)
    return [*_leaks(report), *([line[2:]] if line.startswith("! ") else [])]


def _split(loaded: Loaded, setting: str) -> dict[str, Any]:
    columns = dict.fromkeys(column.column for column in loaded.split_columns)
    return {"setting": setting, "columns": list(columns)}


def audit_run(
    train: Sequence[Sample],
    test: Sequence[Sample],
    digest: str,
    image_digests: Mapping[Path, str],
    row_counts: Mapping[str, int],
    notes: Sequence[str] = (),
    *,
    validation: Sequence[Sample] = (),
    left_out_of_epoch: int = 0,
    split: str = "published",
    split_columns: Sequence[SplitColumn] = (),
) -> dict[str, Any]:
    """`data.json` of a run: counts of what it trains and tests on, with the audit's warnings.

    `validation` are the validation rows of the cells that it trains on; `row_counts` and `notes`
    are those of the whole data set, and notes that begin with `! ` are warnings, too;
    `left_out_of_epoch`: see `Config`; `split` is `data.split`, beside columns of the data set's own
    splits. `leaks` are those of the warnings that are about images and patients on two sides;
    `repeats` is the line about rows that repeat another, or empty; `yes_no_questions` lets
    `action=predict` ask them as the training does.
    """
    loaded = Loaded([*train, *validation, *test], [], split_columns=[*split_columns])
    report = audit(loaded, digest, image_digests, split=split)
    images = {image_digests[s.image] for s in train}
    return {
        "digest": digest,
        "cells": report["cells"],
        "row_counts": row_counts,
        "notes": list(notes),
        "left_out_of_epoch": left_out_of_epoch,
        "validation_rows": len(validation),
        "test_rows": len(test),
        "test_rows_on_trained_images": sum(image_digests[s.image] in images for s in test),
        "leaks": _leaks(report),
        "repeats": repeats(report),
        "yes_no_questions": _yes_no_questions(train),
        "warnings": [*(n[2:] for n in notes if n.startswith("! ")), *warnings(report)],
    }


def _yes_no_questions(train: Sequence[Sample]) -> dict[str, list[str]]:
    """Text -> options, Yes and No, of the most frequent questions that are asked with no others."""
    closed = Counter((s.question, s.options) for s in train if {*s.options} in _YES_AND_NO)
    others = {s.question for s in train if {*s.options} not in _YES_AND_NO}
    common = [asked for asked, _ in closed.most_common() if asked[0] not in others]
    first = {text: [*options] for text, options in reversed(common)}  # of two orders the usual one
    return dict(itertools.islice(reversed(first.items()), _MOST_YES_NO))


_YES_AND_NO = [{*pair} for pair in YES_NO]
_MOST_YES_NO = 500


def cells(samples: Iterable[Sample]) -> dict[str, dict[str, dict[str, int]]]:
    """{modality: {task: {train, test}}} in the order of the matrix, "unknown" last; a cell has
    `validation`, too, where the samples have any."""
    samples = list(samples)
    sides = sides_of(samples)
    counts = Counter((s.modality, s.task, s.split) for s in samples)
    cells: dict[str, dict[str, dict[str, int]]] = {}
    for modality in MODALITY_NAMES:
        for task in TASK_NAMES:
            cell = {split: counts[modality, task, split] for split in sides}
            if any(cell.values()):
                cells.setdefault(modality, {})[task] = cell
    return cells


def sides_of(samples: Iterable[Sample]) -> tuple[str, ...]:
    """train and test, and between them validation where there is any."""
    validated = any(sample.split == "validation" for sample in samples)
    return tuple(side for side in SIDES if validated or side != "validation")


def leakage(
    samples: Iterable[Sample], image_digests: Mapping[Path, str]
) -> dict[str, dict[str, int]]:
    """{modality: {shared_images, test_rows}}: images in train and test, test rows about them.

    Pictures of one content are one image. Where rows name patients also `shared_patients`. The
    modality is that of the test rows, whatever that of the training rows is; `all` counts each
    image once. Modalities without test rows are left out, and so is everything where there is no
    training.
    """
    rows = {split: [] for split in SIDES}
    for sample in samples:
        rows.setdefault(sample.split, []).append(sample)
    if not rows["train"]:
        return {}
    patients = {s.patient for s in rows["train"]} - {None}
    groups = {"all": rows["test"], **_by(rows["test"], "modality")}
    leaks = {}
    for modality in (name for name in ("all", *MODALITY_NAMES) if groups.get(name)):
        test = groups[modality]
        shared, about_them = _shared_images(rows["train"], test, image_digests)
        leaks[modality] = {"shared_images": shared, "test_rows": about_them}
        if patients and any(s.patient for s in test):
            leaks[modality]["shared_patients"] = len(patients & {s.patient for s in test})
    return leaks


def _shared_images(
    others: Sequence[Sample], members: Sequence[Sample], image_digests: Mapping[Path, str]
) -> tuple[int, int]:
    """(images that both show, by content where they were read; rows of `members` about them)."""
    seen = {image_digests[sample.image] for sample in others}
    shown = [image_digests[sample.image] for sample in members]
    return len(seen & {*shown}), sum(image in seen for image in shown)


def _count_by_path(samples: Iterable[Sample], image_digests: Mapping[Path, str]) -> int:
    """Images that were not read, which count by their path."""
    return len({s.image for s in samples if not image_cache.is_known(image_digests[s.image])})


def _compared(report: Mapping[str, Any]) -> str:
    """How images were found to be the same."""
    by_path = report["images_by_path"]
    if by_path == report["images"]["named"]:
        return "by path"
    return f"by content ({counted(by_path, 'image')} by path)" if by_path else "by content"


def validation_leakage(
    samples: Iterable[Sample], image_digests: Mapping[Path, str]
) -> dict[str, dict[str, int]]:
    """{train or test: {shared_images, validation_rows}}: images that validation shares with it, and
    the validation rows about them; where rows name patients also `shared_patients`.

    Empty where there is no validation.
    """
    rows = _by(samples, "split")
    validation = rows.get("validation", [])
    leaks: dict[str, dict[str, int]] = {}
    for side in ("train", "test") if validation else ():
        others = rows.get(side, [])
        shared, about_them = _shared_images(others, validation, image_digests)
        leaks[side] = {"shared_images": shared, "validation_rows": about_them}
        patients = {s.patient for s in others} - {None}
        if patients and any(s.patient for s in validation):
            leaks[side]["shared_patients"] = len(patients & {s.patient for s in validation})
    return leaks


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing a result, a sentence each."""
    sentences = []
    if not report["row_counts"].get("test") and report["row_counts"].get("train"):
        sentences.append(_no_test(report["split"]["setting"]))
    sentences += _leaks(report)
    if crossed := sum(report["cross_family_leakage"].values()):
        sentences.append(
            f"{counted(crossed, 'test row')} of one family of files in the train files of the "
            "other: use one family, or data.split=joint"
        )
    if unparsed := report["unparsed"]:
        first, *others = bad_row_lines(report)
        named = f"{', the first' * bool(others)}: {first}"
        sentences.append(
            f"{counted(len(unparsed), 'row')} that cannot be used{named}; audit.json lists all"
        )
    sentences += _image_warnings(report["images"])
    duplicates = report["duplicates"]
    sentences += [
        f"{counted(duplicates[key], noun)} {problem}, the first {duplicates['first'][key]}"
        for key, (noun, problem) in _DUPLICATED.items()
        if duplicates[key] and not (key == _TWO_ANSWERS and CONTRADICTING in report["row_counts"])
    ]
    if (line := repeats(report)).startswith("! "):
        sentences.append(line[2:])
    return sentences + _prior_warnings(report)


def _no_test(setting: str) -> str:
    if setting in DIVIDES_ANEW:
        return (
            f"no test rows: data.split={setting} takes data.test_share of the rows; set it above 0"
        )
    return "no test rows: set data.split=by_patient, or by_image where no row names a patient"


def own_columns(report: Mapping[str, Any]) -> str:
    """The columns of the data set's own split, as `'fold'`; empty where there are none or
    `data.split` overrules them."""
    split = report["split"]
    return "" if split["setting"] in DIVIDES_ANEW else " and ".join(map(repr, split["columns"]))


def repeats(report: Mapping[str, Any]) -> str:
    """A line about rows that repeat another one of their side, with `! ` where some are in test;
    empty where there are none."""
    sides = report["duplicates"]["same_rows_by_side"]
    if not (count := sum(sides.values())):
        return ""
    one = count == 1
    listed = ", ".join(f"{n:,} in {side}" for side, n in sides.items())
    return (
        f"{'! ' * ('test' in sides)}{counted(count, 'row')} ({listed}) repeat{'s' * one} a "
        f"question about the same image with the same answer, {'' if one else 'the first '}"
        f"{report['duplicates']['first']['same_rows']}: each counts once more; remove "
        f"{'it' if one else 'them'} from a table of your own"
    )


def bad_row_lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each reason why rows cannot be used, with the first of those rows."""
    return once_each((row["file"], row["row"], row["reason"]) for row in report["unparsed"])


_TWO_ANSWERS = "questions_with_two_answers"
_DUPLICATED = {
    _TWO_ANSWERS: ("question", "with two answers"),
    "rows_with_the_same_option_twice": ("row", "with the same option twice"),
}
"""Key of `duplicates` -> what is counted, and what is wrong with it; the remark of the rule says it
of questions whose rows were left out."""


def _leaks(report: Mapping[str, Any]) -> list[str]:
    """The warnings about images and patients on two sides."""
    sentences = []
    leak = report["leakage"].get("all", {})
    if rows := leak.get("test_rows"):
        sentences.append(
            f"{counted(rows, 'test question')} about {counted(leak['shared_images'], 'image')} of "
            f"train, {_compared(report)}; {_remedy_of_leak(report)}"
        )
    if patients := leak.get("shared_patients"):
        sentences.append(
            f"{counted(patients, 'patient')} in both train and test; {_remedy_of_leak(report)}"
        )
    return sentences + _validation_warnings(report["validation_leakage"], _compared(report))


def _remedy_of_leak(report: Mapping[str, Any]) -> str:
    """What to do about images or patients in train and test: where columns of the data set make the
    split, to correct those; else the option of `data.split` that divides by what is shared."""
    if own := own_columns(report):
        return f"correct the column {own}, whose split this is"
    by = "patient" if report["leakage"]["all"].get("shared_patients") else "image"
    return f"data.split=by_{by} has no such leak"


def leaks_of_run(facts: Mapping[str, Any]) -> list[str]:
    """Of a run's `data.json` the warnings about images and patients on two sides; of an earlier
    version, which has no sentences, that about images."""
    if "leaks" in facts:
        return facts["leaks"]
    rows = facts["test_rows_on_trained_images"]
    return [f"{counted(rows, 'test question')} about images of train"] if rows else []


def _image_warnings(images: Mapping[str, Any]) -> list[str]:
    """The images that cannot be used, the first by name, and what becomes of their rows."""
    unreadable = images["unreadable"] or {}
    problems = dict.fromkeys(images["missing"] or (), "missing") | unreadable
    if not problems:
        return []
    path, place = images["first_row_without_image"]
    problem = problems[path]
    named = f"{problem if path in problem else f'{path}: {problem}'} ({place})"
    first = ", the first" if len(problems) > 1 else ""
    rows = images["rows_without_image"]
    them, its = ("it" if count == 1 else "them" for count in (rows, len(problems)))
    return [
        f"{counted(len(problems), 'image')} that cannot be used{first} {named}; audit.json lists "
        f"all. {counted(rows, 'row')} about {its}, counted here: a run refuses {them}, or leaves "
        f"{them} out with data.bad_rows=skip"
    ]


def _validation_warnings(leaks: Mapping[str, Mapping[str, int]], compared: str) -> list[str]:
    sentences = []
    for side, leak in leaks.items():
        if rows := leak["validation_rows"]:
            sentences.append(
                f"{counted(rows, 'validation question')} about "
                f"{counted(leak['shared_images'], 'image')} of {side}, {compared}"
            )
        if patients := leak.get("shared_patients"):
            sentences.append(f"{counted(patients, 'patient')} in both validation and {side}")
    return sentences


def _prior_warnings(report: Mapping[str, Any]) -> list[str]:
    """The options-only baseline in-domain, where it is far above guessing between the options."""
    high = [
        f"{name} {table[name]:.0f} % (guessing {guess['percent']:.0f} %)"
        for key in ("", "_task")
        for name, table in report[f"option_prior{key}"].items()
        if name in table and _is_far_above(table[name], guess := report[f"guessing{key}"][name])
    ]
    return [f"option strings alone answer tests: {', '.join(high)}"] if high else []


def _is_far_above(percent: float, guess: Mapping[str, float]) -> bool:
    """Half as much again, and more than chance on so few questions."""
    n = int(guess["questions"])
    low, _ = wilson(percent / 100, n)
    return percent > 1.5 * guess["percent"] and 100 * low > guess["percent"]


def _guessing(samples: Sequence[Sample], key: str) -> dict[str, dict[str, float]]:
    """{modality or task: {questions, percent}}: closed test questions, and how many of them
    guessing between their options answers right."""
    tests = _by((s for s in samples if s.options and s.split == "test"), key)
    return {
        name: {
            "questions": len(rows),
            "percent": round(100 * (guessing(s.options for s in rows) or 0.0), 4),
        }
        for name, rows in sorted(tests.items())
    }


def _duplicates(samples: Sequence[Sample], contradictory: Sequence[Sample]) -> dict[str, Any]:
    """Rows that repeat one of the same split and cell, questions with two answers, those whose rows
    were left out (`contradictory`) included, and rows that offer one text twice; `first` names the
    first row of each, of rows that repeat another the first repetition."""
    repeated = _repeated(samples)
    asked: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for s in samples:
        if s.options:
            asked[str(s.image), s.problem].append(s)
    found = {
        "same_rows": repeated,
        _TWO_ANSWERS: [
            *contradictory,
            *(rows[0] for rows in asked.values() if len({s.answer for s in rows}) > 1),
        ],
        "rows_with_the_same_option_twice": [
            s for s in samples if len({o.strip().lower() for o in s.options}) < len(s.options)
        ],
    }
    return {
        **{key: len(members) for key, members in found.items()},
        "same_rows_by_side": _counts(s.split for s in repeated),
        "first": {key: place_of(members[0]) for key, members in found.items() if members},
    }


def _repeated(samples: Sequence[Sample]) -> list[Sample]:
    """The rows before which one of the same split and cell has the same image, question, options
    and answer."""
    seen, repeated = set[tuple[Any, ...]](), []
    for s in samples:
        row = (str(s.image), s.problem, s.answer, s.cell, s.split)
        if row in seen:
            repeated.append(s)
        seen.add(row)
    return repeated


def _cross_family_leakage(samples: Sequence[Sample]) -> dict[str, int]:
    """Test rows of one family of Med-R1's files that are in the train files of the other.

    Rows of the modality family have no task, those of the question types no modality. Empty where
    the samples are of one family.
    """
    families: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for s in samples:
        if (s.modality == "unknown") != (s.task == "unknown"):
            name = "modality" if s.task == "unknown" else "question_type"
            rows = families.setdefault(name, {split: [] for split in SIDES})
            rows.setdefault(s.split, []).append((str(s.image), s.problem))
    if len(families) < 2:
        return {}
    trained = {name: set(rows["train"]) for name, rows in families.items()}
    other = {"modality": "question_type", "question_type": "modality"}
    return {
        f"{name}_test_in_{other[name]}_train": sum(
            row in trained[other[name]] for row in families[name]["test"]
        )
        for name in other
    }


def _priors(samples: Sequence[Sample], key: str, known: Sequence[str]) -> dict[str, Any]:
    """{trained on: {tested on: accuracy in percent}} of the options-only baseline."""
    groups = _by((s for s in samples if s.options), key)
    splits = {
        name: {split: [s for s in groups[name] if s.split == split] for split in SIDES}
        for name in known
        if name in groups
    }
    accuracies: dict[str, dict[str, float]] = {}
    for name, rows in splits.items():
        if rows["train"]:
            prior = fit_option_prior(rows["train"])
            accuracies[name] = {
                other: round(100 * accuracy, 4)
                for other, other_rows in splits.items()
                if (accuracy := prior.accuracy(other_rows["test"])) is not None
            }
    return accuracies


def _typography(samples: Sequence[Sample]) -> dict[str, dict[str, dict[str, float | None]]]:
    """By modality and rule: share of rows where it picks an option, and share where it is right."""
    rules: dict[str, Callable[[Sequence[str]], int | None]] = {
        LOWER_CASE: lambda options: _odd_one(text.strip()[:1].islower() for text in options),
        PERIOD: _odd_period,
    }
    habits: dict[str, dict[str, dict[str, float | None]]] = {}
    for modality, rows in _by((s for s in samples if s.options), "modality").items():
        for name, rule in rules.items():
            picks = [(rule(s.options), s) for s in rows]
            right = [letter_at(index) == s.answer for index, s in picks if index is not None]
            habits.setdefault(modality, {})[name] = {
                "share": round(len(right) / len(rows), 6),
                "right": round(sum(right) / len(right), 6) if right else None,
            }
    return {name: habits[name] for name in MODALITY_NAMES if name in habits}


def _odd_one(marks: Iterable[bool]) -> int | None:
    """The index of the only true mark."""
    indices = [index for index, mark in enumerate(marks) if mark]
    return indices[0] if len(indices) == 1 else None


def _odd_period(options: Sequence[str]) -> int | None:
    """The only option with a trailing period, or the only one without; needs three options."""
    if len(options) < 3:
        return None
    ends = [text.rstrip().endswith(".") for text in options]
    with_one = _odd_one(ends)
    return with_one if with_one is not None else _odd_one(not end for end in ends)


def _images(samples: Sequence[Sample], pictures: Mapping[str, Picture] | None) -> dict[str, Any]:
    named = len({str(s.image) for s in samples})
    if pictures is None:
        keys = (
            "read",
            "missing",
            "unreadable",
            "rows_without_image",
            "first_row_without_image",
            "sizes",
            "tiny",
            "duplicate_hashes",
            "perceptual_of_unlike_files",
        )
        return {"named": named, **dict.fromkeys(keys)}
    readable = {path: picture for path, picture in pictures.items() if picture.size}
    without = [s for s in samples if str(s.image) not in readable]
    splits: dict[str, set[str]] = defaultdict(set)
    for s in samples:
        if str(s.image) in readable:
            splits[readable[str(s.image)].content].add(s.split)
    return {
        "named": named,
        "read": len(readable),
        "missing": sorted(path for path, p in pictures.items() if p.problem == "missing"),
        "unreadable": {
            path: p.problem
            for path, p in sorted(pictures.items())
            if p.problem and p.problem != "missing"
        },
        "rows_without_image": len(without),
        "first_row_without_image": [str(without[0].image), place_of(without[0])] if without else [],
        "sizes": _counts(f"{p.size[0]}x{p.size[1]}" for p in readable.values() if p.size),
        "tiny": sorted(path for path, p in readable.items() if p.size and min(p.size) < 32),
        "duplicate_hashes": {
            "exact": _same(readable, lambda p: p.content),
            "perceptual": _same(readable, lambda p: p.look),
            "exact_in_train_and_test": sum({"train", "test"} <= s for s in splits.values()),
        },
        "perceptual_of_unlike_files": _alike(readable, splits),
    }


def _alike(pictures: Mapping[str, Picture], splits: Mapping[str, set[str]]) -> dict[str, int]:
    """{groups, in_train_and_test}: groups of one perceptual hash whose files are not all equal, and
    those with one file in train and another in test."""
    contents: dict[str, set[str]] = defaultdict(set)
    for picture in pictures.values():
        contents[picture.look].add(picture.content)
    groups = [members for members in contents.values() if len(members) > 1]
    crossing = [
        members
        for members in groups
        if any(
            "train" in splits[a] and "test" in splits[b]
            for a, b in itertools.permutations(members, 2)
        )
    ]
    return {"groups": len(groups), "in_train_and_test": len(crossing)}


def _same(pictures: Mapping[str, Picture], hash_of: Callable[[Picture], str]) -> list[list[str]]:
    """Groups of two or more images with an equal hash."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, picture in sorted(pictures.items()):
        groups[hash_of(picture)].append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _by(samples: Iterable[Sample], key: str) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[getattr(sample, key)].append(sample)
    return groups


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
