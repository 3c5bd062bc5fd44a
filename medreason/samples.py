"""A question about an image: the one type that every data set gives and every other part takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODALITIES = {
    "ct": "CT",
    "mri": "MRI",
    "xray": "X-ray",
    "ultrasound": "Ultrasound",
    "dermoscopy": "Dermoscopy",
    "fundus": "Fundus",
    "oct": "OCT",
    "microscopy": "Microscopy",
}
"""The 8 imaging modalities of the matrix in the paper's order, with the names readers see."""

TASKS = {
    "anatomy": "Anatomy",
    "disease": "Disease",
    "grading": "Grading",
    "modality_recognition": "Modality",
    "attributes": "Attributes",
}
"""The 5 question types of the matrix, in the order of the paper."""

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Sample:
    """One question about one image. The same type for every data set."""

    id: str
    """Unique in its data set and stable between runs."""
    image: Path
    question: str
    """The question alone, without its options."""
    options: tuple[str, ...]
    """Option texts in the order of their letters; empty for an open question."""
    answer: str
    """The right letter of a closed question, the reference text of an open one."""
    explanation: str | None
    """A reference explanation of the answer, where the data set has one."""
    modality: str
    """A key of MODALITIES, or "unknown"."""
    task: str
    """A key of TASKS, or "unknown"."""
    source: str
    """The data set the row comes from, finer than the name of our loader where that is known."""
    patient: str | None
    split: str
    """ "train" or "test"."""

    @property
    def answer_text(self) -> str:
        """The text of the right option; for an open question the answer itself."""
        return self.options[LETTERS.index(self.answer)] if self.options else self.answer

    @property
    def problem(self) -> str:
        """Question and options on one line, in the published form: `Which? A)CT, B)MRI`."""
        listed = ", ".join(f"{LETTERS[i]}){text}" for i, text in enumerate(self.options))
        return f"{self.question} {listed}" if listed else self.question

    @property
    def cell(self) -> tuple[str, str]:
        """(modality, task): the place of the sample in the matrix."""
        return self.modality, self.task
