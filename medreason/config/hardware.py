"""Schema of `hardware` and `rollout`: on what a run is computed, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from medreason.config.rules import allowed_draft_tokens, one_of, positive

PRECISIONS = ("float32", "bfloat16")


@dataclass
class Hardware:
    name: str = MISSING
    accelerator: str = MISSING
    """cpu or cuda."""
    devices: int = MISSING
    """Processes of a node; each has one device."""
    per_device_prompts: str = MISSING
    """Questions in a micro-batch of training, on each device; auto: as many as fit into its memory
    by the estimate that action=plan prints."""
    per_device_evaluation: int = MISSING
    """Questions in a batch of evaluation, on each device."""
    precision: str = MISSING
    """float32 or bfloat16."""
    nodes: int = 1
    """Machines; more than one only under Slurm."""
    parallel: str = "ddp"
    """ddp (all weights on each device), fsdp (weights, gradients and optimizer states sharded), or
    DeepSpeed's zero2 (gradients and optimizer states sharded) and zero3 (weights too)."""
    offload: bool = False
    """With fsdp, zero2 or zero3: keep shards that are not in use in the memory of the machine."""
    attention: str = "sdpa"
    """sdpa, eager, or flash_attention_2 where flash-attn is installed."""
    gradient_checkpointing: str = "false"
    """Compute activations again in the backward pass: less memory, slower; true, false or auto:
    what is faster by the counted work of an update and fits by the estimate."""
    cuda_graphs: bool = True
    """On CUDA, with sdpa and ddp: run each decoding step as one CUDA graph."""
    fused_layers: bool = True
    """On CUDA, with sdpa and ddp: run norms and attention of Qwen2-VL and Qwen2.5-VL in fewer
    kernels than transformers' (not with rollout=trl)."""
    optimizer_states: str = "float32"
    """AdamW's two moments: float32, or 8bit (bitsandbytes)."""
    device_gb: float | None = None
    """Memory of a device in GB of 1e9 bytes, for action=plan; null takes that of this machine's
    GPUs."""
    memory_limit_gb: float | None = None
    """On CUDA: the most memory that torch may allocate in a process, in GB of 1e9 bytes, to try a
    smaller card on a larger one."""
    memory_check: bool = False
    """Before training, run one step of the longest samples, so that what does not fit in memory
    fails at once."""
    hang_timeout_minutes: float = 30.0
    """A job without progress for so long fails; the stack traces of all ranks go to its log."""
    threads: int | None = None
    """CPU threads of each process; null divides the cores evenly."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Further trainer arguments that change memory or speed, never the result."""

    def __post_init__(self) -> None:
        one_of("hardware.accelerator", self.accelerator, ("cpu", "cuda"))
        one_of("hardware.precision", self.precision, PRECISIONS)
        one_of("hardware.attention", self.attention, ("sdpa", "eager", "flash_attention_2"))
        one_of("hardware.parallel", self.parallel, ("ddp", "fsdp", "zero2", "zero3"))
        one_of(
            "hardware.gradient_checkpointing",
            self.gradient_checkpointing.lower(),  # of true Hydra makes True
            ("true", "false", "auto"),
        )
        one_of("hardware.optimizer_states", self.optimizer_states, ("float32", "8bit"))
        if self.per_device_prompts != "auto" and not str(self.per_device_prompts).isdecimal():
            raise ValueError(
                f"hardware.per_device_prompts={self.per_device_prompts}; give a number of "
                "questions, 1 or more, or auto"
            )
        positive("hardware.per_device_prompts", self.questions_at_once)
        for key in ("devices", "nodes", "per_device_evaluation"):
            positive(f"hardware.{key}", getattr(self, key))
        if self.threads is not None:
            positive("hardware.threads", self.threads)
        for key in ("device_gb", "memory_limit_gb", "hang_timeout_minutes"):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise ValueError(f"hardware.{key}={value}; it must be above 0")
        if self.parallel != "ddp" and self.processes < 2:
            raise ValueError(
                f"hardware.parallel={self.parallel!r} shards the weights over devices, and there "
                "is one; set hardware.devices=2 or more, or hardware.parallel=ddp"
            )
        if self.offload and self.parallel == "ddp":
            raise ValueError("hardware.offload=true needs hardware.parallel=fsdp, zero2 or zero3")
        if self.optimizer_states != "float32" and self.parallel != "ddp":
            raise ValueError(
                f"hardware.optimizer_states={self.optimizer_states!r} needs all weights on each "
                f"device; hardware.parallel={self.parallel!r} already shards the states, "
                "so set hardware.optimizer_states=float32"
            )
        if self.memory_limit_gb and self.accelerator != "cuda":
            raise ValueError(
                f"hardware.memory_limit_gb={self.memory_limit_gb} caps a CUDA device; "
                "on a CPU use ulimit -v or the limits of a container"
            )

    @property
    def tries_longest_step(self) -> bool:
        """Whether `memory_check` has a trial step. FSDP and DeepSpeed shard the weights inside
        `Trainer.train`: before it, one device would hold all of them."""
        return self.memory_check and self.parallel == "ddp"

    @property
    def questions_at_once(self) -> int:
        """Questions in a micro-batch of a device; of auto 1, the smallest cut, until a training has
        chosen (`training.memory_limits.with_questions_at_once`)."""
        return 1 if self.per_device_prompts == "auto" else int(self.per_device_prompts)

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again; with auto, which takes least memory, until a
        training has chosen."""
        return self.gradient_checkpointing.lower() != "false"

    @property
    def processes(self) -> int:
        """Ranks, over all nodes."""
        return self.nodes * self.devices

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether decoding steps run as CUDA graphs; see `generation.cuda_graph`."""
        return self.cuda_graphs and self._runs_own_kernels

    @property
    def uses_fused_layers(self) -> bool:
        """Whether models get the layers of `generation.fused_layers`."""
        return self.fused_layers and self._runs_own_kernels

    @property
    def _runs_own_kernels(self) -> bool:
        whole = self.attention == "sdpa" and self.parallel == "ddp"
        return self.accelerator == "cuda" and whole


@dataclass
class Rollout:
    """How GRPO samples completions and computes their log-probabilities."""

    name: str = MISSING
    """grouped (image and prompt computed once a question), trl (TRL's own rollout: computed once a
    completion) or vllm (sampled by vLLM)."""
    fallback: str = "error"
    """Where a model or a setting does not allow `grouped`: error, or unshared (as trl does it, with
    a warning)."""
    dynamic_sampling: int = 0
    """While all completions of a question get the same reward, sample them again, at most so many
    times."""
    vision_cache_gb: float = 4.0
    """Disk space, over all runs, for cached features of vision towers that are not trained; 0 keeps
    none."""
    draft_tokens: str = "auto"
    """With grouped: tokens of a draft, guessed from earlier completions and checked in one pass of
    the model; the same tokens are sampled. auto (as many as pay; none on CUDA), 0 (none), or at
    most so many wherever there is a guess (on CUDA experimental, without CUDA graphs)."""
    update: str = "grouped"
    """With vllm, how the update computes log-probabilities: grouped (image and prompt once a
    question) or trl (once a completion)."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """With vllm: goes unchanged to trl.GRPOConfig."""

    def __post_init__(self) -> None:
        one_of("rollout.name", self.name, ("grouped", "trl", "vllm"))
        if self.vllm:
            one_of("rollout.vllm.vllm_mode", self.vllm.get("vllm_mode", ""), ("colocate", "server"))
        share = self.vllm.get("vllm_gpu_memory_utilization", 0.3)
        if not 0 < share < 1:
            raise ValueError(
                f"rollout.vllm.vllm_gpu_memory_utilization={share}; needs a number between 0 and 1"
            )
        one_of("rollout.fallback", self.fallback, ("error", "unshared"))
        one_of("rollout.update", self.update, ("grouped", "trl"))
        if self.update != "grouped" and self.name != "vllm":
            raise ValueError(
                f"rollout.update={self.update} needs rollout=vllm; without vLLM rollout=grouped "
                "and rollout=trl say how the update is computed"
            )
        for key in ("dynamic_sampling", "vision_cache_gb"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"rollout.{key}={getattr(self, key)}; give 0 or more")
        allowed_draft_tokens("rollout.draft_tokens", self.draft_tokens)
        if self.draft_tokens not in ("auto", "0") and self.name != "grouped":
            raise ValueError(
                f"rollout.draft_tokens={self.draft_tokens} needs rollout=grouped; the others "
                "decode without drafts, so set rollout.draft_tokens=auto"
            )
        if self.dynamic_sampling and self.name != "grouped":
            raise ValueError(
                f"rollout.dynamic_sampling={self.dynamic_sampling} needs rollout=grouped; "
                "the others sample once"
            )

    @property
    def shares_prompts(self) -> bool:
        """Whether the update computes image and prompt once a question."""
        return (self.name if self.name != "vllm" else self.update) == "grouped"
