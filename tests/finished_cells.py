"""Finished runs of a sweep over seeds, by the thousand, without training any.

`python tests/finished_cells.py OUTPUTS 1000` makes run folders for `SWEEP outputs=OUTPUTS` to skip.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from run_folders import draw_samples, reply, write_run

from medreason import config as configuration
from medreason.config import CONF
from medreason.execution.request import run_request
from medreason.runs import integrity

OVERRIDES = (
    *("method=sft", "sweep=thousand", "data.train_images=16", "data.test_images=1"),
    *("modality=ct", "evaluation.modalities=[ct]"),
)


def make(outputs: Path, count: int) -> None:
    """Seeds 0 to `count` - 1 of one cell, under the keys of the sweep."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[*OVERRIDES, f"outputs={outputs}"])
    config = configuration.load(composed)
    samples = draw_samples(outputs / "images", per_cell=2)
    for seed in range(count):
        seeded = replace(config, seed=seed)
        request = run_request(seeded)
        keys = {"key": request.train_key, "evaluation_key": request.evaluation_key}
        run = write_run(seeded, samples, lambda i, s: reply("A"), **keys).run
        integrity.seal(run, request.evaluation_key)
        run.update(train_key=request.train_key, train_parts=request.parts)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
