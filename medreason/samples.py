"""A question about an image: the type that every data set yields and every other part takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
"""The letters of options in their order; no sample has more options than this."""


def letter_at(index: int) -> str:
    """The letter of the option at an index. Raises ValueError where there is none."""
    if not 0 <= index < len(LETTERS):
        raise ValueError(f"option {index}; options are counted from 0 to {len(LETTERS) - 1}")
    return LETTERS[index]


def letters_of(options: Sequence[str]) -> str:
    """The letters of these options: `ABC` of three."""
    return LETTERS[: len(options)]


def lettered(options: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(letter, text) of each option; options beyond the last letter are left out."""
    return tuple(zip(LETTERS, options, strict=False))


def list_options(options: Sequence[str]) -> str:
    """The options on one line, in the form that Med-R1 publishes: `A)CT, B)MRI`."""
    return ", ".join(f"{letter}){text}" for letter, text in lettered(options))


def split_problem(problem: str) -> tuple[str, tuple[str, ...]]:
    """Question and option texts of a `Sample.problem`; no options where ` A)` is missing.

    Source: experiments/med_r1/README.md, "Data": ` A)`, then `, B)`, `, C)`, `, D)` in sequence.
    """
    question, separator, rest = problem.partition(" A)")
    options = []
    for letter in LETTERS[1:]:
        option, following, after = rest.partition(f", {letter})")
        if not following:
            break
        options.append(option)
        rest = after
    return question.strip(), tuple(text.strip() for text in (*options, rest)) if separator else ()


@dataclass(frozen=True)
class Window:
    """Hounsfield units that a CT image in DICOM shows from black to white."""

    center: float
    width: float
    replaces_that_of_files: bool = False
    """Whether it counts in place of the window that a file names, not only where it names none."""


WINDOWS = {
    "soft_tissue": Window(40.0, 400.0),
    "lung": Window(-600.0, 1500.0),
    "bone": Window(400.0, 1800.0),
    "brain": Window(40.0, 80.0),
}
"""Windows by name. Source: https://radiopaedia.org/articles/windowing-ct"""

SOFT_TISSUE = WINDOWS["soft_tissue"]


@dataclass(frozen=True)
class Sample:
    """One question about one image.

    Raises ValueError where a closed question has too many options, or an answer that is no letter.
    """

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
    """The original data set: of OmniMedVQA's rows one of its 42 sources."""
    patient: str | None
    """Equal for all images of a patient, None where that is not known."""
    split: str
    """ "train" or "test"; empty until `data.splits` decides."""
    window: Window = SOFT_TISSUE
    """Of its image; loading sets it to `data.window`."""

    def __post_init__(self) -> None:
        if len(self.options) > len(LETTERS):
            raise ValueError(f"{len(self.options)} options; a question has at most {len(LETTERS)}")
        if self.options and self.answer not in dict(self.lettered):
            raise ValueError(
                f"answer {self.answer!r} is no letter of its {len(self.options)} options; give "
                f"{' or '.join(self.letters)}, or no options for an open question"
            )

    @property
    def letters(self) -> str:
        """The letters of its options: `ABC` of three, none of an open question."""
        return letters_of(self.options)

    @property
    def lettered(self) -> tuple[tuple[str, str], ...]:
        """(letter, text) of each option."""
        return lettered(self.options)

    def text_of(self, answer: str) -> str:
        """What an answer says: the text of the option with this letter, any other as it is."""
        return dict(self.lettered).get(answer, answer)

    @property
    def answer_text(self) -> str:
        """The text of the right option; for an open question the answer itself."""
        return self.text_of(self.answer)

    @property
    def problem(self) -> str:
        """Question and options on one line, in the form that Med-R1 publishes."""
        return f"{self.question} {list_options(self.options)}" if self.options else self.question

    def reordered(self, order: Sequence[int]) -> Sample:
        """The sample with its options in this order of indices; the letter follows its text."""
        right = order.index(self.letters.index(self.answer))
        options = tuple(self.options[index] for index in order)
        return replace(self, options=options, answer=letter_at(right))

    @property
    def cell(self) -> tuple[str, str]:
        """(modality, task): the cell of the matrix that the sample belongs to."""
        return self.modality, self.task
