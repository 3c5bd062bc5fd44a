"""The one table of metrics: nothing is computed that it lacks, and no other code names a key."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from run_folders import draw_samples, reply

from medreason.config.judge import ASPECTS
from medreason.config.schema import CONTROLS
from medreason.evaluation.controls import samples_under
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.predictions import predict
from medreason.generation.rows import Completion
from medreason.metrics import Metric, Shown
from medreason.option_prior import guessing

PACKAGE = Path(__file__).parents[1] / "medreason"
OTHER_WORDS = {
    "config/checks.py": {Metric.OPTION_LIKELIHOOD},
    "config/endpoint.py": {Metric.N},  # a field of a request
    "config/schema.py": {*CONTROLS, Metric.OPTION_LIKELIHOOD},  # controls, a way of answering
    "evaluation/controls.py": set(CONTROLS),
    "generation/prefix_sharing.py": set(CONTROLS),
    "generation/rows.py": set(CONTROLS),
    "evaluation/answers.py": set(CONTROLS),
    "evaluation/predictions.py": {  # columns of a prediction, the status of a reply
        *(Metric.CORRECT, Metric.CONSISTENCY, Metric.REASONING_SIMILARITY, Metric.PARSED),
        *(Metric.REASONING_EMBEDDING, Metric.COMPLETION_TOKENS, Metric.OPTION_LIKELIHOOD),
    },
    "evaluation/metrics.py": {  # a status, a column, the sum of all requests
        *(Metric.PARSED, Metric.COMPLETION_TOKENS, Metric.COST_USD),
    },
    "data/audit.py": {Metric.GUESSING},  # of audit.json
    "report/audit.py": {Metric.GUESSING},
    "evaluation/run.py": {Metric.OPTION_LIKELIHOOD},
    "runs/keys.py": {Metric.OPTION_LIKELIHOOD},
    "actions/predict.py": {Metric.OPTION_LIKELIHOOD},
    "actions/plan.py": {Metric.N, Metric.CLUSTERS},  # headings of tables
    "actions/judge.py": {  # of the judge's own summary
        *(Metric.N, Metric.COMPLETION_TOKENS, Metric.COST_USD),
    },
    "execution/request.py": {Metric.PRIOR},  # options that decide the options-only baseline
    "moved.py": {Metric.OPTION_LIKELIHOOD},
    "report/analyses.py": {Metric.COMPLETION_TOKENS},  # columns
    "report/page.py": {Metric.N},
    "report/page.js": {Metric.PARSED},
    "report/arms.py": {Metric.N},  # headings of tables
    "report/table.py": {Metric.N},
    "report/reasoning.py": {
        *(Metric.N, Metric.CLUSTERS, Metric.ACCURACY, Metric.CORRECT),
        Metric.REASONING_SIMILARITY,
    },
    "report/published.py": {Metric.CLUSTERS, Metric.CORRECT},  # columns
    "report/published_file.py": {Metric.N},
    "report/runs.py": {Metric.PARSED, Metric.COMPLETION_TOKENS, Metric.CORRECT},  # columns
    "report/questions.py": {Metric.PARSED},
    "tracking/evaluation.py": {Metric.CORRECT},
}
"""The same words with another meaning, by file."""


def literals(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".js":
        return set(re.findall(r"[\"'`]([a-z_0-9]+)[\"'`]", text))
    return {node.value for node in ast.walk(ast.parse(text)) if is_text(node)}


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_no_file_but_the_table_names_a_metric() -> None:
    files = [path for ending in ("py", "js") for path in PACKAGE.rglob(f"*.{ending}")]
    assert PACKAGE / "report" / "page.js" in files
    strangers = {
        name: keys
        for path in files
        if (name := str(path.relative_to(PACKAGE))) != "metrics.py"
        and not name.startswith("phantom/")
        and (keys := (literals(path) & set(Metric)) - OTHER_WORDS.get(name, set()))
        and not (name.startswith("report/") and keys == {Metric.CORRECT})  # column of predictions
    }
    assert strangers == {}


def test_all_that_is_computed_is_in_the_table(tmp_path: Path) -> None:
    samples = draw_samples(tmp_path, per_cell=2)
    completion = Completion("prompt", reply("A"), 9, 5, "stop")
    rows = [
        predict(sample, control, completion, option_likelihoods=[0.7, 0.1, 0.1, 0.1])
        for control in ("original", *CONTROLS)
        for sample in samples_under(control, samples)
    ]
    metrics = compute_metrics(rows, {}, CONTROLS)
    assert set(metrics) == {"overall", "over_cells", "cells"}
    for group in (metrics["overall"], metrics["over_cells"], *metrics["cells"].values()):
        assert set(CONTROLS) < set(group) <= set(Metric)
    judged = {f"{kind}_{aspect}" for kind in ("judged", "judge_failed") for aspect in ASPECTS}
    assert judged <= set(Metric)


@pytest.mark.parametrize("metric", Metric)
def test_metric_says_what_it_is(metric: Metric) -> None:
    assert metric.explanation
    assert metric.heading.count("\n") < 2 or Shown.TERMINAL not in metric.shown
    assert metric.unit in ("share", "count", "factor", "words", "tokens", "dollars")
    assert Shown.TERMINAL not in metric.shown or Shown.CSV in metric.shown


def test_guessing_counts_open_questions_as_wrong() -> None:
    assert guessing([("Yes", "No"), ("a", "b", "c", "d"), ()]) == pytest.approx(0.25)
    assert guessing([]) is None
