#!/usr/bin/env bash
# transformers 5.23.0 with accelerate 1.15.0: on two processes Trainer fills the last, incomplete step of an epoch with rows of the
# epoch's start, counts their tokens as new ones, and so takes another step than one process with the same global batch.
#
# accelerate gives every process a full batch (`even_batches`) and notes how many rows are repeated, which evaluation uses to drop them
# again. Training does not: the repeated rows are in the loss, in the gradient and in `num_items_in_batch`, by which the loss is divided.
#
# Expected: nine rows in batches of four are the steps 4 + 4 + 1, whatever the number of processes; the loss of the last is row 8's.
# Seen on two processes: the last step is rows 8, 0, 1, 2, its gradient another one (below). The log says nothing of it.
#
# Why it matters: a small data set on four or eight devices trains twice an epoch on some of its rows, up to a global batch less one,
# and a run cannot be repeated on another number of devices, though all steps but the last of an epoch are equal.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0, accelerate 1.15.0, learning rate 0
#   step 0 one process   rows [0, 1, 2, 3] tokens 24  loss 7.0890 gradient norm 6.200
#   step 0 two processes rows [0, 1, 2, 3] tokens 24  loss 7.0890 gradient norm 6.200
#          cosine of the gradients 1.00
#   step 1 one process   rows [4, 5, 6, 7] tokens 56  loss 7.3685 gradient norm 5.468
#   step 1 two processes rows [4, 5, 6, 7] tokens 56  loss 7.3685 gradient norm 5.468
#          cosine of the gradients 1.00
#   step 2 one process   rows [8]          tokens 19  loss 7.9180 gradient norm 8.020
#   step 2 two processes rows [8, 0, 1, 2] tokens 34  loss 7.7291 gradient norm 5.779
#          cosine of the gradients 0.80
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat > train.py <<'PY'
import os

import accelerate
import torch
import transformers
from torch.utils.data import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

processes = int(os.environ.get("WORLD_SIZE", "1"))


class Rows(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, row):
        ids = torch.randint(3, 64, (4 + 2 * row,), generator=torch.Generator().manual_seed(row))
        return {"row": row, "ids": ids}


def collate(rows):
    ids = torch.nn.utils.rnn.pad_sequence([r["ids"] for r in rows], batch_first=True)
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100), "attention_mask": (ids != 0).long()}
    return batch | {"rows": [r["row"] for r in rows]}


class Recording(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        self.step = inputs.pop("rows"), int(num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)


class Steps(TrainerCallback):
    steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        rows = accelerate.utils.gather_object(trainer.step[0])
        self.steps.append({"rows": rows, "tokens": trainer.step[1], "gradient": gradient.clone()})


torch.manual_seed(0)
size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
ids = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
model = Qwen2ForCausalLM(Qwen2Config(**size, **ids, max_position_embeddings=64, initializer_range=0.5))
settings = {"num_train_epochs": 1, "per_device_train_batch_size": 4 // processes, "learning_rate": 0.0, "max_grad_norm": 0.0}
settings |= {"logging_steps": 1, "train_sampling_strategy": "sequential", "remove_unused_columns": False, "save_strategy": "no"}
quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
args = TrainingArguments("out", **settings, **quiet, ddp_backend="gloo" if processes > 1 else None)
trainer = Recording(model, args, train_dataset=Rows(), data_collator=collate, callbacks=[Steps()])
trainer.train()
if args.process_index == 0:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    torch.save([step | {"loss": loss} for step, loss in zip(Steps.steps, losses, strict=True)], f"{processes}.pt")
if processes > 1:  # leave together: gloo aborts a process whose peer is gone
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
PY
cat > compare.py <<'PY'
import accelerate
import torch
import transformers

print(f"transformers {transformers.__version__}, accelerate {accelerate.__version__}, learning rate 0")
one, two = torch.load("1.pt"), torch.load("2.pt")
for index, (a, b) in enumerate(zip(one, two, strict=True)):
    cosine = torch.nn.functional.cosine_similarity(a["gradient"], b["gradient"], dim=0).item()
    for name, step in (("one process  ", a), ("two processes", b)):
        norm = step["gradient"].norm()
        print(f"step {index} {name} rows {step['rows']!s:<12} tokens {step['tokens']:<3} loss {step['loss']:.4f} gradient norm {norm:.3f}")
    print(f"       cosine of the gradients {cosine:.2f}")
    if index < 2:
        assert a["rows"] == b["rows"] and a["tokens"] == b["tokens"] and cosine > 0.9999
assert one[2]["rows"] == [8]
assert two[2]["rows"] == [8, 0, 1, 2], "changed"
assert two[2]["tokens"] == one[2]["tokens"] + 3 + 5 + 7, "changed"
PY
env/bin/python train.py > log.txt 2>&1 || { tail -5 log.txt; exit 1; }
env/bin/torchrun --standalone --nproc-per-node 2 train.py > log.txt 2>&1 || { grep -m 5 -iE 'error|terminate|what' log.txt; exit 1; }
env/bin/python compare.py
