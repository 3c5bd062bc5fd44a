"""The adapter that is trained in place of the weights: which layers it sits on, how large it is."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from medreason.config import Config


def lora(config: Config, model: nn.Module) -> LoraConfig | None:
    """The configured adapter; none where all weights are trained.

    Raises:
        ValueError: a name in adapter.target_modules matches no layer; lists those that exist.
    """
    if not config.adapter:
        return None
    wanted = config.adapter.get("target_modules")
    for each in [wanted] if isinstance(wanted, str) else (wanted or []):
        given = LoraConfig(target_modules=each if isinstance(wanted, str) else [each])
        if each != "all-linear" and not any(
            check_target_module_exists(given, name) for name, _ in model.named_modules()
        ):
            raise ValueError(
                f"adapter.target_modules={each!r} matches no layer of model={config.model.name}; "
                f"its linear layers are {', '.join(linear_layers(model))}"
            )
    return LoraConfig(**config.adapter)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers, those that differ in their number alone once."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))


def count(model: Any) -> tuple[int, int]:  # noqa: ANN401
    """(trainable, all) weights; those in 4 bits count one each."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def in_full_precision(model: Any) -> None:  # noqa: ANN401
    """TRL 1.16 turns adapters over 4 bits into bfloat16, in which a step of 1e-5 is lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
