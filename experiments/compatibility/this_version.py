"""With medreason: load what another version made, and export models for it to open.

python this_version.py load FOLDER             # what other_version.py made
python this_version.py export FOLDER TARGET    # each export, and NAME.safetensors beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from medreason import config as configuration
from medreason.actions import export, predict
from medreason.config import CONF, Config
from medreason.console import show
from medreason.models.load import load_model, load_processor

EXPORTS = {
    "model": ("model", ()),
    "merged": ("adapter", ()),
    "adapter_since_4_52": ("adapter", ("export.adapter_only=true",)),
    "adapter_before_4_52": ("adapter", ("export.adapter_only=true", "export.layout=before_4_52")),
    "own_since_4_52": ("own", ("export.adapter_only=true",)),
    "own_before_4_52": ("own", ("export.adapter_only=true", "export.layout=before_4_52")),
}
"""Name -> (which folder is exported, overrides); "own" is an adapter that is made here."""


def composed(*overrides: str) -> Config:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return configuration.load(compose("config", overrides=list(overrides)))


def logits(path: Path, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    config = composed(f"model.path={path}")
    return logits_of(load_model(config.model, config.hardware).eval(), tensors)


@torch.no_grad()
def logits_of(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    kinds = (tensors["input_ids"] == model.config.image_token_id).int()
    return model(**tensors, mm_token_type_ids=kinds).logits


def completion(path: Path, image: Path, output: Path) -> str:
    """The answer of `action=predict` with Med-R1's own prompt of evaluation."""
    asked = (f"predict.image={image}", "predict.question='Which? A)CT, B)MRI'")
    words = ("action=predict", "prompt=think_parity", "evaluation.max_new_tokens=12")
    predict.run(composed(*words, *asked, f"model.path={path}", f"predict.output={output}"))
    return json.loads(output.read_text())[0]["completion"]


def load(folder: Path) -> bool:
    """Whether every model and adapter has the logits and the answer of the version that made it."""
    worst = 0.0
    for family in sorted(folder.iterdir()):
        tensors = load_file(family / "logits.safetensors")
        expected = {name: tensors.pop(name) for name in ("model", "adapter")}
        for name, answer in expected.items():
            difference = (logits(family / name, tensors) - answer).abs().max().item()
            theirs = json.loads((family / "answers.json").read_text())[name]
            ours = completion(family / name, family / "image.png", family / "answer.json")
            same = "the same" if ours == theirs else f"{ours!r} for {theirs!r}"
            show(f"| {folder.name} | {family.name}/{name} | {difference:.1e} | {same} |")
            worst = max(worst, difference if ours == theirs else 1)
    return worst <= 1e-4


def make_adapter(base: Path, target: Path, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Save an adapter with the options of `adapter=lora_all`, and return its logits."""
    config = composed("adapter=lora_all", f"model.path={base}")
    torch.manual_seed(0)
    model = load_model(config.model, config.hardware)
    adapted = get_peft_model(model, LoraConfig(**config.adapter)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    adapted.save_pretrained(target)
    load_processor(config.model).save_pretrained(target)
    return logits_of(adapted, tensors)


def export_all(folder: Path, target: Path) -> None:
    for family in sorted(folder.iterdir()):
        tensors = load_file(family / "logits.safetensors")
        answers = {name: tensors.pop(name) for name in ("model", "adapter")}
        answers["own"] = make_adapter(family / "model", family / "own", tensors)
        for name, (exported, overrides) in EXPORTS.items():
            to = target / family.name / name
            precision = "export.precision=float32"
            paths = (f"model.path={family / exported}", f"export.to={to}")
            export.run(composed("action=export", *paths, precision, *overrides))
            save_file({**tensors, "logits": answers[exported]}, f"{to}.safetensors")


if __name__ == "__main__":
    folders = [Path(argument).resolve() for argument in sys.argv[2:]]
    if sys.argv[1] == "load":
        sys.exit(not load(*folders))
    export_all(*folders)
