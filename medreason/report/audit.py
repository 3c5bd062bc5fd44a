"""An audit as tables on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medreason.console import counted
from medreason.data.audit import LOWER_CASE, PERIOD, bad_row_lines, warnings
from medreason.data.rows import SIDES, once_each
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
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 100)
    console.print(_head(report))
    _print(console, _cells(report["cells"]))
    for key, title in (
        ("option_prior", "Answered by option strings alone, %: trained on (row), tested on"),
        ("option_prior_task", "The same for question types"),
    ):
        if any(report[key].values()):
            _print(console, _matrix(report[key], title))
    if (by_modality := _by_modality(report)).rows:
        _print(console, by_modality)
    _print(console, _counts(report))
    remarks = sorted(report["remarks"], key=lambda remark: not remark.get("warning"))
    said = [
        (f"{'! ' if r.get('warning') else ''}{r['file']}", r["row"], r["remark"]) for r in remarks
    ]
    for line in [*once_each(said)[:10], *bad_row_lines(report)[1:10]]:
        console.print(Text(line), soft_wrap=True)
    for warning in [*_small_test(report), *warnings(report)]:
        console.print(Text(f"! {warning}"), soft_wrap=True)
    console.print(f"digest {report['digest']}")
    if recorded := report.get("run_digests"):
        texts = [f"{recorded[key]} {_OF_RUNS[key]}" for key in recorded]
        text = f"digests of a run of these options: {', '.join(texts)}"
        console.print(Text(text), soft_wrap=True)


def _head(report: Mapping[str, Any]) -> str:
    """`432 rows; 363 of them are used, which name 121 images`"""
    rows, images = counted(report["rows"], "row"), counted(report["images"]["named"], "image")
    used = sum(report["row_counts"].get(side, 0) for side in SIDES)
    if used == report["rows"]:
        return f"{rows}, {images} named"
    return f"{rows}; {used:,} of them {_USED[used == 1]} {images}"


_USED = ("are used, which name", "is used, which names")


def _print(console: Console, table: Table) -> None:
    """Print a table with its title on one line, and as wide as it is, whatever the terminal."""
    title, table.title = table.title, None
    console.print(Text(str(title), "italic"), soft_wrap=True)
    wanted = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    console.width = max(wanted, console.width)  # `print` takes no width above it
    console.print(table, crop=False, soft_wrap=True)


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


def _matrix(shares: Mapping[str, Mapping[str, float]], title: str) -> Table:
    columns = [name for name in _NAMES if any(name in row for row in shares.values())]
    table = _table(title, ["", *[_NAMES[name] for name in columns]])
    for name, row in shares.items():
        table.add_row(_NAMES[name], *[f"{row[c]:.1f}" if c in row else "" for c in columns])
    return table


def _by_modality(report: Mapping[str, Any]) -> Table:
    rules = {
        LOWER_CASE: "only lower-case\noption is right",
        PERIOD: "only other end\n(period) is right",
    }
    counts = {
        "shared_images": "images in train\nand test by content",
        "test_rows": "test rows\nabout them",
        "shared_patients": "patients in\ntrain and test",
    }
    if not any("shared_patients" in leak for leak in report["leakage"].values()):
        del counts["shared_patients"]
    names = ["", *counts.values(), *rules.values()]
    table = _table("Leaks, and typing habits that give answers away", names)
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


def _counts(report: Mapping[str, Any]) -> Table:
    table = _table("Counts", ["", ""])
    table.show_header = False
    table.add_row("rows by number of options", _listed(report["options"]))
    for split, letters in report["letters"].items():
        table.add_row(f"right letters in {split}", _listed(letters))
    for name, count in report["answer_types"].items():
        table.add_row(f"questions in {name}", f"{count:,}")
    for name, count in report["row_counts"].items():
        table.add_row(f"rows {name}", f"{count:,}")
    duplicates = {key: value for key, value in report["duplicates"].items() if key != "first"}
    for key, value in {**duplicates, **report["cross_family_leakage"]}.items():
        table.add_row(key.replace("_", " "), f"{value:,}")
    images = report["images"]
    if images["read"] is None:
        table.add_row("images", "not read (data.images=none)")
        return table
    for key in ("read", "missing", "unreadable", "tiny"):
        count = images[key] if key == "read" else len(images[key])
        table.add_row(f"images {key}", f"{count:,}")
    common = sorted(images["sizes"].items(), key=lambda item: -item[1])
    more = f" and {counted(len(common) - 5, 'other size')}" if len(common) > 5 else ""
    table.add_row("images by size", f"{_listed(dict(common[:5]))}{more}")
    same = images["duplicate_hashes"]
    for key in ("exact", "perceptual"):
        table.add_row(f"groups of images with one {key} hash", f"{len(same[key]):,}")
    table.add_row("of the exact ones, in train and test", f"{same['exact_in_train_and_test']:,}")
    return table


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
