"""Models and adapters made elsewhere: every tensor finds its place, or the load is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from medreason.config import Config
from medreason.models import adapters, layout
from medreason.models.load import load_model, load_processor
from medreason.models.model_folder import EMBEDDED
from medreason.training.adapter import lora_config

Compose = Callable[..., Config]
PLAIN = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def trained(folder: Path, options: dict[str, Any]) -> Tensor:
    """Save an adapter on the tiny model whose every weight has moved; gives the model's logits."""
    return logits(trained_model(folder, options))


def trained_model(folder: Path, options: dict[str, Any]) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(EMBEDDED, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**options))
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model  # pyright: ignore[reportReturnType]


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    tokens = torch.arange(20, 60)[None]
    return model.eval()(input_ids=tokens, mm_token_type_ids=torch.zeros_like(tokens)).logits


def loaded(composed: Compose, folder: Path) -> Tensor:
    config = composed(f"model.path={folder}", "hardware=cpu")
    adapters.check(str(folder))
    return logits(load_model(config.model, config.hardware))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"],
        r"model\.layers\.\d+\.self_attn\.q_proj",
        ["visual.blocks.0.attn.qkv", "o_proj"],
    ],
    ids=["endings", "names", "expression", "vision"],
)
def test_adapter_with_the_names_of_transformers_before_4_52_lands(
    composed: Compose, tmp_path: Path, targets: list[str] | str
) -> None:
    expected = trained(tmp_path, PLAIN | {"target_modules": layout.renamed_targets(targets)})
    rename(
        tmp_path,
        lambda name: name.replace("model.language_model.", "model.").replace(
            "model.model.visual", "model.visual"
        ),
    )
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": targets}))
    assert torch.allclose(loaded(composed, tmp_path), expected, atol=1e-5)
    start = loaded(composed, EMBEDDED)
    assert (expected - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: name.replace("self_attn", "attention"), r"of the adapter \d+ tensors fit no"),
        (lambda name: name.replace("lora_A", "lora_E"), r"\d+ layers have no tensor"),
    ],
)
def test_adapter_that_does_not_land_is_refused_with_counts(
    composed: Compose, tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    trained(tmp_path, PLAIN)
    rename(tmp_path, change)
    with pytest.raises(ValueError, match=words):
        loaded(composed, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"model.extra.weight": torch.zeros(2)}, "has no place for: 1, .*extra"),
        (lambda t: dict(list(t.items())[:-1]), "no tensor for weights of the model: 1, the first"),
        (lambda t: t | {min(t): torch.zeros(2)}, "of another shape than the model's: 1, the first"),
    ],
)
def test_checkpoint_with_other_tensors_than_the_model_is_refused(
    composed: Compose, tmp_path: Path, change: Callable[[dict], dict], words: str
) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    (file,) = folder.glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=words):
        loaded(composed, folder)


@given(
    options=st.fixed_dictionaries(
        {
            "r": st.sampled_from([1, 4]),
            "lora_alpha": st.sampled_from([4, 16]),
            "target_modules": st.sampled_from(
                [
                    *(["q_proj", "v_proj"], "all-linear", ["embed_tokens"], ["lm_head", "o_proj"]),
                    r".*language_model.*\.(q|up)_proj",
                ]
            ),
        },
        optional={
            "use_rslora": st.booleans(),
            "use_dora": st.booleans(),
            "bias": st.sampled_from(["none", "lora_only", "all"]),
            "init_lora_weights": st.sampled_from([True, False, "gaussian", "pissa", "olora"]),
            "modules_to_save": st.sampled_from([["norm"], ["lm_head"], ["embed_tokens"]]),
            "layers_to_transform": st.just([0]),
            "rank_pattern": st.just({"q_proj": 2}),
            "fan_in_fan_out": st.just(False),
        },
    )
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_adapter_of_any_options_is_the_trained_model_or_refused(
    composed: Compose, tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    try:
        model = trained_model(folder, options)
    except ValueError:  # peft refuses these options together
        return
    changed = options.get("init_lora_weights", True) in ("pissa", "olora")
    names = [*options["target_modules"], *options.get("modules_to_save", [])]
    if changed or {"embed_tokens", "lm_head"} & {*names}:
        with pytest.raises(ValueError, match=str(folder)):
            loaded(composed, folder)
    else:
        expected = logits(model)
        exact = logits(model.double())
        # Some of these options make products with which float32 loses digits, merged or beside.
        rounding = (expected - exact).abs().max()
        assert (loaded(composed, folder) - exact).abs().max() <= 10 * rounding + 1e-5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("adapter.init_lora_weights=pissa", "adapter.init_lora_weights='pissa' changes the base"),
        ("adapter.init_lora_weights=olora", "use true or gaussian"),
        ("adapter.target_modules=[lm_head]", "lm_head is on a layer whose weights are those of"),
        ("++adapter.modules_to_save=[embed_tokens]", "embed_tokens is on a layer"),
    ],
)
def test_training_an_adapter_that_could_not_be_merged_is_refused(
    composed: Compose, override: str, words: str
) -> None:
    config = composed("adapter=lora_r8", override if override[0] == "+" else f"++{override}")
    with pytest.raises(ValueError, match=words):
        lora_config(config, load_model(config.model, config.hardware))


def test_adapter_is_evaluated_at_the_image_size_it_was_trained_at(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, PLAIN)
    small = composed("hardware=cpu", "model.max_pixels=3136")
    load_processor(small.model).save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").exists()
    config = composed("hardware=cpu", f"model.path={tmp_path}", "model.max_pixels=12600")
    size = load_processor(config.model).image_processor.size
    assert dict(size)["longest_edge"] == 3136
    assert "model.max_pixels=12600: the processor in" in capsys.readouterr().err


def small_change(folder: Path, options: dict[str, Any]) -> PeftModel:
    """Save an adapter on the tiny model as an early training leaves it: below the steps of most
    weights in bfloat16."""
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(EMBEDDED, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=3e-4)
            elif "magnitude" in name:
                weight *= 1 + 3e-4 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True, "r": 3}, {"use_dora": True}, {"lora_bias": True}],
    ids=["lora", "rslora", "dora", "bias"],
)
def test_evaluation_in_bfloat16_adds_the_whole_adapter(
    composed: Compose, tmp_path: Path, options: dict[str, Any]
) -> None:
    exact: Any = small_change(tmp_path, PLAIN | options).merge_and_unload()  # pyright: ignore
    config = composed(f"model.path={tmp_path}", "hardware=cpu", "hardware.precision=bfloat16")
    start: Any = AutoModelForImageTextToText.from_pretrained(EMBEDDED, dtype=torch.float32)
    evaluated = load_model(config.model, config.hardware)
    assert evaluated.dtype == torch.bfloat16
    added = expected = 0.0
    for number in range(4):
        name = f"model.language_model.layers.{number}.self_attn.v_proj"
        inputs = torch.randn(4096, 128).bfloat16()
        of_base, of_exact = (m.get_submodule(name)(inputs.float()).double() for m in (start, exact))
        change = of_exact - of_base
        added += ((evaluated.get_submodule(name)(inputs).double() - of_base) * change).sum().item()
        expected += change.square().sum().item()
    assert 0.99 < added / expected < 1.01


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_logits_of_an_adapter_agree_between_precisions_as_those_of_full_weights(
    composed: Compose, tmp_path: Path, targets: list[str] | str
) -> None:
    trained(tmp_path, PLAIN | {"target_modules": targets})
    rounded = []
    for path in (tmp_path, EMBEDDED):
        in_float32, in_bfloat16 = (
            logits(load_model(config.model, config.hardware)).float()
            for precision in ("float32", "bfloat16")
            for config in [composed(f"model.path={path}", f"hardware.precision={precision}")]
        )
        rounded.append(((in_float32 - in_bfloat16).norm() / in_float32.norm()).item())
    assert rounded[0] < 1.5 * rounded[1]


def test_an_adapter_is_a_peft_model_of_its_base(composed: Compose, tmp_path: Path) -> None:
    from medreason.models.load import with_adapter

    trained(tmp_path, PLAIN)
    base = AutoModelForImageTextToText.from_pretrained(EMBEDDED, dtype=torch.float32)
    assert isinstance(with_adapter(base, str(tmp_path)), PeftModel)
