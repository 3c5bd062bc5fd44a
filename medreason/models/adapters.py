"""Whether an adapter belongs to its base model, checked without loading either. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from medreason.models import model_folder


def check(path: str) -> None:
    """Refuse an adapter whose base model is missing or of another size. The hub checks its own.

    Raises:
        ValueError: names adapter, base, and what differs.
    """
    folder = Path(model_folder.resolve(path))
    if not model_folder.is_adapter(path):
        return
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = Path(model_folder.resolve(name))
    if not base.exists():
        if Path(name).is_absolute() or name.count("/") != 1:
            raise ValueError(
                f"model.path={path!r} is an adapter for {name!r}, which is not there; put the base "
                "model back, or name it in base_model_name_or_path of adapter_config.json"
            )
        return
    config = json.loads((base / "config.json").read_text())
    text = config.get("text_config", config)
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


def _tensor_shapes(folder: Path) -> list[tuple[str, list[int]]]:
    """(tensor, shape) from the headers of the safetensors files."""
    shapes: list[tuple[str, list[int]]] = []
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header: dict[str, Any] = json.loads(
                stream.read(int.from_bytes(stream.read(8), "little"))
            )
        shapes += [(k, v["shape"]) for k, v in header.items() if k != "__metadata__"]
    return shapes
