"""Hours on GPUs from their data sheets, for plans: an estimate. One kind of step was
measured on one GPU (experiments/benchmarks/README.md, "GPU, 2B")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from medreason.benchmark.roofline import Rates, roofline_seconds
from medreason.config import Config, Hardware
from medreason.models.load import meta_model
from medreason.samples import Sample
from medreason.training.memory_estimate import DeviceBatch, estimate
from medreason.training.memory_limits import largest_batch, with_questions_at_once

LEAST, MOST = 2, 8
"""Times the roofline of the data sheet. On CPUs 1.6 to 3.1 times the roofline of the rates that the
machine reaches was measured (experiments/benchmarks/README.md); products of a GPU reach about half
of its data sheet, and small ones less."""


@dataclass(frozen=True)
class Gpu:
    """One device; dense products in bfloat16. Source: NVIDIA's data sheets."""

    name: str
    memory: float
    """Bytes."""
    rates: Rates


GPUS = (
    Gpu("RTX 4090", 24e9, Rates(165e12, 1.008e12)),
    Gpu("A100 40 GB", 40e9, Rates(312e12, 1.555e12)),
    Gpu("L40S", 48e9, Rates(362e12, 0.864e12)),
    Gpu("A100 80 GB", 80e9, Rates(312e12, 2.039e12)),
    Gpu("H100", 80e9, Rates(989e12, 3.35e12)),
    Gpu("H200", 141e9, Rates(989e12, 4.8e12)),
)
_ROWS = 64
"""Questions of an evaluation that are decoded together."""


Hours = tuple[float, float]
"""The least and the most that work may take."""


def hours(
    config: Config, samples: Sequence[Sample], updates: int, answers: int
) -> dict[str, Hours | None]:
    """The hours of so many updates and answers on each of `GPUS`, None where its memory is too
    small.

    Raises:
        OSError: the model's architecture is not known without the hub.
        ValueError: it is of another family.
    """
    batch = largest_batch(config, samples)
    peak = estimate(config, batch).peak if updates else 0
    half = replace(batch, completion_tokens=max(batch.completion_tokens // 2, 1))

    def on(gpu: Gpu) -> Hours:
        least, most = (
            times * sum(_seconds(config, tokens, gpu, updates, answers)) / 3600
            for times, tokens in ((LEAST, half), (MOST, batch))
        )
        return least, most

    return {gpu.name: on(gpu) if peak <= gpu.memory else None for gpu in GPUS}


def smaller_cut(config: Config, samples: Sequence[Sample]) -> dict[str, str]:
    """GPU -> what has to be set on it, where the memory of an update, as a plan says it for the
    hardware profile, is more than the GPU has, and a smaller cut of the step fits."""
    hardware = config.hardware
    chosen, _ = with_questions_at_once(config, samples)
    peak = estimate(chosen, largest_batch(chosen, samples)).peak
    keys = ["hardware.per_device_prompts=1"] * (hardware.per_device_prompts == "auto")
    if hardware.gradient_checkpointing == "auto":
        keys.append("hardware.gradient_checkpointing=true")
    need = f"with {' '.join(keys)}, since {peak / 2**30:.2f} GiB do not fit"
    return {gpu.name: need for gpu in GPUS if peak > gpu.memory} if keys else {}


def own_gpus(hardware: Hardware) -> list[str]:
    """The names of those of `GPUS` that have the memory which a hardware profile names
    (`device_gb`); none where it names no memory."""
    return [
        gpu.name for gpu in GPUS if hardware.device_gb and gpu.memory == hardware.device_gb * 1e9
    ]


def named(hardware: Hardware) -> str:
    """`A100 40 GB`, `A100 80 GB or H100`; of several devices `2 x A100 40 GB`."""
    names = " or ".join(own_gpus(hardware))
    return f"{hardware.processes} x {names}" if hardware.processes > 1 else names


def by_memory() -> dict[float, str]:
    """Values of `hardware.device_gb` -> the GPUs that hours are estimated for."""
    names: dict[float, list[str]] = {}
    for gpu in GPUS:
        names.setdefault(gpu.memory / 1e9, []).append(gpu.name)
    return {gb: " or ".join(alike) for gb, alike in names.items()}


def span(hours: Mapping[str, Hours | None], gpus: Sequence[str]) -> Hours | None:
    """The least and the most hours on those of `gpus` that are large enough; None of none."""
    known = [each for gpu in gpus if (each := hours[gpu])]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def time_line(
    what: str, hours: Mapping[str, Hours | None], smaller: Mapping[str, str] | None = None
) -> str:
    """`estimated time of WHAT: A100 40 GB 1.6 to 6.4 h; ...`; `smaller` are `smaller_cut`."""
    notes = {gpu: f" ({need})" for gpu, need in (smaller or {}).items()}
    times = [
        f"{gpu} {shown(known)}{notes.get(gpu, '')}" if known else f"{gpu} too small"
        for gpu, known in hours.items()
    ]
    return f"estimated time of {what}: {'; '.join(times)}"


def total(kinds: Sequence[Mapping[str, Hours | None]]) -> dict[str, Hours | None]:
    """The hours of all kinds of work, one after the other; None where one does not fit."""
    by_gpu = {gpu: [kind[gpu] for kind in kinds] for gpu in kinds[0]}
    return {
        gpu: (sum(low for low, _ in known), sum(high for _, high in known))
        if len(known := [each for each in all_of_it if each]) == len(all_of_it)
        else None
        for gpu, all_of_it in by_gpu.items()
    }


def shown(hours: Hours) -> str:
    """`1.6 to 6.4 h`; below an hour `6 to 42 min`."""
    low, high = hours
    if high < 1:
        least, most = round(60 * low), round(60 * high)
        if not most:
            return "under 1 min"
        return f"{least} to {most} min" if least else f"up to {most} min"
    return f"{_hours(low)} to {_hours(high)} h"


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2f}"


def _seconds(
    config: Config, batch: DeviceBatch, gpu: Gpu, updates: int, answers: int
) -> Iterator[float]:
    """The rooflines of all updates and of all answers."""
    model = meta_model(config.model)
    sampled = config.method.algorithm == "grpo"
    prompts = config.method.prompts_per_step if updates else 0

    def seconds(questions: int, completions: int, tokens: int) -> dict[str, float]:
        return roofline_seconds(
            model,
            prompts=[batch.prompt_tokens] * questions,
            patches=[batch.patches] * questions,
            completions=completions,
            tokens=tokens,
            dtype=torch.bfloat16,
            rates=gpu.rates,
        )

    if updates:
        step = seconds(prompts, batch.completions, batch.completion_tokens)
        # A frozen weight needs no gradient: two thirds of the products.
        update = step["update"] * (2 / 3 if config.adapter else 1)
        yield updates * (update + (step["rollout"] if sampled else 0)) / config.hardware.processes
    tokens = config.evaluation.max_new_tokens
    yield answers * seconds(_ROWS, 1, tokens)["rollout"] / _ROWS / config.hardware.processes
