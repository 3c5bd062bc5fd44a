"""The device of this process: found or refused, capped, and joined to those of the other ranks."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState

from medreason.config import Hardware
from medreason.console import first_line
from medreason.runs.process_memory import adapt_malloc

_MARGIN_MINUTES = 1.0
"""Beyond `hardware.hang_timeout_minutes`: the launcher, which writes all stacks to the log, ends a
hanging job before the process group does."""


def join(hardware: Hardware) -> PartialState:
    """Take this process's device and join the other ranks, if torchrun started any.

    Every process that computes calls this before it loads anything. `PartialState` on its own, like
    transformers, computes on the CPU where torch finds no GPU, and waits ten minutes for a rank.

    Raises:
        ValueError: torch finds no GPU, or the GPU has less than `hardware.memory_limit_gb`.
    """
    on_cpu = hardware.accelerator == "cpu"
    if not on_cpu:
        _refuse_without_gpu()
    if "LOCAL_RANK" in os.environ:  # as torchrun sets it
        state = PartialState(cpu=on_cpu, backend=backend(hardware), timeout=timeout(hardware))
    else:
        state = PartialState(cpu=on_cpu)
    if hardware.memory_limit_gb and not on_cpu:
        _cap_memory(hardware.memory_limit_gb)
    return state


def tune_for_cpu(hardware: Hardware) -> None:
    """What this process sets to compute fast on a CPU, before any thread of torch starts."""
    on_cpu = hardware.accelerator == "cpu"
    # Gradients of tokens with probability near 1 are denormal numbers, with which a CPU computes
    # several times slower.
    torch.set_flush_denormal(on_cpu)
    if on_cpu:
        adapt_malloc(recomputes=hardware.recomputes)


def timeout(hardware: Hardware) -> timedelta:
    """How long a rank waits for the others in one operation of the process group."""
    return timedelta(minutes=hardware.hang_timeout_minutes + _MARGIN_MINUTES)


def backend(hardware: Hardware) -> str:
    """The backend of the process group, as torch.distributed names it."""
    if hardware.accelerator == "cpu":
        return "gloo"
    # Offloaded shards lie in the memory of the machine, where gradient clipping adds up their norms
    # over the ranks; NCCL takes tensors of a GPU alone. accelerate 1.15 would have both, but only
    # where variables of the environment ask for FSDP.
    return "cuda:nccl,cpu:gloo" if hardware.parallel == "fsdp" else "nccl"


def _refuse_without_gpu() -> None:
    """Raise ValueError with torch's own reason unless torch finds a GPU."""
    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
        reason = "CUDA_VISIBLE_DEVICES names no GPU"
    except (AssertionError, RuntimeError) as error:  # not built for CUDA; driver missing or too old
        reason = first_line(error)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    raise ValueError(
        f"hardware.accelerator='cuda': torch {torch.__version__}, built for {built}, finds no GPU: "
        f"{reason}; update the driver, or install a torch for the one that is here: uv pip install "
        "--reinstall --torch-backend=auto torch torchvision; or set hardware=cpu"
    )


def _cap_memory(gigabytes: float) -> None:
    """Let torch allocate so many GB (1e9 bytes) of this process's GPU, and raise an out-of-memory
    error beyond. CUDA's context, half a GB, is not torch's and comes on top."""
    index = torch.cuda.current_device()  # a device without an index has no fraction
    total = torch.cuda.get_device_properties(index).total_memory
    if gigabytes * 1e9 > total:
        raise ValueError(
            f"hardware.memory_limit_gb={gigabytes} is more than the GPU has: {total / 1e9:.1f} GB; "
            "choose less, or null for no limit"
        )
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total, index)
