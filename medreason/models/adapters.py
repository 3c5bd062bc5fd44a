"""Whether an adapter belongs to its base model, checked without loading either. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medreason.models import model_folder
from medreason.runs.files import read_json

KEEPING_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's weights as they are. The others (pissa,
olora, corda, loftq ...) take the adapter's first values out of them, so that base and adapter apart
from each other are neither what was trained nor the start model."""


def refuse_changed_base(init: object, where: str) -> None:
    """Raises ValueError where `init_lora_weights` changes the base model."""
    if init not in KEEPING_THE_BASE:
        raise ValueError(
            f"{where}={init!r} changes the base model's weights, which are not saved with the "
            "adapter, and the start model is no longer GRPO's reference; use true or gaussian"
        )


def refuse_tied(names: Iterable[str], tied: bool, where: str) -> None:
    """Refuse an adapter on embedding or output layer where both are one tensor (the 2B, the 3B):
    merged into one it would change the other.

    Raises:
        ValueError: the name.
    """
    for name in names:
        if tied and re.search(r"(^|\W)(embed_tokens|lm_head)(\W|$)", name):
            raise ValueError(
                f"{where}: {name} is on a layer whose weights are those of another "
                "(tie_word_embeddings): merged, it would change both; leave it out"
            )


def check(path: str) -> None:
    """Refuse an adapter whose base model is missing or of another size, or which cannot be merged
    into it. The hub checks its own.

    Raises:
        ValueError: names adapter, base, and what differs.
    """
    folder = Path(model_folder.resolve(path))
    if not model_folder.is_adapter(path):
        if folder.exists():
            model_folder.refuse_foreign(path)
        return
    name = _base(path, read_json(folder / "adapter_config.json"))
    base = Path(model_folder.resolve(name))
    if not base.exists():
        if Path(name).is_absolute() or name.count("/") != 1:
            raise ValueError(
                f"model.path={path!r} is an adapter for {name!r}, which is not there; put the base "
                "model back, or name it in base_model_name_or_path of adapter_config.json"
            )
        return
    key = f"model.path={path!r}: base_model_name_or_path"
    model_folder.check(name, key)
    if model_folder.is_adapter(name):
        raise ValueError(f"{key}={name!r} is an adapter itself; merge it into its base first")
    model_folder.refuse_foreign(name, key)
    model_folder.refuse_quantized(name, key)
    config = read_json(base / "config.json")
    text = config.get("text_config", config)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    refuse_tied([tensor for tensor, _ in _tensor_shapes(folder)], tied, f"model.path={path!r}")
    for tensor, shape in _tensor_shapes(folder):
        layer = re.search(r"layers\.(\d+)\.", tensor)
        if layer and "visual" not in tensor and int(layer[1]) >= text["num_hidden_layers"]:
            difference = f"layer {layer[1]} of {text['num_hidden_layers']}"
        elif re.search(r"[qkv]_proj\.lora_A", tensor) and shape[-1] != text["hidden_size"]:
            difference = f"{shape[-1]} inputs in place of {text['hidden_size']}"
        else:
            continue
        raise ValueError(
            f"model.path={path!r} is an adapter for another base model than {name!r}: {tensor} "
            f"says {difference}; set base_model_name_or_path of adapter_config.json to its own"
        )


def local_base(folder: Path) -> str:
    """The folder of this machine that an adapter names as its base; empty for an id of the hub."""
    name = str(read_json(folder / "adapter_config.json")["base_model_name_or_path"])
    return name if Path(name).exists() else ""


def _base(path: str, settings: dict[str, Any]) -> str:
    """The base model that an adapter names. Raises ValueError unless it can be merged into it."""
    kind, init = settings.get("peft_type"), settings.get("init_lora_weights", True)
    if kind != "LORA":
        raise ValueError(
            f"model.path={path!r}: peft_type={kind!r} of its adapter_config.json; LORA is read "
            "here (with DoRA and rsLoRA): merge another into its base with PEFT's "
            "merge_and_unload, where it can be, and save that"
        )
    if init not in KEEPING_THE_BASE:
        raise ValueError(
            f"model.path={path!r}: init_lora_weights={init!r} of its adapter_config.json changed "
            "the base model, which is not in the folder; save it with PEFT's "
            "path_initial_model_for_weight_conversion, or merge it where it was trained"
        )
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"model.path={path!r}: base_model_name_or_path of its adapter_config.json is {name!r}; "
            "write there the folder or hub id of the model that it was trained on"
        )
    return name


def _tensor_shapes(folder: Path) -> list[tuple[str, list[int]]]:
    """(tensor, shape) from the headers of the safetensors files."""
    files = folder.glob("*.safetensors")
    return [shape for file in files for shape in model_folder.tensors(file).items()]
