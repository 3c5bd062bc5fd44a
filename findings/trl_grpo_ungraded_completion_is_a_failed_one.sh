#!/usr/bin/env bash
# TRL 1.16.0: a reward function that answers None for a completion leaves it out if it is the only one, and counts as 0 as soon as a
# second reward function graded the completion.
#
# The documentation says that a function that returns None "is excluded from the reward calculation for that sample". The weighted
# rewards are summed with nansum: the completion keeps the sum of the others, and is compared with completions of its group that had
# one reward more to win. 1.16 sets the advantage to 0 only where every function returned None. `rewards/judge/mean` leaves None out,
# `reward` does not, so the parts do not add up to the whole; `multi_objective_aggregation="normalize_then_sum"` has advantage 0.
#
# Expected: four completions, the judge grades three of them 1 and cannot grade one, the format of all is right: nothing to learn.
# Seen: the ungraded one has advantage -1.50 and is pushed down; with mixed grades it is treated as the completion that was wrong.
#
# Why it matters: an LLM judge that times out, refuses or answers out of format returns None, and a reward for the format stands beside
# it in most recipes. The policy learns to avoid what the judge could not read, and the log shows a judge's mean of 1.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0 TRL 1.16.0
#   judge [1.0, 1.0, None, 1.0] alone      advantages [0.0, 0.0, 0.0, 0.0]       reward 1.00, mean of judge 1.00, gradient 0.00
#   judge [1.0, 1.0, None, 1.0] and format advantages [0.5, 0.5, -1.5, 0.5]      reward 1.75, mean of judge 1.00, gradient 1.91
#   judge [1.0, 0.0, None, 1.0] alone      advantages [0.58, -1.15, 0.0, 0.58]   reward 0.67, mean of judge 0.67, gradient 1.55
#   judge [1.0, 0.0, None, 1.0] and format advantages [0.87, -0.87, -0.87, 0.87] reward 1.50, mean of judge 0.67, gradient 1.86
#   judge [1.0, 0.0, None, 1.0] and format advantages [0.71, -1.41, 0.0, 0.71]   reward 1.50, mean of judge 0.67, gradient 1.90 normalize_then_sum
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
from trl import GRPOConfig, GRPOTrainer

print("transformers", transformers.__version__, "TRL", trl.__version__)
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefgh"])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = {"vocab_size": 16, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def step(grades, with_format, **more):
    def judge(completions, **_):
        return grades

    def format(completions, **_):
        return [1.0] * len(completions)

    torch.manual_seed(0)
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4, "logging_steps": 1}
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    trainer = GRPOTrainer(
        Qwen2ForCausalLM(Qwen2Config(**SIZE, **IDS, max_position_embeddings=64)),
        [judge, format] if with_format else [judge],
        args=GRPOConfig("out", **settings, **quiet, **more),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 4}),
        processing_class=TOKENIZER,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log = trainer.state.log_history[0]
    advantages = [round(x, 2) + 0.0 for x in trainer._logs["advantages"]]
    print(
        f"judge {grades!s:<21} {'and format' if with_format else 'alone':<10} advantages {advantages!s:<26} "
        f"reward {log['reward']:.2f}, mean of judge {log['rewards/judge/mean']:.2f}, gradient {log['grad_norm']:.2f}",
        *more.values(),
    )
    return advantages, log["grad_norm"] > 0


assert step([1.0, 1.0, None, 1.0], with_format=False) == ([0, 0, 0, 0], False)
assert step([1.0, 1.0, None, 1.0], with_format=True) == ([0.5, 0.5, -1.5, 0.5], True), "changed: None is left out"
assert step([1.0, 0.0, None, 1.0], with_format=False) == ([0.58, -1.15, 0, 0.58], True)
assert step([1.0, 0.0, None, 1.0], with_format=True) == ([0.87, -0.87, -0.87, 0.87], True), "changed: None is left out"
SUM = {"multi_objective_aggregation": "normalize_then_sum"}
assert step([1.0, 0.0, None, 1.0], with_format=True, **SUM) == ([0.71, -1.41, 0, 0.71], True)
PY
