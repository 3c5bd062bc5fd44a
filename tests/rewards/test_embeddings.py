"""Likeness by meaning: with a drawn encoder how it counts, with a real one what it finds alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoders import encoder_of_package
from run_folders import reply
from transformers import BertConfig, BertModel, BertTokenizer

from medreason.config import Config
from medreason.evaluation.metrics import compute_metrics
from medreason.evaluation.predictions import predict
from medreason.generation.rows import Completion
from medreason.replies import parse
from medreason.rewards.embeddings import bertscore, check, reasoning_embedding
from medreason.runs import keys
from medreason.samples import Sample

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "right", "lung", "mass", "dark"]
OPEN = Sample(
    "s", Path("a.png"), "Where?", (), "left lung", "A mass in the left lung.", "ct", "anatomy",
    "test", None, "test",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random encoder of 16 numbers a token."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    size = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(size).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    return str(folder)


def test_the_same_text_is_alike_and_none_is_not(encoder: str) -> None:
    same = parse(reply("left lung", "A mass in the left lung."))
    assert reasoning_embedding(same, OPEN, encoder=encoder) == pytest.approx(1)
    assert bertscore(same, OPEN, encoder=encoder) == pytest.approx(1)
    assert bertscore(parse(reply("lung")), OPEN, encoder=encoder) < 1
    nothing = parse("I cannot tell.\nReally.")
    assert reasoning_embedding(nothing, OPEN, encoder=encoder) == 0
    assert bertscore(nothing, OPEN, encoder=encoder) == 0
    closed = replace(OPEN, options=("right lung", "left lung"), answer="B")
    assert bertscore(parse("<answer>B</answer>", closed.options), closed, encoder=encoder) == (
        pytest.approx(1)
    )


def test_encoder_that_is_not_there_and_missing_explanations_are_named(
    encoder: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"encoder='/gone'.* not a hub id"):
        check("/gone")
    with pytest.raises(ValueError, match=r"encoder=.* no folder with a config\.json"):
        check(str(tmp_path))
    with pytest.raises(ValueError, match=r"encoder='no/where' cannot be loaded; give a folder"):
        bertscore(parse("<answer>lung</answer>"), OPEN, encoder="no/where")
    unexplained = replace(OPEN, explanation=None)
    with pytest.raises(ValueError, match="no explanation"):
        reasoning_embedding(parse(reply("lung")), unexplained, encoder=encoder)


def test_evaluation_counts_both_where_an_encoder_is_named_and_the_key_says_which(
    encoder: str, composed: Callable[..., Config]
) -> None:
    completion = Completion("?", reply("left lung", "A mass in the left lung."), 1, 1, "stop")
    rows = [predict(OPEN, "original", completion, encoder=encoder)]
    metrics = compute_metrics(rows, {}, [])["overall"]
    assert metrics["reasoning_embedding"] == pytest.approx(1)
    assert metrics["open_bertscore"] == pytest.approx(1)
    assert (
        "open_bertscore"
        not in compute_metrics([predict(OPEN, "original", completion)], {}, [])["overall"]
    )
    plain, with_one = composed(), composed(f"evaluation.encoder={encoder}")
    parts = [keys.evaluation_parts(c, "train", "data")["evaluation"] for c in (plain, with_one)]
    assert [part["encoder"] for part in parts] == [None, encoder]


def test_a_real_encoder_finds_paraphrases_alike() -> None:
    real = encoder_of_package()
    explained = replace(OPEN, explanation="There is fluid around the left lung.")
    thoughts = ("A pleural effusion is seen on the left.", "The liver is bright and smooth.")
    near, far = (
        reasoning_embedding(parse(reply("x", thought)), explained, encoder=real)
        for thought in thoughts
    )
    assert near > far + 0.2
    answer = replace(OPEN, answer="pleural effusion")
    near, far = (
        bertscore(parse(reply(text)), answer, encoder=real)
        for text in ("effusion of the pleura", "a broken rib")
    )
    assert near > far + 0.1


def test_the_mean_is_that_of_sentence_transformers() -> None:
    real = encoder_of_package()
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(real, device="cpu")
    texts = ["A mass in the left lung.", "The left lung is dark."]
    a, b = theirs.encode(texts, convert_to_tensor=True)
    explained = replace(OPEN, explanation=texts[0])
    ours = reasoning_embedding(parse(reply("x", texts[1])), explained, encoder=real)
    assert ours == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-4)
