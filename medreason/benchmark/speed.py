"""Speed, memory and equality of grouped GRPO against stock TRL: same weights, rows and lengths.

Both engines are measured in turn in one process. On CPU the figures are CPU seconds, which other
programs on the machine disturb less than wall seconds; those are beside them.
"""

from __future__ import annotations

import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medreason.benchmark.roofline import copy_bandwidth, matrix_rate, roofline_seconds, timed
from medreason.config import Config
from medreason.data.images import open_rgb, resize_square
from medreason.evaluation.answers import answer_rows, answer_rows_unshared
from medreason.evaluation.controls import samples_under
from medreason.generation.rows import Completion, EvaluationRow
from medreason.models.load import load_model, load_processor, without_adapter
from medreason.prompts import evaluation_prompt
from medreason.runs import environment
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import grpo
from medreason.training.group_batches import questions_to_rows
from medreason.training.grouped_trainer import GroupedGRPOTrainer
from medreason.training.peak_memory import PeakMemory

ENGINES = {"trl": "trl", "grouped": "grouped"}
STAGES = ("prepare", "generation", "logps", "update", "step")
IMAGES = 2
"""Evaluated on, with all their questions and the configured controls."""


def measure(
    config: Config,
    samples: Sequence[Sample],
    tested: Sequence[Sample],
    folder: Path,
    on_round: Callable[[int, int, int], None] = lambda done, rounds, tokens: None,
) -> dict[str, Any]:
    """The contents of bench.json; `stages` has `<stage>_<tokens>` in seconds.

    prepare: text and image to tensors, rewards, advantages; logps: forward without gradients;
    update: log-probabilities, loss and backward; step: all but logps; evaluation: the plain loop
    of fixed batches with `generate` against questions that share their images. `on_round` hears of
    each round of measurements before it begins.
    """
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    torch.set_flush_denormal(config.hardware.accelerator == "cpu")  # as the worker does
    commit = environment.commit()  # the code may change on disk while this runs
    # Random weights have no path to load a reference model from, and engines draw other masks.
    trl = {**config.method.trl, "beta": 0.0}
    adapter = {**config.adapter, "lora_dropout": 0.0} if config.adapter else {}
    config = replace(config, method=replace(config.method, trl=trl), adapter=adapter)
    chosen = _resized(samples[: config.method.prompts_per_step], config.bench.image_size, folder)
    trainers = {name: _trainer(config, chosen, engine, folder) for name, engine in ENGINES.items()}
    rows = next(iter(trainers["trl"].get_train_dataloader()))
    asked = _asked(config, tested, folder)
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    wall: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    peaks = dict.fromkeys(ENGINES, 0)
    replies: dict[str, list[Completion]] = {}
    same_answers = True
    made: dict[str, int] = {}  # tokens
    rates: dict[int, list[tuple[float, float]]] = defaultdict(list)
    device = trainers["trl"].model.device
    dtype = _computed_in(trainers["trl"])
    lengths = config.bench.tokens
    rounds = [(tokens, True) for tokens in lengths for _ in range(config.bench.repeats)]
    rounds.insert(0, (min(lengths), False))  # the warm-up
    for done, (tokens, counts) in enumerate(rounds):
        on_round(done, len(rounds), tokens)
        # In each round, since other programs and the clock change a machine's speed.
        rates[tokens].append((matrix_rate(device, dtype), copy_bandwidth(device)))
        for name, trainer in trainers.items():
            with PeakMemory(trainer.model.device) as peak:
                times = _step(trainer, rows, tokens)
            replies[name], times["evaluation"] = _evaluation(config, trainer, asked, tokens)
            peaks[name] = max(peaks[name], peak.bytes)
            for stage, (busy, passed) in times.items() if counts else ():
                found[f"{stage}_{tokens}"][name].append(busy)
                wall[f"{stage}_{tokens}"][name].append(passed)
        same_answers &= replies["trl"] == replies["grouped"]
        made[f"generation_{tokens}"] = len(rows) * tokens
        made[f"evaluation_{tokens}"] = sum(r.completion_tokens for r in replies["trl"])
    rooflines: dict[str, float] = {}
    for tokens in lengths:
        least = _roofline(trainers["trl"], rows, tokens, rates[tokens])
        rooflines |= {f"{name}_{tokens}": value for name, value in least.items()}
    return {
        "equal": {
            **_equality(trainers, rows, config.bench.tokens[-1]),
            "answers": same_answers,
        },
        "stages": {stage: _ratio(times) for stage, times in found.items()},
        "tokens_per_second": {
            stage: {name: count / statistics.median(wall[stage][name]) for name in ENGINES}
            for stage, count in made.items()
        },
        "wall": {stage: _ratio(times) for stage, times in wall.items()},
        "peak_bytes": peaks,
        "roofline": rooflines,
        "of": _described(config, trainers["trl"].model)
        | {"commit": commit, "evaluated_rows": len(asked)},
    }


def _described(config: Config, model: Any) -> dict[str, Any]:  # noqa: ANN401
    on_cuda = model.device.type == "cuda"
    return {
        "model": config.model.name,
        "weights": sum(p.numel() for p in model.parameters()),
        "num_generations": config.method.num_generations,
        "prompts_per_step": config.method.prompts_per_step,
        "image_size": config.bench.image_size,
        "repeats": config.bench.repeats,
        "unit": "wall seconds" if on_cuda else "CPU seconds",
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "precision": config.hardware.precision,
        "torch": torch.__version__,
    }


def _resized(samples: Sequence[Sample], side: int, folder: Path) -> list[Sample]:
    found = []
    for sample in samples:
        path = folder / f"{sample.image.parent.name}-{sample.image.stem}.png"
        resize_square(open_rgb(sample.image), side).save(path)
        found.append(replace(sample, image=path))
    return found


def _trainer(config: Config, samples: Sequence[Sample], engine: str, folder: Path) -> Any:  # noqa: ANN401
    config = replace(config, rollout=replace(config.rollout, name=engine))
    trainer: Any = grpo.trainer(
        config,
        samples,
        load_model(config.model, config.hardware, full_precision=not config.adapter),
        load_processor(config.model),
        RunFolder(folder / engine),
        [],
    )
    # So that each completion has the length asked for.
    trainer.generation_config.suppress_tokens += trainer.eos_token_ids
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def _asked(config: Config, tested: Sequence[Sample], folder: Path) -> list[EvaluationRow]:
    """Some images with all their questions, and these with the configured controls."""
    paths = list(dict.fromkeys(sample.image for sample in tested))[:IMAGES]
    copies = _resized(
        [next(s for s in tested if s.image == path) for path in paths],
        config.bench.image_size,
        folder,
    )
    shown = dict(zip(paths, [copy.image for copy in copies], strict=True))
    samples = [replace(s, image=shown[s.image]) for s in tested if s.image in shown]
    return [
        EvaluationRow(control, sample, evaluation_prompt(sample, config.prompt.evaluation))
        for control in ("original", *config.evaluation.controls)
        for sample in samples_under(control, samples)
    ]


def _evaluation(
    config: Config,
    trainer: Any,  # noqa: ANN401
    asked: Sequence[EvaluationRow],
    tokens: int,
) -> tuple[list[Completion], tuple[float, float]]:
    """Answers of `tokens` tokens at most, and (busy, wall) seconds."""
    shares = isinstance(trainer, GroupedGRPOTrainer)
    act = functools.partial(
        functools.partial(answer_rows, graphs=config.hardware.uses_cuda_graphs)
        if shares
        else answer_rows_unshared,
        without_adapter(trainer.model),
        trainer.processing_class,
        asked,
        batch_size=config.hardware.per_device_evaluation,
        max_new_tokens=tokens,
    )
    found, seconds = timed(trainer.model.device, act)
    trainer.model.train()
    return found, seconds


def _batch(
    trainer: Any,  # noqa: ANN401
    rows: list[dict[str, Any]],
    tokens: int,
    given: list[list[int]] | None = None,
) -> tuple[dict[str, Any], tuple[float, float]]:
    """(TRL's batch, seconds of generation), with advantages that skip no group."""
    trainer.generation_config.max_new_tokens = tokens
    spent: list[tuple[float, float]] = []

    def generate(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        if given is not None:
            return given, None
        act = type(trainer)._generate_single_turn
        made, seconds = timed(trainer.model.device, lambda: act(trainer, *arguments, **more))
        spent.append(seconds)
        return made

    trainer._generate_single_turn = generate
    batch = trainer._generate_and_score_completions(rows)
    draw = torch.Generator().manual_seed(0)
    advantages = torch.randn(batch["advantages"].numel(), generator=draw)
    batch["advantages"] = advantages.view_as(batch["advantages"]).to(trainer.model.device)
    trainer._metrics["train"].clear()
    return batch, spent[0] if spent else (0.0, 0.0)


def _step(trainer: Any, rows: list[dict[str, Any]], tokens: int) -> dict[str, tuple]:  # noqa: ANN401
    """(busy, wall) seconds of each stage."""
    device = trainer.model.device
    (batch, generation), before = timed(device, lambda: _batch(trainer, rows, tokens))
    with torch.no_grad():
        _, logps = timed(device, lambda: trainer._compute_loss(trainer.model, batch))

    def update() -> None:
        trainer.accelerator.backward(trainer._compute_loss(trainer.model, batch))

    _, changed = timed(device, update)
    trainer.model.zero_grad()
    parts = (before, generation, logps, changed)
    stages = [
        (all_before - drawn, drawn, forward, whole, all_before + whole)
        for all_before, drawn, forward, whole in zip(*parts, strict=True)
    ]
    return {stage: (stages[0][i], stages[1][i]) for i, stage in enumerate(STAGES)}


def _equality(trainers: dict[str, Any], rows: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Log-probabilities, loss and gradients of both engines on the same completions."""
    draw = torch.Generator().manual_seed(1)
    given = [
        torch.randint(20, 400, (1 + (tokens - 1) * (i % 4) // 3,), generator=draw).tolist()
        for i in range(len(rows))
    ]
    logps, losses, gradients = {}, {}, {}
    for name, trainer in trainers.items():
        batch, _ = _batch(trainer, rows, tokens, given)
        flat = questions_to_rows(batch) if batch["prompt_ids"].ndim == 3 else batch
        with torch.no_grad():
            logps[name], _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([flat["prompt_ids"], flat["completion_ids"]], dim=1),
                torch.cat([flat["prompt_mask"], flat["completion_mask"]], dim=1),
                flat["completion_ids"].shape[1],
                **{
                    key: flat[key]
                    for key in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
                },
            )
            logps[name] = logps[name] * flat["completion_mask"]
        loss = trainer._compute_loss(trainer.model, batch)
        trainer.accelerator.backward(loss)
        losses[name] = loss.item()
        parameters = trainer.model.parameters()
        gradients[name] = [p.grad.clone() for p in parameters if p.grad is not None]
        trainer.model.zero_grad()
    apart = [a - b for a, b in zip(gradients["trl"], gradients["grouped"], strict=True)]
    return {
        "logps_max_abs": (logps["trl"] - logps["grouped"]).abs().max().item(),
        "grad_rel": (_norm(apart) / _norm(gradients["trl"])).item(),
        "loss_abs": abs(losses["trl"] - losses["grouped"]),
    }


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.float().norm() for tensor in tensors]).norm()


def _ratio(times: dict[str, list[float]]) -> dict[str, float]:
    trl, grouped = (statistics.median(times[name]) for name in ENGINES)
    return {"trl": trl, "grouped": grouped, "ratio": trl / grouped}


def _roofline(
    trainer: Any,  # noqa: ANN401
    rows: list[dict[str, Any]],
    tokens: int,
    rates: Sequence[tuple[float, float]],
) -> dict[str, float]:
    """The least seconds of the stages, and the rates (FLOP/s, bytes/s) at which that is so."""
    rate, bandwidth = (statistics.median(values) for values in zip(*rates, strict=True))
    batch, _ = _batch(trainer, rows, tokens, [[20] * tokens] * len(rows))
    size = trainer.num_generations
    least = roofline_seconds(
        trainer.model,
        prompts=batch["prompt_mask"].sum(-1)[::size].tolist(),
        patches=batch["image_grid_thw"].prod(-1)[::size].tolist(),
        completions=size,
        tokens=tokens,
        dtype=_computed_in(trainer),
        rate=rate,
        bandwidth=bandwidth,
    )
    return least | {"matrix_flops_per_second": rate, "copy_bytes_per_second": bandwidth}


def _computed_in(trainer: Any) -> torch.dtype:  # noqa: ANN401
    return torch.bfloat16 if trainer.args.bf16 else trainer.model.dtype
