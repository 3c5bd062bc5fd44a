"""How versions of transformers and PEFT before those installed here write a model folder.

transformers 5 nests what the published checkpoints of Qwen2-VL and Qwen2.5-VL have at the top, and
transformers 4 does not read that; both read the published layout. transformers 4.52 gave the layers
other names, by which PEFT finds the tensors of an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medreason.runs.files import read_json, write_json

BEFORE_4_52 = "before_4_52"
SINCE_4_52 = "since_4_52"

_FAMILIES = ("qwen2_vl", "qwen2_5_vl")
_CLASSES = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
"""Values of `model_type` and `processor_class` whose published layout is known here."""

RENAMED = {
    r"^visual": "model.visual",
    r"^model(?!\.(language_model|visual))": "model.language_model",
}
"""Names of Qwen2-VL's and Qwen2.5-VL's layers before transformers 4.52 -> names since then, as
patterns for PEFT's `key_mapping`."""

_RENAMED_BACK = {r"^model\.visual": "visual", r"^model\.language_model": "model"}

_PREFIX = "base_model.model."
"""Of each tensor in a file of PEFT."""

_FIELDS_OF_PEFT_0_14 = (
    "alpha_pattern auto_mapping base_model_name_or_path bias eva_config exclude_modules "
    "fan_in_fan_out inference_mode init_lora_weights layer_replication layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_bias lora_dropout megatron_config "
    "megatron_core modules_to_save peft_type r rank_pattern revision target_modules task_type "
    "use_dora use_rslora"
)
"""Of `LoraConfig`: that version warns of others and goes on without them."""

_NOT_OF_THE_MODEL = ("peft_version", "qalora_group_size")
"""Later fields that have a value in every adapter and by themselves change nothing."""

_PROCESSOR_FILES = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}
"""Parts of transformers 5's processor_config.json -> files of their own in the published layout."""

_OF_THE_WRITER = ("backend", "is_local", "local_files_only")
"""Keys of transformers 5 in tokenizer_config.json that say how it was loaded."""


def renamed_targets(targets: str | Collection[str] | None) -> str | list[str] | None:
    """`target_modules` of an adapter with the names of layers since transformers 4.52."""
    if targets is None or isinstance(targets, str):
        return targets and re.sub(
            r"\bmodel(\\?\.)layers", r"model\1language_model\1layers", targets
        )
    return [_renamed(name, RENAMED) for name in targets]


def renamed(tensor: str) -> str:
    """The name in memory of a tensor in a checkpoint, whichever version wrote it."""
    return _renamed(tensor, RENAMED)


def _renamed(name: str, patterns: dict[str, str]) -> str:
    """By the first pattern that matches."""
    for pattern, replacement in patterns.items():
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def write_published(folder: Path) -> bool:
    """Rewrite the configurations of model, tokenizer and processor in a folder that transformers 5
    saved as those of the published checkpoints. False for a model whose layout is not known here.

    The weights have the published names already. An adapter's folder has no configuration of a
    model and may have no processor.
    """
    config = _read(folder / "config.json")
    processor = _read(folder / "processor_config.json")
    kind = processor.get("processor_class")
    known_model = not config or config["model_type"] in _FAMILIES
    if not known_model or (processor and kind not in _CLASSES):
        return False
    if config:
        write_json(folder / "config.json", published_config(config))
    if tokenizer := _read(folder / "tokenizer_config.json"):
        write_json(folder / "tokenizer_config.json", _published_tokenizer(tokenizer))
    if processor:
        for name, file in _PROCESSOR_FILES.items():
            write_json(folder / file, _with_pixels(processor[name]) | {"processor_class": kind})
        (folder / "processor_config.json").unlink()
    return True


def published_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with the language model's values at the top and RoPE by its earlier names."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = dict(text.pop("rope_parameters"))
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    for part in (text, vision):
        for name in ("model_type", "dtype", "rope_parameters"):
            part.pop(name, None)
    nested = ("text_config", "vision_config", "dtype")
    return {
        **text,
        **{name: value for name, value in config.items() if name not in nested},
        "vision_config": vision,
        "rope_theta": theta,
        # "mrope" is what transformers 4 calls the default type of these models.
        "rope_scaling": rope | {"type": "mrope" if kind == "default" else kind},
        "torch_dtype": config["dtype"],
    }


def _published_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json` with its special tokens where transformers 4 looks for them."""
    tokenizer = {name: value for name, value in tokenizer.items() if name not in _OF_THE_WRITER}
    if isinstance(special := tokenizer.pop("extra_special_tokens", None), list):
        tokenizer["additional_special_tokens"] = special
    return tokenizer


def _with_pixels(processor: dict[str, Any]) -> dict[str, Any]:
    """A processor that says its sizes by their names in transformers 4, too."""
    size = processor["size"]
    return processor | {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}


def rename_adapter(folder: Path, layout: str) -> None:
    """Give an adapter the names of layers of `layout`; one that has them stays as it is.

    Raises:
        ValueError: it has an option that cannot be written so.
    """
    from safetensors.torch import load_file, save_file  # torch, seconds

    patterns = _RENAMED_BACK if layout == BEFORE_4_52 else RENAMED
    settings = _read(folder / "adapter_config.json")
    if layout == BEFORE_4_52:
        settings = _fields_of_peft_0_14(settings)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        renamed = {
            _PREFIX + _renamed(name.removeprefix(_PREFIX), patterns): tensor
            for name, tensor in tensors.items()
        }
        if renamed.keys() != tensors.keys():
            save_file(renamed, file, metadata={"format": "pt"})
            settings |= _targets_of(renamed, settings)
    write_json(folder / "adapter_config.json", settings)


def _fields_of_peft_0_14(settings: dict[str, Any]) -> dict[str, Any]:
    later = {name: settings[name] for name in settings.keys() - {*_FIELDS_OF_PEFT_0_14.split()}}
    for name, value in sorted(later.items()):
        if value and name not in _NOT_OF_THE_MODEL:
            raise ValueError(
                f"export.layout={BEFORE_4_52}: {name}={value!r} of the adapter is not known to "
                "PEFT of that time; leave out export.adapter_only to write merged weights"
            )
    return {name: value for name, value in settings.items() if name not in later}


def _targets_of(tensors: Collection[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The layers of an adapter, each by its name: an expression over names cannot be renamed."""
    for key in [*settings["rank_pattern"], *settings["alpha_pattern"]]:
        if re.search(r"model|visual", key):
            raise ValueError(
                f"export.adapter_only=true: {key!r} in the adapter's rank_pattern or alpha_pattern "
                "names layers as other versions of transformers do; leave it out to write merged "
                "weights"
            )
    layers = {
        name.removeprefix(_PREFIX).partition(".lora_")[0] for name in tensors if ".lora_" in name
    }
    none = dict.fromkeys(("exclude_modules", "layers_pattern", "layers_to_transform"))
    return {**none, "target_modules": sorted(layers)}


def versions(*, published: bool, adapter: bool, layout: str) -> str:
    """Which versions open an export."""
    if not published:
        return f"transformers {version('transformers')}, which wrote it, or later"
    if not adapter:
        return "transformers 4.49 or later"
    if layout == BEFORE_4_52:
        return "transformers 4.49 to 4.51 with PEFT"
    return (
        "transformers 4.52 or later with PEFT "
        f"(export.layout={BEFORE_4_52} writes it for earlier ones)"
    )


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    return read_json(path) if path.exists() else {}
