"""Speed, memory and equality of grouped GRPO against the baseline, stock TRL.

Both engines have the same weights, rows and lengths and are measured in turn in one process. On a
CPU the times are CPU seconds, which other programs disturb less than wall seconds; those are beside
them.
"""

from __future__ import annotations

import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from medreason.benchmark.roofline import Rates, Seconds, measured_rates, roofline_seconds, timed
from medreason.config import Config
from medreason.data.images import open_rgb, resize_square
from medreason.evaluation.answers import answer_rows, answer_rows_unshared
from medreason.evaluation.controls import samples_under
from medreason.generation.rows import Completion, EvaluationRow
from medreason.models import device
from medreason.models.load import load_model, load_processor, without_adapter
from medreason.prompts import evaluation_prompt
from medreason.runs import environment
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import grpo
from medreason.training.group_batches import questions_to_rows
from medreason.training.grouped_trainer import GroupedGRPOTrainer, Row
from medreason.training.peak_memory import PeakMemory

ROLLOUTS = {"baseline": "trl", "grouped": "grouped"}
"""Engine -> its `rollout.name`."""
STAGES = ("prepare", "rollout", "logps", "update", "step")
EVALUATED_IMAGES = 2
"""With all their questions and the configured controls."""

Batch = dict[str, Any]
"""What TRL's `_generate_and_score_completions` returns."""


@dataclass
class _Measurements:
    """What the rounds measured, each list in the order of the rounds."""

    seconds: dict[str, dict[str, list[Seconds]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """By `<stage>_<tokens>`, then by engine."""
    rates: dict[int, list[Rates]] = field(default_factory=lambda: defaultdict(list))
    """By length of the completions."""
    decoded: dict[str, int] = field(default_factory=dict)
    """Tokens of the stages that decode."""
    peak_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLLOUTS, 0))
    same_answers: bool = True

    def medians(self, clock: str) -> dict[str, dict[str, float]]:
        """Stage -> median of each engine and speedup; `clock` is a field of `Seconds`."""
        stages = {}
        for stage, engines in self.seconds.items():
            row = {
                name: statistics.median(getattr(seconds, clock) for seconds in engines[name])
                for name in ROLLOUTS
            }
            stages[stage] = row | {"speedup": row["baseline"] / row["grouped"]}
        return stages

    def throughput(self) -> dict[str, dict[str, float]]:
        """Decoded tokens a wall second."""
        wall = self.medians("wall")
        return {
            stage: {name: tokens / wall[stage][name] for name in ROLLOUTS}
            for stage, tokens in self.decoded.items()
        }


def measure(
    config: Config,
    samples: Sequence[Sample],
    tested: Sequence[Sample],
    folder: Path,
    on_round: Callable[[int, int, int], None] = lambda done, rounds, tokens: None,
) -> dict[str, Any]:
    """The contents of bench.json; `stages` has `<stage>_<tokens>` in seconds.

    prepare: text and image to tensors, rewards, advantages; rollout: sampling of completions;
    logps: forward without gradients; update: log-probabilities, loss and backward; step: all but
    logps; evaluation: batches of rows by `generate` against rows that share their images.
    `on_round` hears of each round of measurements before it begins.
    """
    device.join(config.hardware)
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    device.tune_for_cpu(config.hardware)  # as the worker does
    commit = environment.commit()  # read first: the files may change while this runs
    config = _comparable(config)
    questions = _resized(samples[: config.method.prompts_per_step], config.bench.image_size, folder)
    trainers = {name: _trainer(config, questions, name, folder) for name in ROLLOUTS}
    baseline = trainers["baseline"]
    rows: list[Row] = next(iter(baseline.get_train_dataloader()))
    evaluated = _evaluation_rows(config, tested, folder)
    measured = _Measurements()
    lengths = config.bench.tokens
    # The first round is a warm-up: it compiles, allocates and reads files, and captures the graphs
    # of all lengths.
    first = max(lengths) if config.hardware.uses_cuda_graphs else min(lengths)
    rounds = [first, *(tokens for tokens in lengths for _ in range(config.bench.repeats))]
    for done, tokens in enumerate(rounds):
        on_round(done, len(rounds), tokens)
        _measure_round(config, trainers, rows, evaluated, tokens, measured, warm_up=done == 0)
    rooflines = {
        f"{name}_{tokens}": value
        for tokens in lengths
        for name, value in _roofline(baseline, rows, tokens, measured.rates[tokens]).items()
    }
    return {
        "equality": _equality(trainers, rows, lengths[-1]) | {"answers": measured.same_answers},
        "stages": measured.medians("busy"),
        "wall": measured.medians("wall"),
        "throughput": measured.throughput(),
        "roofline": rooflines,
        "peak_bytes": measured.peak_bytes,
        "setup": _setup(config, _model(baseline))
        | {"commit": commit, "evaluated_rows": len(evaluated)},
    }


def _comparable(config: Config) -> Config:
    """Without a reference model, dropout and drafts."""
    # Random weights have no folder from which TRL could load a reference model, and the engines
    # draw different dropout masks.
    trl = {**config.method.trl, "beta": 0.0}
    adapter = {**config.adapter, "lora_dropout": 0.0} if config.adapter else {}
    # Every round asks the same questions: drafts would be the completions of the round before.
    rollout = replace(config.rollout, draft_tokens="0")
    method = replace(config.method, trl=trl)
    return replace(config, method=method, adapter=adapter, rollout=rollout)


def _measure_round(
    config: Config,
    trainers: Mapping[str, GRPOTrainer],
    rows: list[Row],
    evaluated: Sequence[EvaluationRow],
    tokens: int,
    measured: _Measurements,
    *,
    warm_up: bool,
) -> None:
    answers: dict[str, list[Completion]] = {}
    model = _model(trainers["baseline"])
    # In each round anew: other programs and the clock change a machine's speed within minutes.
    measured.rates[tokens].append(measured_rates(model.device, _dtype(trainers["baseline"])))
    for name, trainer in trainers.items():
        with _computing_in(_dtype(trainer), trainer):
            with PeakMemory(model.device) as peak:
                times = _time_step(trainer, rows, tokens)
            answers[name], times["evaluation"] = _time_evaluation(
                config, trainer, evaluated, tokens
            )
        measured.peak_bytes[name] = max(measured.peak_bytes[name], peak.bytes)
        for stage, seconds in times.items() if not warm_up else ():
            measured.seconds[f"{stage}_{tokens}"][name].append(seconds)
    measured.same_answers &= answers["baseline"] == answers["grouped"]
    decoded = sum(answer.completion_tokens for answer in answers["baseline"])
    measured.decoded |= {
        f"rollout_{tokens}": len(rows) * tokens,
        f"evaluation_{tokens}": decoded,
    }


@contextmanager
def _computing_in(dtype: torch.dtype, trainer: GRPOTrainer) -> Iterator[None]:
    """Within, every product of the language model's last layer must be of `dtype`: an engine timed
    in another precision than the other would be compared with nothing."""
    computed: set[torch.dtype] = set()
    base: Any = without_adapter(_model(trainer))
    hook = base.model.language_model.layers[-1].mlp.up_proj.register_forward_hook(
        lambda _module, _inputs, output: computed.add(output.dtype)
    )
    try:
        yield
    finally:
        hook.remove()
    assert computed == {dtype}, f"{type(trainer).__name__} computed in {computed}, not in {dtype}"


def _setup(config: Config, model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    on_cuda = model.device.type == "cuda"
    return {
        "model": config.model.name,
        "parameters": sum(p.numel() for p in model.parameters()),
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
    """The samples with copies of their images, stretched to squares of `side` pixels."""
    copies = []
    for sample in samples:
        path = folder / f"{sample.image.parent.name}-{sample.image.stem}.png"
        resize_square(open_rgb(sample.image, sample.window), side).save(path)
        copies.append(replace(sample, image=path))
    return copies


def _trainer(config: Config, samples: Sequence[Sample], engine: str, folder: Path) -> GRPOTrainer:
    config = replace(config, rollout=replace(config.rollout, name=ROLLOUTS[engine]))
    model = load_model(
        config.model,
        config.hardware,
        full_precision=not config.adapter,
        patch_products=engine != "baseline",  # that is transformers as it is
    )
    trainer = grpo.trainer(
        config,
        samples,
        model,
        load_processor(config.model),
        RunFolder(folder / engine),
        [],
    )
    # Without end tokens every completion has the full length, and both engines the same work.
    trainer.generation_config.suppress_tokens += trainer.eos_token_ids
    trainer.current_gradient_accumulation_steps = 1
    _model(trainer).train()
    return trainer


def _model(trainer: GRPOTrainer) -> PreTrainedModel | PeftModel:
    assert isinstance(trainer.model, PreTrainedModel | PeftModel)
    return trainer.model


def _evaluation_rows(config: Config, tested: Sequence[Sample], folder: Path) -> list[EvaluationRow]:
    """A few images with all their questions, as they are and under the configured controls."""
    paths = list(dict.fromkeys(sample.image for sample in tested))[:EVALUATED_IMAGES]
    firsts = [next(s for s in tested if s.image == path) for path in paths]
    copies = _resized(firsts, config.bench.image_size, folder)
    copy_of = {path: copy.image for path, copy in zip(paths, copies, strict=True)}
    samples = [replace(s, image=copy_of[s.image]) for s in tested if s.image in copy_of]
    return [
        EvaluationRow(control, sample, evaluation_prompt(sample, config.prompt.evaluation))
        for control in ("original", *config.evaluation.controls)
        for sample in samples_under(control, samples)
    ]


def _time_evaluation(
    config: Config, trainer: GRPOTrainer, rows: Sequence[EvaluationRow], tokens: int
) -> tuple[list[Completion], Seconds]:
    """Answers of at most `tokens` tokens, and what they took."""
    model, processor = _model(trainer), trainer.processing_class
    base = without_adapter(model)
    assert isinstance(base, PreTrainedModel)
    assert isinstance(processor, ProcessorMixin)
    answer = (
        functools.partial(answer_rows, graphs=config.hardware.uses_cuda_graphs)
        if isinstance(trainer, GroupedGRPOTrainer)
        else answer_rows_unshared
    )
    # One context for all steps casts the weights once. An evaluation loads them in its precision.
    with trainer.accelerator.autocast():
        answers, seconds = timed(
            model.device,
            lambda: answer(
                base,
                processor,
                rows,
                batch_size=config.hardware.per_device_evaluation,
                max_new_tokens=tokens,
            ),
        )
    model.train()
    return answers, seconds


def _batch(
    trainer: GRPOTrainer,
    rows: list[Row],
    tokens: int,
    completion_ids: list[list[int]] | None = None,
) -> tuple[Batch, Seconds]:
    """(TRL's batch, what its rollout took); given `completion_ids`, nothing is sampled."""
    device = _model(trainer).device
    trainer.generation_config.max_new_tokens = tokens
    spent = Seconds(0.0, 0.0)

    def generate(*args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]] | None]:
        nonlocal spent
        if completion_ids is not None:
            return completion_ids, None
        sample = type(trainer)._generate_single_turn
        # Autocast that is entered once casts the weights once. TRL's own way, which casts them in
        # each step and encodes images in float32, would make the baseline look slower.
        with trainer.accelerator.autocast():
            completions, spent = timed(device, lambda: sample(trainer, *args, **kwargs))
        return completions

    vars(trainer)["_generate_single_turn"] = generate
    batch = trainer._generate_and_score_completions(rows)
    batch["advantages"] = _random_like(batch["advantages"])
    trainer._metrics["train"].clear()
    return batch, spent


def _random_like(advantages: Tensor) -> Tensor:
    """In place of those of the rewards: of equal ones the grouped trainer would skip the group."""
    draws = torch.Generator().manual_seed(0)
    return (
        torch.randn(advantages.numel(), generator=draws).view_as(advantages).to(advantages.device)
    )


def _time_step(trainer: GRPOTrainer, rows: list[Row], tokens: int) -> dict[str, Seconds]:
    model = _model(trainer)
    (batch, rollout), scored = timed(model.device, lambda: _batch(trainer, rows, tokens))
    with torch.no_grad():
        _, logps = timed(model.device, lambda: trainer._compute_loss(model, batch))
    _, update = timed(
        model.device, lambda: trainer.accelerator.backward(trainer._compute_loss(model, batch))
    )
    model.zero_grad()
    prepare = Seconds(scored.busy - rollout.busy, scored.wall - rollout.wall)
    step = Seconds(scored.busy + update.busy, scored.wall + update.wall)
    return dict(zip(STAGES, (prepare, rollout, logps, update, step), strict=True))


def _equality(
    trainers: Mapping[str, GRPOTrainer], rows: list[Row], tokens: int
) -> dict[str, float]:
    """How far log-probabilities, loss and gradients differ for the same completions."""
    draws = torch.Generator().manual_seed(1)
    lengths = [1 + (tokens - 1) * (i % 4) // 3 for i in range(len(rows))]  # mixed
    completion_ids = [
        torch.randint(20, 400, (length,), generator=draws).tolist() for length in lengths
    ]
    logps, losses, gradients = {}, {}, {}
    for name, trainer in trainers.items():
        model = _model(trainer)
        batch, _ = _batch(trainer, rows, tokens, completion_ids)
        logps[name] = _logps(trainer, batch)
        loss = trainer._compute_loss(model, batch)
        trainer.accelerator.backward(loss)
        losses[name] = loss.item()
        gradients[name] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    pairs = zip(gradients["baseline"], gradients["grouped"], strict=True)
    return {
        "logps_max_abs": (logps["baseline"] - logps["grouped"]).abs().max().item(),
        "grad_rel": (_norm([a - b for a, b in pairs]) / _norm(gradients["baseline"])).item(),
        "loss_abs": abs(losses["baseline"] - losses["grouped"]),
    }


def _logps(trainer: GRPOTrainer, batch: Batch) -> Tensor:
    """(rows, completion tokens), 0 for padding."""
    if batch["prompt_ids"].ndim == 3:  # the grouped trainer's batch
        batch = questions_to_rows(batch)
    of_images = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            _model(trainer),
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            **{name: batch[name] for name in of_images},
        )
    return logps * batch["completion_mask"]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.float().norm() for tensor in tensors]).norm()


def _roofline(
    trainer: GRPOTrainer, rows: list[Row], tokens: int, rounds: Sequence[Rates]
) -> dict[str, float]:
    """Least seconds of the stages at the median rates of this length's rounds, and these rates."""
    rates = Rates(*(statistics.median(values) for values in zip(*rounds, strict=True)))
    batch, _ = _batch(trainer, rows, tokens, [[20] * tokens] * len(rows))
    size = trainer.num_generations
    assert size
    least = roofline_seconds(
        _model(trainer),
        prompts=batch["prompt_mask"].sum(-1)[::size].tolist(),
        patches=batch["image_grid_thw"].prod(-1)[::size].tolist(),
        completions=size,
        tokens=tokens,
        dtype=_dtype(trainer),
        rates=rates,
    )
    return least | {
        "matrix_flops_per_second": rates.flops,
        "copy_bytes_per_second": rates.bandwidth,
    }


def _dtype(trainer: GRPOTrainer) -> torch.dtype:
    """The type in which matrix products are computed."""
    return torch.bfloat16 if trainer.args.bf16 else _model(trainer).dtype
