"""The LoRA adapter that is trained in place of the weights, and how many parameters are trained."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners import lora
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers import PreTrainedModel

from medreason.config import Config
from medreason.models import adapters


def lora_config(config: Config, model: PreTrainedModel) -> LoraConfig | None:
    """The configured adapter; None where all parameters are trained.

    Raises:
        ValueError: a name in adapter.target_modules matches no layer; lists those that exist. Or
            the adapter could not be merged into its base model.
    """
    if not config.adapter:
        return None
    adapters.refuse_changed_base(
        config.adapter.get("init_lora_weights", True), "adapter.init_lora_weights"
    )
    targets = config.adapter.get("target_modules")
    named = [targets] if isinstance(targets, str) else [*(targets or [])]
    named += config.adapter.get("modules_to_save") or []
    tied = model.config.tie_word_embeddings
    adapters.refuse_tied(named, tied, "adapter")
    # peft refuses a configuration that matches no layer at all. Of a list of which one name is
    # misspelt it trains the others and says nothing, so each name is looked up on its own.
    for target in [targets] if isinstance(targets, str) else (targets or []):
        # peft takes a string as a regular expression over full names, a list as endings of names.
        alone = LoraConfig(target_modules=target if isinstance(targets, str) else [target])
        if target != "all-linear" and not any(
            check_target_module_exists(alone, name) for name, _ in model.named_modules()
        ):
            raise ValueError(
                f"adapter.target_modules={target!r} matches no layer of model={config.model.name}; "
                f"its linear layers are {', '.join(linear_layers(model))}"
            )
    settings = LoraConfig(**config.adapter)
    # Not over 4-bit weights, which a product of torch's cannot read, nor with ZeRO-3, which gathers
    # a layer's weights where the layer itself is called.
    if config.model.quantization == "none" and config.hardware.parallel != "zero3":
        settings._register_custom_module({nn.Linear: LoraLinear})
    return settings


class LoraLinear(lora.Linear):
    """PEFT's layer, which in half precision rounds the sum of layer and adapter once.

    PEFT adds the adapter's output to that of the layer, which is rounded already: what is below
    half a step of it is lost in rollouts and updates.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, device = self.get_base_layer(), x.device.type
        assert isinstance(base, nn.Linear)
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else base.weight.dtype
        without = self.disable_adapters or self.merged or len(self.active_adapters) != 1
        if without or self.lora_variant or args or kwargs or dtype == torch.float32:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        inputs = self.lora_dropout[name](x.to(self.lora_A[name].weight.dtype))  # pyright: ignore
        change = self.lora_B[name](self.lora_A[name](inputs)) * self.scaling[name]
        rows = x.flatten(0, -2).to(dtype)
        sums = torch.addmm(change.flatten(0, -2).to(dtype), rows, base.weight.t().to(dtype))
        outputs = sums.unflatten(0, x.shape[:-1])
        return outputs if base.bias is None else outputs + base.bias.to(dtype)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers; those that differ in their number alone are listed once."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a parameter stored in 4 bits counts as one."""
    if isinstance(model, PeftModel):  # two 4-bit parameters share a byte, which peft knows
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def train_in_float32(model: nn.Module) -> None:
    """Hold the trainable parameters in float32."""
    # TRL 1.16 casts adapters on a 4-bit model to bfloat16, whose 8 bits of precision round most
    # updates at a learning rate of 1e-5 to nothing.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
