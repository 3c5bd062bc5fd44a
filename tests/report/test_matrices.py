"""Train x test tables from run folders: what stands where, and what is compared with what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_folders import draw_samples, reply, write_run

from medreason import stats
from medreason.config import Config, Statistics
from medreason.report import arms as report_arms
from medreason.report import comparisons, domains, matrices, tables
from medreason.report.runs import load
from medreason.runs.run_folder import EvaluationFolder
from medreason.samples import Sample

Compose = Callable[..., Config]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return draw_samples(tmp_path / "images")  # ct/disease, ct/anatomy, mri/disease; 12 of each


def right_on(*cells: tuple[str, str]) -> Callable[[int, Sample], str]:
    """Right on these cells, wrong elsewhere."""
    return lambda i, s: reply(s.answer if s.cell in cells else "ABCD"["ABCD".index(s.answer) - 1])


def sweep(composed: Compose, samples: list[Sample]) -> list[matrices.Arm]:
    """A start model that is always wrong, and SFT models each right on its own cell alone."""
    folders = [write_run(composed("method=base"), samples, right_on(), key="base00000000")]
    for modality, task in (("ct", "disease"), ("ct", "anatomy"), ("mri", "disease")):
        config = composed("method=sft", f"modality={modality}", f"task={task}")
        cell = right_on((modality, task))
        folders.append(write_run(config, samples, cell, key=f"{modality}{task}0000"[:12]))
    return matrices.arms(load(folders))


def test_runs_that_differ_in_cell_alone_are_one_arm(
    composed: Compose, samples: list[Sample]
) -> None:
    base, sft = sweep(composed, samples)
    assert (base.name, base.untrained, len(base.runs)) == ("base", True, 1)
    assert (sft.name, sft.untrained, len(sft.runs)) == ("sft", False, 3)


def test_tables_hold_what_was_trained_and_tested_and_leave_the_rest_empty(
    composed: Compose, samples: list[Sample]
) -> None:
    _, sft = sweep(composed, samples)
    found = {(p.table, p.train, p.test): p for p in matrices.places(sft)}
    own = [p for p in found.values() if p.table == "8x5"]
    assert {p.test: p.accuracy for p in own} == {
        "ct/disease": 1.0,
        "ct/anatomy": 1.0,
        "mri/disease": 1.0,
    }
    assert found["40x40", "ct/disease", "mri/disease"].accuracy == 0.0
    # Two models were trained within CT, each right on half of CT's questions.
    across = found["8x8", "ct", "ct"]
    assert (across.models, across.n, across.accuracy) == (2, 24, 0.5)
    assert found["8x8", "mri", "ct"].accuracy == 0.0
    assert ("8x8", "oct", "ct") not in found
    assert found["5x5", "disease", "disease"].accuracy == 0.5
    wide = {row["train"]: row for row in matrices.wide(matrices.places(sft), "8x5")}
    assert wide["ct"]["disease"] == 100.0
    assert wide["oct"]["disease"] is None


def test_start_model_stands_beside_every_row(composed: Compose, samples: list[Sample]) -> None:
    base, sft = sweep(composed, samples)
    found = {(c.table, c.train, c.test): c for c in comparisons.compare(sft, base)}
    gain = found["40x40", "ct/disease", "ct/disease"]
    assert (gain.n, gain.difference) == (12, 100.0)
    p = math.erfc(12 / math.sqrt(12 + 1) / math.sqrt(2))
    assert (gain.p, gain.clusters, gain.average) == (pytest.approx(p), 12, "questions")
    # Nine places of the 40 x 40 table were tested, so Holm multiplies the smallest by nine.
    assert gain.p_holm == pytest.approx(9 * p)
    # Several models answered each question; two questions about an image are one cluster.
    assert (found["8x8", "ct", "ct"].n, found["8x8", "ct", "ct"].clusters) == (24, 12)
    assert found["8x8", "ct", "ct"].difference == 50.0
    assert found["8x8", "ct", "ct"].p < 1e-3
    assert found["8x8", "ct", "ct"].clear
    # The means of 8x5: three cells by three models, each right on all of its own.
    means = found[comparisons.MEANS, "all/all", "all/all"]
    assert (means.n, means.difference, means.clear) == (36, 100.0, True)


def test_change_of_few_questions_is_not_called_clear(composed: Compose, tmp_path: Path) -> None:
    few = draw_samples(tmp_path / "few", per_cell=5)
    base, sft = sweep(composed, few)
    own = [c for c in comparisons.compare(sft, base) if c.table == "8x5"]
    assert {c.difference for c in own} == {100.0}
    # All five right that were wrong is p = 1/16, whatever the difference looks like.
    assert [c.p for c in own] == pytest.approx([2 / 2**5] * 3)
    assert not any(c.clear for c in own)


def test_arms_differ_in_training_or_in_evaluation_where_they_are_compared(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    def run(method: str, prompt: str) -> EvaluationFolder:
        config = composed(f"method={method}", f"prompt={prompt}")
        config = replace(config, choices={"prompt": prompt})
        return write_run(config, samples, right_on(), key=f"{method:0<6}{prompt:0<6}")

    runs = [run(m, p) for m in ("base", "sft") for p in ("think", "no_think")]
    gathered = tables.gather(load(runs))
    assert [(c.name, b.name) for c, b in comparisons.pairs(gathered.arms)] == [
        *(("base prompt=no_think", "base prompt=think"), ("sft prompt=think", "base prompt=think")),
        *(
            ("sft prompt=no_think", "base prompt=no_think"),
            ("sft prompt=no_think", "sft prompt=think"),
        ),
    ]
    assert {(pair.a, pair.b) for pair in gathered.domains.not_compared} == {
        ("sft prompt=no_think", "base prompt=think"),
        ("sft prompt=think", "base prompt=no_think"),
    }
    folder = tables.write(gathered, tmp_path)
    reasons = (folder / "not-compared.csv").read_text()
    assert "evaluated with another prompt: think, no_think" in reasons
    starts = [c for c in gathered.domains.compared if c.a == "base prompt=no_think"]
    assert [(c.b, c.test, c.n) for c in starts] == [("base prompt=think", "in-domain", 36)]


def test_another_prompt_in_training_and_evaluation_is_one_change(
    composed: Compose, samples: list[Sample]
) -> None:
    """Med-R1's think against no_think: the reward of the format follows the prompt."""
    runs = []
    for method in ("grpo", "rarl"):
        for prompt in ("think", "no_think"):
            config = composed(f"method={method}", f"prompt={prompt}")
            config = replace(config, choices={"prompt": prompt})
            runs.append(write_run(config, samples, right_on(), key=f"{method}{prompt}0000"[:12]))
    gathered = tables.gather(load(runs))
    assert {(c.a, c.b) for c in gathered.domains.compared} == {
        *(
            ("grpo prompt=no_think", "grpo prompt=think"),
            ("rarl prompt=no_think", "rarl prompt=think"),
        ),
        *(
            ("rarl prompt=think", "grpo prompt=think"),
            ("rarl prompt=no_think", "grpo prompt=no_think"),
        ),
    }
    assert len(gathered.domains.not_compared) == 2


def test_start_model_is_one_model_whatever_its_sweep_held_back(
    composed: Compose, samples: list[Sample]
) -> None:
    runs = []
    for i, words in enumerate((["prompt=think"], ["prompt=rarl", "validation=in_domain"])):
        config = composed("method=base", "data=phantom", *words)
        runs.append(write_run(config, samples, right_on(), evaluation_key=f"{i}", key=f"{i:012}"))
    domains = tables.gather(load(runs)).domains
    assert not domains.not_compared
    assert {(c.a.split()[0], c.b.split()[0]) for c in domains.compared} == {("base", "base")}


def test_two_by_two_of_prompts_in_training_and_evaluation(
    composed: Compose, samples: list[Sample]
) -> None:
    """`experiment=rarl/prompting`: four arms, each difference one of training or of the prompt."""
    switches = [(d, r) for d in ("false", "true") for r in ("false", "true")]
    runs = []
    for i, (diversity, reasoning) in enumerate(switches):
        prompt = f"prompt.diversity={diversity}", f"prompt.reasoning_prompting={reasoning}"
        config = composed("method=rarl", "data=phantom", "prompt=rarl", *prompt)
        answer = right_on(*[("ct", "disease"), ("ct", "anatomy"), ("mri", "disease")][:i])
        runs.append(
            write_run(config, samples, answer, key=f"{diversity:0<12}"[:12], evaluation_key=f"{i}")
        )
    gathered = tables.gather(load(runs))
    assert [arm.name for arm in gathered.arms] == [
        f"rarl diversity={d.title()} reasoning_prompting={r.title()}" for d, r in switches
    ]
    place = [arm.name for arm in gathered.arms].index
    changes = {(place(c.a), place(c.b)): c.difference for c in gathered.domains.compared}
    third = 100 / 3  # of the questions
    assert changes == pytest.approx(
        {(1, 0): third, (2, 0): 2 * third, (3, 1): 2 * third, (3, 2): third}
    )
    reasons = {(place(p.a), place(p.b)): p.reason for p in gathered.domains.not_compared}
    unlike = "trained differently and evaluated with another prompt.reasoning_prompting: "
    assert reasons == {(2, 1): f"{unlike}false, true", (3, 0): f"{unlike}true, false"}


def test_seeds_give_mean_and_spread(composed: Compose, samples: list[Sample]) -> None:
    folders = [
        write_run(
            composed("method=sft", "modality=ct", "task=disease", f"seed={seed}"),
            samples,
            right_on(("ct", "disease")) if seed else right_on(),
            key=f"{seed}00000000000",
        )
        for seed in (0, 1)
    ]
    (arm,) = matrices.arms(load(folders))
    assert arm.seeds == [0, 1]
    (own,) = [p for p in matrices.places(arm) if p.table == "8x5"]
    assert (own.seeds, own.n, own.accuracy) == (2, 12, 0.5)
    assert own.spread == pytest.approx(0.5**0.5)


def test_question_of_two_evaluations_of_one_model_counts_once(
    composed: Compose, samples: list[Sample]
) -> None:
    config = composed("method=sft", "modality=ct", "task=disease")
    cell = right_on(("ct", "disease"))
    folders = [
        write_run(config, asked, cell, evaluation_key=f"evaluation{i}")
        for i, asked in enumerate((samples[:12], samples))
    ]
    [arm] = matrices.arms(load(folders))
    assert (len(arm.runs), arm.models, len(arm.answers)) == (2, 1, len(samples))
    own = next(c for c in matrices.places(arm) if (c.table, c.in_domain) == ("8x5", True))
    assert (own.n, own.models, own.accuracy) == (12, 1, 1.0)


def test_domains_tell_near_from_far(composed: Compose, samples: list[Sample]) -> None:
    base, sft = sweep(composed, samples)
    found = domains.gather([base, sft])
    shares = {t.distance: t.accuracy for t in found.totals if t.arm == "sft"}
    assert shares == {
        "in-domain": 1.0,
        "out of domain": 0.0,
        "same modality": 0.0,
        "same task": 0.0,
        "neither": 0.0,
    }
    inside = found.total("sft", "in-domain")
    assert inside
    assert (inside.models, inside.cells, inside.n) == (3, 3, 36)
    assert inside.metrics == {
        "prior": 0.25,
        "guessing": 0.25,
        "blank_image": 0.25,
        "parsed": 1.0,
    }
    assert (inside.clusters, inside.average) == (24, "questions")
    effective = 36 / (1 + stats.CORRELATION * (60 / 36 - 1))  # of 12 pairs and 12 alone
    assert (inside.ci_low, inside.ci_high) == (pytest.approx(stats.wilson(1, effective)[0]), 1.0)
    start = found.total("base", "in-domain")
    assert start
    assert (start.n, start.accuracy) == (36, 0.0)
    gain = found.change("sft", "base", "in-domain")
    assert gain
    assert (gain.difference, gain.n, gain.clear) == (100.0, 36, True)
    far = found.change("sft", "base", "out of domain")
    assert far
    assert (far.difference, far.clear) == (0.0, False)


@pytest.mark.parametrize(("average", "accuracy"), [("questions", 0.2), ("cells", 0.5)])
def test_means_are_over_questions_or_over_cells(
    composed: Compose, samples: list[Sample], average: str, accuracy: float
) -> None:
    asked = [s for s in samples if s.cell == ("ct", "disease")]
    asked += [s for s in samples if s.cell == ("mri", "disease")][:3]
    folder = write_run(composed("method=sft"), asked, right_on(("mri", "disease")))
    base = write_run(composed("method=base"), asked, right_on())
    arms = matrices.arms(load([base, folder], Statistics(average=average)))
    found = domains.gather(arms)
    total = found.total("sft", "in-domain")
    assert total
    assert (total.n, total.accuracy, total.average) == (15, pytest.approx(accuracy), average)
    gain = found.change("sft", "base", "in-domain")
    assert gain
    assert (gain.difference, gain.average) == (pytest.approx(100 * accuracy), average)
    means = [c for c in comparisons.compare(*arms[::-1]) if c.table == comparisons.MEANS]
    assert means == []  # one model of all cells has no cell of its own


def test_runs_that_differ_in_a_value_are_arms_of_their_own(
    composed: Compose, samples: list[Sample]
) -> None:
    rates = ("1e-5", "2e-5")
    folders = [
        write_run(
            composed("method=sft", f"++method.trl.learning_rate={rate}"),
            samples,
            right_on(),
            key=f"{rate}00000000",
        )
        for rate in rates
    ]
    assert {arm.name for arm in matrices.arms(load(folders))} == {
        "sft learning_rate=1e-5",
        "sft learning_rate=2e-5",
    }


def test_options_name_an_arm_only_where_its_method_has_several(
    composed: Compose, samples: list[Sample]
) -> None:
    folders = [
        write_run(composed("method=sft"), samples, right_on()),
        write_run(composed("method=grpo", "prompt=think"), samples, right_on(), key="a" * 12),
        write_run(composed("method=grpo", "prompt=no_think"), samples, right_on(), key="b" * 12),
        write_run(composed("method=rarl"), samples, right_on()),
    ]
    names = [arm.name for arm in matrices.arms(load(folders))]
    assert (names[0], names[3]) == ("sft", "rarl")
    assert "=think" in names[1]
    assert "=no_think" in names[2]
    assert max(map(len, names)) < 40  # a prompt's text is no name


def test_tables_are_written_as_csv_and_parquet_with_pictures(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    arms = sweep(composed, samples)
    found = tables.gather([run for arm in arms for run in arm.runs])
    assert found.crossed
    tables.write(found, tmp_path)
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"places.csv", "places.parquet", "comparisons.csv", "domains.csv"} <= names
    assert {"8x5-sft.csv", "8x8-sft.parquet", "40x40-sft.png", "5x5-sft-minus-base.png"} <= names
    assert {"8x5-sft.png", "8x5-sft-above-prior.png", "8x5-sft-minus-base.png"} <= names
    assert not any("8x5-base" in name for name in names)
    places = pq.read_table(tmp_path / "tables" / "places.parquet").to_pylist()
    assert {row["arm"] for row in places} == {"base", "sft"}


def test_maps_of_prompts_subtract_think_as_the_figures_of_the_paper_do(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    """Whatever the names are by the alphabet."""
    prompts = ("no_think_parity", "think_after", "think_parity")
    folders = []
    for prompt in prompts:
        for modality in ("ct", "mri"):
            typed = composed("method=sft", f"prompt={prompt}", f"modality={modality}")
            config = replace(typed, choices={"prompt": prompt})
            key = f"{prompts.index(prompt)}{modality}00000000000"[:12]
            folders.append(write_run(config, samples, right_on(), key=key))
    folder = tables.write(tables.gather(load(folders)), tmp_path)
    assert {path.stem for path in folder.glob("8x8-*-minus-*.png")} == {
        "8x8-sft-prompt=no_think_parity-minus-sft-prompt=think_parity",
        "8x8-sft-prompt=think_after-minus-sft-prompt=think_parity",
        "8x8-sft-prompt=think_after-minus-sft-prompt=no_think_parity",
    }


def test_model_is_not_compared_with_another_start_model_of_its_name(
    composed: Compose, samples: list[Sample]
) -> None:
    base = write_run(composed("method=base", "model.max_pixels=784"), samples, right_on())
    sft = write_run(composed("method=sft"), samples, right_on())
    (pair,) = tables.gather(load([base, sft])).domains.not_compared
    assert (pair.a, pair.b) == ("sft", "base")
    assert pair.reason == "trained from another start model, with model.max_pixels: None, 784"


def test_arms_of_other_seeds_are_named_with_them(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [("sft", 0), ("sft", 1), ("grpo", 1)]
    runs = load(
        write_run(composed(f"method={m}", f"seed={s}"), samples, right_on(), key=f"{m}{s}0000")
        for m, s in trained
    )
    domains = tables.gather(runs).domains
    report_arms.show_differences(domains)
    assert "not trained with the same seeds: sft 0, 1; grpo 1\n" in capsys.readouterr().out
    same = tables.gather([run for run in runs if "seed 0" not in run.label]).domains
    assert report_arms.differences(same).other_seeds == ""


def test_place_is_off_the_baseline_where_it_is_above_guessing_too(
    composed: Compose, samples: list[Sample]
) -> None:
    """Of yes or no, half right of 12: the interval is above the options-only baseline of 10 %."""
    asked = [replace(s, options=("Yes", "No"), answer="AB"[i % 2]) for i, s in enumerate(samples)]
    priors = {sample.cell: 0.1 for sample in asked}

    def half(i: int, sample: Sample) -> str:
        return reply("A")

    made = write_run(composed("method=sft"), asked, half, priors=priors)
    (arm,) = matrices.arms(load([made]))
    places = [place for place in matrices.places(arm) if place.table == "8x5"]
    assert [(p.guessing, p.accuracy, p.off_prior) for p in places] == [(0.5, 0.5, False)] * len(
        places
    )
    assert all(place.ci_low > 0.1 for place in places)
    fewer = [replace(place, guessing=0.1) for place in places]
    assert all(place.off_prior for place in fewer)
