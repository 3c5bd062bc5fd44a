"""Greedy replies of vLLM and of our own decoding to the same phantom questions, in float32.

    python experiments/vllm/replies.py [MODEL ...]

MODEL is `tiny`, a model folder or an adapter's. A reply that differs is followed by the two tokens
at which it does, and by how much our log-probabilities of them differ: a near tie, or a fault, with
which the script fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.console import show
from medreason.evaluation.predictions import Prediction
from medreason.evaluation.run import evaluation_row, predict_rows
from medreason.generation.generate import model_inputs
from medreason.generation.rows import EvaluationRow
from medreason.models.load import load_model, load_processor

QUESTIONS = 200
NEAR = 1e-4
"""Difference of the log-probabilities of two tokens, below which rounding decides."""


def compare(path: str, outputs: str) -> bool:
    """Answer by both, print how many replies are equal and what the others differ by; whether all
    of them are near ties."""
    overrides = ["method=base", f"model.path={path}", f"outputs={outputs}", "data.test_images=5"]
    overrides += ["evaluation.max_new_tokens=40", "evaluation.engine=vllm", "prompt=think"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = configuration.load(compose("config", overrides=overrides))
    samples = data.tested_on(config, data.load(config.data, config.folder / "cache"))
    rows = [evaluation_row(config, sample) for sample in samples[:: len(samples) // QUESTIONS]]
    rows = rows[:QUESTIONS]
    theirs = predict_rows(config, rows, lambda *_: None)
    evaluation = replace(config.evaluation, engine="generate")
    ours = predict_rows(replace(config, evaluation=evaluation), rows, lambda *_: None)
    different = [i for i in range(len(rows)) if ours[i].completion != theirs[i].completion]
    answers = sum(a.answer == b.answer for a, b in zip(ours, theirs, strict=True))
    equal = len(rows) - len(different)
    show(f"{path}: {equal} of {len(rows)} replies equal, {answers} answers")
    gaps = [gap(config, rows[i], ours[i], theirs[i]) for i in different]
    for i, (words, _) in zip(different, gaps, strict=True):
        show(f"  {rows[i].sample.id}: {words}")
    return all(abs(apart) < NEAR for _, apart in gaps)


@torch.inference_mode()
def gap(
    config: Config, row: EvaluationRow, ours: Prediction, theirs: Prediction
) -> tuple[str, float]:
    """(the first tokens that differ, the difference of our log-probabilities of them)."""
    model, processor = load_model(config.model, config.hardware), load_processor(config.model)
    tokenizer = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    ids = [[*tokenizer(p.completion)["input_ids"], tokenizer.eos_token_id] for p in (ours, theirs)]
    shared = next(k for k, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1])
    inputs = model_inputs(model, processor, [row.sample], [row.prompt], row.image_of)
    prefix = torch.tensor([ids[0][:shared]], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], prefix], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, shared))
    logps = model(**inputs).logits[0, -1].log_softmax(-1)
    tokens = [each[shared] for each in ids]
    difference = (logps[tokens[0]] - logps[tokens[1]]).item()
    texts = tokenizer.batch_decode([[token] for token in tokens])
    return f"token {shared}, {texts}, {difference:.1e} apart", difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["tiny"])
    with tempfile.TemporaryDirectory() as outputs:
        near = [compare(path, outputs) for path in parser.parse_args().models]
    if not all(near):
        sys.exit("a reply differs by more than rounding")


if __name__ == "__main__":
    main()
