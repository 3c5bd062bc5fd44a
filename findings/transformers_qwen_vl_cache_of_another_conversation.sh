#!/usr/bin/env bash
# transformers 5.23.0: two conversations on one Qwen-VL model, each with a KV cache of its own, change each other's answers.
#
# The images of a prompt shift the positions of all text that comes after them. This shift (`rope_deltas`) is kept in the model, not in
# the cache, and a turn that goes on from a cache takes the shift of whatever prompt the model saw last. A text question in between
# sets it to 0: the second turn about an image starts at the wrong position, here 56 places too far (an image of 8 x 8 tokens takes 8
# places, not 64). No warning.
#
# Expected: the second turn about an image gives the same greedy tokens with its cache as without one, whatever runs in between.
# Seen: the same while the conversation is alone; others once another prompt was answered, with its own cache, between its two turns.
# Without a cache nothing changes. Qwen2-VL, Qwen2.5-VL and Qwen3-VL alike.
#
# Why it matters: a server or an evaluation that keeps one cache a dialogue (a chain of questions about one study) and takes turns
# gets other answers than one that runs them one by one.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0
#   Qwen2-VL   no cache [31, 53, 15, 56, 9, 45]  own cache [31, 53, 15, 56, 9, 45]  other conversation between [51, 47, 1, 55, 45, 23]
#   Qwen2.5-VL no cache [22, 17, 47, 52, 36, 0]  own cache [22, 17, 47, 52, 36, 0]  other conversation between [17, 2, 22, 63, 59, 9]
#   Qwen3-VL   no cache [28, 39, 20, 47, 23, 52]  own cache [28, 39, 20, 47, 23, 52]  other conversation between [10, 45, 33, 7, 19, 10]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
import transformers
from transformers import (
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

print("transformers", transformers.__version__)
TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.3}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
TOKENS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
VISION = {"depth": 1, "num_heads": 2, "patch_size": 14}
QWEN2 = VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
QWEN2_5 = VISION | {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
QWEN3 = VISION | {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 256}
QWEN3 |= {"deepstack_visual_indexes": [0]}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}

draw = torch.Generator().manual_seed(0)


def words(count):
    return torch.randint(3, 60, (1, count), generator=draw)


ids = torch.cat([words(2), torch.tensor([[62] + [60] * 64 + [63]]), words(4)], 1)
image = {"pixel_values": torch.randn(256, 1176, generator=draw), "image_grid_thw": torch.tensor([[1, 16, 16]])}
question, other = words(8), words(12)


def second_answer(model, cached, between):
    cache = DynamicCache()
    turn = model.generate(ids, **image, mm_token_type_ids=(ids == 60).int(), past_key_values=cache, **GREEDY)
    if between:
        model.generate(other, past_key_values=DynamicCache(), **GREEDY)
    turn = torch.cat([turn, question], 1)
    more = {"past_key_values": cache} if cached else image | {"mm_token_type_ids": (turn == 60).int()}
    return model.generate(turn, **more, **GREEDY)[0, turn.shape[1] :].tolist()


for name, model_class, config_class, vision in (
    ("Qwen2-VL", Qwen2VLForConditionalGeneration, Qwen2VLConfig, QWEN2),
    ("Qwen2.5-VL", Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, QWEN2_5),
    ("Qwen3-VL", Qwen3VLForConditionalGeneration, Qwen3VLConfig, QWEN3),
):
    torch.manual_seed(0)
    config = config_class(text_config=TEXT, vision_config=vision, tie_word_embeddings=False, **TOKENS)
    model = model_class(config).eval()
    plain, plain_between = (second_answer(model, cached=False, between=between) for between in (False, True))
    shift = int(model.model.rope_deltas)
    alone, crossed = (second_answer(model, cached=True, between=between) for between in (False, True))
    print(f"{name:<10} no cache {plain}  own cache {alone}  other conversation between {crossed}")
    assert plain == plain_between == alone
    assert shift == 8 - 64
    assert crossed != alone, "changed: the other conversation leaves this one alone"
PY
