"""Weights, processor and adapter of the configured model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.processing_utils import ProcessorMixin

from medreason.config import Hardware, Model
from medreason.models import model_folder

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Either ends a reply."""

VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""What a reply must not contain: read back, they stand for an image that is not there."""


def load_processor(model: Model) -> ProcessorMixin:
    """Tokenizer, image processor and chat template; pads on the left, as generation needs it."""
    path = model_folder.resolve(model.path)
    if model_folder.is_adapter(path) and not (Path(path) / "preprocessor_config.json").exists():
        path = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    processor = AutoProcessor.from_pretrained(path, revision=model.revision, padding_side="left")
    if model.max_pixels is not None:
        size = dict(processor.image_processor.size)
        limit = min(model.max_pixels, size["longest_edge"])
        if model.weights == "random":
            limit = model.max_pixels
        processor.image_processor.size = size | {"longest_edge": limit}
    return processor


def load_model(
    model: Model, hardware: Hardware, *, full_precision: bool = False
) -> PreTrainedModel:
    """The model in the profile's precision; an adapter folder is merged into its base model.

    `full_precision` holds the weights in float32 whatever the profile computes in: at GRPO's rate
    of 1e-6 a step is smaller than what a bfloat16 weight can represent, and would be lost.
    """
    path = model_folder.resolve(model.path)
    precision = torch.float32 if full_precision else getattr(torch, hardware.precision)
    if model.weights == "random":
        return _random(model, hardware, precision)
    base, revision = path, model.revision
    if model_folder.is_adapter(path):
        adapter = PeftConfig.from_pretrained(path)
        base, revision = str(adapter.base_model_name_or_path), adapter.revision
    quantized = model.quantization != "none"
    loaded = AutoModelForImageTextToText.from_pretrained(
        model_folder.resolve(base),
        revision=revision,
        dtype=precision,
        attn_implementation=hardware.attention,
        quantization_config=_nf4(precision) if quantized else None,
        # Quantised weights stay where they are loaded.
        device_map={"": PartialState().device} if quantized else None,
    )
    if quantized:
        _keep_as_trained(loaded)
    if base is not path:
        if quantized:  # merged in 4 bits the adapter would be rounded away
            loaded.dequantize()
        loaded = PeftModel.from_pretrained(loaded, path).merge_and_unload()  # pyright: ignore[reportArgumentType]
    return loaded


def _nf4(precision: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's 4 bits (arXiv:2305.14314) for the layers of the language model."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )


def _keep_as_trained(model: PreTrainedModel) -> None:
    """CPUs with AVX512-BF16 would round the weights anew for inference, for good."""
    from bitsandbytes.nn.modules import Linear4bit  # says at import what it lacks

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def outline(model: Model) -> PreTrainedModel:
    """The architecture alone, on torch's meta device: names and shapes of all weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(_architecture(model), dtype=torch.float32)


def _random(model: Model, hardware: Hardware, precision: torch.dtype) -> PreTrainedModel:
    """The architecture of the checkpoint with the configured changes; equal weights every time."""
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(
        _architecture(model), dtype=precision, attn_implementation=hardware.attention
    )


def _architecture(model: Model) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(model_folder.resolve(model.path), revision=model.revision)
    values = config.to_dict()
    for name, value in model.architecture.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return type(config).from_dict(values)


def without_adapter(model: Any) -> Any:  # noqa: ANN401
    """The model below an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
