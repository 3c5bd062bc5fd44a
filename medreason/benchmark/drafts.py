"""Decoding with drafts against plain decoding of the same completions, in turn in one process."""

from __future__ import annotations

import functools
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from medreason.benchmark.roofline import Seconds, timed
from medreason.config import Config
from medreason.data.images import open_rgb
from medreason.evaluation.answers import answer_rows
from medreason.evaluation.controls import questions_of
from medreason.evaluation.run import evaluation_row, remember_replies
from medreason.generation.decoding import decode
from medreason.generation.draft_step import takes_drafts
from medreason.generation.drafts import DraftHistory
from medreason.generation.generate import prompt_texts
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.prefill import prefill_prompts
from medreason.generation.sampling import sample_completions, uniform_numbers
from medreason.models import device
from medreason.models.load import END_TOKENS, VISION_TOKENS, load_model, load_processor
from medreason.runs import environment
from medreason.samples import Sample

WRONG = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of wrong tokens in the drafts of the curve."""

_STEPS = 4
"""Of a training, in a round."""

Decoder = Callable[[DraftHistory | None], Sequence[Any]]
"""Gives completions, with drafts of a history or without."""

Rounds = Iterator[tuple[Decoder, DraftHistory]]


def measure(
    config: Config,
    samples: Sequence[Sample],
    tested: Sequence[Sample],
    on_round: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """The contents of drafts.json.

    evaluation: all of it, prefill included, with the replies of `bench.replies` as drafts; rollout:
    steps of a training, prefill included, with the completions of the steps before; wrong_0.1:
    decoding alone, with drafts that are the completions, but for a share of wrong tokens.

    Raises:
        ValueError: the model's attention takes no drafts.
    """
    state = device.join(config.hardware)
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    device.tune_for_cpu(config.hardware)  # as the worker does
    commit = environment.commit()
    torch.manual_seed(config.seed)
    model = load_model(config.model, config.hardware).to(state.device).eval()  # pyright: ignore[reportArgumentType]
    if not takes_drafts(model):
        attention = config.hardware.attention
        raise ValueError(
            f"bench.what=drafts: hardware.attention={attention} takes no drafts; set "
            "hardware.attention=sdpa"
        )
    processor = load_processor(config.model)
    work = {
        "evaluation": _evaluations(config, model, processor, tested),
        "rollout": _rollouts(config, model, processor, samples),
    }
    for share in WRONG:
        work[f"wrong_{share}"] = _curve(config, model, processor, samples, share)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for name, rounds in work.items():
            on_round(name)
            results[name] = _compare(rounds, config.bench.repeats, model.device)
    return {
        "stages": results,
        "setup": {
            "model": config.model.name,
            "path": config.model.path,
            "replies": config.bench.replies,
            "draft_tokens": config.rollout.draft_tokens,
            "unit": "wall seconds" if model.device.type == "cuda" else "CPU seconds",
            "repeats": config.bench.repeats,
            "threads": torch.get_num_threads(),
            "precision": config.hardware.precision,
            "commit": commit,
        },
    }


def _compare(rounds: Rounds, repeats: int, place: torch.device) -> dict[str, float]:
    """Medians of both ways behind one warm-up, and what drafts brought."""
    plain: list[Seconds] = []
    drafted: list[Seconds] = []
    rows, different = 0, 0
    metrics: dict[str, float] = {}
    for decoder, history in itertools.islice(rounds, 1 + repeats):
        history.take_counts()
        expected, seconds = timed(place, lambda decoder=decoder: decoder(None))
        plain.append(seconds)
        completions, seconds = timed(
            place, lambda decoder=decoder, history=history: decoder(history)
        )
        drafted.append(seconds)
        rows += len(expected)
        different += sum(a != b for a, b in zip(expected, completions, strict=True))
        metrics = history.take_counts()
    seconds = [statistics.median(s.busy for s in way[1:]) for way in (plain, drafted)]
    return {
        "plain": seconds[0],
        "drafts": seconds[1],
        "speedup": seconds[0] / seconds[1],
        "rows": rows,
        "different_rows": different,
        **metrics,
    }


def _new_history(config: Config) -> DraftHistory:
    # Not `draft_history`, which has none where a GPU decodes plainly by default.
    tokens = config.rollout.draft_tokens
    return DraftHistory(None if tokens == "auto" else int(tokens))


def _evaluations(
    config: Config, model: PreTrainedModel, processor: ProcessorMixin, tested: Sequence[Sample]
) -> Rounds:
    rows = [
        evaluation_row(config, sample, control)
        for control, sample in questions_of(tested, config.evaluation.controls, ["generated"])
    ]

    def answers(history: DraftHistory | None) -> Sequence[Any]:
        return answer_rows(
            model,
            processor,
            rows,
            batch_size=config.hardware.per_device_evaluation,
            max_new_tokens=config.evaluation.max_new_tokens,
            graphs=config.hardware.uses_cuda_graphs,
            drafts=history,
        )

    while True:
        history = _new_history(config)
        if config.bench.replies:
            path = Path(config.bench.replies)
            remember_replies(history, [path], rows, processor.tokenizer)
        yield answers, history


def _questions(config: Config, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Those of each step, without end."""
    endless = itertools.cycle(samples)
    while step := [*itertools.islice(endless, config.method.prompts_per_step)]:
        yield step


def _inputs(
    config: Config, model: PreTrainedModel, processor: ProcessorMixin, asked: Sequence[Sample]
) -> dict[str, Any]:
    """What `prefill_prompts` takes."""
    prompts = [evaluation_row(config, sample).prompt for sample in asked]
    texts = prompt_texts(processor, prompts, [True] * len(asked))
    images = [open_rgb(sample.image, sample.window) for sample in asked]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")  # pyright: ignore[reportCallIssue]
    inputs = inputs.to(model.device)
    return {**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}


def _sampling(config: Config, processor: ProcessorMixin) -> GenerationConfig:
    trl, tokenizer = config.method.trl, processor.tokenizer
    ends, banned = (
        tokenizer.convert_tokens_to_ids([*words]) for words in (END_TOKENS, VISION_TOKENS)
    )
    return GenerationConfig(
        do_sample=True,
        max_new_tokens=trl["max_completion_length"],
        **{name: trl[name] for name in ("temperature", "top_k", "top_p")},
        eos_token_id=ends,
        # Random weights would end at random.
        suppress_tokens=[*banned, *(ends if config.model.weights == "random" else [])],
    )


def _rollouts(
    config: Config, model: PreTrainedModel, processor: ProcessorMixin, samples: Sequence[Sample]
) -> Rounds:
    settings, history = _sampling(config, processor), _new_history(config)
    questions = _questions(config, samples)
    for first in itertools.count(0, _STEPS):
        asked = [*itertools.islice(questions, _STEPS)]
        steps = [(step, _inputs(config, model, processor, step)) for step in asked]
        yield functools.partial(_sampled, config, model, settings, steps, first), history


def _sampled(
    config: Config,
    model: PreTrainedModel,
    settings: GenerationConfig,
    steps: Sequence[tuple[Sequence[Sample], dict[str, Any]]],
    first: int,
    history: DraftHistory | None,
) -> list[list[int]]:
    """The completions of so many steps of a training, of which step `first` is the first."""
    completions = config.method.num_generations
    rows: list[list[int]] = []
    for step, (asked, inputs) in enumerate(steps, start=first):
        names = [sample.id for sample in asked for _ in range(completions)]
        groups = sample_completions(
            model,
            inputs,
            completions=completions,
            settings=settings,
            seeds=[f"{config.seed}:{step}:{sample.id}" for sample in asked],
            graphs=_graphs(config),
            drafts=history.of_rows(names) if history else None,
        )
        rows += [row.ids for group in groups for row in group]
    return rows


def _graphs(config: Config) -> DecodingGraphs | None:
    return DecodingGraphs() if config.hardware.uses_cuda_graphs else None


def _curve(
    config: Config,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    share: float,
) -> Rounds:
    settings, rng = _sampling(config, processor), random.Random(0)
    limit, completions = settings.max_new_tokens, config.method.num_generations
    assert limit is not None
    asked = next(_questions(config, samples))
    prefill = prefill_prompts(
        model, _inputs(config, model, processor, asked), completions=completions, room=limit
    )
    numbers = uniform_numbers([sample.id for sample in asked], completions, limit)
    numbers = numbers.to(model.device)
    names = [str(row) for row in range(len(prefill.logits))]

    def decoded(history: DraftHistory | None) -> list[list[int]]:
        rows = decode(
            model,
            prefill,
            settings,
            numbers,
            graphs=_graphs(config),
            drafts=history.of_rows(names) if history else None,
        )
        return [row.ids for row in rows]

    def wrong(token: int) -> int:
        return rng.randrange(len(processor.tokenizer)) if rng.random() < share else token

    expected = decoded(None)
    while True:
        history = _new_history(config)
        for name, ids in zip(names, expected, strict=True):
            history.add(name, [[wrong(token) for token in ids]])
        yield decoded, history
