"""Weights, processor and adapter of the configured model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

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
"""Either ends a completion."""

VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Tokens a completion must not contain: in a forward pass they stand for an image, and there is
none."""

_Wrapped = TypeVar("_Wrapped")


def load_processor(model: Model) -> ProcessorMixin:
    """Tokenizer, image processor and chat template; pads on the left, as decoding needs it."""
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
    """The model in the profile's precision; an adapter is merged into its base model.

    `full_precision` holds the weights in float32 whatever the profile computes in: at GRPO's
    learning rate of 1e-6 an update is too small to change a bfloat16 weight.
    """
    path = model_folder.resolve(model.path)
    precision = torch.float32 if full_precision else getattr(torch, hardware.precision)
    if model.weights == "random":
        return _random_model(model, hardware, precision)
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
        # bitsandbytes quantizes while loading, on the device where the weights stay.
        device_map={"": PartialState().device} if quantized else None,
    )
    if quantized:
        _keep_4bit_weights(loaded)
    if base is not path:
        if quantized:
            loaded.dequantize()  # merged in 4 bits, the adapter would be rounded away
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


def _keep_4bit_weights(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from rounding the weights again, and for good, where a CPU has AVX512-BF16:
    it repacks them for inference."""
    from bitsandbytes.nn.modules import Linear4bit  # says at import what it lacks

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def meta_model(model: Model) -> PreTrainedModel:
    """The model on torch's meta device: names and shapes of all weights, without their values."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(_model_config(model), dtype=torch.float32)


def _random_model(model: Model, hardware: Hardware, precision: torch.dtype) -> PreTrainedModel:
    """The checkpoint's architecture with the configured changes and the same random weights."""
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(
        _model_config(model), dtype=precision, attn_implementation=hardware.attention
    )


def _model_config(model: Model) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(model_folder.resolve(model.path), revision=model.revision)
    values = config.to_dict()
    for name, value in model.architecture.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return type(config).from_dict(values)


def without_adapter(model: _Wrapped) -> _Wrapped | PreTrainedModel:
    """The base model of an adapter; a model without one as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # pyright: ignore[reportReturnType]
