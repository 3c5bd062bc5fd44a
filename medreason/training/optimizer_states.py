"""AdamW's moments in the format of another `hardware.optimizer_states`, for a resumed run.

torch's AdamW names them `exp_avg` and `exp_avg_sq`. bitsandbytes' names them `state1` and `state2`,
in blocks of 256 values of 8 bits with a scale (`absmax`) each and a table of values (`qmap`), or in
float32 where a tensor is small or an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

OptimizerState = dict[str, Any]
"""`state` and `param_groups`, as torch's `Optimizer.state_dict` returns them."""

_MOMENTS = {"exp_avg": "1", "exp_avg_sq": "2"}
"""torch's name -> the digit in those of bitsandbytes."""
_BLOCK = 256
_OF_STEP = ("lr", "initial_lr")
"""What the learning rate's schedule has set in a group of parameters; the rest is configured."""


def in_8bit(saved: OptimizerState) -> bool:
    """Whether bitsandbytes wrote the state."""
    return any("state1" in _flat(values) for values in saved["state"].values())


def in_float32(saved: OptimizerState, groups: Sequence[Mapping[str, Any]]) -> OptimizerState:
    """The state for torch's AdamW; one that it wrote as it is.

    `groups` are the `param_groups` of the optimizer that will load it.
    """
    if not in_8bit(saved):
        return saved
    state = {
        number: {
            "step": torch.tensor(float(values["step"])),
            **{name: _dequantized(values, digit) for name, digit in _MOMENTS.items()},
        }
        for number, values in ((key, _flat(value)) for key, value in saved["state"].items())
    }
    settings = [
        {**group, **_of_step(old), "params": old["params"]}
        for group, old in zip(groups, saved["param_groups"], strict=True)
    ]
    return {"state": state, "param_groups": settings}


def load_in_8bit(optimizer: Optimizer, saved: OptimizerState) -> None:
    """Load what torch's AdamW wrote into bitsandbytes' optimizer of the same parameters."""
    from bitsandbytes import functional  # says at import what it lacks

    of_bitsandbytes: Any = optimizer
    of_bitsandbytes.check_overrides()  # which tensors stay in float32
    for i, (group, old) in enumerate(
        zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ):
        group |= _of_step(old)
        for j, (parameter, number) in enumerate(zip(group["params"], old["params"], strict=True)):
            if number not in saved["state"]:  # it had no gradient yet
                continue
            of_bitsandbytes.init_state(group, parameter, i, j)
            values, moments = optimizer.state[parameter], saved["state"][number]
            values["step"] = int(moments["step"])
            for name, digit in _MOMENTS.items():
                target, moment = values[f"state{digit}"], moments[name].to(parameter.device)
                if target.dtype != torch.uint8:
                    target.copy_(moment)
                    continue
                functional.quantize_blockwise(
                    moment.contiguous(),
                    code=values[f"qmap{digit}"],
                    absmax=values[f"absmax{digit}"],
                    out=target,
                    blocksize=_BLOCK,
                )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state; bitsandbytes saves some of it in a dictionary within."""
    inner = [value for value in values.values() if isinstance(value, dict)]
    return {**values, **{name: value for part in inner for name, value in part.items()}}


def _dequantized(values: Mapping[str, Any], digit: str) -> Tensor:
    from bitsandbytes import functional

    moment = values[f"state{digit}"]
    if moment.dtype != torch.uint8:
        return moment.clone()  # which may be mapped from the file
    scales, table = values[f"absmax{digit}"], values[f"qmap{digit}"]
    return functional.dequantize_blockwise(moment, absmax=scales, code=table, blocksize=_BLOCK)


def _of_step(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in _OF_STEP if name in group}
