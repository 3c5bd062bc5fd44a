#!/usr/bin/env bash
# TRL 1.16.0: GRPO resumed from a checkpoint inside a generation cycle (num_iterations or steps_per_generation above 1) generates
# anew at once and stays out of step with the data from there on.
#
# One batch of completions serves several optimizer steps. Neither the completions nor the place in the cycle are in the checkpoint:
# the resumed trainer counts its cycle from 0, while the data loader goes on at the step it had reached. The batch that was being
# worked on is generated again and trained on for a whole cycle more, and the prompts after it lose the steps. No warning.
#
# Expected: each prompt in as many optimizer steps as in the uninterrupted run.
# Seen: the same for a checkpoint at the end of a cycle, with equal weights to the last bit. Resumed at step 6 of cycles of four, prompt b
# is in six steps and c in two; with two prompts a cycle, e is in none.
#
# Why it matters: `save_steps` is chosen by the clock, and preempted jobs resume from what they have; the resumed run is another
# experiment. Multiples of num_iterations * steps_per_generation / gradient_accumulation_steps are safe.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0 TRL 1.16.0
#   {'num_iterations': 4}: prompts of the 12 steps aaaabbbbcccc
#     resumed at step 4: aaaa|bbbbcccc, final weights equal: True
#     resumed at step 6: aaaabb|bbbbcc, final weights equal: False
#     resumed at step 7: aaaabbb|bbbbc, final weights equal: False
#   {'steps_per_generation': 2, 'num_iterations': 2}: prompts of the 12 steps ababcdcdfefe
#     resumed at step 4: abab|cdcdfefe, final weights equal: True
#     resumed at step 6: ababcd|dcdcff, final weights equal: False
#     resumed at step 7: ababcdc|dcdcf, final weights equal: False
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python \
    torch==2.13.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" OMP_NUM_THREADS=1
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from collections import Counter

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM

print("transformers", transformers.__version__, "TRL", trl.__version__)
PROMPTS = "abcdef"
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *PROMPTS])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = {"vocab_size": 16, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
SETTINGS = {"max_steps": 12, "save_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
SETTINGS |= {"learning_rate": 1e-2, "shuffle_dataset": False, "temperature": 1.0}
SETTINGS |= {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_strategy": "no"}


class Recording(trl.GRPOTrainer):
    def _compute_loss(self, model, inputs):
        self.trained_on.append(TOKENIZER.decode(inputs["prompt_ids"][0], skip_special_tokens=True).strip())
        return super()._compute_loss(model, inputs)


def reward(completions, **_):
    return [float(len(text)) for text in completions]


def run(cycle, resume_at=None):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZE, **IDS, max_position_embeddings=64))
    args = trl.GRPOConfig(str(cycle) if resume_at is None else "resumed", **SETTINGS, **cycle)
    trainer = Recording(model, reward, args, train_dataset=Dataset.from_dict({"prompt": list(PROMPTS)}), processing_class=TOKENIZER)
    trainer.remove_callback(PrinterCallback)
    trainer.trained_on = []
    trainer.train(resume_from_checkpoint=resume_at and f"{cycle}/checkpoint-{resume_at}")
    return "".join(trainer.trained_on), [parameter.detach().clone() for parameter in model.parameters()]


for cycle in ({"num_iterations": 4}, {"steps_per_generation": 2, "num_iterations": 2}):
    whole, weights = run(cycle)
    print(f"{cycle}: prompts of the {SETTINGS['max_steps']} steps {whole}")
    for resume_at in (4, 6, 7):
        rest, resumed = run(cycle, resume_at)
        equal = all(torch.equal(a, b) for a, b in zip(weights, resumed, strict=True))
        print(f"  resumed at step {resume_at}: {whole[:resume_at]}|{rest}, final weights equal: {equal}")
        if resume_at == 4:
            assert rest == whole[4:] and equal
        else:
            assert Counter(whole[:resume_at] + rest) != Counter(whole) and not equal, "changed: the cycle goes on"
PY
