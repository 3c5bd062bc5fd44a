"""`action=predict`: reasoning and answer to one question, about an image or all of a folder, or to
those of a file."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason.config import Config, machine
from medreason.console import counted, notice, show
from medreason.data import asked, dicom, images
from medreason.execution import gpu_slots
from medreason.generation.message_images import image_file
from medreason.models import adapters, model_folder
from medreason.runs.files import read_json
from medreason.samples import (
    UNKNOWN,
    Sample,
    Window,
    letter_at,
    refuse_glued,
    split_problem,
)


@dataclass(frozen=True)
class _Question:
    key: str
    """What names its image in an error: a config key, or a place in the questions file."""
    image: str
    """As it was given: path, `file://`, data URL or http(s) URL."""
    text: str
    """With its options, where it has some and `options` is empty: `Which? A)CT, B)MRI`."""
    root: Path = Path()
    """Where its path starts from."""
    options: tuple[str, ...] = ()
    yes_no: tuple[str, ...] = ()
    """Its options where neither `options` nor `text` has any."""
    remedy: str = ""
    """What is said behind an error of its image."""
    yes_no_remedy: str = ""
    """How its file gives it Yes and No as options."""


@dataclass(frozen=True)
class _Answer:
    image: str
    question: str
    reasoning: str | None
    answer: str | None
    parse_status: str
    """ "parsed", or why there is no answer."""
    options: dict[str, str]
    """Letter -> text; empty for an open question."""
    option_likelihoods: dict[str, float]
    """Of each letter; empty for an open question."""
    completion: str

    @property
    def answer_type(self) -> str:
        """closed, where `answer` is the letter of an option, or open, where it is a text."""
        return "closed" if self.options else "open"

    def row(self) -> dict[str, Any]:
        """Of the file of answers."""
        return asdict(self) | {"answer_type": self.answer_type}


def run(config: Config) -> None:
    """Answer as evaluation does, print, and write `predict.output` where it is given.

    Raises:
        ValueError: image, question, JSON or model cannot be used; before a model is loaded.
    """
    if config.predict.output:
        asked.check_output(Path(config.predict.output))
    config = replace(config, model=model_folder.of_run(config.model))
    questions = _with_options_of_training(config, _questions(config))
    model_folder.check(config.model.path)
    adapters.check(config.model.path)
    model_folder.check_hub(config.model.path, config.model.revision)
    config = replace(config, hardware=gpu_slots.hold_one(config.hardware))
    machine.check(config)
    if not Path(config.model.path).exists():
        notice(
            f"answered by the start model {config.model.name}; model.path="
            f"{config.folder / 'runs' / 'NAME'} asks a trained one"
        )
    with tempfile.TemporaryDirectory() as fetched:
        window = configuration.handling(config.data)[0].ct_window
        samples = [_sample(question, Path(fetched), window) for question in questions]
        _refuse_other_window(config, samples)
        if note := _open_note(questions, samples):
            notice(note)
        answers = _answers(config, questions, samples)
    if config.predict.output:
        asked.write(Path(config.predict.output), [answer.row() for answer in answers])
    for answer in answers:
        show(_text(answer))
    if config.predict.output:
        notice(f"{counted(len(answers), 'answer')} written to {config.predict.output}")


def _open_note(questions: Sequence[_Question], samples: Sequence[Sample]) -> str:
    """What to do about a question without options that is one of yes or no; empty where none is."""
    remedies = [q.yes_no_remedy for q, s in zip(questions, samples, strict=True) if not s.options]
    if not remedies:
        return ""
    in_file = f", or {remedies[0]}" if remedies[0] else ""
    count = f" ({len(remedies)} of {len(samples)} here)" if len(samples) > 1 else ""
    return (
        f"a question without options is asked as an open one, whose answer is a text{count}; for "
        f"yes or no, append ' A)Yes, B)No'{in_file}"
    )


def _questions(config: Config) -> list[_Question]:
    image, question, file = config.predict.image, config.predict.question, config.predict.questions
    if file is not None:
        if question:
            raise ValueError(
                f"predict.question={question!r} beside predict.questions={file}: give one of them"
            )
        return _questions_of_file(Path(file), image, _columns(config), _columns_of_training(config))
    if not image:
        raise ValueError(
            "predict.image has no value; set predict.image=... to an image or a folder of images, "
            "or predict.questions=... to a file whose rows name their images"
        )
    if not question:
        raise ValueError(
            "predict.question has no value; set 'predict.question=\"Which? A)CT, B)MRI\"' "
            "(Hydra needs both quotes) or predict.questions=questions.csv"
        )
    if folder := _folder(image):
        return [_Question("predict.image", str(p), question) for p in _images_of(folder)]
    return [_Question("predict.image", image, question)]


def _folder(image: str | None) -> Path | None:
    """The folder that `predict.image` names, if it is one."""
    path = Path((image or "").removeprefix("file://"))
    return path if image and not image.startswith("data:") and path.is_dir() else None


def _images_of(folder: Path) -> list[Path]:
    """The images of a folder, by name. Raises ValueError where it has none."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    found = [path for path in files if images.is_named_as_image(path) or dicom.has_header(path)]
    if not found:
        below = sorted(
            {path.parent for path in folder.rglob("*") if images.is_named_as_image(path)}
        )
        hint = f", such as predict.image={below[0]}" if below else ""
        raise ValueError(
            f"predict.image={folder} is a folder without images; give an image, or a folder that "
            f"has some{hint}"
        )
    if others := [path.name for path in files if path not in found]:
        notice(f"{folder}: not asked about, since they are no images: {', '.join(others[:5])}")
    return found


def _columns(config: Config) -> Mapping[str, str | Sequence[str] | None] | None:
    """`data.columns` of a set of questions of one's own; None of other data sets."""
    if config.data["_target_"] != "medreason.data.hub.read":
        return None
    return config.data.get("columns") or {}


def _run_of(config: Config) -> Path | None:
    """The folder of the run that has trained the model, where the model lies in one."""
    folder = Path(config.model.path).parent
    is_run = (folder / "state.json").exists() and (folder / "config.yaml").exists()
    return folder if is_run else None


def _columns_of_training(config: Config) -> Mapping[str, str | Sequence[str] | None]:
    """`data.columns` of the run that has trained the model; empty without, or of another data
    set."""
    run = _run_of(config)
    return (_columns(configuration.read(run / "config.yaml")) or {}) if run else {}


def _with_options_of_training(config: Config, questions: list[_Question]) -> list[_Question]:
    """The questions, those of yes or no with these options where the run that has trained the model
    asked them so; one line says of how many."""
    run = _run_of(config)
    files = sorted(run.glob("evaluations/*/data.json")) if run else []
    known: dict[str, list[str]] = {}
    for file in files:  # all say the same of the training
        known |= read_json(file).get("yes_no_questions", {})
    options = {_plain(text): tuple(each) for text, each in known.items()}
    asked = []
    for question in questions:
        has_own = question.options or question.yes_no or _split(question.text)[1]
        found = () if has_own else options.get(_plain(question.text), ())
        asked.append(replace(question, yes_no=found) if found else question)
    pairs = Counter(new.yes_no for new, old in zip(asked, questions, strict=True) if new != old)
    for pair, count in pairs.items():
        listed = ", ".join(f"{letter_at(i)}){text}" for i, text in enumerate(pair))
        of_all = f" ({count:,} of {len(questions):,} here)" if len(questions) > 1 else ""
        notice(f"asked with the options {listed}, as in the training of the model{of_all}")
    return asked


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _questions_of_file(
    path: Path,
    image: str | None = None,
    columns: Mapping[str, str | Sequence[str] | None] | None = None,
    of_training: Mapping[str, str | Sequence[str] | None] | None = None,
) -> list[_Question]:
    """`image` is the folder that paths start from, None that of the file, or one image for all."""
    folder = _folder(image)
    one = image if image and not folder else None
    before = "data=hub " if columns is None else ""
    rows, notes = asked.read(
        path, columns or {}, needs_image=one is None, before=before, of_training=of_training
    )
    for note in notes:
        notice(note)
    if one and (own := next((row for row in rows if row.image), None)):
        raise ValueError(
            f"predict.image={one} is no folder, and {own.place} names an image of its own, "
            f"{own.image}; leave predict.image out, or give the folder that images lie in"
        )
    return [
        _Question(
            "predict.image" if one else f"{row.place}: image",
            one or row.image or "",
            row.text,
            Path() if one else folder or path.parent,
            row.options,
            row.yes_no,
            "" if folder or one else "; predict.image=FOLDER says where paths start from",
            row.yes_no_remedy,
        )
        for row in rows
    ]


def _sample(question: _Question, fetched: Path, window: Window) -> Sample:
    try:
        image = image_file(question.image, question.root, fetched)
    except ValueError as error:
        hint = question.remedy if "no such file" in str(error) else ""
        raise ValueError(f"{question.key}={error}{hint}") from error
    text, options = question.text, question.options
    if not options:
        text, options = _split(question.text)
        options = options or question.yes_no
    try:
        refuse_glued(options)
        return _unanswered(question.key, image, text, options, window)
    except ValueError as error:
        raise ValueError(f"{question.key}: {error}") from error


_MARK = re.compile(
    r"(?:^|(?<=[\s,;?:.]))\(?([A-Z])[):](?=\s*\S)|(?:^|(?<=[,;?:.]\s))([A-Z])\.(?=\s*\S)",
    re.MULTILINE,
)


def _split(problem: str) -> tuple[str, tuple[str, ...]]:
    """Question and options: as Med-R1 publishes them, or as people type them, `(A) CT (B) MRI`,
    `A. CT; B. MRI`, on one line or each on its own."""
    question, options = split_problem(problem)
    if len(options) > 1:
        return question, options
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(problem):
        letter = mark[1] or mark[2]
        if letter == "A":
            marks = [mark]
        elif marks and letter == letter_at(len(marks)):
            marks.append(mark)
    if len(marks) < 2:
        return question, options
    ends = [*(mark.start() for mark in marks[1:]), len(problem)]
    texts = [problem[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
    return problem[: marks[0].start()].strip(), tuple(text.strip(" \n\t,;") for text in texts)


def _refuse_other_window(config: Config, samples: Sequence[Sample]) -> None:
    """Raise ValueError where a run folder's model would see DICOM in another window than it was
    trained with."""
    file = Path(config.model.path).parent / "config.yaml"
    if not file.exists() or not any(dicom.has_header(sample.image) for sample in samples):
        return
    trained = configuration.handling(configuration.read(file).data)[0]
    asked = configuration.handling(config.data)[0]
    for key in ("window", "window_from"):
        value, of_training = getattr(asked, key), getattr(trained, key)
        if value != of_training:
            raise ValueError(
                f"data.{key}={value}: the model in {config.model.path} was trained with "
                f"{of_training}; set data.{key}={of_training}"
            )


def _unanswered(
    key: str, image: Path, text: str, options: tuple[str, ...], window: Window
) -> Sample:
    return Sample(
        id=key,
        image=image,
        question=text,
        options=options,
        answer=letter_at(0) if options else UNKNOWN,  # not shown
        explanation=None,
        modality="unknown",
        task="unknown",
        source="predict",
        patient=None,
        split="test",
        window=window,
    )


def _answers(
    config: Config, questions: Sequence[_Question], samples: Sequence[Sample]
) -> list[_Answer]:
    # torch and transformers, seconds
    from medreason.evaluation.run import evaluation_row, predict_rows
    from medreason.models import device

    device.join(config.hardware)
    both = replace(config.evaluation, answers=["generated", "option_likelihood"], encoder=None)
    config = replace(config, evaluation=both)
    rows = [evaluation_row(config, sample) for sample in samples]
    predictions = predict_rows(config, rows, lambda *_: None)
    return [
        _Answer(
            image=question.image,
            question=sample.problem,
            reasoning=prediction.reasoning,
            answer=prediction.answer,
            parse_status=prediction.parse_status,
            options=dict(zip(sample.letters, sample.options, strict=True)),
            option_likelihoods=dict(
                zip(sample.letters, prediction.option_likelihoods, strict=True)
            ),
            completion=prediction.completion,
        )
        for question, sample, prediction in zip(questions, samples, predictions, strict=True)
    ]


def _text(answer: _Answer) -> str:
    # A data URL holds the whole image.
    lines = [f"{answer.image[:80]}: {answer.question}"]
    lines.append(f"  reply: {' '.join(answer.completion.split())}")
    option = answer.options.get(answer.answer or "")
    named = f"{answer.answer} ({option})" if option else answer.answer
    if answer.answer_type == "open" and named:
        named += " (a text: the question has no options)"
    lines.append(f"  answer: {named or f'none, {answer.parse_status}'}")
    if answer.option_likelihoods:
        falling = sorted(answer.option_likelihoods.items(), key=lambda pair: -pair[1])
        listed = ", ".join(f"{letter} {100 * value:.1f} %" for letter, value in falling)
        lines.append(f"  option likelihood right behind the prompt, without reasoning: {listed}")
    return "\n".join(lines)
