"""`action=predict`: reasoning and answer to one question, or to a JSON list of them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medreason import config as configuration
from medreason.config import Config, machine
from medreason.console import notice, show
from medreason.data import dicom
from medreason.data.rows import parsed
from medreason.execution import gpu_slots
from medreason.generation.message_images import image_file
from medreason.models import adapters, model_folder
from medreason.runs.files import write_json
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
    """With its options, where it has some: `Which? A)CT, B)MRI`."""


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


def run(config: Config) -> None:
    """Answer as evaluation does, print, and write `predict.output` where it is given.

    Raises:
        ValueError: image, question, JSON or model cannot be used; before a model is loaded.
    """
    root, questions = _questions(config)
    config = replace(config, model=model_folder.of_run(config.model))
    model_folder.check(config.model.path)
    adapters.check(config.model.path)
    model_folder.check_hub(config.model.path, config.model.revision)
    config = replace(config, hardware=gpu_slots.hold_one(config.hardware))
    machine.check(config)
    if not Path(config.model.path).exists():
        notice(
            f"answered by the start model {config.model.name}; model.path=outputs/runs/NAME asks a "
            "trained one"
        )
    with tempfile.TemporaryDirectory() as fetched:
        window = configuration.handling(config.data)[0].ct_window
        samples = [_sample(question, root, Path(fetched), window) for question in questions]
        _refuse_other_window(config, samples)
        if any(not sample.options for sample in samples):
            notice(
                "a question without options is asked as an open one; for yes or no, append "
                "' A)Yes, B)No'"
            )
        answers = _answers(config, questions, samples)
    for answer in answers:
        show(_text(answer))
    if config.predict.output:
        write_json(Path(config.predict.output), [asdict(answer) for answer in answers])


def _questions(config: Config) -> tuple[Path, list[_Question]]:
    """(folder that image paths are relative to, questions)."""
    image, question, file = config.predict.image, config.predict.question, config.predict.questions
    if not image:
        raise ValueError(
            "predict.image has no value; set predict.image=... to an image or a folder"
        )
    if file is not None:
        return Path(image), _questions_of_file(Path(file))
    if not question:
        raise ValueError(
            "predict.question has no value; set 'predict.question=\"Which? A)CT, B)MRI\"' "
            "(Hydra needs both quotes) or predict.questions=questions.json"
        )
    return Path(), [_Question("predict.image", image, question)]


def _questions_of_file(path: Path) -> list[_Question]:
    try:
        rows = parsed(path.read_text(encoding="utf-8-sig"), path)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"predict.questions={path}: not a readable JSON file ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{path}: needs a list of {{"image", "question"}}, with one at least')
    return [_question_of_row(f"{path}, question {i}", row) for i, row in enumerate(rows)]


def _question_of_row(place: str, row: object) -> _Question:
    match row:
        case {"image": str(image), "question": str(text)}:
            return _Question(f"{place}: image", image, text)
        case _:
            raise ValueError(f'{place}: needs "image" and "question" as texts; found {row!r}')


def _sample(question: _Question, root: Path, fetched: Path, window: Window) -> Sample:
    try:
        image = image_file(question.image, root, fetched)
    except ValueError as error:
        raise ValueError(f"{question.key}={error}") from error
    text, options = _split(question.text)
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
    lines.append(f"  answer: {named or f'none, {answer.parse_status}'}")
    if answer.option_likelihoods:
        falling = sorted(answer.option_likelihoods.items(), key=lambda pair: -pair[1])
        listed = ", ".join(f"{letter} {100 * value:.1f} %" for letter, value in falling)
        lines.append(f"  option likelihood: {listed}")
    return "\n".join(lines)
