"""Folders of `datasets.save_to_disk` in the columns that R1-V and Med-R1 train on.

Source: the loaders of both codes; what the columns hold: experiments/med_r1/README.md, "Data".
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medreason.data import med_r1
from medreason.data.rows import SIDES
from medreason.replies import published_answer
from medreason.samples import Sample, refuse_glued, split_problem

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("image", "problem", "solution")
FACTS = ("modality", "task", "source", "patient", "explanation", "answer_type", "alternatives")
"""Columns behind those, which the public codes do not read."""


def is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read(folder: Path) -> dict[str, Dataset]:
    """Its splits; rows that were saved without one are those of train."""
    from datasets import Dataset, load_from_disk  # seconds

    saved = load_from_disk(folder)
    if isinstance(saved, Dataset):
        return {"train": saved}
    return {str(name): part for name, part in saved.items()}


def parts(problem: str, solution: str) -> tuple[str, tuple[str, ...], str]:
    """Question, options and the right letter; of an open question no options and the answer.

    Raises ValueError where options or solution cannot be read.
    """
    question, options = split_problem(problem)
    refuse_glued(options)
    answer = med_r1.letter(solution, options) if options else published_answer(solution)
    return question, options, answer


def write(folder: Path, samples: Sequence[Sample]) -> None:
    """Save the samples with their images, a split for each side, in place of what was there.

    Raises:
        ValueError: of a sample, whose question or options would be read as others.
    """
    from datasets import Dataset, DatasetDict, Features, Image, List, Value  # seconds

    shutil.rmtree(folder, ignore_errors=True)
    for sample in samples:
        if parts(sample.problem, _solution(sample)) != (
            sample.question.strip(),
            sample.options,
            sample.answer.strip(),
        ):
            raise ValueError(
                f"{sample.id}: {sample.problem!r} would not be read back as it is: its question or "
                "an option holds what separates options, such as ' A)'; leave the row out"
            )
    columns = {name: Value("string") for name in (*COLUMNS[1:], *FACTS)}
    features = Features({"image": Image(), **columns, "alternatives": List(Value("string"))})
    sides = {side: [s for s in samples if s.split == side] for side in SIDES}
    DatasetDict(
        {
            side: Dataset.from_list([_row(sample) for sample in members], features=features)
            for side, members in sides.items()
            if members
        }
    ).save_to_disk(folder)


def _row(sample: Sample) -> dict[str, str | Sequence[str] | None]:
    row = {"image": str(sample.image), "problem": sample.problem, "solution": _solution(sample)}
    return row | {name: getattr(sample, name) for name in FACTS}


def _solution(sample: Sample) -> str:
    return f"<answer> {sample.answer} </answer>"
