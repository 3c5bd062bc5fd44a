"""A question about an image: the type that every data set yields and every other part takes."""

from __future__ import annotations

import re
import string
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

UNKNOWN = "unknown"
"""The modality or task of a row whose release does not say it: a row and a column of its own."""

MODALITY_NAMES = {**MODALITIES, UNKNOWN: "Unknown"}
TASK_NAMES = {**TASKS, UNKNOWN: "Unknown"}
"""All values of a sample's modality and task, with the names readers see."""

LETTERS = string.ascii_uppercase
"""The letters of options in their order; no sample has more options than this."""

YES_NO: dict[tuple[str, ...], tuple[set[str], set[str]]] = {
    ("Yes", "No"): ({"yes"}, {"no"}),
    ("是", "否"): (
        {"是", "是的", "有", "包含", "包括", "存在", "可以", "对"},
        {"否", "不是", "没有", "不包含", "不包括", "不存在", "不可以", "不对"},
    ),
}
"""Options of a question that is answered by yes or no, and the words that mean either. Those of
Chinese are the answers of SLAKE's closed questions."""

YES_NO_ELSEWHERE: tuple[tuple[set[str], set[str]], ...] = (
    ({"ja"}, {"nein"}),  # German
    ({"ja"}, {"nee"}),  # Dutch
    ({"ja"}, {"nej", "nei"}),  # Danish, Swedish, Norwegian
    ({"oui"}, {"non"}),  # French
    ({"sí", "si", "sì"}, {"no"}),  # Spanish, Italian
    ({"sim"}, {"não", "nao"}),  # Portuguese
    ({"da"}, {"nu", "ne", "net", "nyet"}),  # Romanian, Croatian, Russian
    ({"да"}, {"нет", "не"}),  # Russian, Bulgarian
    ({"так"}, {"ні"}),  # Ukrainian
    ({"tak"}, {"nie"}),  # Polish
    ({"ano", "áno"}, {"ne", "nie"}),  # Czech, Slovak
    ({"igen"}, {"nem"}),  # Hungarian
    ({"kyllä"}, {"ei"}),  # Finnish
    ({"evet"}, {"hayır", "hayir"}),  # noqa: RUF001  Turkish
    ({"ναι"}, {"όχι", "οχι"}),  # noqa: RUF001  Greek
    ({"نعم"}, {"لا"}),  # Arabic
    ({"بله"}, {"خیر", "نه"}),  # Persian
    ({"כן"}, {"לא"}),  # Hebrew
    ({"हाँ", "हां"}, {"नहीं"}),  # Hindi
    ({"ya"}, {"tidak"}),  # Indonesian
    ({"có"}, {"không"}),  # Vietnamese
    ({"はい"}, {"いいえ"}),  # Japanese
    ({"예", "네"}, {"아니오", "아니요"}),  # Korean
)
"""Words for yes and for no that make no options by themselves: their rows are named."""

ANSWER_TYPES = ("closed", "open")

_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>|<(?:image|video|audio)>", re.IGNORECASE)
"""What tokenizers and chat templates give a meaning of its own."""
_TOKEN_OR_TAG = re.compile(rf"{_TOKEN.pattern}|</?\s?(?:think|answer)\s?>", re.IGNORECASE)
"""These, and the tags of a reply."""


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


def refuse_glued(options: Sequence[str]) -> None:
    """Raise ValueError where `split_problem` left an option in the text of another: a letter is
    missing before it, or there are more options than letters."""
    for text in options:
        if glued := re.search(r", ([A-Z]{1,2})\)(?=\S)", text):
            raise ValueError(
                f"options are not lettered in sequence: {glued[1]!r} stands in {text!r}; letter "
                f"them A), B), C) ... up to {LETTERS[-1]})"
            )


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

    Raises ValueError where it has too many options, an answer that is no letter of them, an answer
    type that is not known, or a text that is empty, no text or holds a special token.
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
    """ "train", "validation" or "test"; empty until `data.splits` decides."""
    window: Window = SOFT_TISSUE
    """Of its image; loading sets it to `data.window`."""
    alternatives: tuple[str, ...] = ()
    """Further texts that are as right as `answer`; of an open question alone."""
    answer_type: str = ""
    """One of ANSWER_TYPES where the release says it, else empty; see `closed`."""

    def __post_init__(self) -> None:
        if len(self.options) > len(LETTERS):
            raise ValueError(f"{len(self.options)} options; a question has at most {len(LETTERS)}")
        self._refuse_texts()
        if self.answer_type not in ("", *ANSWER_TYPES):
            raise ValueError(f"answer type {self.answer_type!r}; known: {', '.join(ANSWER_TYPES)}")
        if self.options and self.answer not in dict(self.lettered):
            raise ValueError(
                f"answer {self.answer!r} is no letter of its {len(self.options)} options; give "
                f"{' or '.join(self.letters)}, or no options for an open question"
            )

    def _refuse_texts(self) -> None:
        """Refuse texts that fail in the middle of a training or are lost without a word."""
        texts = (self.question, self.answer, self.modality, self.task, self.source)
        optional = (text for text in (self.explanation, self.patient) if text is not None)
        texts = (*texts, *self.options, *self.alternatives, *optional)
        if not isinstance(self.image, Path):
            raise ValueError(f"image is {self.image!r}; needs a path")
        if all(isinstance(t, str) and t.strip() and "<" not in t for t in texts):
            return  # nearly all of a hundred thousand rows
        for name, text in self._named_texts().items():
            if not isinstance(text, str) or not text.strip():
                others = ", or None where unknown" if name in ("explanation", "patient") else ""
                raise ValueError(f"{name} is {text!r}; needs a text{others}")
            pattern = _TOKEN if name == "question" else _TOKEN_OR_TAG
            if token := pattern.search(text):
                raise ValueError(
                    f"{name} holds {token[0]!r}, which models and replies give a meaning of its "
                    "own; remove it from the text (the image is put before a question by itself)"
                )

    def _named_texts(self) -> dict[str, str]:
        names = ("question", "answer", "modality", "task", "source")
        texts = {name: getattr(self, name) for name in names}
        texts |= {f"option {i}": text for i, text in enumerate(self.options, 1)}
        texts |= {f"alternative {i}": text for i, text in enumerate(self.alternatives, 1)}
        optional = {"explanation": self.explanation, "patient": self.patient}
        return texts | {name: text for name, text in optional.items() if text is not None}

    @property
    def closed(self) -> bool:
        """Whether the literature counts it as closed: by the release's answer type, else where it
        has options. A closed question can have none (`Left or right?`)."""
        return self.answer_type == "closed" if self.answer_type else bool(self.options)

    @property
    def references(self) -> tuple[str, ...]:
        """The texts that are right: that of the right option, or answer and alternatives."""
        return (self.answer_text, *self.alternatives)

    def is_right(self, answer: str) -> bool:
        """Whether a letter names the right option; one with the same text is as right."""
        return self.text_of(answer).strip() == self.answer_text.strip()

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
