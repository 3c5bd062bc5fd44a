"""Whether a training fits into a device's memory, and which overrides would make it fit.

Estimates need torch, which is imported for the first one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from medreason.config import CONF, Config, machine
from medreason.data.images import size_of
from medreason.samples import Sample

if TYPE_CHECKING:
    from medreason.training.memory_estimate import MemoryEstimate

_MEASURED_SAMPLES = 2000  # those with the longest texts; of these the headers of images are read
_CHARACTERS_PER_TOKEN, _PIXELS_PER_TOKEN = 3.5, 784


@dataclass(frozen=True)
class Remedy:
    """An override that takes less memory, and what it changes."""

    override: str
    hardware: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None

    def applied(self, config: Config) -> Config:
        return replace(
            config,
            hardware=replace(config.hardware, **self.hardware),
            adapter=self.adapter or config.adapter,
        )


def memory_lines(config: Config, samples: Sequence[Sample]) -> list[str]:
    """Lines for a plan: peak memory of a device, and what to change where it does not fit."""
    try:
        estimate = _estimate(config, samples)
    except OSError as error:  # a model on the hub whose config.json was never downloaded
        first = next(iter(str(error).splitlines()), "")
        return [f"memory of {config.model.name} unknown: {first}"]
    limit = device_limit_bytes(config)
    lines = [f"memory of {config.method.name}, {config.model.name}: {estimate.summary()}"]
    if limit is None or estimate.peak <= limit:
        return lines
    misfit = f"does not fit into {limit / 2**30:.1f} GiB (hardware={config.hardware.name})"
    overrides: list[str] = []
    for remedy in _remedies(config):  # each on top of those before it
        config = remedy.applied(config)
        overrides.append(remedy.override)
        peak = _estimate(config, samples).peak
        if peak <= limit:
            fit = f"with {' '.join(overrides)} it takes about {peak / 2**30:.2f} GiB"
            return [*lines, f"{misfit}; {fit}"]
    misfit += f", nor with {' '.join(overrides)}; choose a smaller model or more devices"
    return [*lines, misfit]


def device_limit_bytes(config: Config) -> int | None:
    """What a process may take of its device; None where this machine has no such device, or one
    whose memory is not known (named by UUID, or a MIG slice)."""
    hardware = config.hardware
    if gigabytes := hardware.memory_limit_gb or hardware.device_gb:
        return int(gigabytes * 1e9)
    if hardware.accelerator == "cpu":
        return psutil.virtual_memory().total // hardware.devices
    gib = min((gpu.gib for gpu in machine.gpus()), default=math.inf)
    return int(gib * 2**30) if math.isfinite(gib) else None


def remedies(config: Config) -> list[str]:
    """Overrides that take less memory, gentlest first."""
    return [
        *(remedy.override for remedy in _remedies(config)),
        "a smaller model.max_pixels or method.trl.max_completion_length",
    ]


def longest_samples(config: Config, samples: Sequence[Sample]) -> list[int]:
    """Places of the samples with most tokens of text and image, as many as a micro-batch holds."""
    by_text = sorted(
        range(len(samples)), key=lambda i: _text_tokens(config, samples[i]), reverse=True
    )
    tokens = {
        i: sum(_text_tokens(config, samples[i])) + _pixels(config, samples[i]) / _PIXELS_PER_TOKEN
        for i in by_text[:_MEASURED_SAMPLES]
    }
    by_all = sorted(tokens, key=lambda i: tokens[i], reverse=True)
    return by_all[: config.hardware.per_device_prompts]


def _estimate(config: Config, samples: Sequence[Sample]) -> MemoryEstimate:
    from medreason.training import memory_estimate  # torch and transformers, seconds

    sample = samples[longest_samples(config, samples)[0]]
    prompt_tokens, target_tokens = _text_tokens(config, sample)
    batch = memory_estimate.largest_batch(
        config,
        text_tokens=round(prompt_tokens),
        target_tokens=round(target_tokens),
        pixels=round(_pixels(config, sample)),
    )
    return memory_estimate.estimate(config, batch)


def _text_tokens(config: Config, sample: Sample) -> tuple[float, float]:
    """About how many tokens (prompt, target) have; a tokenizer would need the model's files."""
    wordings = (text for family in config.prompt.training.values() for text in family)
    prompt = max(map(len, wordings), default=0) + len(sample.question)
    prompt += sum(map(len, sample.options))
    target = len(sample.explanation or "") if config.method.algorithm == "sft" else 0
    return prompt / _CHARACTERS_PER_TOKEN, target / _CHARACTERS_PER_TOKEN + 16


def _pixels(config: Config, sample: Sample) -> float:
    width, height = size_of(sample.image)
    return min(width * height, config.model.max_pixels or 1 << 40)


def _remedies(config: Config) -> Iterator[Remedy]:
    """Those that are not set yet: first what costs time alone, last what trains less."""
    hardware, adapted = config.hardware, bool(config.adapter)
    sharded = hardware.parallel != "ddp"
    if hardware.per_device_prompts > 1:
        yield Remedy("hardware.per_device_prompts=1", {"per_device_prompts": 1})
    if not hardware.gradient_checkpointing:
        yield Remedy("hardware.gradient_checkpointing=true", {"gradient_checkpointing": True})
    # An adapter's gradients and states are small: quantising or sharding them saves nothing.
    if not adapted and not sharded and hardware.optimizer_states == "float32":
        yield Remedy("hardware.optimizer_states=8bit", {"optimizer_states": "8bit"})
    if not adapted and not sharded and hardware.processes > 1:
        yield Remedy(
            "hardware.parallel=fsdp hardware.optimizer_states=float32",
            {"parallel": "fsdp", "optimizer_states": "float32"},
        )
    if not adapted:
        lora = yaml.safe_load((CONF / "adapter" / "lora_r8.yaml").read_text())
        yield Remedy("adapter=lora_r8", adapter=lora)
