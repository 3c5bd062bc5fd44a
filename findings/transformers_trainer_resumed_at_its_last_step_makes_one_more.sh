#!/usr/bin/env bash
# transformers 5.23.0 with accelerate 1.15.0: Trainer resumed from the checkpoint of its last step makes one step more than `max_steps`.
#
# The loop asks whether the run is over behind a step, not before one. Resumed where `global_step` is `max_steps` already, it skips the
# batches that were seen, takes the next one of the epoch, steps, and then finds that the run is over. Where `max_steps` is the end of an
# epoch no batch is left, and nothing is done. A linear schedule has reached zero there, so that the weights stay; steps are made all the
# same, and a checkpoint is written behind the last one.
#
# Expected: resuming a finished training does nothing: `global_step` stays `max_steps`, weights stay those of the checkpoint.
# Seen: each start ends one step further than the last, at a constant rate with other weights; no line says so.
#
# Why it matters: a job that was killed between its last checkpoint and its end (while the model is saved, say) and goes on by
# `resume_from_checkpoint=True` has not the weights of one that was never killed.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0, epochs of 10 steps
#   constant max_steps  3: three starts end at step 3 4 5, weights moved by 0.19
#   constant max_steps 10: three starts end at step 10 10 10, weights moved by 0.00
#   linear   max_steps  3: three starts end at step 3 4 5, weights moved by 0.00
#   linear   max_steps 10: three starts end at step 10 10 10, weights moved by 0.00
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat > train.py <<'PY'
import logging

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

transformers.utils.logging.set_verbosity_error()
logging.disable(logging.WARNING)


class Rows(Dataset):
    """40 rows: ten steps an epoch."""

    def __len__(self):
        return 40

    def __getitem__(self, row):
        return {"x": torch.randn(3, generator=torch.Generator().manual_seed(row)), "labels": torch.tensor([float(row % 7)])}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.layer(x), labels)}


def train(schedule, steps, resumed):
    args = TrainingArguments(
        f"{schedule}-{steps}",
        max_steps=steps,
        lr_scheduler_type=schedule,
        learning_rate=0.1,
        per_device_train_batch_size=4,
        save_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(Model(), args, train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resumed)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return trainer.state.global_step, weights


print(f"transformers {transformers.__version__}, epochs of 10 steps")
for schedule in ("constant", "linear"):
    for steps in (3, 10):
        runs = [train(schedule, steps, resumed) for resumed in (False, True, True)]
        ends = " ".join(str(step) for step, _ in runs)
        change = (runs[2][1] - runs[0][1]).abs().max()
        print(f"{schedule:<8} max_steps {steps:>2}: three starts end at step {ends}, weights moved by {change:.2f}")
PY
env/bin/python train.py 2>&1 | grep -v "^{" | tee seen.txt
cat > expected.txt <<'TXT'
transformers 5.23.0, epochs of 10 steps
constant max_steps  3: three starts end at step 3 4 5, weights moved by 0.19
constant max_steps 10: three starts end at step 10 10 10, weights moved by 0.00
linear   max_steps  3: three starts end at step 3 4 5, weights moved by 0.00
linear   max_steps 10: three starts end at step 10 10 10, weights moved by 0.00
TXT
diff expected.txt seen.txt
