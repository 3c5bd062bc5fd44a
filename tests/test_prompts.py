"""Which wording is drawn for which sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medreason.config import Config
from medreason.prompts import evaluation_prompt, training_prompt
from medreason.samples import Sample

SAMPLE = Sample(
    "s", Path("a.png"), "Which?", ("MRI", "CT"), "B", None, "ct", "disease", "t", None, "train"
)  # fmt: skip
FAMILIES = {"short": ["1 {question}", "2 {question}"], "long": ["3 {question}"]}
Compose = Callable[..., Config]


def test_family_then_paraphrase_are_drawn_by_seed_epoch_and_sample() -> None:
    samples = [replace(SAMPLE, id=str(i)) for i in range(600)]
    prompts = [training_prompt(s, FAMILIES, seed=0) for s in samples]
    assert prompts == [training_prompt(s, FAMILIES, seed=0) for s in samples]
    assert prompts != [training_prompt(s, FAMILIES, seed=0, epoch=1) for s in samples]
    assert prompts != [training_prompt(s, FAMILIES, seed=1) for s in samples]
    counts = Counter(one.text[0] for one in prompts)
    assert set(counts) == {"1", "2", "3"}
    assert abs(counts["3"] - 300) < 60  # families are equally frequent, not templates
    assert all((one.family == "long") == (one.text[0] == "3") for one in prompts)


def test_question_without_options_is_asked_by_its_own_template() -> None:
    opened = replace(SAMPLE, options=(), answer="liver")
    settings = {"seed": 0, "open_template": "words: {question}"}
    assert training_prompt(opened, FAMILIES, **settings) == ("open", "words: Which?")
    assert training_prompt(SAMPLE, FAMILIES, **settings).family != "open"
    assert evaluation_prompt(opened, "{question}", open_template="words: {question}") == (
        "words: Which?"
    )
    assert evaluation_prompt(opened, "{question}!") == "Which?!"


def test_rarl_has_three_families_of_three_and_both_switches(composed: Compose) -> None:
    prompt = composed("method=rarl").prompt
    assert sorted(prompt.training) == ["explanation", "open_ended", "short"]
    assert all(len(set(texts)) >= 3 for texts in prompt.training.values())
    assert "visible in the image" in prompt.evaluation
    plain = composed(
        "method=rarl", "prompt.diversity=false", "prompt.reasoning_prompting=false"
    ).prompt
    assert plain.training == {"single": composed("prompt=think").prompt.train}
    assert plain.evaluation == composed("prompt=think").prompt.evaluate


@pytest.mark.parametrize("style", ["think", "no_think"])
def test_parity_trains_as_ours_and_evaluates_with_another_prompt(
    composed: Compose, style: str
) -> None:
    ours, parity = composed(f"prompt={style}").prompt, composed(f"prompt={style}_parity").prompt
    assert parity.train == ours.train == [ours.evaluate]
    assert "Your task" in parity.train[0]
    assert "Your task" not in parity.evaluate
    assert parity.style == ours.style
