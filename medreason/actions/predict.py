"""`action=predict`: reasoning and answer to one question, or to a JSON list of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medreason.config import Config, machine
from medreason.data.images import check as check_image
from medreason.models import adapters, model_folder
from medreason.prompts import evaluation_prompt
from medreason.replies import parse
from medreason.runs.files import write_json
from medreason.samples import Sample, letter_at, split_problem


def run(config: Config) -> None:
    """Answer, print, and write `predict.output` where it is given.

    Raises:
        ValueError: image, question, JSON or model cannot be used; before a model is loaded.
    """
    samples = _asked(config)
    machine.check(config)
    model_folder.check(config.model.path)
    adapters.check(config.model.path)
    answers = _answers(config, samples)
    for answer in answers:
        print(_told(answer))  # noqa: T201
    if config.predict.output:
        write_json(Path(config.predict.output), answers)


def _asked(config: Config) -> list[Sample]:
    asked = config.predict
    if not asked.image:
        raise ValueError(
            "predict.image has no value; set predict.image=... to an image or a folder"
        )
    place = Path(asked.image)
    if asked.questions is None:
        if not asked.question:
            raise ValueError(
                'predict.question has no value; set predict.question="Which? A)CT, B)MRI" or '
                "predict.questions=questions.json"
            )
        rows: list[Any] = [{"image": place.name, "question": asked.question}]
        root = place.parent
    else:
        root, rows = place, _rows(Path(asked.questions))
    return [_sample(root, i, row) for i, row in enumerate(rows)]


def _rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"predict.questions={path}: not a readable JSON file ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{path}: needs a list of {{"image", "question"}}, with one at least')
    return rows


def _sample(root: Path, place: int, row: Any) -> Sample:  # noqa: ANN401
    where = f"question {place}"
    known = row if isinstance(row, dict) else {}
    if not all(isinstance(known.get(key), str) for key in ("image", "question")):
        raise ValueError(f'{where}: needs "image" and "question" as texts; found {row!r}')
    image = root / row["image"]
    check_image(image)
    question, options = split_problem(row["question"])
    return Sample(
        id=str(place),
        image=image,
        question=question,
        options=options,
        answer=letter_at(0) if options else "",  # not known, and not shown
        explanation=None,
        modality="unknown",
        task="unknown",
        source="predict",
        patient=None,
        split="test",
    )


def _answers(config: Config, samples: list[Sample]) -> list[dict[str, Any]]:
    # torch and transformers, seconds
    from medreason.evaluation.option_likelihood import option_likelihoods_unshared
    from medreason.generation.generate import generate
    from medreason.generation.rows import original_image
    from medreason.models.load import load_model, load_processor

    device = "cuda" if config.hardware.accelerator == "cuda" else "cpu"
    model = load_model(config.model, config.hardware).to(device)  # pyright: ignore[reportArgumentType]
    processor = load_processor(config.model)
    prompts = [
        evaluation_prompt(s, config.prompt.evaluation, open_template=config.prompt.open)
        for s in samples
    ]
    completions = generate(
        model,
        processor,
        samples,
        prompts,
        batch_size=config.hardware.per_device_evaluation,
        max_new_tokens=config.evaluation.max_new_tokens,
    )
    answers = []
    for sample, prompt, completion in zip(samples, prompts, completions, strict=True):
        reply = parse(
            completion.text, sample.options, truncated=completion.finish_reason == "length"
        )
        shares = None
        if len(sample.options) > 1:
            tagged = config.prompt.style != "free"
            image = original_image(sample)
            found = option_likelihoods_unshared(
                model, processor, sample, image, prompt, completion.text, tagged=tagged
            )
            shares = dict(zip(sample.letters, found, strict=True))
        answers.append(
            {
                "image": str(sample.image),
                "question": sample.problem,
                "reasoning": reply.reasoning,
                "answer": reply.answer,
                "not_read": reply.reason or None,
                "option_likelihood": shares,
                "completion": completion.text,
            }
        )
    return answers


def _told(answer: dict[str, Any]) -> str:
    lines = [f"{answer['image']}: {answer['question']}"]
    if answer["reasoning"]:
        lines.append(f"  reasoning: {answer['reasoning']}")
    lines.append(f"  answer: {answer['answer'] or 'none, ' + answer['not_read']}")
    if answer["option_likelihood"]:
        shares = sorted(answer["option_likelihood"].items(), key=lambda pair: -pair[1])
        lines.append("  likelihood: " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in shares))
    return "\n".join(lines)
