"""A packed sequence gives the log-probabilities and gradients of one sequence a completion."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from medreason.config import Hardware, Model
from medreason.generation import packed_attention
from medreason.generation.packing import PackedSequences, pack, unpack
from medreason.models.load import load_model, load_processor

LIMIT = 9
TINY = Model(name="tiny", path="tiny")
TURN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
QUESTIONS = ("Which? A)x, B)y", "What does the image show? A)cyst, B)mass, C)nothing", "Where?")
SIZES = ((112, 112), (84, 140), (56, 112))


def model(implementation: str = "sdpa") -> PreTrainedModel:
    attention = "sdpa" if implementation == "blocks" else implementation
    tiny = load_model(TINY, Hardware("cpu", "cpu", 1, "1", 1, "float32", attention=attention))
    if implementation == "blocks":
        packed_attention.enable(tiny)
    return tiny


def prompts(order: list[int]) -> dict[str, Tensor]:
    """Questions of mixed length about images of mixed size, padded on the left."""
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (h, w, 3), generator=draw).byte().numpy() for w, h in SIZES]
    return load_processor(TINY)(
        text=[TURN.format(QUESTIONS[i]) + "<|im_start|>assistant\n" for i in order],
        images=[Image.fromarray(noise[i]) for i in order],
        padding=True,
        return_tensors="pt",
    )


def completions(lengths: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask) of (questions, completions, LIMIT); ids depend on question and place alone."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(20, 400, (len(lengths), len(lengths[0]), LIMIT), generator=draw)
    return ids, torch.arange(LIMIT) < torch.tensor(lengths)[..., None]


def unshared_logps(
    model: PreTrainedModel, inputs: dict[str, Tensor], ids: Tensor, mask: Tensor
) -> Tensor:
    """Log-probabilities of each completion behind its own copy of prompt and image."""
    all_logps = torch.zeros(ids.shape)
    patches = inputs["image_grid_thw"].prod(-1).tolist()
    images = inputs["pixel_values"].split(patches)
    for q, completion in ((q, g) for q in range(len(ids)) for g in range(ids.shape[1])):
        length = int(mask[q, completion].sum())
        if not length:
            continue
        prompt = inputs["input_ids"][q][inputs["attention_mask"][q].bool()]
        types = inputs["mm_token_type_ids"][q][inputs["attention_mask"][q].bool()]
        chosen = ids[q, completion, :length]
        logits = model(
            input_ids=torch.cat([prompt, chosen])[None],
            mm_token_type_ids=torch.cat([types, torch.zeros_like(chosen)])[None],
            pixel_values=images[q],
            image_grid_thw=inputs["image_grid_thw"][q : q + 1],
        ).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        all_logps = all_logps.index_put(
            (torch.tensor(q), torch.tensor(completion), torch.arange(length)), logps
        )
    return all_logps


def packed(
    inputs: dict[str, Tensor], model: PreTrainedModel, ids: Tensor, mask: Tensor
) -> PackedSequences:
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return pack(inputs["input_ids"], inputs["attention_mask"], positions, ids, mask)


def packed_logps(
    model: PreTrainedModel, inputs: dict[str, Tensor], ids: Tensor, mask: Tensor
) -> Tensor:
    """The same from packed sequences, with prompt and image once a question."""
    group = packed(inputs, model, ids, mask)
    attention = packed_attention.attention_inputs(
        model, group, torch.float32, by_blocks=packed_attention.enabled(model)
    )
    logits = model(
        input_ids=group.input_ids,
        position_ids=group.position_ids,
        **attention,
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
    ).logits
    labels = group.labels.clamp(min=0)[..., None]
    return unpack(logits.log_softmax(-1).gather(-1, labels)[..., 0], group)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "blocks"])
@pytest.mark.parametrize(
    "lengths",
    [
        [[1, 1], [1, 1], [1, 1]],
        [[LIMIT, LIMIT], [LIMIT, LIMIT], [LIMIT, LIMIT]],
        [[1, LIMIT, 4], [LIMIT, 2, 7], [3, 1, 1]],
        [[0, 3, 1], [0, 0, 0], [LIMIT, 0, 2]],
    ],
    ids=["of one token", "at the limit", "mixed", "some left out"],
)
def test_log_probabilities_and_gradients_are_those_of_one_sequence_a_completion(
    lengths: list[list[int]], implementation: str
) -> None:
    tiny, inputs, (ids, mask) = model(implementation), prompts([0, 1, 2]), completions(lengths)
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2))
    all_logps, gradients = [], []
    for path in (unshared_logps, packed_logps):
        tiny.zero_grad()
        logps = path(tiny, inputs, ids, mask)
        (logps * weights).sum().backward()
        all_logps.append(logps.detach())
        gradients.append([p.grad.clone() for p in tiny.parameters()])
    torch.testing.assert_close(all_logps[1], all_logps[0], atol=1e-4, rtol=1e-4)
    norm = torch.stack([g.norm() for g in gradients[0]]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(*gradients, strict=True)]).norm()
    assert norm > 0
    assert difference / norm < 1e-4


MIXED = [[1, LIMIT, 4], [LIMIT, 2, 7], [3, 1, 0]]


def test_order_of_questions_changes_no_log_probability() -> None:
    tiny, order = model("blocks"), [2, 0, 1]
    ids, mask = completions(MIXED)
    with torch.no_grad():
        in_order = packed_logps(tiny, prompts([0, 1, 2]), ids, mask)
        reordered = packed_logps(tiny, prompts(order), ids[order], mask[order])
    torch.testing.assert_close(reordered, in_order[order], atol=1e-5, rtol=1e-5)


def test_one_long_completion_goes_under_one_mask() -> None:
    """Block by block each block would be as long as it."""
    tiny, inputs = model("blocks"), prompts([0])
    for lengths, blocks in ([[LIMIT] * 8], True), ([[LIMIT] + [0] * 7], False):
        group = packed(inputs, tiny, *completions(lengths))
        assert group.cheaper_by_blocks == blocks
        attention = packed_attention.attention_inputs(tiny, group, torch.float32)
        assert ("blocks" in attention) == blocks


def test_sequence_is_no_longer_than_prompt_and_completions() -> None:
    inputs, (ids, mask) = prompts([0, 1, 2]), completions([[3, 2], [1, 1], [9, 9]])
    group = packed(inputs, model(), ids, mask)
    used = inputs["attention_mask"].sum(-1) - 1 + mask.sum((1, 2))
    assert group.input_ids.shape == (3, int(used.max()))
    assert (group.labels >= 0).sum() == mask.sum()
    assert torch.equal(unpack(group.labels.float(), group).long(), ids * mask)
