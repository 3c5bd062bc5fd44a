"""Whether a run can share prompts: by its settings, and by comparing one question with TRL.

The settings say what is known to fail. The comparison finds what no list can: a model whose
attention ignores the packed mask or positions trains on wrong log-probabilities without an error.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.processing_utils import ProcessorMixin
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.data_utils import prepare_multimodal_messages

from medreason.generation.sampling import unsupported_settings
from medreason.models.load import without_adapter
from medreason.training.group_batches import OncePerQuestionProcessor, QuestionBatch

SharedLogps = Callable[..., tuple[Tensor, Tensor]]
"""`GroupedGRPOTrainer.shared_logps`."""


def sharing_obstacles(trainer: GRPOTrainer) -> list[str]:
    """Why the settings of this run rule out sharing; empty if none does."""
    model: Any = without_adapter(trainer.model)
    rows, size = trainer.args.per_device_train_batch_size, trainer.num_generations
    assert size
    layers = getattr(model.config.get_text_config(), "layer_types", None) or []
    attention = model.config._attn_implementation
    batching = trainer.use_transformers_continuous_batching
    other_engine = trainer.use_vllm or batching  # whose settings are its own
    settings = {} if other_engine else unsupported_settings(trainer.generation_config)
    mrope = hasattr(getattr(model, "model", None), "get_rope_index")
    parameters = inspect.signature(type(model).forward).parameters
    obstacles = {
        # A micro-batch must hold whole groups, or some completions come without their prompt.
        f"{rows} rows a device cut groups of {size}": rows % size,
        # Positions restart behind the prompt in each completion block, so they are passed in.
        f"{type(model).__name__} takes no mRoPE positions": not mrope
        or "position_ids" not in parameters,
        f"attention={attention!r} takes no mask": attention not in ("sdpa", "eager"),
        # A window counts tokens of the packed sequence, where completion 8 is far from the prompt.
        "sliding-window attention": any(kind != "full_attention" for kind in layers),
        "continuous batching": batching,
        "tools or a rollout function": trainer.tools or trainer.rollout_func is not None,
        "pad_to_multiple_of": trainer.pad_to_multiple_of is not None,
        # Its balancing loss is a mean over tokens, of which packing leaves fewer.
        "a mixture of experts": trainer.aux_loss_enabled,
        f"generation with {settings}": settings,
    }
    return [reason for reason, applies in obstacles.items() if applies]


def mean_differences(
    trainer: GRPOTrainer, shared_logps: SharedLogps, row: dict[str, Any]
) -> tuple[float, float]:
    """Mean absolute differences of log-probabilities for one row's question: (shared from TRL's,
    TRL's from its own in a batch of another shape).

    The first is the larger one of attention block by block and under one mask. NaN if hiding
    nothing gives the same log-probabilities as the mask: in half precision, rounding could hide
    that in the mean.
    """
    prompt = prepare_multimodal_messages(row["prompt"], images=[row["image"]])
    processor, model = trainer.processing_class, trainer.model
    assert isinstance(processor, ProcessorMixin)
    assert model is not None
    once = OncePerQuestionProcessor(processor, 3)
    once.apply_chat_template(
        [prompt] * 3, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    inputs = {name: value.to(trainer.accelerator.device) for name, value in once.inputs().items()}
    ids, mask = _repeated_ends(inputs["input_ids"])
    types = nn.functional.pad(inputs["mm_token_type_ids"].expand(3, -1), (0, 4))
    images = {"mm_token_type_ids": types, "num_images": [1] * 3}
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]

    def unshared(rows: int, padding: int = 0) -> Tensor:
        batch = (nn.functional.pad(tensor[:rows], (padding, 0)) for tensor in (ids, mask, types))
        input_ids, attention_mask, token_types = batch
        # Called on the class: the grouped trainer overrides this very method.
        logps, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer,
            model,
            *(input_ids, attention_mask, 4),
            pixel_values=pixels.repeat(rows, 1),
            image_grid_thw=grid.repeat(rows, 1),
            mm_token_type_ids=token_types,
            num_images=[1] * rows,
        )
        return logps

    model.eval()  # dropout would differ between any two passes
    with torch.no_grad():
        expected = unshared(3)
        # Padded, since attention rounds otherwise under a mask. A model that ignores it would read
        # the padding, but is found below all the same.
        rounding = (unshared(1, padding=8) - expected[:1]).abs().float().mean().item()
        questions = QuestionBatch.from_rows(
            ids, mask, 4, 3, pixel_values=pixels, image_grid_thw=grid, **images
        )
        differences = []
        for by_blocks in (True, False):
            masked, unmasked = (
                shared_logps(model, questions, [0], by_blocks=by_blocks, unmasked=unmasked)[0]
                for unmasked in (False, True)
            )
            apart = (masked.flatten(0, 1) - expected)[mask[:, -4:].bool()].abs().float().mean()
            differences.append(torch.nan if torch.equal(masked, unmasked) else apart.item())
    model.train()
    largest = torch.nan if any(map(math.isnan, differences)) else max(differences)
    return largest, rounding


def _repeated_ends(prompt_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(ids, mask) of the prompt (1, tokens) with three completions that repeat its last 4 tokens.

    Both are (3, tokens + 4); the first completion is complete, the others are shorter.
    """
    # If the mask is ignored, the second completion reads the first and finds its own tokens in it;
    # if the positions are ignored, it reads the prompt as further away. Both move the
    # log-probabilities far more than rounding does.
    ids = torch.cat([prompt_ids, prompt_ids[:, -4:]], dim=1).expand(3, -1)
    mask = torch.ones_like(ids)
    mask[:, -4:] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], device=ids.device)
    return ids, mask
