"""Greedy answers by vLLM offline, to the same rows and read in the same way as `answers` does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers.processing_utils import ProcessorMixin

from medreason.config import Config
from medreason.evaluation.answers import OnBatch
from medreason.generation.generate import completion_from_ids, greedy_settings, prompt_texts
from medreason.generation.rows import Completion, EvaluationRow
from medreason.generation.vllm_settings import (
    adapter_problem,
    adapter_settings,
    image_settings,
    loading,
)
from medreason.models import model_folder

_ROWS = 256
"""Of one call, after which they are kept and progress is told."""
_MEMORY_SHARE = 0.9
"""Of the GPU, vLLM's default."""
_BANNED = -100.0
ASKED_AND_OTHER = ("evaluation.engine=vllm", "evaluation.engine=generate")
"""The setting that has vLLM answer, and the one that does without."""


def refuse_model(config: Config, asked: str, other: str) -> None:
    """Let vLLM look at the configuration of the model, before a training that it draws for, or
    whose result it answers for; `asked` and `other`: see `loading`.

    Raises:
        ValueError: vLLM does not take it.
    """
    from vllm import EngineArgs  # an extra # pyright: ignore[reportMissingImports]

    settings, _ = _model(config)
    looked_at = {name: settings[name] for name in ("model", "revision", "dtype")}
    with loading(config.model.path, asked, other):
        EngineArgs(**looked_at).create_model_config()


def answer_rows(
    config: Config,
    processor: ProcessorMixin,
    rows: Sequence[EvaluationRow],
    *,
    on_batch: OnBatch,
    on_answers: Callable[[Mapping[int, Completion]], None],
) -> None:
    """Answer the rows with the model at `model.path`; `on_answers` gets completions by their place
    in `rows`.

    Raises:
        ValueError: vLLM cannot load the model, or does not apply the adapter as it is.
    """
    if not rows:
        return
    from vllm import LLM, SamplingParams  # an extra # pyright: ignore[reportMissingImports]

    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    settings = greedy_settings(tokenizer, config.evaluation.max_new_tokens)
    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=settings.max_new_tokens,
        stop_token_ids=settings.eos_token_id,
        logit_bias=dict.fromkeys(settings.suppress_tokens, _BANNED),
    )
    model_settings, adapter = _model(config)
    gc.collect()  # training, or the model that scored options, was here
    torch.cuda.empty_cache()
    # The end tokens are those above, whatever the checkpoint's generation config says.
    with loading(config.model.path, *ASKED_AND_OTHER):
        llm = LLM(**model_settings, **image_settings(processor), generation_config="vllm")
    for start in range(0, len(rows), _ROWS):
        batch = rows[start : start + _ROWS]
        outputs = llm.generate(
            [_request(processor, row) for row in batch],
            sampling_params=parameters,
            lora_request=adapter,
            use_tqdm=False,
        )
        on_answers(
            {
                start + i: completion_from_ids(
                    row.prompt,
                    len(output.prompt_token_ids),
                    [*output.outputs[0].token_ids],
                    settings,
                    tokenizer,
                )
                for i, (row, output) in enumerate(zip(batch, outputs, strict=True))
            }
        )
        on_batch(start + len(batch))


def _request(processor: ProcessorMixin, row: EvaluationRow) -> dict[str, object]:
    """The prompt as `answers` gives it, with one placeholder for its image."""
    image = row.image_of(row.sample)
    (text,) = prompt_texts(processor, [row.prompt], [image is not None])
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    request: dict[str, object] = {"prompt_token_ids": tokenizer(text)["input_ids"]}
    return request if image is None else request | {"multi_modal_data": {"image": image}}


def _model(config: Config) -> tuple[dict[str, Any], object]:
    """(arguments of `LLM`, the adapter to apply or None)."""
    path, hardware = model_folder.resolve(config.model.path), config.hardware
    settings: dict[str, Any] = {
        "model": path,
        "revision": config.model.revision,
        "dtype": hardware.precision,
        "seed": 0,
    }
    if hardware.accelerator == "cuda":
        settings["gpu_memory_utilization"] = _memory_share(hardware.memory_limit_gb)
    if not model_folder.is_adapter(path):
        return settings, None
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    adapter = PeftConfig.from_pretrained(path)
    refuse_adapter(path, adapter)
    rank: int = adapter.r  # pyright: ignore[reportAttributeAccessIssue]
    base = model_folder.resolve(str(adapter.base_model_name_or_path))
    settings |= {"model": base, "revision": adapter.revision, **adapter_settings(rank)}
    return settings, LoRARequest("adapter", 1, path)


def refuse_adapter(path: str, adapter: PeftConfig) -> None:
    """Raise ValueError for an adapter that vLLM applies in part or otherwise."""
    layers = [name for f in Path(path).glob("*.safetensors") for name in model_folder.tensors(f)]
    if problem := adapter_problem(adapter, layers):
        raise ValueError(
            f"evaluation.engine=vllm: the adapter in {path} {problem}, which vLLM does not apply; "
            "set evaluation.engine=generate, or export it merged (action=export) and evaluate that "
            "folder"
        )


def _memory_share(limit_gb: float | None) -> float:
    if limit_gb is None:
        return _MEMORY_SHARE
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return min(_MEMORY_SHARE, limit_gb * 1e9 / total)
