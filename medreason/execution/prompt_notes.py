"""What a prompt does not say of the reply that it will be judged by: a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from medreason import data
from medreason.config import Config

_TAGS = {
    "think": ("<think>", "<answer>"),
    "no_think": ("<answer>",),
    "think_after": ("<answer>", "<think>"),
}
"""Style of a reply -> the tags that it has."""


def notes(config: Config) -> list[str]:
    """Tags that a reward looks for and no template names, questions without options that are asked
    for a letter, and reasoning that SFT has none to imitate of.

    Raises:
        ValueError: the data cannot be used.
    """
    return [*_unnamed_tags(config), *_open_questions(config), *_unexplained(config)]


def _unnamed_tags(config: Config) -> Iterator[str]:
    if config.method.algorithm != "grpo":
        return
    prompt = config.prompt
    templates = [text for texts in prompt.training.values() for text in texts]
    templates += [prompt.open] * bool(prompt.open)
    for name, reward in config.reward.items():
        tags = _TAGS.get(str(reward.score.get("style")), ()) if reward.weight else ()
        for template in templates:
            if absent := [tag for tag in tags if tag not in template.lower()]:
                yield (
                    f"! reward.{name} asks for {' and '.join(absent)} in a reply, and "
                    f"prompt={prompt.name} does not: {template[:80]!r}; name the tags there, "
                    f"choose the prompt.style that it asks for, or drop ~reward.{name}"
                )
                break


def _unexplained(config: Config) -> Iterator[str]:
    method, prompt = config.method, config.prompt
    if method.algorithm != "sft" or method.target != "explanation":
        return
    if prompt.style not in ("think", "think_after"):
        return
    rows = data.trained_on(config, data.samples_of(config))
    explained = sum(sample.explanation is not None for sample in rows)
    if explained == len(rows):
        return
    have = "has" if explained == 1 else "have"
    yield (
        f"! {explained:,} of {len(rows):,} training rows {have} an explanation: "
        f"{'of the others ' * bool(explained)}SFT imitates the answer alone, and replies "
        f"{'may ' * bool(explained)}lose their reasoning, which prompt={prompt.name} asks for; add "
        "a column `explanation` to the data, or let all methods answer alike with prompt=no_think"
    )


def _open_questions(config: Config) -> Iterator[str]:
    if config.prompt.open:
        return
    samples = data.samples_of(config)
    sides = {
        "training": data.trained_on(config, samples),
        "test": data.tested_on(config, samples) if config.runs.test else [],
    }
    counts = {name: sum(not s.options for s in side) for name, side in sides.items()}
    if any(counts.values()):
        kind = "question" if sum(counts.values()) == 1 else "questions"
        asked = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        yield (
            f"! prompt={config.prompt.name} has no template for questions without options, and "
            f"asks {asked} {kind} of this kind as if for a letter; write one at `open`, as "
            "conf/prompt/think.yaml does, or set data.questions=closed"
        )
