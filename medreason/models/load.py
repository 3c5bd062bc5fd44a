"""Weights, processor and adapter of the configured model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.processing_utils import ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from medreason.config import Hardware, Model
from medreason.console import notice
from medreason.models import layout, merging, model_folder
from medreason.models.patch_embedding import multiply_patches

disable_progress_bar()  # of loading weights, which a log keeps as one long line

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

_PUBLISHED = Path(__file__).with_name("published.yaml")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Written with a processor by transformers 5 and by earlier versions."""

_Wrapped = TypeVar("_Wrapped")


def load_processor(model: Model) -> ProcessorMixin:
    """Tokenizer, image processor and chat template; pads on the left, as decoding needs it."""
    path = model_folder.resolve(model.path)
    if model_folder.is_adapter(path) and not any(
        (Path(path) / name).exists() for name in _PROCESSOR_FILES
    ):
        path = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
        path = model_folder.resolve(path)
    processor = AutoProcessor.from_pretrained(path, revision=model.revision, padding_side="left")
    if model.max_pixels is not None:
        size = dict(processor.image_processor.size)
        limit = model.max_pixels
        if limit > size["longest_edge"] and model.weights != "random":
            limit = size["longest_edge"]
            notice(
                f"model.max_pixels={model.max_pixels}: the processor in {path} takes {limit} at "
                "most, as the model was trained; that is kept"
            )
        # Below `shortest_edge` images are enlarged, which would overrule a smaller limit.
        edges = {"longest_edge": limit, "shortest_edge": min(limit, size["shortest_edge"])}
        processor.image_processor.size = size | edges
    return processor


def load_model(
    model: Model,
    hardware: Hardware,
    *,
    full_precision: bool = False,
    patch_products: bool = True,
) -> PreTrainedModel:
    """The model in the profile's precision; an adapter loses nothing to that precision.

    `full_precision` holds the weights in float32 whatever the profile computes in: at GRPO's
    learning rate of 1e-6 an update is too small to change a bfloat16 weight. Without
    `patch_products` patches are embedded by the convolution of transformers.
    """
    precision = torch.float32 if full_precision else getattr(torch, hardware.precision)
    loaded = _load_for_use(model, hardware, precision)
    if patch_products:
        multiply_patches(loaded)
    return loaded


def _load_for_use(model: Model, hardware: Hardware, precision: torch.dtype) -> PreTrainedModel:
    if model.weights == "random":
        return _random_model(model, hardware, precision)
    loaded = _load(model, hardware, precision)
    if not isinstance(loaded, PeftModel):
        return loaded
    if precision == torch.float32:
        return merging.merged(loaded, precision)[0]
    return merging.with_exact_layers(loaded, precision)


def load_merged(model: Model, hardware: Hardware) -> tuple[PreTrainedModel, float]:
    """(the model in weights of the profile's precision, what share of an adapter's change they
    keep): layers as transformers has them, to be saved."""
    precision = getattr(torch, hardware.precision)
    loaded = _load(model, hardware, precision)
    return merging.merged(loaded, precision) if isinstance(loaded, PeftModel) else (loaded, 1.0)


def _load(model: Model, hardware: Hardware, precision: torch.dtype) -> PreTrainedModel | PeftModel:
    path = model_folder.resolve(model.path)
    base, revision = path, model.revision
    if model_folder.is_adapter(path):
        adapter = PeftConfig.from_pretrained(path)
        base, revision = str(adapter.base_model_name_or_path), adapter.revision
    quantized = model.quantization != "none"
    loaded = load_whole(
        AutoModelForImageTextToText,
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
    if base is path:
        return loaded
    if quantized:
        loaded.dequantize()  # merged in 4 bits, the adapter would be rounded away
    return with_adapter(loaded, path)


def load_whole(
    auto_class: type[AutoModelForImageTextToText | AutoModelForCausalLM],
    path: str,
    **settings: Any,
) -> PreTrainedModel:
    """`from_pretrained` of a checkpoint all of whose tensors have a place in the model, and the
    other way round. transformers only reports those that have none, or fills them at random.

    Raises:
        ValueError: with how many and which.
    """
    both: Any = auto_class.from_pretrained(
        path, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    loaded, info = both
    for kind, words in (
        ("unexpected_keys", "tensors that the model has no place for"),
        ("missing_keys", "no tensor for weights of the model"),
        ("mismatched_keys", "tensors of another shape than the model's"),
    ):
        if names := sorted(map(str, info[kind])):
            raise ValueError(
                f"{path}: the checkpoint has {words}: {len(names)}, the first {names[0]}; it is "
                f"incomplete or not of a {type(loaded).__name__}"
            )
    return loaded


def with_adapter(base: PreTrainedModel, path: str) -> PeftModel:
    """A base model with the adapter in the folder `path`, every tensor of which has found its
    layer. Layers are renamed where transformers before 4.52 wrote it.

    Raises:
        ValueError: a tensor finds no layer, a layer no tensor, or the shapes differ.
    """
    config = PeftConfig.from_pretrained(path)
    assert isinstance(config, LoraConfig)
    config.inference_mode = True
    config.target_modules = layout.renamed_targets(config.target_modules)
    try:
        model = PeftModel(base, config)
        result = model.load_adapter(path, "default", key_mapping=layout.RENAMED)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: the adapter does not fit its base model: {error}") from error
    lost, empty = result.unexpected_keys, result.missing_keys
    if lost or empty:
        raise ValueError(
            f"{path}: of the adapter {len(lost)} tensors fit no layer of its base model and "
            f"{len(empty)} layers have no tensor, the first {[*lost, *empty][0]}; it was trained "
            "on another model, or saved with other names of layers"
        )
    return model


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


def context_length(model: Model) -> int | None:
    """Most tokens of prompt and completion; None where the checkpoint names no limit."""
    path = model_folder.resolve(model.path)
    if model_folder.is_adapter(path):
        adapter = PeftConfig.from_pretrained(path)
        base = str(adapter.base_model_name_or_path)
        model = replace(model, path=base, revision=adapter.revision)
    config = _model_config(model).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    # YaRN and its like stretch the positions that were trained first.
    rope = getattr(config, "rope_parameters", None) or {}
    if limit and (factor := rope.get("factor")):
        trained = rope.get("original_max_position_embeddings") or limit
        limit = max(limit, int(factor * trained))
    return limit


def meta_model(model: Model) -> PreTrainedModel:
    """The model on torch's meta device: names and shapes of all weights, without their values.

    Of the published models without a network: `published.yaml` has their architectures.
    """
    published = yaml.safe_load(_PUBLISHED.read_text()).get(model.path)
    config = AutoConfig.for_model(**published) if published else _model_config(model)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def shapes(model: Model) -> dict[str, list[int]]:
    """Tensor -> shape, a tied one once; as `meta_model`.

    Raises:
        OSError: the hub is not reached, and the model is none of the published ones.
    """
    return {name: list(tensor.shape) for name, tensor in meta_model(model).named_parameters()}


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
