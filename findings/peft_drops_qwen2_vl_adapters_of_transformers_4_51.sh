#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0: PeftModel.from_pretrained loads no tensor of a Qwen2-VL adapter that was trained under
# transformers 4.51 (as the adapters of Med-R1's and RARL's time are); the "adapted" model is the base model.
#
# transformers 4.52 moved the language model from `model.layers` to `model.language_model.layers`. PEFT 0.18.1 with transformers 4.57.6
# renames such an adapter's tensors and loads all; the newer pair does not, and says so in one warning among others. transformers' own
# `model.load_adapter` loads all tensors under both. So the same folder and the same two packages give the adapted model through one
# call and the base model through the other.
#
# Output seen on 2026-11-28:
#   saved by transformers 4.51.3, PEFT 0.15.2: 8 tensors
#   transformers 4.57.6, PEFT 0.18.1: PeftModel.from_pretrained loads 8, load_adapter 8; logits equal the base model's: False
#   transformers 5.23.0, PEFT 0.21.2: PeftModel.from_pretrained loads 0, load_adapter 8; logits equal the base model's: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
make_environment() { python3 -m venv "$1"; "$1/bin/pip" install --quiet numpy==2.3.5 "${@:2}"; }
make_environment old torch==2.6.0 transformers==4.51.3 peft==0.15.2
make_environment between torch==2.8.0 transformers==4.57.6 peft==0.18.1
make_environment new torch==2.13.0 transformers==5.23.0 peft==0.21.2
export HF_HUB_OFFLINE=1
cat > save.py <<'PY'
import peft
import torch
import transformers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

torch.manual_seed(0)
text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
text |= {"num_key_value_heads": 1, "max_position_embeddings": 64, "rope_theta": 1e4}
text |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
tokens = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
config = Qwen2VLConfig(**text, vision_config=vision, tie_word_embeddings=False, **tokens)
Qwen2VLForConditionalGeneration(config).save_pretrained("base")
base = Qwen2VLForConditionalGeneration.from_pretrained("base")
adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
for name, parameter in adapted.named_parameters():
    if "lora_B" in name:  # zero at the start; as training leaves it
        torch.nn.init.normal_(parameter, std=0.1)
adapted.save_pretrained("adapter")
count = sum("lora_" in name for name, _ in adapted.named_parameters())
print(f"saved by transformers {transformers.__version__}, PEFT {peft.__version__}: {count} tensors")
PY
cat > load.py <<'PY'
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

saved = load_file("adapter/adapter_model.safetensors").values()


def loaded(model: torch.nn.Module) -> int:
    mine = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(mine) == len(saved)
    return sum(any(p.shape == s.shape and torch.equal(p, s) for s in saved) for p in mine)


def base() -> torch.nn.Module:
    return Qwen2VLForConditionalGeneration.from_pretrained("base").eval()


ids = torch.arange(3, 20)[None]
by_peft = peft.PeftModel.from_pretrained(base(), "adapter").eval()
by_transformers = base()
by_transformers.load_adapter("adapter")
with torch.no_grad():
    same = torch.equal(by_peft(input_ids=ids).logits, base()(input_ids=ids).logits)
counts = loaded(by_peft), loaded(by_transformers)
print(
    f"transformers {transformers.__version__}, PEFT {peft.__version__}: PeftModel.from_pretrained loads {counts[0]}, "
    f"load_adapter {counts[1]}; logits equal the base model's: {same}"
)
assert (*counts, same) == ((8, 8, False) if sys.argv[1] == "all" else (0, 8, True)), "changed"
PY
old/bin/python save.py 2>log.txt || { tail -5 log.txt; exit 1; }
between/bin/python load.py all 2>log.txt || { tail -5 log.txt; exit 1; }
new/bin/python load.py none 2>log.txt || { tail -5 log.txt; exit 1; }
