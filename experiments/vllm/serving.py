"""Greedy replies of a served model and of the same folder loaded here, to 100 phantom questions.

    python experiments/vllm/serving.py BASE_URL NAME FOLDER [--unlisted]

BASE_URL and NAME are those of a server that runs; FOLDER is what it serves, an export of the model
or of an adapter. Prints a row of the table in README.md.
"""

from __future__ import annotations

import argparse
import tempfile

from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.console import show
from medreason.evaluation.predictions import Prediction
from medreason.evaluation.run import evaluation_row, predict_rows

QUESTIONS = 100


def configured(outputs: str, *overrides: str) -> Config:
    shared = ["method=base", "prompt=think", "data.test_images=5", f"outputs={outputs}"]
    shared += ["evaluation.max_new_tokens=40"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return configuration.load(compose("config", overrides=[*shared, *overrides]))


def answers(config: Config) -> list[Prediction]:
    samples = data.tested_on(config, data.load(config.data, config.folder / "cache"))
    chosen = samples[:: len(samples) // QUESTIONS][:QUESTIONS]
    return predict_rows(config, [evaluation_row(config, s) for s in chosen], lambda *_: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base_url", "name", "folder"):
        parser.add_argument(name)
    parser.add_argument("--unlisted", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as outputs:
        endpoint = {"base_url": given.base_url, "model": given.name, "timeout_s": 600}
        endpoint |= {"listed": str(not given.unlisted).lower(), "concurrency": 4}
        overrides = [f"model.endpoint.{key}={value}" for key, value in endpoint.items()]
        path = f"model.path={given.folder}"
        local = answers(configured(outputs, path))
        served = answers(configured(outputs, "model=endpoint", path, *overrides))
    pairs = [*zip(local, served, strict=True)]
    texts = [("".join(a.completion.split()), "".join(b.completion.split())) for a, b in pairs]
    same = [here == there for here, there in texts]  # `transformers serve` strips white space
    tokens = sum(a.prompt_tokens == b.prompt_tokens for a, b in pairs)
    right = [sum(p.correct for p in rows) for rows in (local, served)]
    counts = [f"{count} of {len(pairs)}" for count in (sum(same), tokens, *right)]
    show(" | ".join(["", given.name, *counts, ""]).strip())
    for (a, b), equal in zip(pairs, same, strict=True):
        if not equal:
            show(f"  {a.sample}:\n    here   {a.completion!r}\n    served {b.completion!r}")


if __name__ == "__main__":
    main()
