"""With another version of transformers and peft: make small models and adapters, or open exports.

python other_version.py make FOLDER            # models, adapters, inputs and logits
python other_version.py open EXPORT INPUTS     # greatest difference to the logits in INPUTS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

TEXT = {
    **{"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False},
    **{"bos_token_id": 390, "eos_token_id": 391, "vision_start_token_id": 392},
    **{"vision_end_token_id": 393, "image_token_id": 394, "video_token_id": 395},
}
FAMILIES = {
    "qwen2_vl": (
        "Qwen2VL",
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            **{"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2},
            **{"intermediate_size": 64, "fullatt_block_indexes": [1], "window_size": 56},
        },
    ),
}


def inputs() -> dict[str, torch.Tensor]:
    """A prompt with one image of 8 x 8 patches, 16 tokens."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(0, 380, (12,), generator=draw)
    tokens = torch.cat([words[:4], torch.tensor([392]), torch.full((16,), 394), words[4:]])[None]
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": torch.randn(64, 1176, generator=draw),
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
    }


@torch.no_grad()
def logits(model: torch.nn.Module, **tensors: torch.Tensor) -> torch.Tensor:
    return model.eval()(**tensors).logits


def make(folder: Path) -> None:
    for name, (prefix, vision) in FAMILIES.items():
        torch.manual_seed(0)
        config_class = getattr(transformers, f"{prefix}Config")
        config = config_class(**TEXT, vision_config=vision)
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
        target = folder / name
        model.save_pretrained(target / "model")
        plain = logits(model, **inputs())
        model.name_or_path = str(target / "model")
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "qkv"]))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = str(target / "model")
        model.save_pretrained(target / "adapter")
        adapted = logits(model, **inputs())
        save_file({**inputs(), "model": plain, "adapter": adapted}, target / "logits.safetensors")


def opened(export: Path, expected: Path) -> None:
    tensors = load_file(expected)
    answer = tensors.pop("logits")
    tensors.pop("mm_token_type_ids", None)
    loader = getattr(transformers, "AutoModelForImageTextToText", None)
    model, info = loader.from_pretrained(
        export, torch_dtype=torch.float32, output_loading_info=True
    )
    lost = [*info["missing_keys"], *info["unexpected_keys"]]
    difference = (logits(model, **tensors) - answer).abs().max().item()
    print(f"{export.name}: {len(lost)} tensors lost, greatest difference {difference:.1e}")
    if lost or difference > 1e-4:
        sys.exit(1)


if __name__ == "__main__":
    print(f"transformers {transformers.__version__}")
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        opened(Path(sys.argv[2]), Path(sys.argv[3]))
