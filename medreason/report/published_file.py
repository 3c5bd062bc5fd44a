"""`published.csv` of a paper: numbers that others published, each with harness, source and tag."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from medreason.config import CONF, METHODS
from medreason.data import csv_table
from medreason.metrics import Metric
from medreason.samples import MODALITIES, TASKS

FAMILIES: dict[str, tuple[str, ...]] = {"8x8": (*MODALITIES,), "5x5": (*TASKS,)}
"""A name of several training or test sets -> these; a number of it is their mean."""
_CELLS = [f"{modality}/{task}" for modality in MODALITIES for task in TASKS]
ACCURACY = str(Metric.ACCURACY)
METRICS = (ACCURACY, "accuracy, relative", "reasoning rated by people")
"""Those that a report does not measure are shown without a number of ours."""
TAGS = ("code", "abs", "3rd", "infer", "ours")
OTHER = "other:"
"""Before the name of a method, model or set that there is no option for."""


@dataclass(frozen=True)
class Published:
    """A row of the file."""

    line: int
    method: str
    model: str
    checkpoint: str
    """The released model whose number it is: `model.name` of the run that evaluates it, or what the
    names of several begin with."""
    prompt: str
    """Empty for any."""
    minus: str
    """The prompt or method whose number is subtracted; empty where the value is no difference."""
    train: str
    """Trained on: a modality, a task, a cell, a data set, `all`, several joined by `+`, or a key of
    FAMILIES."""
    test: str
    step: int | None
    """Optimizer step of the weights; None for those at the end of the training."""
    metric: str
    value: float | None
    """Percent, of a difference percent points; None where it is not published."""
    n: int | None
    """Test questions; None where it is not published."""
    tag: str
    harness: str
    """Whose evaluation gave the number: numbers of two harnesses do not compare."""
    source: str

    @property
    def name(self) -> str:
        """`grpo prompt=no_think minus think, after 10 updates`"""
        words = [self.method.removeprefix(OTHER)]
        words += [f"prompt={self.prompt}"] if self.prompt and self.prompt != words[0] else []
        words += ["minus", self.minus] if self.minus else []
        step = f", after {self.step} updates" if self.step else ""
        metric = "" if self.metric == ACCURACY else f", {self.metric}"
        return f"{' '.join(words)}{step}{metric}"

    @property
    def place(self) -> str:
        """`ct to mri`: trained on the first, tested on the second."""
        train, test = (name.removeprefix(OTHER) for name in (self.train, self.test))
        return f"{train} to {test}" if train != test or train not in FAMILIES else f"mean of {test}"


COLUMNS = [field.name for field in fields(Published) if field.name != "line"]


def resolve(path: str) -> Path:
    """A path as it is, or below the folder that holds `conf/`. Raises ValueError unless there is a
    file."""
    for candidate in (Path(path), CONF.parent / path):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"report.published={path!r}: no such file; name a CSV file with the columns "
        f"{', '.join(COLUMNS)}, or set report.published=null"
    )


def read(path: str) -> list[Published]:
    """Its rows.

    Raises:
        ValueError: names file and line of rows for a method, model or cell that does not exist, of
            numbers out of range, and of rows for the same number of one harness; with what to do.
    """
    file = resolve(path)
    records = csv_table.read(file, COLUMNS)
    problems: list[str] = []
    published: list[Published] = []
    lines: dict[tuple[object, ...], int] = {}
    for record in records:
        line = record.line
        bad = [csv_table.extra_problem(record), *_problems(record)]
        if any(bad):
            problems += [f"line {line}: {problem}" for problem in bad if problem]
            continue
        row = Published(line, **record | _numbers(record))  # pyright: ignore[reportArgumentType]
        if (first := lines.setdefault(_identity(row), line)) != line:
            problems.append(
                f"line {line}: the same number as line {first}, of the same harness "
                f"{row.harness!r}; keep one, or name in harness what differs"
            )
        published.append(row)
    if problems:
        more = f"\nand {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError("\n".join(f"{file}, {p}" for p in problems[:5]) + more)
    return published


def _identity(row: Published) -> tuple[object, ...]:
    values = (getattr(row, name) for name in COLUMNS if name not in ("value", "n", "tag", "source"))
    return tuple(values)


def _numbers(record: Mapping[str, str]) -> dict[str, float | int | None]:
    kinds = {"value": float, "n": int, "step": int}
    return {k: kind(record[k]) if record[k] else None for k, kind in kinds.items()}


def _problems(record: Mapping[str, str]) -> Iterator[str]:
    prompts, sets = _options("prompt"), _options("data")
    places = {*MODALITIES, *TASKS, *_CELLS, *sets, *FAMILIES, "all"}
    yield _unknown("method", record["method"], METHODS)
    yield _unknown("model", record["model"], _options("model"))
    if record["prompt"]:
        yield _unknown("prompt", record["prompt"], prompts)
    if record["minus"]:
        yield _unknown("minus", record["minus"], (*METHODS, *prompts))
    for column in ("train", "test"):
        for name in record[column].split("+"):
            yield _unknown(column, name, places, "cell")
    yield _unknown("metric", record["metric"], METRICS)
    if record["value"]:
        yield _unknown("tag", record["tag"], TAGS)
        yield _value_problem(record["value"], difference=bool(record["minus"]))
    for column in ("n", "step"):
        if record[column] and not (record[column].isdecimal() and int(record[column])):
            yield f"{column} {record[column]!r}; give a whole number above 0, or leave it empty"
    for column in ("source", "harness"):
        if not record[column]:
            yield f"no {column}; say where the number comes from, or why there is none"


def _value_problem(text: str, *, difference: bool) -> str:
    low = -100 if difference else 0
    try:
        if low <= float(text) <= 100:
            return ""
    except ValueError:
        pass
    kind = "percent points of a difference" if difference else "percent"
    return f"value {text!r}; give {kind} from {low} to 100, or leave it empty: not published"


def _options(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def _unknown(column: str, name: str, known: Collection[str], what: str = "") -> str:
    if name in known or name.startswith(OTHER):
        return ""
    nearest = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    hint = hint or f"known: {', '.join(sorted(name for name in known if '/' not in name))}"
    return (
        f"no {what or column} of this name: {column} {name!r}; {hint} What there is no option for "
        f"begins with {OTHER}"
    )
