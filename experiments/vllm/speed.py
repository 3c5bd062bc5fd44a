"""Wall seconds in which vLLM and our rollout draw completions, measured in turn.

    OMP_NUM_THREADS=2 python experiments/vllm/speed.py {float32,bfloat16} [--text] [--tokens N]

Two phantom questions of 8 completions each, from text and image to token ids: the 33 M parameters
of `make bench`, which are random, and no completion ends before its length. With `--text` the
tiny model, whose completions end by themselves; only there do drafts of earlier rounds help. Each
round has images that no engine has seen. Prints the rows of the tables in README.md.
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
from medreason.generation.draft_step import takes_drafts
from medreason.generation.drafts import draft_history
from medreason.generation.generate import greedy_settings, model_inputs, prompt_texts
from medreason.generation.rows import EvaluationRow
from medreason.generation.sampling import sample_completions
from medreason.generation.vllm_settings import image_settings
from medreason.models import device
from medreason.models.load import load_model, load_processor

QUESTIONS, COMPLETIONS, SIDE = 2, 8, 384
WARM_UP, ROUNDS = 3, 6
LENGTHS = {False: (16, 128), True: (40,)}
"""Most tokens of a completion, without and with `--text`."""

Draw = Callable[[Sequence[EvaluationRow], int], list[list[int]]]
"""Token ids of all completions of the questions, each of so many tokens at most."""


def settings_of(tokenizer: PreTrainedTokenizerBase, tokens: int, text: bool) -> GenerationConfig:
    settings = greedy_settings(tokenizer, tokens)
    settings.do_sample, settings.temperature = True, 1.0
    if not text:
        settings.suppress_tokens += settings.eos_token_id
    return settings


def ours(config: Config, folder: Path, *, text: bool) -> Draw:
    """Our rollout, as a training has it; writes the model to `folder`, for vLLM."""
    model, processor = (
        load_model(config.model, config.hardware).eval(),
        load_processor(config.model),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    assert takes_drafts(model)  # its attention is then that of a training
    drafts = draft_history("auto", "cpu")
    assert drafts

    def draw(rows: Sequence[EvaluationRow], tokens: int) -> list[list[int]]:
        samples, prompts = [row.sample for row in rows], [row.prompt for row in rows]
        asked = [sample.id for sample in samples for _ in range(COMPLETIONS)]
        groups = sample_completions(
            model,
            model_inputs(model, processor, samples, prompts, rows[0].image_of),
            completions=COMPLETIONS,
            settings=settings_of(tokenizer, tokens, text),
            seeds=[sample.id for sample in samples],
            drafts=drafts.of_rows(asked),
        )
        return [completion.ids for group in groups for completion in group]

    return draw


def vllm(config: Config, folder: Path, *, text: bool, **engine: Any) -> Draw:
    processor = load_processor(config.model)
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    llm = LLM(
        model=str(folder),
        dtype=config.hardware.precision,
        max_num_seqs=QUESTIONS * COMPLETIONS,
        generation_config="vllm",
        **image_settings(processor),
        **engine,
    )

    def draw(rows: Sequence[EvaluationRow], tokens: int) -> list[list[int]]:
        requests = []
        for row in rows:
            (prompt,) = prompt_texts(processor, [row.prompt], [True])
            image = {"image": row.image_of(row.sample)}
            ids = tokenizer(prompt)["input_ids"]
            requests.append({"prompt_token_ids": ids, "multi_modal_data": image})
        settings = settings_of(tokenizer, tokens, text)
        parameters = SamplingParams(
            n=COMPLETIONS,
            temperature=1.0,
            max_tokens=tokens,
            stop_token_ids=settings.eos_token_id,
            logit_bias=dict.fromkeys(settings.suppress_tokens, -100.0),
            ignore_eos=not text,
            detokenize=False,
        )
        outputs = llm.generate(requests, sampling_params=parameters, use_tqdm=False)
        return [[*completion.token_ids] for output in outputs for completion in output.outputs]

    return draw


def questions(config: Config, folder: Path) -> list[list[EvaluationRow]]:
    """Rows of each round: questions about images of their own."""
    samples = data.tested_on(config, data.load(config.data, config.folder / "cache"))
    rows = []
    for i, sample in enumerate({sample.image: sample for sample in samples}.values()):
        path = folder / f"{i}.png"
        resize_square(open_rgb(sample.image, sample.window), SIDE).save(path)
        rows.append(evaluation_row(config, replace(sample, image=path)))
    return [rows[i : i + QUESTIONS] for i in range(0, len(rows), QUESTIONS)]


def measured(draw: Draw, rows: Sequence[EvaluationRow], tokens: int, text: bool) -> float:
    """Seconds of a round, of text milliseconds a token."""
    began = time.perf_counter()
    drawn = draw(rows, tokens)
    seconds = time.perf_counter() - began
    if text:
        return 1000 * seconds / sum(map(len, drawn))
    assert [len(ids) for ids in drawn] == [tokens] * QUESTIONS * COMPLETIONS
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("precision", choices=["float32", "bfloat16"])
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--tokens", type=int, help="of a completion at most, one length alone")
    given = parser.parse_args()
    model, prompt = ("tiny", "think") if given.text else ("random_33m", "no_think")
    with tempfile.TemporaryDirectory() as outputs:
        folder = Path(outputs)
        overrides = ["action=bench", "method=grpo", f"model={model}", f"prompt={prompt}"]
        overrides += ["data.test_images=5", f"hardware.precision={given.precision}"]
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[*overrides, f"outputs={outputs}"])
        config = configuration.load(composed)
        device.tune_for_cpu(config.hardware)  # as the worker does
        rounds = iter(questions(config, folder))
        path, text = folder / "model", given.text
        engines = {"ours": ours(config, path, text=text)}
        engines["vLLM, eager"] = vllm(config, path, text=text, enforce_eager=True)
        engines["vLLM, compiled"] = vllm(config, path, text=text)
        show(f"{torch.get_num_threads()} threads; median (least to most)")
        show(f"| tokens | precision | {' | '.join(engines)} |")
        for tokens in [given.tokens] if given.tokens else LENGTHS[text]:
            figures: dict[str, list[float]] = {name: [] for name in engines}
            for done in range(WARM_UP + ROUNDS):
                rows = next(rounds)
                for name, draw in engines.items():
                    figure = measured(draw, rows, tokens, text)
                    if done >= WARM_UP:
                        figures[name].append(figure)
            cells = [
                f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
                for each in figures.values()
            ]
            show(f"| {tokens} | {given.precision} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
