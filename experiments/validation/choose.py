"""What choosing on the test would have bought, from the run folders of the sweep in README.md.

    python experiments/validation/choose.py OUTPUTS [--patients 24] [--draws 2000]

For each seed a model is chosen among all learning rates and lengths: by validation, by a test, or
not at all (the mean of the longest trainings). The test that chooses is a random part of the test
patients; the others show what the chosen model is worth.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medreason import config as configuration
from medreason import stats
from medreason.console import show
from medreason.evaluation import predictions
from medreason.runs.run_folder import RunFolder, evaluations_by_sweep
from medreason.training import selection

COLUMNS = ["sample", "correct", *predictions.CLUSTER_COLUMNS]


@dataclass(frozen=True)
class Arms:
    """The trainings of one seed."""

    names: list[str]
    validation: np.ndarray
    """Accuracy of each on the validation questions after its last step."""
    hits: pd.DataFrame
    """Question x arm: whether the arm answered it right."""
    patients: np.ndarray
    """Of each question."""
    longest: list[int]
    """The arms that made the most updates."""


def arms_by_seed(outputs: Path, sweep: str) -> dict[int, Arms]:
    """The finished trainings of the sweep."""
    members: dict[int, list[tuple[str, int, float, pd.DataFrame]]] = defaultdict(list)
    for evaluation in evaluations_by_sweep(outputs / "runs")[sweep]:
        if not evaluation.finished:
            continue
        config = configuration.read(evaluation.config)
        trl = config.method.trl
        score = selection.kept_score(RunFolder(evaluation.path.parents[1]))
        assert score is not None, evaluation.path
        frame = predictions.read_frame([evaluation.path], COLUMNS)
        name = f"{trl['max_steps']} steps, {trl['learning_rate']:g}"
        members[config.seed].append((name, trl["max_steps"], score, frame))
    return {seed: _arms(of_seed) for seed, of_seed in sorted(members.items())}


def _arms(members: Sequence[tuple[str, int, float, pd.DataFrame]]) -> Arms:
    columns = {name: frame.set_index("sample")["correct"] for name, _, _, frame in members}
    hits = pd.DataFrame(columns).astype(float)
    assert not hits.isna().any(axis=None), "the arms of a seed answered different questions"
    first = members[0][3].set_index("sample").loc[hits.index]
    longest = max(steps for _, steps, _, _ in members)
    return Arms(
        [name for name, *_ in members],
        np.array([score for _, _, score, _ in members]),
        hits,
        predictions.clusters_of(first, "patient").to_numpy(str),
        [i for i, (_, steps, _, _) in enumerate(members) if steps == longest],
    )


def show_choices(seed: int, arms: Arms) -> None:
    """Each choice on all test questions, with its difference from no choice."""
    unchosen = arms.hits.iloc[:, arms.longest].mean(axis=1).to_numpy()
    choices = {"validation": arms.validation.argmax(), "all of the test": arms.hits.mean().argmax()}
    for by, arm in choices.items():
        scores = arms.hits.iloc[:, arm].to_numpy()
        own = stats.accuracy(scores, arms.patients)
        change = stats.difference(scores - unchosen, arms.patients).in_points
        show(
            f"| {seed} | {by} | {arms.names[arm]} | {100 * own.mean:.1f} [{100 * own.low:.1f}, "
            f"{100 * own.high:.1f}] | {change.mean:+.1f} [{change.low:+.1f}, {change.high:+.1f}] |"
        )
    own = stats.accuracy(unchosen, arms.patients)
    low, high = 100 * own.low, 100 * own.high
    show(f"| {seed} | no choice | longest | {100 * own.mean:.1f} [{low:.1f}, {high:.1f}] | - |")


def small_tests(arms: Arms, patients: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draw, choice, 2) accuracies in percent: on the small test and on the other patients, of the
    model chosen by validation and by the small test."""
    names, codes = np.unique(arms.patients, return_inverse=True)
    sums = np.zeros((len(names), len(arms.names)))
    np.add.at(sums, codes, arms.hits.to_numpy())
    counts = np.bincount(codes)
    rows = np.empty((draws, 2, 2))
    for draw in range(draws):
        inside = np.zeros(len(names), bool)
        inside[rng.choice(len(names), patients, replace=False)] = True
        seen, unseen = (sums[part].sum(0) / counts[part].sum() for part in (inside, ~inside))
        # Of equal ones any: the first would be the shortest training.
        by_test = rng.choice((seen == seen.max()).nonzero()[0])
        for place, arm in enumerate((arms.validation.argmax(), by_test)):
            rows[draw, place] = seen[arm], unseen[arm]
    return 100 * rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--sweep", default="validation")
    parser.add_argument("--patients", type=int, default=24, help="of a small test")
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    by_seed = arms_by_seed(arguments.outputs, arguments.sweep)
    show("| seed | chosen by | choice | accuracy % on all of the test | against no choice |")
    show("|---|---|---|---|---|")
    for seed, arms in by_seed.items():
        show_choices(seed, arms)
    show(
        f"\n| seed | chosen by | on {arguments.patients} patients % | on the others % "
        "| too high by |"
    )
    show("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for seed, arms in by_seed.items():
        rows = small_tests(arms, arguments.patients, arguments.draws, rng)
        for place, by in enumerate(("validation", "those patients")):
            seen, unseen = rows[:, place].T
            low, high = np.percentile(seen - unseen, (2.5, 97.5))
            show(
                f"| {seed} | {by} | {seen.mean():.1f} | {unseen.mean():.1f} | "
                f"{(seen - unseen).mean():+.1f} [{low:+.1f}, {high:+.1f}] |"
            )


if __name__ == "__main__":
    main()
