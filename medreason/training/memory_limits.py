"""Whether a training fits into a device's memory, and what would make it fit.

Estimates need torch, which is loaded when the first is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psutil
import yaml
from PIL import Image

from medreason.config import CONF, Config, machine
from medreason.samples import Sample

_LOOKED_AT = 2000  # samples whose image headers are read, those with the longest texts
_CHARACTERS_PER_TOKEN, _PIXELS_PER_TOKEN = 3.5, 784


def memory_lines(config: Config, samples: Sequence[Sample]) -> list[str]:
    """Lines for a plan: peak memory of a device, and what to change where it does not fit."""
    try:
        peak, parts = _estimate(config, samples)
    except OSError as error:  # a hub id whose config is not here
        first = next(iter(str(error).splitlines()), "")
        return [f"memory of {config.model.name} unknown: {first}"]
    limit = device_limit_bytes(config)
    lines = [f"memory of {config.method.name}, {config.model.name}: {parts}"]
    if limit is None or peak <= limit:
        return lines
    for count, changed in enumerate(_cumulated(config), start=1):
        needed, _ = _estimate(changed, samples)
        if needed <= limit:
            changes = " ".join(list(_changes(config))[:count])
            lines.append(
                f"does not fit into {limit / 2**30:.1f} GiB (hardware={config.hardware.name}); "
                f"with {changes} it takes about {needed / 2**30:.2f} GiB"
            )
            return lines
    lines.append(
        f"does not fit into {limit / 2**30:.1f} GiB (hardware={config.hardware.name}), nor with "
        f"{' '.join(_changes(config))}; choose a smaller model or more devices"
    )
    return lines


def device_limit_bytes(config: Config) -> int | None:
    """What a process may take of its device; none where no such device is here."""
    asked = config.hardware
    if given := asked.memory_limit_gb or asked.device_gb:
        return int(given * 1e9)
    if asked.accelerator == "cpu":
        return psutil.virtual_memory().total // asked.devices
    there = machine.gpus()
    return int(min(gpu.gib for gpu in there) * 2**30) if there else None


def remedies(config: Config) -> list[str]:
    """Overrides that take less memory, gentlest first."""
    return [*_changes(config), "a smaller model.max_pixels or method.trl.max_completion_length"]


def longest_samples(config: Config, samples: Sequence[Sample]) -> list[int]:
    """Places of the samples that fill a device, by text and image."""
    looked_at = sorted(range(len(samples)), key=lambda i: _text(config, samples[i]), reverse=True)
    sizes = {
        i: sum(_text(config, samples[i])) + _pixels(config, samples[i]) / _PIXELS_PER_TOKEN
        for i in looked_at[:_LOOKED_AT]
    }
    return sorted(sizes, key=lambda i: sizes[i], reverse=True)[: config.hardware.per_device_prompts]


def _estimate(config: Config, samples: Sequence[Sample]) -> tuple[int, str]:
    from medreason.training import memory_estimate  # torch and transformers, seconds

    sample = samples[longest_samples(config, samples)[0]]
    asked, answered = _text(config, sample)
    held = memory_estimate.batch(
        config,
        text_tokens=round(asked),
        target_tokens=round(answered),
        pixels=round(_pixels(config, sample)),
    )
    found = memory_estimate.estimate(config, held)
    return found.peak, found.told()


def _text(config: Config, sample: Sample) -> tuple[float, float]:
    """About how many tokens prompt and target have."""
    template = max(map(len, (t for ts in config.prompt.training.values() for t in ts)), default=0)
    asked = template + len(sample.question) + sum(map(len, sample.options))
    target = len(sample.explanation or "") if config.method.algorithm == "sft" else 0
    return asked / _CHARACTERS_PER_TOKEN, target / _CHARACTERS_PER_TOKEN + 16


def _pixels(config: Config, sample: Sample) -> float:
    with Image.open(sample.image) as picture:  # reads the header alone
        width, height = picture.size
    return min(width * height, config.model.max_pixels or 1 << 40)


def _changes(config: Config) -> dict[str, dict[str, dict[str, object]]]:
    """Override -> what it sets, of those that are not set yet."""
    at, adapted = config.hardware, bool(config.adapter)
    sharded = at.parallel != "ddp"
    found: dict[str, tuple[bool, dict[str, dict[str, object]]]] = {
        "hardware.per_device_prompts=1": (
            at.per_device_prompts > 1,
            {"hardware": {"per_device_prompts": 1}},
        ),
        "hardware.gradient_checkpointing=true": (
            not at.gradient_checkpointing,
            {"hardware": {"gradient_checkpointing": True}},
        ),
        "hardware.optimizer_states=8bit": (
            not adapted and not sharded and at.optimizer_states == "float32",
            {"hardware": {"optimizer_states": "8bit"}},
        ),
        "hardware.parallel=fsdp hardware.optimizer_states=float32": (
            not adapted and not sharded and at.processes > 1,
            {"hardware": {"parallel": "fsdp", "optimizer_states": "float32"}},
        ),
        "adapter=lora_r8": (not adapted, {"adapter": _lora()}),
    }
    return {override: sets for override, (open_, sets) in found.items() if open_}


def _lora() -> dict[str, object]:
    return yaml.safe_load((CONF / "adapter" / "lora_r8.yaml").read_text())


def _cumulated(config: Config) -> list[Config]:
    """The configuration with the first change, with the first two, and so on."""
    found = []
    for sets in _changes(config).values():
        at = {**sets.get("hardware", {})}
        config = replace(
            config,
            hardware=replace(config.hardware, **at),  # pyright: ignore[reportArgumentType]
            adapter=sets.get("adapter", config.adapter),
        )
        found.append(config)
    return found
