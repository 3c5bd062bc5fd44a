"""The part of the schema that says on what the work runs and how it is cut; see `config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from medreason.config.rules import one_of, positive


@dataclass
class Hardware:
    name: str = MISSING
    accelerator: str = MISSING
    """cpu or cuda."""
    devices: int = MISSING
    """Processes of a node, one device each."""
    per_device_prompts: int = MISSING
    """Questions a device holds at once in training."""
    per_device_evaluation: int = MISSING
    """Questions a device answers at once in evaluation."""
    precision: str = MISSING
    """float32 or bfloat16."""
    nodes: int = 1
    """Machines; more than one under Slurm alone."""
    parallel: str = "ddp"
    """ddp (weights on each device), fsdp (weights, gradients and states in parts), or DeepSpeed's
    zero2 (gradients and states in parts) and zero3 (weights too)."""
    offload: bool = False
    """With fsdp, zero2 or zero3: parts that are not at work wait in the memory of the machine."""
    attention: str = "sdpa"
    """sdpa, eager, or flash_attention_2 where flash-attn is installed."""
    gradient_checkpointing: bool = False
    """Activations are computed again for the backward pass: less memory, slower."""
    cuda_graphs: bool = True
    """Completions are drawn step by step; on CUDA, with sdpa and ddp, as one graph a step."""
    optimizer_states: str = "float32"
    """AdamW's two moments: float32, or 8bit (bitsandbytes)."""
    device_gb: float | None = None
    """What a device has, for action=plan; none asks those of this machine."""
    memory_limit_gb: float | None = None
    """On CUDA: what a process may take of its device, to try a smaller card on a larger one."""
    memory_check: bool = False
    """Before training, one step of the longest samples: what does not fit fails at once."""
    hang_timeout_minutes: float = 30.0
    """Without a step for so long a job fails, after the stacks of all its ranks are written."""
    threads: int | None = None
    """CPU threads of each process; none shares the cores out evenly."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Further trainer arguments that change memory or speed, never the result."""

    def __post_init__(self) -> None:
        one_of("hardware.accelerator", self.accelerator, ("cpu", "cuda"))
        one_of("hardware.precision", self.precision, ("float32", "bfloat16"))
        one_of("hardware.attention", self.attention, ("sdpa", "eager", "flash_attention_2"))
        one_of("hardware.parallel", self.parallel, ("ddp", "fsdp", "zero2", "zero3"))
        one_of("hardware.optimizer_states", self.optimizer_states, ("float32", "8bit"))
        for key in ("devices", "nodes", "per_device_prompts", "per_device_evaluation"):
            positive(f"hardware.{key}", getattr(self, key))
        for key in ("device_gb", "memory_limit_gb", "hang_timeout_minutes"):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise ValueError(f"hardware.{key}={value}; it must be above 0")
        if self.parallel != "ddp" and self.processes < 2:
            raise ValueError(
                f"hardware.parallel={self.parallel!r} cuts the weights over devices, and there is "
                "one; set hardware.devices=2 or more, or hardware.parallel=ddp"
            )
        if self.offload and self.parallel == "ddp":
            raise ValueError("hardware.offload=true needs hardware.parallel=fsdp, zero2 or zero3")
        if self.optimizer_states != "float32" and self.parallel != "ddp":
            raise ValueError(
                f"hardware.optimizer_states={self.optimizer_states!r} needs whole weights on each "
                f"device; hardware.parallel={self.parallel!r} already keeps the states in parts, "
                "so set hardware.optimizer_states=float32"
            )
        if self.memory_limit_gb and self.accelerator != "cuda":
            raise ValueError(
                f"hardware.memory_limit_gb={self.memory_limit_gb} caps a CUDA device; "
                "on a CPU use ulimit -v or the limits of a container"
            )

    @property
    def processes(self) -> int:
        """Ranks, over all nodes."""
        return self.nodes * self.devices

    @property
    def graphs(self) -> bool:
        """Whether decoding replays its step: see `generation.cuda_graph`."""
        fits = self.accelerator == "cuda" and self.attention == "sdpa" and self.parallel == "ddp"
        return self.cuda_graphs and fits


@dataclass
class Rollout:
    """How GRPO draws completions and finds their log-probabilities."""

    name: str = MISSING
    """grouped (image and prompt once a question), trl (TRL's own way) or vllm (drawn by vLLM)."""
    fallback: str = "error"
    """Where a model or a setting does not allow `grouped`: error, or unshared (as trl, with a
    warning)."""
    dynamic_sampling: int = 0
    """Draw a question's completions again, so many times at most, while all get the same reward."""
    vision_cache_gb: float = 4.0
    """Of disk, over all runs, for the features of vision towers that are not trained; 0: none."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """With vllm: goes unchanged to trl.GRPOConfig; where and in how much memory it runs."""

    def __post_init__(self) -> None:
        one_of("rollout.name", self.name, ("grouped", "trl", "vllm"))
        if self.vllm:
            one_of("rollout.vllm.vllm_mode", self.vllm.get("vllm_mode", ""), ("colocate", "server"))
        share = self.vllm.get("vllm_gpu_memory_utilization", 0.3)
        if not 0 < share < 1:
            raise ValueError(
                f"rollout.vllm.vllm_gpu_memory_utilization={share}; needs a share between 0 and 1"
            )
        one_of("rollout.fallback", self.fallback, ("error", "unshared"))
        for key in ("dynamic_sampling", "vision_cache_gb"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"rollout.{key}={getattr(self, key)}; give 0 or more")
        if self.dynamic_sampling and self.name != "grouped":
            raise ValueError(
                f"rollout.dynamic_sampling={self.dynamic_sampling} needs rollout=grouped; "
                "the others draw once"
            )
