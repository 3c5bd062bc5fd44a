"""With medreason: load what another version made, and export a model for it to open.

python this_version.py load FOLDER             # what other_version.py made
python this_version.py export FOLDER TARGET    # logits.safetensors beside the exported model
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from medreason.config import Hardware, Model
from medreason.models.load import load_model

CPU = Hardware(
    name="cpu",
    accelerator="cpu",
    devices=1,
    precision="float32",
    attention="sdpa",
    per_device_prompts=1,
    per_device_evaluation=1,
)


@torch.no_grad()
def logits(path: Path, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    kinds = (tensors["input_ids"] == 394).int()  # 1 where a token is of the image
    model = load_model(Model(name=path.name, path=str(path)), CPU).eval()
    return model(**tensors, mm_token_type_ids=kinds).logits


def load(folder: Path) -> None:
    worst = 0.0
    for family in sorted(folder.iterdir()):
        tensors = load_file(family / "logits.safetensors")
        expected = {name: tensors.pop(name) for name in ("model", "adapter")}
        for name, answer in expected.items():
            difference = (logits(family / name, tensors) - answer).abs().max().item()
            print(f"{family.name} {name}: greatest difference {difference:.1e}")
            worst = max(worst, difference)
    sys.exit(worst > 1e-4)


def export(folder: Path, target: Path, *overrides: str) -> None:
    for family in sorted(folder.iterdir()):
        tensors = load_file(family / "logits.safetensors")
        answer = tensors.pop("adapter")
        tensors.pop("model")
        to = target / family.name
        command = [sys.executable, "-m", "medreason", "action=export", f"export.to={to}"]
        chosen = [f"model.path={family / 'adapter'}", "export.precision=float32", *overrides]
        subprocess.run([*command, *chosen], check=True)
        save_file({**tensors, "logits": answer}, target / f"{family.name}.safetensors")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[2:4]]
    load(*given) if sys.argv[1] == "load" else export(*given, *sys.argv[4:])
