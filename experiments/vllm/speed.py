"""Wall seconds in which vLLM and our rollout draw the same number of tokens, measured in turn.

    OMP_NUM_THREADS=2 python experiments/vllm/speed.py {float32,bfloat16}

Two phantom questions of 8 completions each, from text and image to token ids; the 33 M parameters
of `make bench` are random and no completion ends before its length. Each round has images that no
engine has seen. Prints a row of the table in README.md for each length.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, as TRL's rollouts have it

import torch
from hydra import compose, initialize_config_dir
from transformers import GenerationConfig, PreTrainedTokenizerBase
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.console import show
from medreason.data.images import open_rgb, resize_square
from medreason.evaluation.run import evaluation_row
from medreason.generation.generate import greedy_settings, model_inputs, prompt_texts
from medreason.generation.rows import EvaluationRow
from medreason.generation.sampling import sample_completions
from medreason.generation.vllm_settings import image_settings
from medreason.models.load import load_model, load_processor

QUESTIONS, COMPLETIONS, SIDE = 2, 8, 384
WARM_UP, ROUNDS = 3, 6
LENGTHS = (16, 128)

Draw = Callable[[Sequence[EvaluationRow], int], list[list[int]]]
"""Token ids of all completions of the questions, each of so many tokens."""


def ours(config: Config, folder: Path) -> Draw:
    """Our rollout; writes the model to `folder`, for vLLM."""
    model, processor = (
        load_model(config.model, config.hardware).eval(),
        load_processor(config.model),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def draw(rows: Sequence[EvaluationRow], tokens: int) -> list[list[int]]:
        samples, prompts = [row.sample for row in rows], [row.prompt for row in rows]
        inputs = model_inputs(model, processor, samples, prompts, rows[0].image_of)
        groups = sample_completions(
            model,
            inputs,
            completions=COMPLETIONS,
            settings=_endless(processor.tokenizer, tokens),  # pyright: ignore[reportAttributeAccessIssue]
            seeds=[row.sample.id for row in rows],
        )
        return [completion.ids for group in groups for completion in group]

    return draw


def _endless(tokenizer: PreTrainedTokenizerBase, tokens: int) -> GenerationConfig:
    settings = greedy_settings(tokenizer, tokens)
    settings.do_sample, settings.temperature = True, 1.0
    settings.suppress_tokens += settings.eos_token_id
    return settings


def vllm(config: Config, folder: Path, **settings: Any) -> Draw:
    processor = load_processor(config.model)
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    llm = LLM(
        model=str(folder),
        dtype=config.hardware.precision,
        max_num_seqs=QUESTIONS * COMPLETIONS,
        generation_config="vllm",
        **image_settings(processor),
        **settings,
    )

    def draw(rows: Sequence[EvaluationRow], tokens: int) -> list[list[int]]:
        requests = []
        for row in rows:
            (text,) = prompt_texts(processor, [row.prompt], [True])
            image = {"image": row.image_of(row.sample)}
            ids = tokenizer(text)["input_ids"]
            requests.append({"prompt_token_ids": ids, "multi_modal_data": image})
        parameters = SamplingParams(
            n=COMPLETIONS, temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        outputs = llm.generate(requests, sampling_params=parameters, use_tqdm=False)
        return [[*completion.token_ids] for output in outputs for completion in output.outputs]

    return draw


def questions(config: Config, folder: Path) -> list[list[EvaluationRow]]:
    """Rows of each round: questions about images of their own."""
    samples = data.tested_on(config, data.load(config.data, config.folder / "cache"))
    by_image = {sample.image: sample for sample in samples}
    rows = []
    for i, sample in enumerate(by_image.values()):
        path = folder / f"{i}.png"
        resize_square(open_rgb(sample.image, sample.window), SIDE).save(path)
        rows.append(evaluation_row(config, replace(sample, image=path)))
    return [rows[i : i + QUESTIONS] for i in range(0, len(rows), QUESTIONS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("precision", choices=["float32", "bfloat16"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as outputs:
        folder = Path(outputs)
        overrides = ["action=bench", "method=grpo", "model=random_33m", f"outputs={outputs}"]
        overrides += [
            "prompt=no_think",
            "data.test_images=5",
            f"hardware.precision={given.precision}",
        ]
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            config = configuration.load(compose("config", overrides=overrides))
        torch.set_flush_denormal(True)  # as the worker does
        rounds = iter(questions(config, folder))
        engines = {"ours": ours(config, folder / "model")}
        engines["vLLM, eager"] = vllm(config, folder / "model", enforce_eager=True)
        engines["vLLM, compiled"] = vllm(config, folder / "model")
        show(f"{torch.get_num_threads()} threads")
        show(f"| tokens | precision | {' | '.join(engines)} |")
        for tokens in LENGTHS:
            seconds: dict[str, list[float]] = {name: [] for name in engines}
            for done in range(WARM_UP + ROUNDS):
                rows = next(rounds)
                for name, draw in engines.items():
                    began = time.perf_counter()
                    drawn = draw(rows, tokens)
                    spent = time.perf_counter() - began
                    assert [len(ids) for ids in drawn] == [tokens] * QUESTIONS * COMPLETIONS
                    if done >= WARM_UP:
                        seconds[name].append(spent)
            medians = [f"{statistics.median(each):.2f}" for each in seconds.values()]
            spread = [f"{min(each):.2f} to {max(each):.2f}" for each in seconds.values()]
            show(f"| {tokens} | {given.precision} | {' | '.join(medians)} | {spread}")


if __name__ == "__main__":
    main()
