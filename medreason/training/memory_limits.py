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
from medreason.console import counted, first_line
from medreason.data.images import size_of
from medreason.phantom import canvas
from medreason.samples import Sample

if TYPE_CHECKING:
    from medreason.training.memory_estimate import DeviceBatch, MemoryEstimate

_MEASURED_SAMPLES = 2000  # those with the longest texts; of these the headers of images are read
_TRUSTED = 0.85
"""Share of a device that an estimate may fill: measured peaks were up to 15 % apart from it."""

_CHARACTERS_PER_TOKEN, _PIXELS_PER_TOKEN = 3.5, 784
_USUAL_CHARACTERS, _USUAL_SIZE = 180, (1024, 1024)
"""Of a question with its options, and of its image, where none is downloaded: OmniMedVQA's."""


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
    """Lines for a plan: peak memory of a device, and what to change where it does not fit.

    Without samples, which are not downloaded yet, questions of usual length are assumed.
    """
    automatic = config.hardware.per_device_prompts == "auto"
    config, chosen = with_questions_at_once(config, samples)
    try:
        estimate = _estimate(config, samples)
    # A model on the hub whose config.json was never downloaded, or of a family not known here.
    except (OSError, ValueError) as error:
        first = first_line(error)
        return [f"memory of {config.model.name} unknown: {first}"]
    limit = device_limit_bytes(config)
    lines = [f"memory of {trained_names(config)}: {estimate.summary()}"]
    lines += [chosen] if chosen else []
    if limit is None:
        return lines
    if estimate.peak <= limit:
        return [*lines, *([] if automatic else _tight_lines(config, estimate.peak, limit))]
    beside = f", beside vLLM's {share:.0%}" if (share := _vllm_share(config)) else ""
    misfit = f"does not fit into {limit / 2**30:.1f} GiB (hardware={config.hardware.name}{beside})"
    overrides: list[str] = []
    for remedy in _remedies(config):  # each on top of those before it
        config = remedy.applied(config)
        overrides.append(remedy.override)
        peak = _estimate(config, samples).peak
        if peak <= limit:
            fit = f"with {' '.join(overrides)} it takes about {peak / 2**30:.2f} GiB"
            return [*lines, f"{misfit}; {fit}"]
    misfit += f", nor with {' '.join(overrides)}" if overrides else ""
    return [*lines, f"{misfit}; choose a smaller model or more devices"]


def trained_names(config: Config) -> str:
    """`grpo, qwen2_vl_2b`, and the adapter where one is trained in place of all weights."""
    names = [config.method.name, config.model.name]
    if config.adapter and config.method.algorithm != "none":
        chosen = config.choices.get("adapter", "none")
        names.append("an adapter" if chosen == "none" else f"adapter={chosen}")
    return ", ".join(names)


def with_questions_at_once(config: Config, samples: Sequence[Sample]) -> tuple[Config, str | None]:
    """(the configuration with a number for `hardware.per_device_prompts` and true or false for
    `hardware.gradient_checkpointing`, for auto what was chosen and why): of the micro-batches that
    split a step evenly and fit by the estimate the largest, of both ways the faster one."""
    if config.hardware.gradient_checkpointing != "auto":
        cut, chosen, _ = _largest_cut(config, samples)
        return cut, chosen
    plain, again = (
        _largest_cut(_with(config, gradient_checkpointing=value), samples)
        for value in ("false", "true")
    )
    cut, why = _faster(plain, again, samples)
    value = cut[0].hardware.gradient_checkpointing
    text = f"hardware.gradient_checkpointing=auto is {value}: {why}"
    return cut[0], f"{cut[1]}; {text}" if cut[1] else text


_Cut = tuple[Config, str | None, str]
"""A configuration with a number of questions, why that (None where it was given), why it does not
fit by the estimate (empty where it does)."""


def _faster(plain: _Cut, again: _Cut, samples: Sequence[Sample]) -> tuple[_Cut, str]:
    """(the one of two cuts, without and with recomputing, that is faster or fits, and why)"""
    if plain[2]:
        return again, plain[2]
    from medreason.training import update_time

    seconds = [
        update_time.relative_seconds(config, largest_batch(config, samples))
        for config, _, _ in (plain, again)
    ]
    is_plain = bool(again[2]) or seconds[0] <= seconds[1]
    chosen, other = (plain, again) if is_plain else (again, plain)
    at_once = _questions(other[0].hardware.questions_at_once)
    longer = f"an update takes {max(seconds) / min(seconds):.2f} times as long (estimated)"
    if is_plain:
        why = f"with true, which computes them twice and has room for {at_once} at once, {longer}"
        return chosen, f"activations are kept in memory; {why}"
    why = f"with false, which keeps them and has room for {at_once} at once, {longer}"
    return chosen, f"activations are computed twice, which saves memory; {why}"


def _questions(count: int) -> str:
    return counted(count, "question")


def _with(config: Config, **hardware: str) -> Config:
    return replace(config, hardware=replace(config.hardware, **hardware))


def _largest_cut(config: Config, samples: Sequence[Sample]) -> _Cut:
    """With the most questions at once that fit; those given where a number is."""
    limit = device_limit_bytes(config)
    if config.hardware.per_device_prompts != "auto":
        return config, None, _misfit(config, samples, limit)
    chosen = "hardware.per_device_prompts=auto is"
    one = _with(config, per_device_prompts="1")
    if limit is None:
        return one, f"{chosen} 1: {_UNKNOWN_DEVICE}; set hardware.device_gb", _UNKNOWN_DEVICE
    share = config.method.prompts_per_step // config.hardware.processes
    larger, peak = "", 0
    for questions in (n for n in range(share, 0, -1) if share % n == 0):
        cut = _with(config, per_device_prompts=str(questions))
        try:
            peak = _estimate(cut, samples).peak
        # As for `memory_lines`: the architecture is not known.
        except (OSError, ValueError) as error:
            return one, f"{chosen} 1: memory is not known: {first_line(error)}", _UNKNOWN_MODEL
        if peak <= _TRUSTED * limit:
            takes = f"{_questions(questions)} at once take{'s' * (questions == 1)} about"
            why = f"an estimate may fill {_TRUSTED:.0%} of {_gib(limit, 1)}"
            which = "" if larger else f", {_whole_share(config)}"
            text = f"{chosen} {questions}{which}: {takes} {_gib(peak)}{larger} ({why})"
            return cut, text, ""
        larger = f", and {questions} about {_gib(peak)}"
    too_much = _too_much(config, peak, limit)
    text = f"{chosen} 1, the smallest: it takes about {_gib(peak)}, {too_much}"
    return one, text, _NO_ROOM


_UNKNOWN_DEVICE = "the device's memory is not known"
_UNKNOWN_MODEL = "what the model takes of memory is not known"
_NO_ROOM = "without, the activations do not fit"


def _whole_share(config: Config) -> str:
    devices = config.hardware.processes
    return "a device's whole share of a step" if devices > 1 else "the whole step"


def _gib(count: int, digits: int = 2) -> str:
    return f"{count / 2**30:.{digits}f} GiB"


def _too_much(config: Config, peak: int, limit: int) -> str:
    """What an estimated peak is more than, and what decides whether it fits."""
    if peak > limit:
        return f"more than the {_gib(limit, 1)} that there are"
    checked = config.hardware.tries_longest_step
    decides = "the memory check before the first update" if checked else "the first update"
    return (
        f"more than the {_TRUSTED:.0%} of {_gib(limit, 1)} that an estimate may fill: it may still "
        f"fit, {decides} shows it"
    )


def _tight_lines(config: Config, peak: int, limit: int) -> list[str]:
    """That a given cut fits by so little that the estimate does not decide."""
    if peak <= _TRUSTED * limit:
        return []
    return [f"about {_gib(peak)} are {_too_much(config, peak, limit)}"]


def _misfit(config: Config, samples: Sequence[Sample], limit: int | None) -> str:
    """Why a given cut does not fit by the estimate; empty where it does."""
    if limit is None:
        return _UNKNOWN_DEVICE
    try:
        return "" if _estimate(config, samples).peak <= _TRUSTED * limit else _NO_ROOM
    except (OSError, ValueError):
        return _UNKNOWN_MODEL


def keeps_graphs(config: Config, samples: Sequence[Sample]) -> bool:
    """Whether CUDA graphs of decoding steps fit beside the update, with what they work on."""
    from medreason.training import memory_estimate

    limit = device_limit_bytes(config)
    if limit is None:
        return False
    try:
        batch = largest_batch(config, samples)
        peak = memory_estimate.estimate(config, batch, keeps_graphs=True).peak
    except (OSError, ValueError):  # the architecture is not known: see `memory_lines`
        return False
    return peak <= _TRUSTED * limit


def device_limit_bytes(config: Config) -> int | None:
    """What training may take of its device; None where this machine has no such device, or one
    whose memory is not known (named by UUID, or a MIG slice)."""
    hardware = config.hardware
    if hardware.device_gb:
        whole = hardware.device_gb * 1e9
    elif hardware.accelerator == "cpu":
        whole = psutil.virtual_memory().total // hardware.devices
    else:
        whole = min((gpu.gib for gpu in machine.gpus()), default=math.inf) * 2**30
    limit = hardware.memory_limit_gb * 1e9 if hardware.memory_limit_gb else whole
    if math.isfinite(whole):
        limit -= _vllm_share(config) * whole
    return int(limit) if math.isfinite(limit) else None


def _vllm_share(config: Config) -> float:
    """Of the device: what vLLM takes beside the training, for its weights and KV cache."""
    rollout = config.rollout
    if config.method.algorithm != "grpo" or rollout.name != "vllm":
        return 0.0
    beside = rollout.vllm.get("vllm_mode") == "colocate"
    return rollout.vllm["vllm_gpu_memory_utilization"] if beside else 0.0


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
    return by_all[: config.hardware.questions_at_once]


def _estimate(config: Config, samples: Sequence[Sample]) -> MemoryEstimate:
    from medreason.training import memory_estimate  # torch and transformers, seconds

    return memory_estimate.estimate(config, largest_batch(config, samples))


def largest_batch(config: Config, samples: Sequence[Sample]) -> DeviceBatch:
    """The micro-batch of the sample with most tokens, or of a usual one where there are none."""
    from medreason.training import memory_estimate

    sample = samples[longest_samples(config, samples)[0]] if samples else None
    prompt_tokens, target_tokens = _text_tokens(config, sample)
    return memory_estimate.largest_batch(
        config,
        text_tokens=round(prompt_tokens),
        target_tokens=round(target_tokens),
        pixels=round(_pixels(config, sample)),
    )


def _text_tokens(config: Config, sample: Sample | None) -> tuple[float, float]:
    """About how many tokens (prompt, target) have; a tokenizer would need the model's files."""
    wordings = (text for family in config.prompt.training.values() for text in family)
    texts = (sample.question, *sample.options) if sample else ("x" * _USUAL_CHARACTERS,)
    prompt = max(map(len, wordings), default=0) + sum(map(len, texts))
    explanation = (sample and sample.explanation) or ""
    target = len(explanation) if config.method.algorithm == "sft" else 0
    return prompt / _CHARACTERS_PER_TOKEN, target / _CHARACTERS_PER_TOKEN + 16


def _pixels(config: Config, sample: Sample | None) -> float:
    unread = not sample or config.data.get("images") == "none"
    if unread and config.model.max_pixels:
        return config.model.max_pixels
    if sample and sample.source == "phantom":  # a plan does not draw them
        width, height = canvas.SIZE, canvas.SIZE
    else:
        width, height = size_of(sample.image) if sample else _USUAL_SIZE
    return min(width * height, config.model.max_pixels or 1 << 40)


def _remedies(config: Config) -> Iterator[Remedy]:
    """Those that are not set yet: first what costs time alone, last what trains less."""
    hardware, adapted = config.hardware, bool(config.adapter)
    sharded = hardware.parallel != "ddp"
    if hardware.questions_at_once > 1:
        yield Remedy("hardware.per_device_prompts=1", {"per_device_prompts": "1"})
    if not hardware.recomputes:
        yield Remedy("hardware.gradient_checkpointing=true", {"gradient_checkpointing": "true"})
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
