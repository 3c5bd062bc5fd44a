"""How much memory a training step takes on each device, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from medreason.config import Config
from medreason.models.load import outline

_HEAD_TOKENS, _HEAD_WORDS = 4096, 32768
"""The tile of logits in TRL 1.16's head (trl/kernels/chunked_logprob.py)."""

_TILES = 8.25
"""Tiles of logits at once in its backward pass in torch, a mask of bytes among them."""

IMPORTED = 582 << 20
"""On a CPU: private memory of a process that has imported torch, transformers and trl."""

_FIRST_USE = 14 << 20
"""What they take besides when a first trainer is built: tables of Python, buffers of products."""

_HEAP, _HEAP_OF_ONE = 0.4, 0.25
"""On a CPU: what malloc keeps of the blocks that a step frees, as a share of all it asks for; less
where a step is one micro-batch. Measured: with a malloc that gives every block back
(`return_freed_blocks`, and so with checkpointing), a step's peak is the sum of the other
parts."""

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in 4 bits with its doubly quantised scale (arXiv:2305.14314)."""

_PIXELS_PER_PATCH = 14 * 14
_VALUES_PER_PATCH = 3 * 2 * _PIXELS_PER_PATCH  # a still image is two frames


@dataclass(frozen=True)
class DeviceBatch:
    """What a device holds at once."""

    questions: int
    completions: int
    """Of a question; 1 in SFT."""
    prompt_tokens: int
    completion_tokens: int
    patches: int
    """Of an image, before they are merged by fours."""
    shared: bool
    """Grouped GRPO: a question's completions share its prompt and its image."""

    @property
    def tokens(self) -> int:
        """In the update, padding included."""
        rows = self.questions * self.completions
        prompts = self.questions if self.shared else rows
        return prompts * self.prompt_tokens + rows * self.completion_tokens

    @property
    def row(self) -> int:
        """Tokens of a prompt and a completion."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def images(self) -> int:
        return self.questions * (1 if self.shared else self.completions)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    reference: int
    gradients: int
    """Of a single micro-batch they come as activations go: what they are more than those."""
    states: int
    activations: int
    """What the forward pass keeps for the backward pass."""
    logits: int
    """Where the backward pass begins."""
    recomputed: int
    """With checkpointing: of one layer, later in the backward pass."""
    cache: int
    """Keys and values while completions are drawn, when there are no activations."""
    heap: int
    """On a CPU: what malloc keeps of what a step has freed."""
    libraries: int
    """On a CPU: Python's and torch's own."""

    @property
    def peak(self) -> int:
        held = self.weights + self.reference + self.gradients + self.states + self.libraries
        working = self.activations + max(self.logits, self.recomputed)
        return held + self.heap + max(working, self.cache)

    def told(self) -> str:
        parts = [(f.name, getattr(self, f.name)) for f in fields(self)]
        shown = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts if value)
        return f"about {self.peak / 2**30:.2f} GiB a device ({shown})"


def batch(config: Config, *, text_tokens: int, target_tokens: int, pixels: int) -> DeviceBatch:
    """The largest batch: `text_tokens` of the longest prompt, `pixels` of the largest image."""
    patches = min(pixels, config.model.max_pixels or pixels) // _PIXELS_PER_PATCH
    sampled = config.method.algorithm == "grpo"
    return DeviceBatch(
        questions=config.hardware.per_device_prompts,
        completions=config.method.num_generations,
        prompt_tokens=text_tokens + patches // 4,
        completion_tokens=config.method.trl["max_completion_length"] if sampled else target_tokens,
        patches=patches,
        shared=sampled and config.rollout.name == "grouped",
    )


def estimate(config: Config, held: DeviceBatch) -> MemoryEstimate:
    """Of the configured training. FSDP and ZeRO cut what they cut evenly."""
    model = outline(config.model)
    adapted = bool(config.adapter)
    everything = get_peft_model(model, LoraConfig(**config.adapter)) if adapted else model
    trained = sum(p.numel() for p in everything.parameters() if p.requires_grad)
    all_ = sum(p.numel() for p in everything.parameters())
    hardware = config.hardware
    cuts = dict.fromkeys(_CUT[hardware.parallel], hardware.processes)
    with_reference = config.method.algorithm == "grpo" and not adapted and config.method.trl["beta"]
    kept_by_adapters = _adapted(config, everything) if adapted else 0
    activations, recomputed = _activations(config, model, held, kept_by_adapters)
    logits = _logits(config, model, held)
    gradients = 4 * trained // cuts.get("gradients", 1)
    if config.accumulation == 1:
        gradients = max(gradients - activations, 0)
    if hardware.processes > 1 and hardware.parallel == "ddp":
        gradients += 4 * trained  # the buckets in which they travel
    on_cpu = hardware.accelerator == "cpu"
    share = _HEAP_OF_ONE if config.accumulation == 1 else _HEAP
    kept = 0 if hardware.gradient_checkpointing else round(share * (activations + logits))
    return MemoryEstimate(
        weights=_weights(config, everything, all_, trained) // cuts.get("weights", 1),
        reference=4 * all_ // cuts.get("weights", 1) if with_reference else 0,
        gradients=gradients,
        states=_states(config, model, trained) // cuts.get("states", 1),
        activations=activations,
        logits=logits,
        recomputed=recomputed,
        cache=_cache(config, model, held),
        heap=kept if on_cpu else 0,
        libraries=IMPORTED + _FIRST_USE if on_cpu else 0,
    )


_CUT = {
    "ddp": (),
    "fsdp": ("weights", "gradients", "states"),
    "zero2": ("gradients", "states"),
    "zero3": ("weights", "gradients", "states"),
}


def _bytes(config: Config) -> int:
    return 2 if config.hardware.precision == "bfloat16" else 4


def _weights(config: Config, model: PreTrainedModel | PeftModel, all_: int, trained: int) -> int:
    if not config.adapter:
        autocast = 2 * all_ if _bytes(config) == 2 else 0  # torch keeps its bfloat16 copies
        return 4 * all_ + autocast
    quantized = 0
    if config.model.quantization != "none":
        quantized = sum(
            p.numel()
            for name, p in model.named_parameters()
            if "language_model.layers" in name and p.ndim == 2 and "lora" not in name
        )
    whole = all_ - trained - quantized
    return int(_bytes(config) * whole + _NF4_BYTES * quantized + 4 * trained)


def _states(config: Config, model: PreTrainedModel, trained: int) -> int:
    if config.hardware.optimizer_states == "float32":
        return 8 * trained
    text = model.config.get_text_config()
    # bitsandbytes leaves the states of embeddings in float32.
    embeddings = 0 if config.adapter else text.vocab_size * text.hidden_size
    return math.ceil(2.03 * (trained - embeddings)) + 8 * embeddings


def _activations(
    config: Config, model: PreTrainedModel, held: DeviceBatch, adapted: int
) -> tuple[int, int]:
    """What the forward pass keeps, and with checkpointing what one layer makes anew and backward.

    Counted by hand over the layers of transformers' Qwen2-VL: each tensor that a product, a norm,
    an activation or the attention saves, once; `adapted` bytes of a token besides.
    """
    text, vision = model.config.get_text_config(), model.config.vision_config
    width, inner, size = text.hidden_size, text.intermediate_size, _bytes(config)
    norms = 2 * (2 * 4 + size)  # float32 input and its normalised value, and what a product reads
    layer = held.tokens * ((norms + 4 * size) * width + 4 * size * inner)
    patches = held.images * held.patches
    block = patches * (10 * size + 3 * size * vision.mlp_ratio) * vision.embed_dim
    # Pixels, the merger's norm and product, the last norm and what the head reads.
    ends = patches * (_VALUES_PER_PATCH * size + (8 + 3 * size) * vision.embed_dim)
    if config.adapter:  # frozen layers keep no input for a gradient of their weights
        layer = held.tokens * ((8 + 6 * size) * width + 3 * size * inner)
        layer += held.tokens * adapted // text.num_hidden_layers
        block = ends = 0
    ends += held.tokens * (8 + 2 * size) * width
    rows = held.questions * held.completions
    if held.shared:
        # Keys and values as they are and beside each completion; queries of prompts not twice.
        heads = text.num_attention_heads // text.num_key_value_heads
        layer += size * 2 * (held.tokens + rows * held.row) * width // heads
        layer -= size * held.questions * held.prompt_tokens * width
        # Frozen, the last product keeps no input of its own.
        layer -= size * held.tokens * width if config.adapter else 0
        ends += size * held.questions * heads * held.completion_tokens * held.row  # the mask
    elif config.hardware.attention != "flash_attention_2":
        layer += size * rows * held.row**2  # of the mask's truths torch makes numbers in each layer
    depth, visual = text.num_hidden_layers, 0 if config.adapter else vision.depth
    if config.hardware.gradient_checkpointing:
        kept = 4 * held.tokens * width * depth + 4 * patches * vision.embed_dim * visual
        return kept + ends, max(layer + _inside(config, model, held), block)
    return layer * depth + block * visual + ends, 0


def _adapted(config: Config, model: nn.Module) -> int:
    """What the adapters of all layers keep of a token: their input, and which of it was dropped."""
    size = _bytes(config)
    dropped = size if config.hardware.accelerator == "cpu" else 1
    if not config.adapter.get("lora_dropout"):
        dropped = 0
    inputs = sum(m.in_features or 0 for m in model.modules() if isinstance(m, LoraLayer))
    return (size + dropped) * inputs


def _logits(config: Config, model: PreTrainedModel, held: DeviceBatch) -> int:
    """Where the backward pass begins: tiles of logits and the gradient of the head's weights.

    Or, if that is more, what it takes of values within one layer.
    """
    text = model.config.get_text_config()
    if config.hardware.accelerator == "cuda":  # Triton folds a tile of the targets in place
        targets = held.questions * held.completions * held.completion_tokens
        targets = targets or held.tokens
        tile = _bytes(config) * min(targets, _HEAD_TOKENS) * _HEAD_WORDS
    else:  # torch: of all tokens, and only what is written to takes memory
        tile = 4 * _TILES * min(held.tokens, _HEAD_TOKENS) * min(text.vocab_size, _HEAD_WORDS)
    head = 0 if config.adapter else 4 * text.vocab_size * text.hidden_size
    return max(round(tile) + head, _inside(config, model, held))


def _inside(config: Config, model: PreTrainedModel, held: DeviceBatch) -> int:
    """The gradients of values within one layer."""
    return 3 * _bytes(config) * held.tokens * model.config.get_text_config().intermediate_size


def _cache(config: Config, model: PreTrainedModel, held: DeviceBatch) -> int:
    if config.method.algorithm != "grpo":
        return 0
    text = model.config.get_text_config()
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    rows = held.questions * held.completions * config.accumulation
    return 2 * _bytes(config) * rows * held.row * heads * text.num_hidden_layers
