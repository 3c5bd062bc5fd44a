"""A model of random weights that decodes in milliseconds, and settings to sample from it by."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from medreason.generation.draft_step import takes_drafts
from medreason.models import model_folder

VOCABULARY = 48
ENDS = [5, 6]


@functools.cache
def tiniest() -> PreTrainedModel:
    """Random weights whose next tokens are neither certain nor equally likely."""
    config = AutoConfig.from_pretrained(model_folder.resolve("tiny"))
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 32, 32, 2
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = 4, 2, VOCABULARY
    text.layer_types = text.layer_types[:2]
    text.rope_parameters["mrope_section"] = [1, 1, 2]
    text.bos_token_id = text.eos_token_id = text.pad_token_id = config.pad_token_id = None
    config.vision_config.hidden_size = text.hidden_size
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.25)
    assert takes_drafts(model)
    return model


def corrupted(row: Sequence[int], rate: float, rng: random.Random) -> list[int]:
    """With wrong tokens at this rate, and going on behind the end."""
    tokens = [rng.randrange(VOCABULARY) if rng.random() < rate else token for token in row]
    return [*tokens, *(rng.randrange(VOCABULARY) for _ in range(3))]


SAMPLING = st.one_of(
    st.just({"do_sample": False}),
    st.fixed_dictionaries(
        {
            "do_sample": st.just(True),
            "temperature": st.sampled_from([0.5, 1.0, 2.0]),
            "top_k": st.sampled_from([0, 1, 5]),
            "top_p": st.sampled_from([1.0, 0.7]),
            "min_p": st.sampled_from([None, 0.1]),
        }
    ),
)
