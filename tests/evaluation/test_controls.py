"""What each control asks, and the metrics of its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import draw_samples, reply

from medreason.evaluation.controls import rotations, samples_under
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.predictions import Prediction, predict
from medreason.samples import Sample, letter_at


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return [
        replace(sample, patient=f"{sample.modality}-{i // 2}")
        for i, sample in enumerate(draw_samples(tmp_path, per_cell=6))
    ]


def predictions_of(
    samples: list[Sample], control: str, answer: Callable[[Sample], str]
) -> list[Prediction]:
    return [
        predict(
            sample,
            control,
            SimpleNamespace(
                prompt="p", text=answer(sample), prompt_tokens=9, completion_tokens=5,
                finish_reason="stop",
            ),
        )
        for sample in samples_under(control, samples)
    ]  # fmt: skip


def test_shuffled_image_is_of_another_patient_of_the_same_cell(samples: list[Sample]) -> None:
    owners = {(sample.image, sample.cell): sample.patient for sample in samples}
    shown = samples_under("shuffled_image", samples)
    assert [s.id for s in shown] == [s.id for s in samples]
    for sample, original in zip(shown, samples, strict=True):
        assert owners[sample.image, sample.cell] != original.patient
        assert (sample.question, sample.answer) == (original.question, original.answer)
    assert samples_under("shuffled_image", samples[::-1])[::-1] == shown


def test_sample_without_another_image_in_its_cell_is_left_out(samples: list[Sample]) -> None:
    alone = [replace(sample, patient="one") for sample in samples]
    assert samples_under("shuffled_image", alone) == []
    unknown = [replace(sample, patient=None) for sample in samples]
    shown = samples_under("shuffled_image", unknown)
    assert all(a.image != b.image for a, b in zip(shown, unknown, strict=False))


def test_rotations_keep_the_right_text_and_give_every_letter_once(samples: list[Sample]) -> None:
    for sample in samples:
        rotated = [sample, *rotations(sample)]
        assert {one.answer_text for one in rotated} == {sample.answer_text}
        assert sorted(one.answer for one in rotated) == list("ABCD")
        assert len({one.options for one in rotated}) == 4
    assert rotations(replace(samples[0], options=(), answer="liver")) == []


def test_habit_of_one_letter_is_right_a_quarter_of_the_time_and_never_consistent(
    samples: list[Sample],
) -> None:
    rows = [
        row
        for c in ("original", "permuted_options")
        for row in predictions_of(samples, c, always_b)
    ]
    metrics = compute_metrics(rows, {}, ["permuted_options"])["overall"]
    assert metrics["permuted_options"] == 0.25
    assert metrics["option_invariance"] == 0.0
    rows = [
        row for c in ("original", "permuted_options") for row in predictions_of(samples, c, by_text)
    ]
    metrics = compute_metrics(rows, {}, ["permuted_options"])["overall"]
    assert metrics["option_invariance"] == 1.0
    assert metrics["permuted_options"] == metrics["accuracy"]


def always_b(sample: Sample) -> str:
    return reply("B")


def by_text(sample: Sample) -> str:
    return reply(letter_at(sample.options.index("cyst")))


def test_control_that_no_sample_allows_has_no_metric(samples: list[Sample]) -> None:
    alone = [replace(sample, patient="one") for sample in samples]
    rows = predictions_of(alone, "original", always_b)
    assert compute_metrics(rows, {}, ["shuffled_image"])["overall"]["shuffled_image"] is None


def test_open_questions_and_reasoning_have_metrics_of_their_own(samples: list[Sample]) -> None:
    opened = [replace(sample, options=(), answer="left lung") for sample in samples[:2]]
    texts = iter([reply("left lung", "The left lung is dark."), "<answer>upper left lung</answer>"])
    rows = predictions_of(opened, "original", lambda _: next(texts))
    rows += predictions_of(samples, "original", always_b)
    metrics = compute_metrics(rows, {}, [])["overall"]
    assert metrics["open_n"] == 2
    assert metrics["exact_match"] == 0.5
    assert metrics["open_token_f1"] == pytest.approx(0.9)
    assert metrics["with_reasoning"] == pytest.approx(19 / 20)
    assert metrics["consistency"] == pytest.approx(1 / 19)  # "It is bright." names no option
    assert metrics["reasoning_words"] == pytest.approx((18 * 3 + 4) / 19)


def test_reasoning_is_compared_with_the_explanations_there_are(samples: list[Sample]) -> None:
    explained = [replace(sample, explanation="The mass is bright.") for sample in samples[:2]]
    texts = iter([reply("B", "The mass is dark."), "<answer>B</answer>"])
    rows = predictions_of(explained, "original", lambda _: next(texts)) + predictions_of(
        samples, "original", always_b
    )
    assert [row.reasoning_similarity for row in rows[:3]] == [pytest.approx(2 / 3), 0.0, None]
    metrics = compute_metrics(rows, {}, [])["overall"]
    assert metrics["reasoning_similarity"] == pytest.approx(1 / 3)
    assert compute_metrics(rows[2:], {}, [])["overall"]["reasoning_similarity"] is None
