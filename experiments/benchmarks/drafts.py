"""CPU seconds of decoding with drafts and without, both in turn in one process, medians of five.

    python experiments/benchmarks/drafts.py evaluation MODEL PREDICTIONS
    python experiments/benchmarks/drafts.py rollout
    python experiments/benchmarks/drafts.py random

evaluation: greedy answers of the model in the folder MODEL to phantoms' test questions, 64 rows a
batch; PREDICTIONS (a predictions.parquet of the start model) gives the drafts. rollout: steps of 8
questions x 8 completions of the tiny model at temperature 1; drafts come from the steps before.
random: 2 questions x 8 completions x 128 tokens of 33 M random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import BatchFeature, GenerationConfig, PreTrainedModel

from medreason import config as configuration
from medreason import phantom
from medreason.config import CONF, Config
from medreason.console import show
from medreason.data.images import open_rgb
from medreason.evaluation.answers import question_of
from medreason.evaluation.run import evaluation_row, remember_replies
from medreason.generation import prefix_sharing
from medreason.generation.decoding import CompletionTokens, decode
from medreason.generation.draft_step import takes_drafts
from medreason.generation.drafts import DraftHistory
from medreason.generation.generate import greedy_settings, prompt_texts
from medreason.generation.prefix_sharing import PrefixPrefiller
from medreason.generation.sampling import sample_completions
from medreason.models.load import END_TOKENS, VISION_TOKENS, load_model, load_processor
from medreason.samples import Sample

Rows = list[CompletionTokens]
Way = Callable[[], Rows]
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("evaluation", "rollout", "random"))
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("predictions", nargs="?", type=Path)
    parser.add_argument("--batches", type=int, default=4, help="of a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config = composed(
        *(
            ("model=random_33m", "action=bench", "method=grpo")
            if arguments.what == "random"
            else ("model=tiny", f"model.path={arguments.model}")
        )
    )
    torch.manual_seed(0)
    model = load_model(config.model, config.hardware).eval()
    assert takes_drafts(model)
    history = DraftHistory()
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        samples = phantom.load(Path(cache), train_images=16, test_images=16, seed=0)
        if arguments.what == "evaluation":
            tasks = evaluation(config, model, samples, history, arguments.predictions)
        else:
            tasks = rollouts(config, model, samples, history, random=arguments.what == "random")
        measure(tasks, history, arguments.batches)


def composed(*overrides: str) -> Config:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        words = ["hardware=cpu", "data=phantom", "prompt=think", *overrides]
        return configuration.load(compose("config", overrides=words))


def measure(tasks: Iterator[tuple[Way, Way]], history: DraftHistory, batches: int) -> None:
    seconds: dict[str, list[float]] = {"plain": [], "drafts": []}
    rows, different = 0, 0
    for _ in range(ROUNDS):
        spent = {"plain": 0.0, "drafts": 0.0}
        for _ in range(batches):
            completions: dict[str, Rows] = {}
            for name, way in zip(spent, next(tasks), strict=True):
                start = time.process_time()
                completions[name] = way()
                spent[name] += time.process_time() - start
            pairs = zip(*completions.values(), strict=True)
            different += sum(plain.ids != drafted.ids for plain, drafted in pairs)
            rows += len(completions["plain"])
        for name, value in spent.items():
            seconds[name].append(value)
    plain, drafts = (statistics.median(values) for values in seconds.values())
    show(f"plain {plain:.2f} s, drafts {drafts:.2f} s, speedup {plain / drafts:.2f}")
    show(f"{different} of {rows} rows differ; {history.counts.metrics()}")


def evaluation(
    config: Config,
    model: PreTrainedModel,
    samples: list[Sample],
    history: DraftHistory,
    replies: Path | None,
) -> Iterator[tuple[Way, Way]]:
    processor = load_processor(config.model)
    test = [sample for sample in samples if sample.split == "test"]
    rows = [
        evaluation_row(config, s, control) for s in test for control in ("original", "blank_image")
    ]
    if replies:
        remember_replies(history, [replies], rows, processor.tokenizer)
    settings = greedy_settings(processor.tokenizer, 40)
    prefiller = PrefixPrefiller(model, processor)
    for batch in prefix_sharing.batches(rows, 64):
        prefixes = prefiller.prefill_prefixes([rows[i] for i in batch])
        # Each way writes into a KV cache of its own; the prefill is not measured.
        prefills = [prefiller.prefill_rest(prefixes, 40) for _ in range(2)]
        questions = [question_of(rows[i].sample.id, rows[i].prompt) for i in batch]
        yield (
            lambda prefill=prefills[0]: decode(model, prefill, settings, None),
            lambda prefill=prefills[1], questions=questions: decode(
                model, prefill, settings, None, drafts=history.of_rows(questions)
            ),
        )


def rollouts(
    config: Config,
    model: PreTrainedModel,
    samples: list[Sample],
    history: DraftHistory,
    *,
    random: bool,
) -> Iterator[tuple[Way, Way]]:
    processor: Any = load_processor(config.model)
    tokenizer, size = processor.tokenizer, 2 if random else 8
    ends, banned = (
        tokenizer.convert_tokens_to_ids([*words]) for words in (END_TOKENS, VISION_TOKENS)
    )
    settings = GenerationConfig(
        do_sample=True,
        max_new_tokens=128 if random else 40,
        top_k=0,
        eos_token_id=ends,
        suppress_tokens=[*banned, *ends] if random else banned,
    )
    train = [s for s in samples if s.split == "train" and s.modality == "xray"]
    step = 0
    while True:
        asked = [train[(step * size + i) % len(train)] for i in range(size)]
        texts = prompt_texts(
            processor, [evaluation_row(config, s).prompt for s in asked], [True] * size
        )
        images = [open_rgb(s.image, s.window) for s in asked]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        seeds = [f"0:{step}:{sample.id}" for sample in asked]

        def sampled(
            *, drafts: bool, inputs: BatchFeature = inputs, seeds: list[str] = seeds
        ) -> Rows:
            names = [seed.rpartition(":")[2] for seed in seeds for _ in range(8)]
            of_rows = history.of_rows(names) if drafts else None
            groups = sample_completions(
                model, inputs, completions=8, settings=settings, seeds=seeds, drafts=of_rows
            )
            return [row for group in groups for row in group]

        yield (lambda: sampled(drafts=False)), (lambda: sampled(drafts=True))
        step += 1


if __name__ == "__main__":
    main()
