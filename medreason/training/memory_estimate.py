"""How much memory a training step takes on each device, from shapes alone.

A step has two moments that can be its peak. While completions are sampled, the KV cache lies beside
what is held all the time (weights, reference, gradients, states). Where the backward pass begins,
all activations lie there and the first tiles of logits come on top; with checkpointing, the
activations of one recomputed layer may be more than those tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from medreason.config import Config
from medreason.models.load import meta_model
from medreason.models.vision_tower import vision_tower

_HEAD_TOKENS, _HEAD_VOCABULARY = 4096, 32768
"""The tile of logits in TRL 1.16's head (trl/kernels/chunked_logprob.py)."""

_TILES = 8.25
"""Tiles of logits at once in the head's backward pass in torch, a mask of bytes among them."""

IMPORTED = 582 << 20
"""On a CPU: private memory of a process that has imported torch, transformers and trl, measured."""

_FIRST_USE = 14 << 20
"""What they allocate when a first trainer is built: Python's tables, buffers of matrix products."""

_HEAP, _HEAP_OF_ONE = 0.4, 0.25
"""On a CPU: freed blocks that malloc keeps, as a share of activations and logits; less where a step
is one micro-batch."""
# Measured, not derived, and needed: without this part the estimate is beyond 15 % of the measured
# peak in 13 of 21 kinds of step, at worst 0.65 of it (the 33 M model with adapter=lora_all). One
# share for all kinds would leave no margin: at 0.36 that kind comes to 0.84, GRPO of 256 tokens
# with the tiny model to 1.14. Where malloc returns freed blocks, the other parts are the peak.

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a 4-bit weight with its doubly quantised scale: one in 8 bits for 64 weights, one in 32 bits
for 256 of those (arXiv:2305.14314)."""

_PIXELS_PER_PATCH = 14 * 14
_VALUES_PER_PATCH = 3 * 2 * _PIXELS_PER_PATCH  # a still image is two frames


@dataclass(frozen=True)
class DeviceBatch:
    """The micro-batch of a device."""

    questions: int
    completions: int
    """Of each question; 1 in SFT."""
    prompt_tokens: int
    completion_tokens: int
    patches: int
    """Of an image; four become one visual token."""
    shared: bool
    """Whether a question's completions share its prompt and its image in the update."""

    @property
    def tokens(self) -> int:
        """Tokens of the update's forward pass, padding included."""
        rows = self.questions * self.completions
        prompts = self.questions if self.shared else rows
        return prompts * self.prompt_tokens + rows * self.completion_tokens

    @property
    def row_tokens(self) -> int:
        """Tokens of a prompt with one completion."""
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
    states: int
    """AdamW's two moments."""
    activations: int
    """Saved by the forward pass for the backward pass."""
    logits: int
    """Tiles of logits, where the backward pass begins."""
    recomputed: int
    """With checkpointing: activations of one layer, later in the backward pass."""
    cache: int
    """KV cache while completions are sampled, and copies of an adapter's layers; there are no
    activations then."""
    kept: int
    """Of these and of copies of trained weights: what graphs of decoding steps keep beside the
    update."""
    heap: int
    """On a CPU: freed blocks that malloc keeps."""
    libraries: int
    """On a CPU: Python's and torch's own memory."""

    @property
    def peak(self) -> int:
        return sum(getattr(self, name) for name in self._at_peak)

    @property
    def _at_peak(self) -> list[str]:
        """The parts that are there at once where a step has its peak."""
        later = "logits" if self.logits >= self.recomputed else "recomputed"
        update = ["activations", later, "kept"]
        samples = self.cache > sum(getattr(self, name) for name in update)
        moment = {"cache"} if samples else {*update}
        always = {"weights", "reference", "gradients", "states", "heap", "libraries"}
        return [part.name for part in fields(self) if part.name in always | moment]

    def summary(self) -> str:
        """The peak and its parts, which add up to it."""
        parts = [(name, getattr(self, name) / 2**30) for name in self._at_peak]
        shown = ", ".join(f"{name} {value:.2f}" for name, value in parts if value >= 0.005)
        when = " while completions are sampled" if "cache" in self._at_peak else ""
        return f"about {self.peak / 2**30:.2f} GiB a device{when} ({shown})"


def largest_batch(
    config: Config, *, text_tokens: int, target_tokens: int, pixels: int
) -> DeviceBatch:
    """The micro-batch of the longest prompt's `text_tokens` and the largest image's `pixels`."""
    patches = min(pixels, config.model.max_pixels or pixels) // _PIXELS_PER_PATCH
    sampled = config.method.algorithm == "grpo"
    return DeviceBatch(
        questions=config.hardware.questions_at_once,
        completions=config.method.num_generations,
        prompt_tokens=text_tokens + patches // 4,
        completion_tokens=config.method.trl["max_completion_length"] if sampled else target_tokens,
        patches=patches,
        shared=sampled and config.rollout.shares_prompts,
    )


_SHARDED = {
    "ddp": (),
    "fsdp": ("weights", "gradients", "states"),
    "zero2": ("gradients", "states"),
    "zero3": ("weights", "gradients", "states"),
}
"""Parts that `hardware.parallel` divides among the processes."""


def estimate(config: Config, batch: DeviceBatch, *, keeps_graphs: bool = False) -> MemoryEstimate:
    """Memory of the configured training at this micro-batch, if shards are of equal size.

    `keeps_graphs`: CUDA graphs of decoding steps stay beside the update, with what they work on.
    """
    model = meta_model(config.model)
    adapted = bool(config.adapter)
    full_model = get_peft_model(model, LoraConfig(**config.adapter)) if adapted else model
    trained = sum(p.numel() for p in full_model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in full_model.parameters())
    hardware = config.hardware
    shards = dict.fromkeys(_SHARDED[hardware.parallel], hardware.processes)
    # An adapter's reference model is the base with the adapter switched off, which is there anyway.
    with_reference = config.method.algorithm == "grpo" and not adapted and config.method.trl["beta"]
    adapter_bytes = _adapter_inputs(config, full_model) if adapted else 0
    activations, recomputed = _activations(config, model, batch, adapter_bytes)
    logits = _logits(config, model, batch)
    gradients = 4 * trained // shards.get("gradients", 1)
    buckets = bucket_bytes(config, trained)
    if config.accumulation == 1 and not buckets:
        # Gradients appear as activations are freed, layer by layer. From the second micro-batch on
        # they are there before the forward pass.
        gradients = max(gradients - activations, 0)
    elif config.accumulation > 1:
        gradients += buckets
    copies, cache = _decoding_copies(config, full_model), _kv_cache(config, model, batch)
    on_cpu = hardware.accelerator == "cpu"
    # With checkpointing a CPU worker calls `adapt_malloc`.
    keeps_blocks = on_cpu and not hardware.recomputes
    share = _HEAP_OF_ONE if config.accumulation == 1 else _HEAP
    return MemoryEstimate(
        weights=_weights(config, full_model, total, trained) // shards.get("weights", 1),
        reference=_reference(config, model) // shards.get("weights", 1) if with_reference else 0,
        gradients=gradients,
        states=_states(config, model, trained) // shards.get("states", 1),
        activations=activations,
        logits=logits,
        recomputed=recomputed,
        # Copies of trained weights are those that autocast keeps in the update.
        cache=cache + (copies if adapted else 0),
        kept=cache + copies if keeps_graphs else 0,
        heap=round(share * (activations + logits)) if keeps_blocks else 0,
        libraries=IMPORTED + _FIRST_USE if on_cpu else 0,
    )


def drawing_bytes(
    config: Config,
    model: PreTrainedModel | PeftModel,
    batch: DeviceBatch,
    *,
    keeps_graphs: bool = False,
) -> tuple[int, int]:
    """(bytes that drawing completions takes beside a loaded model, those that stay beside the
    update): the KV cache of a whole step's completions, and copies of weights."""
    if config.method.algorithm != "grpo" or config.rollout.name == "vllm":
        return 0, 0
    cache, copies = _kv_cache(config, model, batch), _decoding_copies(config, model)
    # Autocast's, of all weights.
    cast = 0 if config.adapter or _bytes(config) == 4 else 2 * model.num_parameters()
    return cache + max(copies, cast), cache + copies if keeps_graphs else 0


def bucket_bytes(config: Config, trained: int) -> int:
    """DDP's buckets, in which the gradients of `trained` parameters are reduced; there from its
    start. They are the gradients themselves (`gradient_as_bucket_view`) where a step is one
    micro-batch; else micro-batches add up gradients beside them, until the last is reduced."""
    several = config.hardware.processes > 1 and config.hardware.parallel == "ddp"
    return 4 * trained if several else 0


def _bytes(config: Config) -> int:
    return 2 if config.hardware.precision == "bfloat16" else 4


def _weights(config: Config, model: PreTrainedModel | PeftModel, total: int, trained: int) -> int:
    if not config.adapter:
        # Held in float32 to be trained; autocast keeps a bfloat16 copy of each until it ends.
        return 4 * total + (2 * total if _bytes(config) == 2 else 0)
    quantized = 0
    if config.model.quantization != "none":
        quantized = sum(
            p.numel()
            for name, p in model.named_parameters()
            if "language_model.layers" in name and p.ndim == 2 and "lora" not in name
        )
    unquantized = total - trained - quantized
    return int(_bytes(config) * unquantized + _NF4_BYTES * quantized + 4 * trained)


def _reference(config: Config, model: PreTrainedModel) -> int:
    """In float32, save the weights of products that `grpo` rounds."""
    total = sum(p.numel() for p in model.parameters())
    if _bytes(config) == 4 or config.hardware.parallel != "ddp":
        return 4 * total
    head = model.get_output_embeddings()
    products = (
        m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv3d) and m is not head
    )
    return 4 * total - 2 * sum(p.numel() for module in products for p in module.parameters())


def _states(config: Config, model: PreTrainedModel, trained: int) -> int:
    if config.hardware.optimizer_states == "float32":
        return 8 * trained
    text = model.config.get_text_config()
    # bitsandbytes leaves the states of embeddings in float32.
    embeddings = 0 if config.adapter else text.vocab_size * text.hidden_size
    return math.ceil(2.03 * (trained - embeddings)) + 8 * embeddings


def _activations(
    config: Config, model: PreTrainedModel, batch: DeviceBatch, adapter_bytes: int
) -> tuple[int, int]:
    """(bytes the forward pass saves, with checkpointing the bytes of one recomputed layer).

    Counted over the layers of transformers' Qwen2-VL and Qwen2.5-VL: each tensor that a matrix
    product, a norm, an activation function or the attention saves for backward, once;
    `adapter_bytes` a token besides.
    """
    text, tower = model.config.get_text_config(), vision_tower(model.config)
    width, inner, size = text.hidden_size, text.intermediate_size, _bytes(config)
    # Each of a layer's two norms saves its float32 input and its normalised value, and the product
    # after it saves its input. Attention saves 4 widths, the MLP 4 inner widths.
    # Fused layers save neither the normalised value nor what the gate's activation makes of it.
    fused = config.hardware.uses_fused_layers and config.rollout.name != "trl"
    norms = 2 * ((1 if fused else 2) * 4 + size)
    layer = batch.tokens * ((norms + 4 * size) * width + (4 - fused) * size * inner)
    patches = batch.images * batch.patches
    block = patches * tower.layer_bytes(size, fused=fused)
    # `ends` are outside the layers: pixels, the merger's norm and product, and below the language
    # model's last norm and the input of its head.
    ends = patches * (_VALUES_PER_PATCH * size + (8 + 3 * size) * tower.width)
    if config.adapter:
        # A frozen product needs no gradient of its weights and saves no input. The vision tower
        # saves nothing, since no gradient reaches it.
        layer = batch.tokens * ((8 + 6 * size) * width + (3 - fused) * size * inner)
        layer += batch.tokens * adapter_bytes // text.num_hidden_layers
        block = ends = 0
    ends += batch.tokens * (8 + 2 * size) * width
    rows = batch.questions * batch.completions
    if batch.shared:
        # Attention block by block copies the prompt's keys and values beside each completion's own,
        # and saves these copies besides the originals; queries of prompts are saved once.
        heads = text.num_attention_heads // text.num_key_value_heads
        layer += size * 2 * (batch.tokens + rows * batch.row_tokens) * width // heads
        layer -= size * batch.questions * batch.prompt_tokens * width
        # Frozen, the output product saves no input of its own.
        layer -= size * batch.tokens * width if config.adapter else 0
        mask = batch.questions * heads * batch.completion_tokens * batch.row_tokens
        ends += size * mask  # one for all layers
    elif config.hardware.attention != "flash_attention_2":
        # From a bool mask torch makes one of numbers in each layer, and saves it.
        layer += size * rows * batch.row_tokens**2
    depth, visual = text.num_hidden_layers, 0 if config.adapter else tower.layers
    if config.hardware.recomputes:  # of each layer its input alone, in float32
        # Fused layers hand on what is to be added to it beside it.
        numbers = batch.tokens * width * depth + patches * tower.width * visual
        inputs = (4 + size * fused) * numbers
        return inputs + ends, max(layer + _layer_gradients(config, model, batch), block)
    return layer * depth + block * visual + ends, 0


def _adapter_inputs(config: Config, model: nn.Module) -> int:
    """Bytes a token of all LoRA layers' saved inputs and of the masks of their dropout."""
    size = _bytes(config)
    # On a CPU torch's dropout saves a mask of the input's type, on CUDA one of bytes.
    mask = size if config.hardware.accelerator == "cpu" else 1
    if not config.adapter.get("lora_dropout"):
        mask = 0
    inputs = sum(m.in_features or 0 for m in model.modules() if isinstance(m, LoraLayer))
    return (size + mask) * inputs


def _logits(config: Config, model: PreTrainedModel, batch: DeviceBatch) -> int:
    """Where the backward pass begins: tiles of logits and the gradient of the head's weights.

    Or the gradients of activations within one layer, if they are more.
    """
    text = model.config.get_text_config()
    if config.hardware.accelerator == "cuda":
        # On CUDA TRL's head computes logits of labelled tokens alone, and its Triton kernel turns a
        # tile into its gradient in place.
        targets = batch.questions * batch.completions * batch.completion_tokens
        targets = targets or batch.tokens
        tile = _bytes(config) * min(targets, _HEAD_TOKENS) * _HEAD_VOCABULARY
    else:
        # Elsewhere logits of all tokens. Of a tile only the pages that are written take memory.
        tile = 4 * _TILES * min(batch.tokens, _HEAD_TOKENS) * min(text.vocab_size, _HEAD_VOCABULARY)
    head = 0 if config.adapter else 4 * text.vocab_size * text.hidden_size
    return max(round(tile) + head, _layer_gradients(config, model, batch))


def _layer_gradients(config: Config, model: PreTrainedModel, batch: DeviceBatch) -> int:
    """Bytes of the gradients of activations within one layer."""
    return 3 * _bytes(config) * batch.tokens * model.config.get_text_config().intermediate_size


def _kv_cache(config: Config, model: PreTrainedModel | PeftModel, batch: DeviceBatch) -> int:
    if config.method.algorithm != "grpo" or config.rollout.name == "vllm":
        return 0  # vLLM has its own, in its share of the device
    text = model.config.get_text_config()
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    # TRL samples a whole optimizer step at once, the update cuts it into micro-batches.
    questions = batch.questions * config.accumulation
    rows = questions * batch.completions
    tokens = rows * batch.row_tokens
    if _decodes_by_graphs(config):  # prompts once, beside those of the prefill
        tokens = 2 * questions * batch.prompt_tokens + rows * batch.completion_tokens
    return 2 * _bytes(config) * tokens * heads * text.num_hidden_layers


def _decodes_by_graphs(config: Config) -> bool:
    graphs = config.hardware.uses_cuda_graphs and config.rollout.draft_tokens in ("auto", "0")
    return graphs and config.method.algorithm == "grpo" and config.rollout.name == "grouped"


def _decoding_copies(config: Config, model: nn.Module) -> int:
    """Bytes of the weights that decoding steps copy: those that are trained, and with an adapter
    the layers that have one, of the language model."""
    if not _decodes_by_graphs(config) or config.model.quantization != "none":
        return 0
    if config.adapter:
        layers: list[Any] = [
            m
            for name, m in model.named_modules()
            if ".language_model." in name and isinstance(m, LoraLayer)
        ]
        return _bytes(config) * sum(p.numel() for m in layers for p in m.parameters())
    text = (p for name, p in model.named_parameters() if ".language_model.layers." in f".{name}")
    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return _bytes(config) * (sum(p.numel() for p in text) + head.weight.numel())
