"""What the tiny model is taught, in this order: the letter of a word, images, and replies.

A network this small does not learn by itself to go from an image over an option's words to the
option's letter. It does when each of these steps is taught on its own, the first one with few words
at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from medreason import phantom
from medreason.console import notice
from medreason.data.images import open_rgb
from medreason.phantom.atlas import Facet
from medreason.prompts import conversation, fill
from medreason.replies import format_reply
from medreason.samples import Sample, letter_at, list_options

Row = tuple[list[int], list[float], Sample | None]
"""Token ids, the weight of each in the loss, and the sample whose image is in the text."""

PROMPTS = {
    "no_think": (
        "{question} Your task: 1. Provide the correct single-letter choice (A, B, C, "
        "D,...) inside <answer>...</answer> tags. 2. No extra information or text "
        "outside of this tag.",
    ),
    "think": (
        "{question} Answer briefly: one short reason inside <think>...</think> tags, "
        "then only the letter inside <answer>...</answer> tags.",
        "{question} Explain what in the image decides the question inside "
        "<think>...</think> tags, then give the letter of the right choice inside "
        "<answer>...</answer> tags.",
        "{question} First say what is visible in the image (modality, region, "
        "abnormal signs) and reason from it inside <think>...</think> tags. Then "
        "provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags.",
        "{question} Your task: 1. Think through the question step by step, enclose "
        "your reasoning process in <think>...</think> tags. 2. Then provide the "
        "correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> "
        "tags. 3. No extra information or text outside of these tags.",
        "{question} Your task: 1. Think through the question step by step, enclose "
        "your reasoning process in <think>...</think> tags. 2. Then provide the "
        "correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> "
        "tags. 3. No extra information or text outside of these tags.",
    ),
    "think_after": (
        "{question} Your task: 1. Provide the correct single-letter choice (A, B, C, "
        "D,...) inside <answer>...</answer> tags. 2. Then explain your choice step by"
        " step, enclose your reasoning in <think>...</think> tags. 3. No extra "
        "information or text outside of these tags.",
    ),
}
"""Style -> prompts it is taught under; the prompt of evaluation is there twice.

Not read from conf/prompt, so that a change there leaves the rebuilt weights as they are.
"""

DECISIVE = 8.0
"""Weight in the loss of a letter and of the reasoning's first word, where other words have 1: there
are few of them, and the rest of the reply depends on them."""

OVERLOOKED = {"disease": 0.6, "grading": 0.6, "attributes": 0.6}
"""Task -> how often a reply names the usual value of a facet, its first, whatever the image shows.
The start model then knows more than it answers, which training can correct in minutes."""


@dataclass(frozen=True)
class Lesson:
    rows: dict[str, int]
    """Subject -> rows of a batch. A subject that is left out is forgotten."""
    steps: int
    learning_rate: float
    decays: bool = True


LESSONS = (
    Lesson({"letters": 64}, 1000, 1e-3, decays=False),
    Lesson({"letters": 16, "names": 96}, 500, 1e-3, decays=False),
    Lesson({"letters": 8, "sight": 40, "replies": 16}, 600, 1e-3),
)


def teach(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    samples: Sequence[Sample],
    lessons: Sequence[Lesson],
) -> None:
    """All lessons, one after the other."""
    subjects: dict[str, Letters | Sight | Replies] = {
        "letters": Letters(processor, samples),
        "names": Sight(processor, samples, in_sentences=False),
        "sight": Sight(processor, samples, in_sentences=True),
        "replies": Replies(processor, samples),
    }
    pixels = _pixels(processor, samples)
    for number, lesson in enumerate(lessons):
        _learn(model, processor, subjects, lesson, pixels, np.random.default_rng(number))


def _learn(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    subjects: dict[str, Letters | Sight | Replies],
    lesson: Lesson,
    pixels: dict[Path, torch.Tensor],
    rng: np.random.Generator,
) -> None:
    """Next-token loss with the rows' weights; warm-up, then linear decay to a tenth of the rate."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lesson.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 50, 1 - 0.9 * step / lesson.steps if lesson.decays else 1),
    )
    model.train()
    accuracies: dict[str, list[float]] = {subject: [0.0] for subject in lesson.rows}
    start = time.monotonic()
    for step in range(lesson.steps):
        batch = {
            subject: subjects[subject].rows(rng, size, float(np.mean(accuracies[subject][-8:])))
            for subject, size in lesson.rows.items()
        }
        total = sum(
            weight for rows in batch.values() for _, weights, _ in rows for weight in weights
        )
        # One backward pass a subject: in one batch the short rows would be padding mostly.
        for subject, rows in batch.items():
            accuracy = _backward(model, *_inputs(rows, processor, pixels), total)
            accuracies[subject].append(accuracy)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - start) / (step + 1) * (lesson.steps - step - 1)
            means = "  ".join(f"{name} {np.mean(a[-50:]):.3f}" for name, a in accuracies.items())
            notice(f"step {step + 1}/{lesson.steps}  {means}  {left:.0f} s left")


def _backward(
    model: Qwen2VLForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    weights: torch.Tensor,
    total: float,
) -> float:
    """Add the gradients of the weighted loss over `total`; returns the accuracy of the tokens."""
    weighted = weights[:, 1:] > 0
    # The head is applied to tokens with a weight alone: most are prompts and images.
    states = model.model(**inputs).last_hidden_state[:, :-1][weighted]  # (tokens, width)
    logits = model.lm_head(states)
    labels, weights = inputs["input_ids"][:, 1:][weighted], weights[:, 1:][weighted]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    ((losses * weights).sum() / total).backward()
    return (logits.argmax(-1) == labels).float().mean().item()


class Letters:
    """Which letter is listed before a word, before an option's words, and so which one to reply.

    Begins with 8 words and doubles them, then asks for whole options, then within whole replies:
    each time as soon as 85 % of the letters are right.
    """

    def __init__(self, processor: Qwen2VLProcessor, samples: Sequence[Sample]) -> None:
        self._tokenizer = processor.tokenizer
        self._samples = samples
        words = {word for s in samples for option in s.options for word in option.split()}
        tokens = {word: self._ids(word) for word in sorted(words)}
        self._words = [word for word, ids in tokens.items() if len(ids) == 1]
        np.random.default_rng(0).shuffle(self._words)
        self._known, self._replies = 8, 0.0
        self._prompts = PROMPTS["think"]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text)["input_ids"]

    def rows(self, rng: np.random.Generator, size: int, accuracy: float) -> list[Row]:
        if accuracy > 0.85:
            self._known = min(2 * self._known, 4 * len(self._words))
            if self._known > 2 * len(self._words):
                self._replies = min(self._replies + 0.2, 1.0)
        if self._known < 2 * len(self._words):
            return [self._row(self._options(rng), None, rng, 12) for _ in range(size)]
        samples = [self._samples[i] for i in rng.integers(len(self._samples), size=size)]
        return [self._row(sample.options, sample, rng, 2) for sample in samples]

    def _options(self, rng: np.random.Generator) -> list[str]:
        known = self._words[: self._known]
        return [known[i] for i in rng.choice(len(known), 4, replace=False)]

    def _row(
        self,
        options: Sequence[str],
        sample: Sample | None,
        rng: np.random.Generator,
        letters: int,
    ) -> Row:
        text = sample.problem if sample else f" {list_options(options)}"
        if sample and rng.random() < self._replies:  # as far from the reply as in evaluation
            text = fill(str(rng.choice(self._prompts)), sample)
            text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant"
        ids = self._ids(text)
        weights = [0.0] * len(ids)
        for place in map(int, rng.integers(4, size=letters)):
            lead = options[place]
            if sample and rng.random() < self._replies:
                lead = f"<think>{fact(sample).replace(sample.answer_text, lead)[:-1]} ("
            question = self._ids(f"\n{lead}")
            ids = [*ids, *question, *self._ids(letter_at(place))]
            weights += [0.0] * len(question) + [DECISIVE]
            if lead.startswith("<think>"):  # the first word says what the reasoning is about
                weights[len(self._ids("\n<think>")) - len(question) - 1] = DECISIVE
        return ids, weights, None


class Sight:
    """An image, then its five facts: as names in a fixed order, or as sentences in any order.

    Names are a third of the tokens and are learnt that much sooner; sentences are as in a reply.
    """

    def __init__(
        self, processor: Qwen2VLProcessor, samples: Sequence[Sample], *, in_sentences: bool
    ) -> None:
        self._tokenizer = processor.tokenizer
        self._in_sentences = in_sentences
        by_image: dict[Path, list[Sample]] = {}
        for sample in samples:
            by_image.setdefault(sample.image, []).append(sample)
        self._facts = list(by_image.values())
        self._image = self._tokenizer(f"<|vision_start|>{_image_tokens(processor)}<|vision_end|>")

    def rows(self, rng: np.random.Generator, size: int, accuracy: float) -> list[Row]:
        rows: list[Row] = []
        for i in rng.integers(len(self._facts), size=size):
            facts = self._facts[i]
            order = rng.permutation(len(facts)) if self._in_sentences else range(len(facts))
            ids: list[int] = self._image["input_ids"]
            weights = [0.0] * len(ids)
            for j in order:
                text = fact(facts[j]) if self._in_sentences else facts[j].answer_text
                text_ids = self._tokenizer(f"\n{text}")["input_ids"]
                # Without a weight: line breaks, and a sentence's first word, which says the fact.
                unweighted = 2 if self._in_sentences else 1
                ids = ids + text_ids
                weights += [0.0] * unweighted + [1.0] * (len(text_ids) - unweighted)
            rows.append((ids, weights, facts[0]))
        return rows


class Replies:
    """Prompts, most of them asking for reasoning first, and the replies to them."""

    def __init__(self, processor: Qwen2VLProcessor, samples: Sequence[Sample]) -> None:
        self._processor = processor
        self._samples = samples

    def rows(self, rng: np.random.Generator, size: int, accuracy: float) -> list[Row]:
        samples = [self._samples[i] for i in rng.integers(len(self._samples), size=size)]
        return [
            self._row(_overlooked(s) if rng.random() < OVERLOOKED.get(s.task, 0) else s, rng)
            for s in samples
        ]

    def _row(self, sample: Sample, rng: np.random.Generator) -> Row:
        style = str(rng.choice(["think", "no_think", "think_after"], p=[0.8, 0.1, 0.1]))
        prompt = fill(str(rng.choice(PROMPTS[style])), sample)
        (turn,) = conversation(prompt)
        parts = [{"type": "image"}, {"type": "text", "text": turn["content"]}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": parts}],  # pyright: ignore[reportArgumentType]
            add_generation_prompt=True,
        )
        prompt_text = text.replace("<|image_pad|>", _image_tokens(self._processor))
        reply = format_reply(sample.explanation, sample.answer, style) + "<|im_end|>"
        tokenizer = self._processor.tokenizer
        prompt_ids, reply_ids = tokenizer(prompt_text)["input_ids"], tokenizer(reply)["input_ids"]
        letter = tokenizer.convert_tokens_to_ids(sample.answer)
        weights = [DECISIVE if token == letter else 1.0 for token in reply_ids]
        if reply.startswith("<think>"):
            weights[len(tokenizer("<think>")["input_ids"])] = DECISIVE
        return prompt_ids + reply_ids, [0.0] * len(prompt_ids) + weights, sample


def _overlooked(sample: Sample) -> Sample:
    """The sample with its facet's usual value as the answer, right or not."""
    facet: Facet = getattr(phantom.atlas(sample.modality), sample.task)
    letter = letter_at(sample.options.index(facet.options[0]))
    explanation = facet.explanation.format(answer=f"{facet.options[0]} ({letter})")
    return replace(sample, answer=letter, explanation=explanation)


def fact(sample: Sample) -> str:
    """A phantom's explanation without the letter."""
    return (sample.explanation or "").replace(f" ({sample.answer})", "")


def _side(processor: Qwen2VLProcessor) -> int:
    """Image tokens along one side of the square phantoms."""
    return int(processor.image_processor.size["longest_edge"] ** 0.5) // 28


def _image_tokens(processor: Qwen2VLProcessor) -> str:
    return "<|image_pad|>" * _side(processor) ** 2


def _pixels(processor: Qwen2VLProcessor, samples: Sequence[Sample]) -> dict[Path, torch.Tensor]:
    """The patches of every image, processed once: path -> (patches, values)."""
    pixels: dict[Path, torch.Tensor] = {}
    images = list(dict.fromkeys(sample.image for sample in samples))
    for start in range(0, len(images), 64):
        paths = images[start : start + 64]
        inputs = processor.image_processor([open_rgb(path) for path in paths], return_tensors="pt")
        patches = inputs["pixel_values"].to(torch.bfloat16)  # (images * patches, values)
        pixels |= zip(paths, patches.chunk(len(paths)), strict=True)
    return pixels


def _inputs(
    rows: Sequence[Row], processor: Qwen2VLProcessor, pixels: dict[Path, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Right-padded model inputs, and the weight of every token, (rows, tokens)."""
    length = max(len(ids) for ids, _, _ in rows)
    ids = torch.full((len(rows), length), processor.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    weights = torch.zeros(ids.shape)
    for i, (row_ids, row_weights, _) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids)
        weights[i, : len(row_ids)] = torch.tensor(row_weights)
        mask[i, : len(row_ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    shown = [sample.image for _, _, sample in rows if sample]
    if shown:
        side = 2 * _side(processor)
        inputs |= {
            "mm_token_type_ids": (ids == processor.image_token_id).long(),
            "pixel_values": torch.cat([pixels[path] for path in shown]).float(),
            "image_grid_thw": torch.tensor([[1, side, side]] * len(shown)),
        }
    return inputs, weights
