"""What both users of vLLM ask of it: rollouts (`training.vllm_rollout`), and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from transformers.processing_utils import ProcessorMixin

_WORDS = 300
"""Characters of vLLM's error that are shown: it lists all architectures."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `max_lora_rank`."""


def adapter_problem(config: PeftConfig, layers: Iterable[str]) -> str:
    """Why vLLM would apply an adapter on these layers in part or otherwise; empty where it applies
    it as it is."""
    adapter: Any = config
    problems = {
        "is DoRA": adapter.use_dora,
        "has a bias": adapter.bias != "none",
        "has ranks of its own for some layers": adapter.rank_pattern or adapter.alpha_pattern,
        "holds whole layers": adapter.modules_to_save,
        f"has a rank above {_RANKS[-1]}": adapter.r > _RANKS[-1],
        "is on the vision tower, too": any("visual." in name for name in layers),
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def image_settings(processor: ProcessorMixin) -> dict[str, Any]:
    """Arguments of `LLM`: images within the pixel limits of the run's processor, where vLLM would
    take those of the checkpoint; no videos."""
    any_processor: Any = processor
    size = any_processor.image_processor.size
    limits = {name: size[name] for name in ("shortest_edge", "longest_edge")}
    return {"mm_processor_kwargs": {"size": limits}, "limit_mm_per_prompt": {"video": 0}}


@contextmanager
def loading(path: str, asked: str, other: str) -> Iterator[None]:
    """Name the model that vLLM could not load in the block.

    `asked` is the setting that has vLLM load it, `other` the one that does without.

    Raises:
        ValueError: with vLLM's own words.
    """
    try:
        yield
    except (
        *(AssertionError, AttributeError, LookupError, NotImplementedError),
        *(OSError, RuntimeError, TypeError, ValueError),
    ) as error:
        words = " ".join(str(error).split())
        words = words if len(words) <= _WORDS else f"{words[:_WORDS]}..."
        raise ValueError(
            f"{asked}: vLLM cannot load model.path={path} ({type(error).__name__}: {words}); "
            f"choose {other}"
        ) from error


def adapter_settings(rank: int) -> dict[str, Any]:
    """Arguments of `LLM` for one adapter at a time, without an `adapter_problem`."""
    return {
        "enable_lora": True,
        "max_lora_rank": next(limit for limit in _RANKS if limit >= rank),
        "max_loras": 1,
    }
