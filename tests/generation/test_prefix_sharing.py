"""Rows that share their images get the answers of unshared rows."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medreason import phantom
from medreason.config import Hardware, Model
from medreason.evaluation import answers
from medreason.evaluation.answers import answer_rows, answer_rows_unshared
from medreason.evaluation.controls import samples_under
from medreason.evaluation.option_likelihood import (
    option_likelihoods,
    option_likelihoods_unshared,
)
from medreason.generation import prefix_sharing, prepared_inputs
from medreason.generation.drafts import DraftHistory
from medreason.generation.prefix_sharing import PrefilledPrefixes
from medreason.generation.prepared_inputs import PreparedInputs
from medreason.generation.rows import Completion, EvaluationRow
from medreason.models.load import load_model, load_processor
from medreason.prompts import fill
from medreason.samples import SOFT_TISSUE, Window

TINY = Model(name="tiny", path="tiny")
PROCESSOR = load_processor(TINY)
THINK = "{question} Think in <think>...</think> tags, then the letter in <answer>...</answer> tags."
CONTROLS = ("original", "blank_image", "shuffled_image", "no_image", "permuted_options")
LIMIT = 24


def model(attention: str = "sdpa", *, patch_products: bool = True) -> PreTrainedModel:
    hardware = Hardware("cpu", "cpu", 1, "1", 1, "float32", attention=attention)
    return load_model(TINY, hardware, patch_products=patch_products)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationRow]:
    """Ten questions about four images of two modalities, with all controls."""
    phantoms = phantom.load(tmp_path_factory.mktemp("cache"), train_images=0, test_images=2, seed=0)
    samples = [sample for sample in phantoms if sample.modality in ("ct", "oct")][::2]
    return [
        EvaluationRow(control, sample, fill(THINK, sample))
        for control in CONTROLS
        for sample in samples_under(control, samples)
    ]


def unshared(tiny: PreTrainedModel, rows: Sequence[EvaluationRow]) -> list[Completion]:
    return answer_rows_unshared(tiny, PROCESSOR, rows, batch_size=8, max_new_tokens=LIMIT)


def shared(
    tiny: PreTrainedModel,
    rows: Sequence[EvaluationRow],
    size: int = 64,
    drafts: DraftHistory | None = None,
) -> list[Completion]:
    return answer_rows(tiny, PROCESSOR, rows, batch_size=size, max_new_tokens=LIMIT, drafts=drafts)


@pytest.mark.parametrize("size", [7, 64])
def test_images_read_ahead_change_no_answer(rows: list[EvaluationRow], size: int) -> None:
    tiny = model()
    answered = answer_rows(
        tiny, PROCESSOR, rows, batch_size=size, max_new_tokens=4, images_ahead=True
    )
    assert answered == answer_rows(tiny, PROCESSOR, rows, batch_size=size, max_new_tokens=4)
    scored = [row for row in rows if row.sample.options]
    ahead, plain = (
        option_likelihoods(tiny, PROCESSOR, scored, batch_size=size, tagged=True, images_ahead=on)
        for on in (True, False)
    )
    assert ahead == plain


def test_prepared_inputs_are_made_once_and_change_no_answer(
    rows: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, prepared = model(), PreparedInputs()

    def answered(prepared: PreparedInputs | None) -> list[Completion]:
        return answer_rows(tiny, PROCESSOR, rows, batch_size=7, max_new_tokens=4, prepared=prepared)

    first = answered(prepared)
    for name in ("open_rgb", "size_of", "prompt_texts"):
        monkeypatch.setattr(prefix_sharing, name, None)  # called again, it would raise
    second = answered(prepared)
    monkeypatch.undo()
    assert first == second == answered(None)


def test_prepared_images_beyond_the_limit_are_processed_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepared_inputs, "_MOST_BYTES", 100)
    prepared, made = PreparedInputs(), []

    def process(sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        made.extend(sizes)
        return [(torch.zeros(size, dtype=torch.uint8), torch.zeros(0)) for size in sizes]

    for sizes in ((60, 50), (60,), (50, 60, 50)):
        assert [len(pixels) for pixels, _ in prepared.images(sizes, process)] == [*sizes]
    assert made == [60, 50, 50]


def test_images_processed_at_once_are_those_processed_alone(tmp_path: Path) -> None:
    noise = [Image.effect_noise((40 + 9 * (i % 3), 56), 9.0 * i) for i in range(7)]
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for picture, path in zip(noise, paths, strict=True):
        picture.save(path)
    prefiller = prefix_sharing.PrefixPrefiller(model(), PROCESSOR)
    prefiller._windows = dict.fromkeys(paths, SOFT_TISSUE)
    keys = [*paths[:4], (30, 60), *paths[4:], (64, 48)]
    together, alone = prefiller._processed(keys), [prefiller._processed([key])[0] for key in keys]
    for image, (pixels, grid) in zip(together, alone, strict=True):
        assert torch.equal(image[0], pixels)
        assert torch.equal(image[1], grid)


def test_an_image_that_is_damaged_is_named_where_its_turn_is(
    rows: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = model()
    monkeypatch.setattr(answers, "_difference_from_unshared", lambda *_: None)
    ordered = [rows[i] for i in prefix_sharing.in_order(rows)]
    damaged, opened = ordered[-1].sample.image, prefix_sharing.open_rgb

    def open_whole(path: Path, window: Window) -> Image.Image:
        if path == damaged:
            raise ValueError(f"{path}: damaged")
        return opened(path, window)

    monkeypatch.setattr(prefix_sharing, "open_rgb", open_whole)
    for ahead in (True, False):
        answered: list[int] = []
        with pytest.raises(ValueError, match="damaged"):
            answer_rows(
                *(tiny, PROCESSOR, rows),
                batch_size=4,
                max_new_tokens=2,
                graphs=True,
                images_ahead=ahead,
                on_answers=answered.extend,
            )
        assert len(answered) > len(rows) / 4  # those before it


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_completions_are_those_of_generate(rows: list[EvaluationRow], attention: str) -> None:
    tiny, subset = model(attention), rows[:: 1 if attention == "sdpa" else 5]
    expected = unshared(model(attention, patch_products=False), subset)
    assert shared(tiny, subset) == expected
    assert shared(tiny, subset[::-1], size=16)[::-1] == expected
    # The second time with the first's replies as drafts.
    drafts = DraftHistory()
    for _ in range(2):
        drafts.take_counts()
        assert shared(tiny, subset[::2], drafts=drafts) == expected[::2]
    if attention == "sdpa":
        assert drafts.counts.metrics()["tokens_per_pass"] > 5
    else:
        assert drafts.counts.passes == 0
    assert len({completion.text for completion in expected}) > 5


def test_each_picture_is_decoded_and_encoded_once(
    rows: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = model()
    decoded: list[Path] = []
    encoded: list[int] = []
    opened, encode = prefix_sharing.open_rgb, tiny.get_image_features

    def features(pixels: Tensor, grids: Tensor, **more: bool) -> BaseModelOutputWithPooling:
        encoded.append(len(grids))
        return encode(pixels, grids, **more)

    def open_counted(path: Path, window: Window) -> Image.Image:
        decoded.append(path)
        return opened(path, window)

    monkeypatch.setattr(prefix_sharing, "open_rgb", open_counted)
    monkeypatch.setattr(tiny, "get_image_features", features)
    monkeypatch.setattr(answers, "_difference_from_unshared", lambda *_: None)
    shared(tiny, rows)
    images = {row.sample.image for row in rows}
    sizes = {opened(image).size for image in images}
    assert sorted(decoded) == sorted(images)
    assert sum(encoded) == len(images) + len(sizes)


def test_option_likelihoods_are_the_unshared_ones(rows: list[EvaluationRow]) -> None:
    tiny = model()
    subset = rows[::3]
    for tagged in (True, False):
        settings = {"batch_size": 7, "tagged": tagged}
        likelihoods = option_likelihoods(tiny, PROCESSOR, subset, **settings)
        for row, of_row in zip(subset, likelihoods, strict=True):
            expected = option_likelihoods_unshared(tiny, PROCESSOR, row, tagged=tagged)
            assert of_row == pytest.approx(expected, abs=1e-4)
            assert sum(of_row) == pytest.approx(1, abs=1e-5)


def test_model_that_cannot_share_is_run_unshared_with_a_warning(
    rows: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny, subset = model(), rows[::6]
    expected = unshared(tiny, subset)
    tiny.config._attn_implementation = "flash_attention_2"
    assert prefix_sharing.sharing_obstacles(tiny) == ["attention='flash_attention_2' takes no mask"]
    tiny.config._attn_implementation = "sdpa"
    monkeypatch.setattr(prefix_sharing, "sharing_obstacles", lambda _: ["a reason"])
    with caplog.at_level(logging.WARNING):
        assert shared(tiny, subset) == expected
        option_likelihoods(tiny, PROCESSOR, subset[:1], batch_size=1, tagged=True)
    assert caplog.text.count("cannot share images: a reason; going on unshared") == 2


def test_model_that_ignores_positions_is_run_unshared_with_a_warning(
    rows: list[EvaluationRow], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny, subset = model(), rows[:2]
    expected = unshared(tiny, subset)
    monkeypatch.setattr(
        PrefilledPrefixes,
        "positions",
        lambda self, mask: torch.zeros(3, *mask.shape, dtype=torch.long),
    )
    with caplog.at_level(logging.WARNING):
        assert shared(tiny, subset) == expected
        unshared_likelihoods = option_likelihoods_unshared(tiny, PROCESSOR, subset[0], tagged=True)
        settings = {"batch_size": 2, "tagged": True}
        assert option_likelihoods(tiny, PROCESSOR, subset, **settings)[0] == unshared_likelihoods
    assert "log-probabilities of one question are" in caplog.text
    assert "option likelihoods of one question are" in caplog.text


@pytest.mark.parametrize("by_rows", [True, False], ids=["rounds by rows", "always another"])
def test_difference_from_unshared_rows_is_judged_by_theirs_in_a_batch_of_another_size(
    rows: list[EvaluationRow], by_rows: bool
) -> None:
    """A GPU's kernels round otherwise in a batch of two; here a hook does, far more."""
    tiny = model()
    noise = torch.randn(tiny.config.get_text_config().vocab_size)

    def round_otherwise(_: nn.Module, __: object, outputs: Any) -> Any:  # noqa: ANN401
        outputs.logits = outputs.logits + noise * (len(outputs.logits) if by_rows else 1)
        return outputs

    tiny.register_forward_hook(round_otherwise)
    reason = answers._difference_from_unshared(tiny, PROCESSOR, rows[0].sample)
    assert (reason is None) == by_rows


@pytest.mark.parametrize("least", [1, 2, 40])
def test_prefixes_are_read_less_than_those_of_neighbours_in_order(least: int) -> None:
    random = Random(least)
    for _ in range(50):
        rows = [
            [*[9] * least, *(random.randrange(2) for _ in range(random.randrange(7))), 8]
            for _ in range(random.randrange(1, 8))
        ]
        prefixes = prefix_sharing.few_prefixes(rows, least)
        assert sorted(place for _, places in prefixes for place in places) == [*range(len(rows))]
        for length, places in prefixes:
            assert least <= length < min(len(rows[place]) for place in places)
            assert len({tuple(rows[place][:length]) for place in places}) == 1
        read = sum(length * (1 - len(places)) for length, places in prefixes)
        assert read <= min(map(_read, _runs(sorted(rows))))


def _runs(rows: list[list[int]]) -> Iterator[list[list[list[int]]]]:
    """Every partition into rows that stand beside each other."""
    for cuts in itertools.product([True, False], repeat=len(rows) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        yield [rows[a:b] for a, b in itertools.pairwise([0, *ends, len(rows)])]


def _read(partition: list[list[list[int]]]) -> int:
    """Tokens, less those of all rows."""
    return sum(len(prefix_sharing.common_prefix(rows)) * (1 - len(rows)) for rows in partition)


def test_rows_that_share_little_have_one_prefix() -> None:
    rows = [[9, 1, 0, 0, 0], [9, 1, 1, 0], [9, 0, 0], [9, 1, 0, 0, 1]]
    assert prefix_sharing.few_prefixes(rows, 1) == [(4, [0, 3]), (1, [1, 2])]
    assert prefix_sharing.few_prefixes([[9] * 40 + row for row in rows], 41) == [(41, [2, 0, 3, 1])]


def test_questions_about_a_grey_image_share_what_they_begin_with(
    rows: list[EvaluationRow],
) -> None:
    tiny, sample = model(), rows[0].sample
    texts = [" ".join(["Which of these does the image show?"] * count) for count in (9, 30)]
    asked = [
        EvaluationRow("blank_image", sample, f"{text} {word}")
        for text in texts
        for word in ("Liver", "A kidney", "Neither of both")
    ]
    asked = [asked[i] for i in prefix_sharing.in_order(asked[::2] + asked[1::2])]
    prefiller = prefix_sharing.PrefixPrefiller(tiny, PROCESSOR)
    prefixes = prefiller.prefill_prefixes(asked)
    assert prefixes.entries.bincount().tolist() == [3, 3]
    lengths = prefixes.mask.sum(1)[prefixes.entries].tolist()
    rests = [len(ids) for ids in prefixes.rest_ids]
    assert [a + b for a, b in zip(lengths, rests, strict=True)] == prefixes.prompt_tokens
    assert max(rests) < 30 < min(lengths)
    assert shared(tiny, asked) == unshared(tiny, asked)
    # Of rows with short prefixes alone, nothing of the longer ones' padding is kept.
    short = [i for i, length in enumerate(lengths) if length == min(lengths)]
    assert len(short) == 3
    assert prefiller.prefill_rest(prefixes.of_rows(short), 0).mask.shape[1] == max(
        prefixes.prompt_tokens[i] for i in short
    )
