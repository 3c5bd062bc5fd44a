"""Whether a run can share its prompts: what its settings say, and one question beside TRL."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.data_utils import prepare_multimodal_messages

from medreason.generation.sampling import unsupported_settings
from medreason.models.load import without_adapter
from medreason.training.group_batches import OncePerQuestionProcessor, questions_from_rows


def sharing_obstacles(trainer: Any) -> list[str]:  # noqa: ANN401
    """Why this run cannot share, as far as settings tell."""
    model, rows = without_adapter(trainer.model), trainer.args.per_device_train_batch_size
    layers = getattr(model.config.get_text_config(), "layer_types", None) or []
    attention = model.config._attn_implementation
    other_engine = trainer.use_vllm or trainer.use_transformers_continuous_batching
    more = {} if other_engine else unsupported_settings(trainer.generation_config)
    mrope = hasattr(getattr(model, "model", None), "get_rope_index")
    takes = inspect.signature(type(model).forward).parameters
    obstacles = {
        f"{rows} rows a device cut groups of {trainer.num_generations}": rows
        % trainer.num_generations,
        f"{type(model).__name__} takes no mRoPE positions": not mrope
        or "position_ids" not in takes,
        f"attention={attention!r} takes no mask": attention not in ("sdpa", "eager"),
        "sliding-window attention": any(kind != "full_attention" for kind in layers),
        "vLLM or continuous batching": other_engine,
        "tools or a rollout function": trainer.tools or trainer.rollout_func is not None,
        "pad_to_multiple_of": trainer.pad_to_multiple_of is not None,
        "a mixture of experts": trainer.aux_loss_enabled,
        f"generation with {more}": more,
    }
    return [reason for reason, applies in obstacles.items() if applies]


def difference(trainer: Any, row: dict[str, Any]) -> float:  # noqa: ANN401
    """Mean difference of shared and TRL's log-probabilities, of three completions of a question,
    the larger of block by block and under one mask.

    The completions repeat the prompt's end. A kernel that ignores the mask would let the second
    read the first, and one that ignores the positions would see it further away. NaN where another
    mask changes nothing: in half precision rounding could hide that in the difference.
    """
    prompt = prepare_multimodal_messages(row["prompt"], images=[row["image"]])
    once = OncePerQuestionProcessor(trainer.processing_class, 3)
    once.apply_chat_template(
        [prompt] * 3, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    inputs = {k: v.to(trainer.accelerator.device) for k, v in once.inputs().items()}
    ends = inputs["input_ids"][:, -4:].expand(3, -1)
    kept = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], device=ends.device)
    ids = torch.cat([inputs["input_ids"].expand(3, -1), ends], dim=1)
    mask = torch.cat([torch.ones_like(ids[:, :-4]), kept], dim=1)
    types = nn.functional.pad(inputs["mm_token_type_ids"].expand(3, -1), (0, 4))
    images = {"mm_token_type_ids": types, "num_images": [1] * 3}
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    trainer.model.eval()
    with torch.no_grad():
        theirs, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer,
            trainer.model,
            *(ids, mask, 4),
            pixel_values=pixels.repeat(3, 1),
            image_grid_thw=grid.repeat(3, 1),
            **images,
        )
        one = questions_from_rows(
            ids, mask, 4, 3, pixel_values=pixels, image_grid_thw=grid, **images
        )
        found = []
        for by_blocks in (True, False):
            ours, blind = (
                trainer.shared_logps(trainer.model, one, [0], by_blocks=by_blocks, blind=blind)[0]
                for blind in (False, True)
            )
            apart = (ours.flatten(0, 1) - theirs)[kept.bool()].abs().float().mean().item()
            found.append(torch.nan if torch.equal(ours, blind) else apart)
    trainer.model.train()
    return torch.nan if any(map(math.isnan, found)) else max(found)
