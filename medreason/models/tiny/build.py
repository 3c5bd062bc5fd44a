"""The embedded model: the real Qwen2-VL architecture and processor with about 1.5 million weights.

`python -m medreason.models.tiny.build OUTPUT` rebuilds it from nothing but the phantoms' drawing
code. It learns to follow the think, no-think and think-after prompts on phantoms of its own
(no data set uses their seed) and stops early, so that every method has something left to improve.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from medreason import phantom
from medreason.models import model_folder
from medreason.models.tiny.lessons import LESSONS, PROMPTS, Lesson, teach
from medreason.prompts import fill
from medreason.replies import format_reply
from medreason.samples import Sample

PIXELS = 112 * 112 + 56
"""Of an image at most. Without the margin, rounding makes 84 x 84 of some sizes, not 112 x 112."""

IMAGES = 768
"""Phantoms of each modality that it learns from."""

VOCABULARY = 2048
INITIAL_DEVIATION = 0.06
"""Standard deviation of random weights. At the usual 0.02 attention in so narrow a network stays
uniform for long."""

SEED = 20_251_120
"""Of the phantoms it learns from and of its random weights."""

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The turns of Qwen2-VL-Instruct, with its default system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build(output: Path, *, images: int, lessons: Sequence[Lesson]) -> None:
    """Train from random weights and save a folder that `from_pretrained` loads.

    `images` is per modality. Equal arguments give equal weights on the same kind of CPU with the
    same number of threads.
    """
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)  # else several times slower; see runs/worker.py
    samples = phantom.load(Path("outputs/cache"), train_images=images, test_images=0, seed=SEED)
    processor = _processor(samples)
    model = _model(processor.tokenizer)
    teach(model, processor, samples, lessons)
    model.to(torch.bfloat16).save_pretrained(output)  # pyright: ignore[reportArgumentType]
    processor.save_pretrained(output)


def _processor(samples: Sequence[Sample]) -> Qwen2VLProcessor:
    vocabulary, merges = _byte_pairs(samples)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,  # pyright: ignore[reportArgumentType]  a list of pairs is what it takes
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        extra_special_tokens=[*SPECIAL],
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": PIXELS}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def _byte_pairs(samples: Sequence[Sample]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the tokenizer.

    A word of an option is the same token behind a space (` lung`) and behind a bracket (`)lung`),
    and so is a letter. To go from reasoning to option to letter is then to copy equal tokens, which
    a small network learns. All other words take the space before them into their token.
    """
    texts = list(_corpus(samples))
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 512,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    trained = json.loads(words.to_str())["model"]
    vocabulary: dict[str, int] = trained["vocab"]
    merges = [tuple(pair) for pair in trained["merges"]]
    option_words = {
        word for s in samples for option in s.options for word in re.findall(r"\w+", option)
    }
    counts = Counter(pair for text in texts for pair in re.findall(r"([ <(])([A-Za-z]{2,})", text))
    for (before, word), count in counts.most_common():
        first = before.replace(" ", "\u0120")  # a space in the alphabet of byte-level BPE
        if count >= 20 and word in vocabulary and word not in option_words:
            vocabulary.setdefault(first + word, len(vocabulary))
            merges.append((first, word))
    assert len(vocabulary) + len(SPECIAL) <= VOCABULARY
    return vocabulary, merges


def _corpus(samples: Sequence[Sample]) -> Iterator[str]:
    """Prompts and replies, as the model reads and writes them."""
    prompts = [template for templates in PROMPTS.values() for template in templates]
    for sample, template in zip(samples, itertools.cycle(prompts), strict=False):
        yield fill(template, sample)
        yield format_reply(sample.explanation, sample.answer, "think")
    yield "<|im_start|>system You are a helpful assistant. user assistant" * 20


def _model(tokenizer: Qwen2Tokenizer) -> Qwen2VLForConditionalGeneration:
    def token(text: str) -> int:
        return tokenizer.get_vocab()[text]

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "initializer_range": INITIAL_DEVIATION,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            "initializer_range": INITIAL_DEVIATION,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    # As Qwen2-VL-Instruct declares it: both end tokens, sampling by default.
    model.generation_config = GenerationConfig(
        bos_token_id=token("<|endoftext|>"),
        pad_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        do_sample=True,
        temperature=0.01,
        top_k=1,
        top_p=0.001,
        repetition_penalty=1.0,
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=model_folder.EMBEDDED)
    build(parser.parse_args().output, images=IMAGES, lessons=LESSONS)


if __name__ == "__main__":
    main()
