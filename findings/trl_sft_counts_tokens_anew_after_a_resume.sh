#!/usr/bin/env bash
# TRL 1.16.0: the `num_tokens` that SFT logs starts from 0 again in a resumed run; GRPO's goes on.
#
# GRPO keeps the count in the trainer's state, which a checkpoint holds; SFT keeps it in an attribute of the trainer. Steps, epochs and
# the learning rate go on in both, and `include_num_input_tokens_seen=True` logs a second count beside it that goes on too.
#
# Expected: after four steps the same count with and without a resume. Seen with SFT: half of it.
#
# Why it matters: runs are compared at equal tokens, and a run that was preempted twice shows the tokens of its last third, in the same
# curve, which falls in the middle; cost and throughput computed from it are wrong.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0 TRL 1.16.0
#   SFT  uninterrupted     num_tokens [12, 24, 36, 48], num_input_tokens_seen [12, 24, 36, 48]
#   SFT  resumed at step 2 num_tokens [12, 24, 12, 24], num_input_tokens_seen [12, 24, 36, 48]
#   GRPO uninterrupted     num_tokens [12, 24, 33, 44], num_input_tokens_seen [12, 24, 33, 44]
#   GRPO resumed at step 2 num_tokens [12, 24, 33, 44], num_input_tokens_seen [12, 24, 33, 44]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python \
    torch==2.13.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM

print("transformers", transformers.__version__, "TRL", trl.__version__)
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefgh"])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = {"vocab_size": 16, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
SETTINGS = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "include_num_input_tokens_seen": True}
SETTINGS |= {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}


def reward(completions, **_):
    return [float(len(text)) for text in completions]


def counts(method, resume):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZE, **IDS, max_position_embeddings=64))
    if method == "SFT":
        data = Dataset.from_dict({"text": ["a b c d e"] * 8})
        trainer = trl.SFTTrainer(model, trl.SFTConfig("SFT", **SETTINGS), train_dataset=data, processing_class=TOKENIZER)
    else:
        data = Dataset.from_dict({"prompt": ["a b"] * 8})
        settings = trl.GRPOConfig("GRPO", num_generations=2, max_completion_length=4, **SETTINGS)
        trainer = trl.GRPOTrainer(model, reward, settings, train_dataset=data, processing_class=TOKENIZER)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=f"{method}/checkpoint-2" if resume else None)
    logs = [entry for entry in trainer.state.log_history if "num_tokens" in entry]
    return [int(entry["num_tokens"]) for entry in logs], [entry["num_input_tokens_seen"] for entry in logs]


seen = {(method, resume): counts(method, resume) for method in ("SFT", "GRPO") for resume in (False, True)}
for (method, resume), (tokens, state) in seen.items():
    print(f"{method:<4} {'resumed at step 2' if resume else 'uninterrupted':<17} num_tokens {tokens}, num_input_tokens_seen {state}")
whole, rest = seen["SFT", False][0], seen["SFT", True][0]
assert rest == whole[:2] + whole[:2], "changed: the count goes on"
assert seen["SFT", True][1] == whole
assert seen["GRPO", True] == seen["GRPO", False]
PY
