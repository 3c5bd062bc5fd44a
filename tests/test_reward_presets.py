"""Whole reward presets: the published ones reply by reply, and all of them under fire."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from encoders import encoder_of_package
from hypothesis import given, settings
from hypothesis import strategies as st

from medreason import config as configuration
from medreason import data
from medreason.config import CONF, Config
from medreason.replies import format_reply, parse
from medreason.samples import Sample, lettered, split_problem

Compose = Callable[..., Config]
PRESETS = sorted(path.stem for path in (CONF / "reward").glob("*.yaml"))
SHARED = Path(__file__).parents[1].parent / "shared/data"


def sample(options: tuple[str, ...] = ("MRI", "PET", "CT"), answer: str = "C") -> Sample:
    return Sample(
        "s", Path("a.png"), "Which?", options, answer, "The bone is bright: CT.", "ct", "disease",
        "test", None, "train",
    )  # fmt: skip


def total(config: Config, text: str, sample: Sample) -> tuple[list[float], float]:
    """Each reward (the gate applied), and their weighted sum."""
    reply = parse(text, sample.options)
    scores = {
        name: configuration.function(reward.score)(reply, sample)
        for name, reward in config.reward.items()
    }
    for name, reward in config.reward.items():
        if reward.only_when and scores[reward.only_when] < reward.at_least:
            scores[name] = 0.0
    weights = [reward.weight for reward in config.reward.values()]
    return [*scores.values()], sum(w * s for w, s in zip(weights, scores.values(), strict=True))


@pytest.mark.parametrize(
    ("prompt", "text", "published", "ours"),
    [
        # (accuracy, format) as published and as in med_r1. The letter in the tag, stripped:
        ("think", "<think>a</think><answer>C</answer>", (1, 1), (1, 1)),
        ("think", "<think>a</think>\n\n<answer> C </answer>", (1, 1), (1, 1)),
        ("think", "<think>a\nb</think><answer>C</answer>", (1, 1), (1, 1)),
        ("think", "<think>a</think><answer>B</answer>", (0, 1), (0, 1)),
        # no tag: the whole completion, stripped
        ("think", " C\n", (1, 0), (1, 0)),
        ("think", "The answer is B", (0, 0), (0, 0)),
        ("think", "<think>a</think> C", (0, 0), (1, 0)),  # a hole: the completion is not just C
        # a tag with a line break within is no tag
        ("think", "<think>a</think><answer>C\n</answer>", (0, 1), (1, 1)),
        ("think", "<answer>\nB</answer><answer>C</answer>", (1, 0), (0, 0)),
        # format is a full match
        ("think", "<think>a</think><answer>C</answer>\n", (1, 0), (1, 1)),
        ("think", "<think>a</think> so <answer>C</answer>", (1, 0), (1, 0)),
        ("think", "<answer>C</answer>", (1, 0), (1, 0)),
        ("think", "<answer>C</answer><think>a</think>", (1, 0), (1, 0)),
        ("no_think", "<answer>C</answer>", (1, 1), (1, 1)),
        ("no_think", " \n<answer>C</answer>", (1, 1), (1, 1)),
        ("no_think", "<answer>C</answer> ", (1, 0), (1, 1)),
        ("no_think", "<think>a</think><answer>C</answer>", (1, 0), (1, 0)),
        ("think_after", " <answer>C</answer> <think>a</think> ", (1, 1), (1, 1)),
        ("think_after", "<think>a</think><answer>C</answer>", (1, 0), (1, 0)),
        # the known holes
        ("think", "<think>a</think><answer>c</answer>", (0, 1), (1, 1)),
        ("think", "<think>a</think><answer>C.</answer>", (0, 1), (1, 1)),
        ("think", "<think>a</think><answer>C) CT</answer>", (0, 1), (1, 1)),
        ("think", "<think>a</think><answer>CT</answer>", (0, 1), (1, 1)),
        ("think", "<think>a</think><answer>C</answer><answer>B</answer>", (1, 1), (0, 0)),
        ("think", "<think>a</think><answer>B</answer><answer>C</answer>", (0, 1), (0, 0)),
        ("think", "<think></think><answer>C</answer>", (1, 1), (1, 0)),
        ("think", " <think>a</think><answer>C</answer>", (1, 0), (1, 1)),
        ("no_think", "<answer>B</answer><answer>C</answer>", (0, 1), (0, 0)),
    ],
)
def test_parity_is_as_published_and_med_r1_differs_in_the_holes_alone(
    composed: Compose, prompt: str, text: str, published: tuple[int, int], ours: tuple[int, int]
) -> None:
    parity = composed(f"prompt={prompt}", "reward=med_r1_parity")
    assert total(parity, text, sample()) == ([*published], sum(published))
    assert total(composed(f"prompt={prompt}"), text, sample()) == ([*ours], sum(ours))
    if prompt != "think":
        preset = composed(f"prompt={prompt}", f"reward={prompt}")
        assert total(preset, text, sample()) == ([*ours], sum(ours))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>The bone is bright: CT.</think><answer>C</answer>", 2.5),
        ("<think>The bone is bright: CT.</think><answer>B</answer>", 0.5),
        ("<think></think><answer>C</answer>", 1 - 0.5),
        ("<think>Which? CT</think><answer>C</answer>", 0.5 + 1 + 2 / 6 - 0.5),
        ("<answer>C</answer><think>The bone is bright: CT.</think>", 1 + 1 - 0.5),
        ("It is. <think>The bone is bright: CT.</think><answer>C</answer>", 1 + 1 - 0.25),
    ],
)
def test_rarl_safe_takes_back_what_is_earned_without_reasoning(
    composed: Compose, text: str, value: float
) -> None:
    config = composed("method=rarl", "reward=rarl_safe")
    assert total(config, text, sample())[1] == pytest.approx(value)


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<ANSWER>", "\\boxed{", "<", "**", "\n"]
WORDS = ["C", "(B)", "A) MRI", "CT", "The answer is ", "no ", " ", ".", "bright bone "]
TEXTS = st.lists(st.sampled_from(TAGS + WORDS) | st.text(max_size=5), max_size=14).map("".join)
SAMPLES = st.sampled_from([sample(), sample(("Yes", "No"), "A"), sample((), "the left lung")])


@pytest.mark.parametrize("preset", PRESETS)
def test_no_reply_takes_a_reward_out_of_its_range(composed: Compose, preset: str) -> None:
    encoder: list[str] = []
    if preset == "rarl_embedding":
        encoder = [f"reward.reasoning.score.encoder={encoder_of_package()}"]
    config = composed(f"reward={preset}", "judge=local", *encoder)
    scored = {name: reward for name, reward in config.reward.items() if reward.score}

    @settings(max_examples=60, deadline=None)
    @given(text=TEXTS | st.text(), sample=SAMPLES, truncated=st.booleans())
    def attack(text: str, sample: Sample, truncated: bool) -> None:
        reply = parse(text, sample.options, truncated=truncated)
        for name, reward in scored.items():
            value = configuration.function(reward.score)(reply, sample)
            penalty = reward.score["_target_"].rpartition(".")[2] in (
                *("hollow_reasoning", "answer_first", "stray_text", "overlong", "repetition"),
            )
            low, high = (-1, 0) if penalty else (0, 1)
            assert low <= value <= high, name

    attack()


def test_every_option_text_of_the_small_image_set_reads_back_in_every_style(
    composed: Compose,
) -> None:
    root = SHARED / "medvqa_mini"
    if not root.is_dir():
        pytest.skip(f"no questions at {root}")
    pairs = {row["problem"] for row in json.loads((root / "vqa_pairs.json").read_text())}
    offered = {split_problem(problem)[1] for problem in pairs}
    table = composed("data=labelled_images", f"data.root={root}", "data.bad_rows=skip")
    offered |= {sample.options for sample in data.load(table.data, table.folder / "cache")}
    assert len(offered) > 100
    for options in offered:
        for letter, option in lettered(options):
            for style in ("think", "no_think", "think_after"):
                written = format_reply("It is bright.", option, style)
                assert parse(written, options).answer == letter
