"""An audit as tables on the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medreason.console import counted
from medreason.data.audit import (
    LOWER_CASE,
    PERIOD,
    bad_row_lines,
    own_columns,
    repeats,
    warnings,
)
from medreason.data.rows import SIDES, once_each
from medreason.report.table import parts
from medreason.report.terminal import Terminal
from medreason.samples import MODALITY_NAMES, TASK_NAMES, TASKS
from medreason.stats import wilson

_NAMES = {**MODALITY_NAMES, **TASKS}
_LEAK_NAMES = {**MODALITY_NAMES, "all": "all"}
_OF_RUNS = {
    "data.json": "in data.json (its training and test rows)",
    "state.json": "in state.json and the model card (its training rows)",
}
_WIDEST = 1000
_WIDE_POINTS = 20


def show(report: Mapping[str, Any]) -> None:
    """Print what `data.audit` found, tables first, then its warnings."""
    console = Terminal()
    if not console.is_terminal:
        console.width = max(console.width, 100)
    console.print(_head(report))
    _print(console, _cells(report["cells"]))
    for key, title in (
        ("", "Answered by option strings alone, %: trained on (row), tested on"),
        ("_task", "The same for question types"),
    ):
        if any((shares := report[f"option_prior{key}"]).values()):
            _print(console, _matrix(shares, title, report[f"guessing{key}"]))
    if (by_modality := _by_modality(report)).rows:
        _print(console, by_modality)
        if _habits(report):
            console.print(Text(_HABIT_NOTE), soft_wrap=True)
    _print(console, _counts(report, console.width))
    if verdict := _alike(report):
        console.print(Text(verdict), soft_wrap=True)
    remarks = sorted(report["remarks"], key=lambda remark: not remark.get("warning"))
    said = [
        (f"{'! ' if r.get('warning') else ''}{r['file']}", r["row"], r["remark"]) for r in remarks
    ]
    for line in once_each(said)[:10]:
        console.print(Text(line), soft_wrap=True)
    if (line := repeats(report)) and not line.startswith("! "):  # else a warning below
        console.print(Text(line), soft_wrap=True)
    for warning in [*_small_test(report), *warnings(report)]:
        console.print(Text(f"! {warning}"), soft_wrap=True)
    for line in bad_row_lines(report)[1:10]:  # the first is one of the warnings
        console.print(Text(f"! also not usable: {line}"), soft_wrap=True)
    console.print(f"digest {report['digest']}")
    if recorded := report.get("run_digests"):
        texts = [f"{recorded[key]} {_OF_RUNS[key]}" for key in recorded]
        text = f"digests of a run of these options: {', '.join(texts)}"
        console.print(Text(text), soft_wrap=True)


def _head(report: Mapping[str, Any]) -> str:
    """`432 rows, of which 363 are used: questions about 121 images`"""
    rows, images = counted(report["rows"], "row"), counted(report["images"]["named"], "image")
    used = sum(report["row_counts"].get(side, 0) for side in SIDES)
    which = "all used"
    if used < report["rows"]:
        which = f"of which {used:,} {'is' if used == 1 else 'are'} used"
    return f"{rows}, {which}: {'a question' if used == 1 else 'questions'} about {images}"


def _print(console: Console, table: Table) -> None:
    """Print a table with its title on one line; in a pipe as wide as it is, in a terminal that is
    narrower its columns in several tables below each other."""
    title, table.title = table.title, None
    console.print(Text(str(title), "italic"), soft_wrap=True)
    width = console.width
    if not console.is_terminal:
        wanted = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
        console.width = max(wanted, width)  # `print` takes no width above it
    for part in parts(table, console):
        console.print(part, crop=False, soft_wrap=True)
    console.width = width


def _small_test(report: Mapping[str, Any]) -> list[str]:
    """What the test is too small to show."""
    n = report["row_counts"].get("test", 0)
    low, high = wilson(0.5, n) if n else (0.0, 0.0)
    if (points := 100 * (high - low)) < _WIDE_POINTS:
        return []
    return [
        f"{counted(n, 'test question')}: the 95 % interval of an accuracy of 50 % spans "
        f"{points:.0f} points, and more where questions share a patient or an image"
    ]


def _cells(cells: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Table:
    tasks = [t for t in TASK_NAMES if any(t in row for row in cells.values())]
    sides = dict.fromkeys(side for row in cells.values() for cell in row.values() for side in cell)
    title = f"Rows, {'/'.join(sides or ('train', 'test'))}"
    table = _table(title, ["", *[_NAMES[t] for t in tasks], "all"])
    for modality, row in cells.items():
        shown = [_sides([row[task]]) if task in row else "" for task in tasks]
        table.add_row(_NAMES[modality], *shown, _sides(row.values()))
    if len(cells) > 1:
        columns = [[row[task] for row in cells.values() if task in row] for task in tasks]
        every = [cell for column in columns for cell in column]
        table.add_row("all", *[_sides(column) for column in columns], _sides(every))
    return table


def _matrix(
    shares: Mapping[str, Mapping[str, float]],
    title: str,
    guessing: Mapping[str, Mapping[str, float]],
) -> Table:
    columns = [name for name in _NAMES if any(name in row for row in shares.values())]
    table = _table(title, ["", *[_NAMES[name] for name in columns]])
    for name, row in shares.items():
        table.add_row(_NAMES[name], *[f"{row[c]:.1f}" if c in row else "" for c in columns])
    chances = [f"{guessing[c]['percent']:.1f}" if c in guessing else "" for c in columns]
    table.add_row("guessing between options", *chances)
    return table


_RULES = {
    LOWER_CASE: "right: the one that\nstarts in lower case",
    PERIOD: "right: the one with\n(without) a period",
}
_HABIT_NOTE = (
    "A % of B %: in B % of the rows one option alone starts in lower case (or alone ends with a "
    "period, or without one), and that option is right in A % of these rows"
)


def _habits(report: Mapping[str, Any]) -> list[str]:
    """The rules that pick an option of some row."""
    of_modalities = report["typography"].values()
    return [rule for rule in _RULES if any(_habit(habits.get(rule)) for habits in of_modalities)]


def _by_modality(report: Mapping[str, Any]) -> Table:
    rules = {rule: _RULES[rule] for rule in _habits(report)}
    counts = {
        "shared_images": "images in train\nand test",
        "test_rows": "test rows\nabout them",
        "shared_patients": "patients in\ntrain and test",
    }
    if not any("shared_patients" in leak for leak in report["leakage"].values()):
        del counts["shared_patients"]
    names = ["", *counts.values(), *rules.values()]
    also = ", and typing habits that give answers away" if rules else ""
    table = _table(f"Leaks{also}", names)
    for modality in _LEAK_NAMES:
        leak = report["leakage"].get(modality)
        habits = [report["typography"].get(modality, {}).get(rule) for rule in rules]
        if leak or any(map(_habit, habits)):
            leaks = [f"{leak[key]:,}" if leak and key in leak else "" for key in counts]
            table.add_row(_LEAK_NAMES[modality], *leaks, *[_habit(habit) for habit in habits])
    return table


def _habit(habit: Mapping[str, float] | None) -> str:
    if not habit or not habit["share"]:
        return ""
    return f"{100 * habit['right']:.0f} % of {100 * habit['share']:.1f} %"


def _alike(report: Mapping[str, Any]) -> str:
    """What groups of images that look alike may mean, and what to do that is not done yet; empty
    where there are none besides equal files."""
    unlike = report["images"].get("perceptual_of_unlike_files") or {}
    if not (groups := unlike.get("groups")):
        return ""
    crossing = unlike["in_train_and_test"]
    sides = f" ({crossing} of them in both train and test)" if crossing else ""
    crosses_patients = crossing and report["leakage"].get("all", {}).get("shared_patients")
    unseen = by_patient = ""
    if crosses_patients and not own_columns(report):
        unseen, by_patient = (
            ", which data.split=by_image does not see,",
            " or set data.split=by_patient",
        )
    return (
        f"{counted(groups, 'group')} of images that look alike in different files{sides}: one "
        f"image saved twice{unseen} or plain ones, such as almost empty images; look at them "
        "(audit.json, images.duplicate_hashes.perceptual), and remove what is there twice"
        f"{by_patient}"
    )


def _counts(report: Mapping[str, Any], width: int) -> Table:
    """A row a count; long lists go on below within `width` characters."""
    table = _table("Counts", ["", ""])
    table.show_header = False
    table.columns[1].justify = "left"
    rows = [*_count_rows(report)]
    room = width - max(len(name) for name, _ in rows) - 2
    for name, text in rows:
        table.add_row(name, _folded(text, max(room, 20)))
    return table


def _folded(text: str, width: int) -> str:
    """A list in lines of a width, no count apart from its name."""
    together = text.replace(": ", ":\u00a0")
    return textwrap.fill(together, width, break_long_words=False).replace("\u00a0", " ")


def _count_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows by number of options", _listed(report["options"])
    for split, letters in report["letters"].items():
        yield f"right letters in {split}", _listed(letters)
    if guessed := [*report["guessing"].values()]:
        n = sum(rows["questions"] for rows in guessed)
        percent = sum(rows["questions"] * rows["percent"] for rows in guessed) / n
        yield "guessing between the options answers", f"{percent:.1f} % of {n:,} closed in test"
    for name, count in report["answer_types"].items():
        yield f"questions in {name}", f"{count:,}"
    for name, count in report["row_counts"].items():
        yield f"rows {name}", f"{count:,}"
    duplicates = {k: count for k, count in report["duplicates"].items() if isinstance(count, int)}
    for key, value in {**duplicates, **report["cross_family_leakage"]}.items():
        yield key.replace("_", " "), f"{value:,}"
    images = report["images"]
    if images["read"] is None:
        yield "images", "not read (data.images=none)"
        return
    for key in ("read", "missing", "unreadable", "tiny"):
        count = images[key] if key == "read" else len(images[key])
        yield f"images {key}", f"{count:,}"
    common = sorted(images["sizes"].items(), key=lambda item: -item[1])
    more = f" and {counted(len(common) - 5, 'other size')}" if len(common) > 5 else ""
    more = more.replace(" ", "\u00a0")
    yield "images by size", f"{_listed(dict(common[:5]))}{more}"
    same = images["duplicate_hashes"]
    for key in ("exact", "perceptual"):
        yield f"groups of images with one {key} hash", f"{len(same[key]):,}"
    yield "groups of one exact hash in train and test", f"{same['exact_in_train_and_test']:,}"


def _sides(cells: Iterable[Mapping[str, int]]) -> str:
    members = list(cells)
    sides = [side for side in SIDES if side != "validation" or any(side in c for c in members)]
    return "/".join(str(sum(cell[side] for cell in members)) for side in sides)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _table(title: str, names: list[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table
