"""What an export looks like to other versions of transformers and PEFT.

That those versions open it is measured outside CI: experiments/compatibility.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, Qwen2VLForConditionalGeneration

from medreason.actions import export
from medreason.config import Config
from medreason.models import layout
from medreason.models.load import load_model
from medreason.models.model_folder import EMBEDDED

Compose = Callable[..., Config]
LAYERS = r".*language_model.*\.q_proj|.*visual.*\.qkv"


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def adapter(folder: Path, **options: Any) -> Path:
    """An adapter on the tiny model that changes it."""
    torch.manual_seed(0)
    base = Qwen2VLForConditionalGeneration.from_pretrained(EMBEDDED, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**{"r": 4, "target_modules": LAYERS} | options))
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(str(folder))
    return folder


@torch.inference_mode()
def logits(composed: Compose, path: Path) -> torch.Tensor:
    config = composed(f"model.path={path}")
    return load_model(config.model, config.hardware).eval()(input_ids=torch.tensor([[5, 6]])).logits


def exported(composed: Compose, target: Path, *overrides: str) -> Path:
    export.run(composed("action=export", f"export.to={target}", *overrides))
    return target


def test_merged_export_is_laid_out_as_published_checkpoints_are(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(composed, tmp_path / "exported")
    config = content(folder / "config.json")
    assert "text_config" not in config
    assert "dtype" not in config
    assert config["rope_scaling"] == {"type": "mrope", "mrope_section": [4, 6, 6]}
    assert (config["rope_theta"], config["torch_dtype"]) == (10_000.0, "bfloat16")
    assert config["tie_word_embeddings"] is True
    assert (config["hidden_size"], config["vision_config"]["depth"]) == (128, 3)
    image = content(folder / "preprocessor_config.json")
    assert (image["min_pixels"], image["max_pixels"]) == (3136, 12_600)
    assert content(folder / "video_preprocessor_config.json")["video_processor_type"]
    assert not (folder / "processor_config.json").exists()
    tokenizer = content(folder / "tokenizer_config.json")
    assert "<|image_pad|>" in tokenizer["additional_special_tokens"]
    assert "extra_special_tokens" not in tokenizer
    names = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in names} == {
        "model.embed_tokens", "model.layers", "model.norm",
        "visual.blocks", "visual.merger", "visual.patch_embed",
    }  # fmt: skip
    assert "opens with transformers 4.49 or later" in capsys.readouterr().err
    assert "Opens with transformers 4.49 or later." in (folder / "README.md").read_text()


def test_published_layout_is_the_same_model_here(composed: Compose, tmp_path: Path) -> None:
    folder = exported(composed, tmp_path / "exported")
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (EMBEDDED, folder))
    after["text_config"]["rope_parameters"].pop("type")
    for values in (before, after):
        for part in (values, values["text_config"], values["vision_config"]):
            part.pop("_name_or_path", None)
            part.pop("dtype", None)
    assert after == before
    processors = [AutoProcessor.from_pretrained(path) for path in (EMBEDDED, folder)]
    texts = [p.tokenizer("<|im_start|>user Which? <|image_pad|>") for p in processors]
    assert texts[0]["input_ids"] == texts[1]["input_ids"]
    first, second = (dict(p.image_processor.size) for p in processors)
    assert first == second
    assert torch.equal(logits(composed, folder), logits(composed, EMBEDDED))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_of_another_type_keeps_its_name_and_numbers(kind: str) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    published = layout.published_config(
        {
            "model_type": "qwen2_5_vl", "dtype": "float32", "vision_config": {"depth": 1},
            "text_config": {"hidden_size": 8, "rope_parameters": rope},
        }
    )  # fmt: skip
    scaling = {"type": kind, "factor": 4.0, "mrope_section": [4, 6, 6]}
    assert (published["rope_scaling"], published["rope_theta"]) == (scaling, 1e6)


@pytest.mark.parametrize(
    ("name", "layers", "needed"),
    [
        ("since_4_52", ["model.language_model", "model.visual"], "transformers 4.52 or later"),
        ("before_4_52", ["model.layers", "visual.blocks"], "transformers 4.49 to 4.51 with PEFT"),
    ],
)
def test_adapter_is_exported_with_the_names_of_its_layout_and_is_read_here(
    composed: Compose, tmp_path: Path, name: str, layers: list[str], needed: str
) -> None:
    own = adapter(tmp_path / "own")
    expected = logits(composed, own)
    overrides = (f"model.path={own}", "export.adapter_only=true", f"export.layout={name}")
    folder = exported(composed, tmp_path / "first", *overrides)
    # What has the names of the other layout gets those of this one.
    other = {"since_4_52": "before_4_52"}.get(name, "since_4_52")
    turned = exported(composed, tmp_path / "other", *overrides[:2], f"export.layout={other}")
    back = exported(composed, tmp_path / "back", f"model.path={turned}", *overrides[1:])
    for path in (folder, back):
        found = {
            ".".join(key.split(".")[2:4]) for key in load_file(path / "adapter_model.safetensors")
        }
        assert sorted(found) == layers
        assert torch.allclose(logits(composed, path), expected, atol=1e-5)
        assert f"Opens with {needed}" in (path / "README.md").read_text()
    assert not torch.allclose(expected, logits(composed, EMBEDDED), atol=1e-3)


def test_adapter_for_earlier_peft_has_no_field_that_it_warns_of(
    composed: Compose, tmp_path: Path
) -> None:
    own = adapter(tmp_path / "own")
    overrides = ("export.adapter_only=true", "export.layout=before_4_52")
    folder = exported(composed, tmp_path / "exported", f"model.path={own}", *overrides)
    settings = content(folder / "adapter_config.json")
    assert not {"peft_version", "qalora_group_size", "arrow_config"} & settings.keys()
    assert settings["target_modules"][0] == "model.layers.0.self_attn.q_proj"
    assert settings["target_modules"][-1] == "visual.blocks.2.attn.qkv"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"ensure_weight_tying": True},
            "ensure_weight_tying=True of the adapter is not known to PEFT",
        ),
        ({"rank_pattern": {"model.language_model.layers.0.self_attn.q_proj": 2}}, "rank_pattern"),
    ],
)
def test_option_that_an_earlier_peft_would_lose_is_refused_and_merges(
    composed: Compose, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    own = adapter(tmp_path / "own", **options)
    overrides = (f"model.path={own}", "export.layout=before_4_52", "export.precision=float32")
    with pytest.raises(ValueError, match=words):
        exported(composed, tmp_path / "refused", *overrides, "export.adapter_only=true")
    assert not (tmp_path / "refused").exists()
    merged = exported(composed, tmp_path / "merged", *overrides)
    assert torch.allclose(logits(composed, merged), logits(composed, own), atol=1e-4)


def test_layout_that_does_not_exist_is_refused(composed: Compose) -> None:
    with pytest.raises(ValueError, match=r"export\.layout='old'; .*since_4_52"):
        composed("action=export", "export.layout=old")


def test_another_model_keeps_the_layout_of_the_installed_version(tmp_path: Path) -> None:
    config = json.dumps({"model_type": "qwen3_vl", "text_config": {}})
    (tmp_path / "config.json").write_text(config)
    published = layout.write_published(tmp_path)
    assert not published
    assert (tmp_path / "config.json").read_text() == config
    versions = layout.versions(published=published, adapter=False, layout="since_4_52")
    assert re.fullmatch(r"transformers \d+\.\d+\.\d+, which wrote it, or later", versions)
