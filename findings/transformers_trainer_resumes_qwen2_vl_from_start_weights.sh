#!/usr/bin/env bash
# transformers 5.23.0: a Trainer that resumes full training of Qwen2-VL goes on from the START weights.
#
# A checkpoint is saved under the names of the hub (model.layers..., visual...), the model in memory has others
# (model.language_model.layers..., model.visual...). Trainer reads a checkpoint with load_state_dict(strict=False), without the
# renaming that from_pretrained does, so of all tensors lm_head alone finds its place. Step counter, optimizer moments and learning
# rate are those of the checkpoint; the loss curve goes on without a jump that anyone would notice early in a run. Two lines of
# "missing keys" and "unexpected keys" in the log are all that is said. Adapters (PEFT) are not hit.
#
# Output seen on 2026-11-28:
#   transformers 5.23.0
#   resumed at step 2: 33 of 34 tensors are those of the start, 1 is that of the checkpoint (lm_head.weight)
#   final weights equal those of the uninterrupted training: False
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.3.5
export HF_HUB_OFFLINE=1
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
import transformers
from torch.utils.data import Dataset
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__)


def untrained() -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "max_position_embeddings": 64, "rope_parameters": rope}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    tokens = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    )


class Tokens(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 60, (8,), generator=draw)
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones(8, dtype=torch.long)}


class AtBegin(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **_):
        self.step, self.weights = state.global_step, {n: p.detach().clone() for n, p in model.named_parameters()}


def trainer(model, *callbacks: TrainerCallback) -> Trainer:
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 2}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
    return Trainer(model, TrainingArguments("out", **settings, **quiet), train_dataset=Tokens(), callbacks=list(callbacks))


start = {name: p.detach().clone() for name, p in untrained().named_parameters()}
whole = untrained()
trainer(whole).train()
resumed, begin = untrained(), AtBegin()
trainer(resumed, begin).train(resume_from_checkpoint="out/checkpoint-2")
at_start = [name for name, p in begin.weights.items() if torch.equal(p, start[name])]
others = sorted(set(start) - set(at_start))
print(
    f"resumed at step {begin.step}: {len(at_start)} of {len(start)} tensors are those of the start, "
    f"{len(others)} is that of the checkpoint ({', '.join(others)})"
)
ends = dict(whole.named_parameters())
same = all(torch.equal(ends[name], p) for name, p in resumed.named_parameters())
print("final weights equal those of the uninterrupted training:", same)
assert begin.step == 2
assert others == ["lm_head.weight"], "changed: the checkpoint is read"
assert not same
PY
