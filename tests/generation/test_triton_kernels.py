"""CUDA kernels compute what plain torch does, interpreted on a CPU and on a GPU, and compile for a
GPU without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

INTERPRETED = """
import sys
sys.path.insert(0, {tests!r})
import torch
import test_triton_kernels as cases
from medreason.generation import fused_operators, triton_kernels

torch.manual_seed(0)
fused_operators.NORM_PROGRAMS = 4
for name, dtype in [(n, d) for n in cases.CASES for d in (torch.float32, torch.bfloat16)]:
    cases.compare(name, dtype)
    print("same", name)
"""


def norm_case(draw: Callable[..., Any], *, centred: bool, added: bool) -> tuple[str, tuple]:
    import torch

    hidden, delta, weight = draw(5, 100, dtype=torch.float32), draw(5, 100), draw(100)
    bias = draw(100) if centred else None
    settings = (weight, bias, 1e-6, delta.dtype, 8)
    return ("add_norm", (hidden, delta, *settings)) if added else ("norm", (hidden, *settings))


def norm_backward_case(draw: Callable[..., Any], *, centred: bool, first: bool) -> tuple:
    import torch

    hidden = draw(10, 100, dtype=torch.float32)
    gradient, delta = draw(10, 100), draw(1)
    of_total = None if first else draw(10, 100, dtype=torch.float32)
    weight = draw(100, dtype=torch.float32)
    return "norm_backward", (
        *(gradient, of_total, hidden, weight, 1e-6, centred, delta.dtype, not first),
    )


def turn_case(draw: Callable[..., Any]) -> tuple:
    import torch

    states = draw(4, 8 * 12)[:, : 5 * 12].unflatten(1, (5, 12))
    angles = draw(4, 12, dtype=torch.float32), draw(4, 12, dtype=torch.float32)
    return "turn", (states, *angles, -1)


def cache_case(draw: Callable[..., Any]) -> tuple:
    import torch

    states = draw(4, 8 * 12).unflatten(1, (8, 12))  # four query heads, two key heads
    angles = draw(4, 12, dtype=torch.float32), draw(4, 12, dtype=torch.float32)
    return "turn_into_cache", (states, *angles, draw(2, 4, 2, 6, 12), torch.tensor([3]))


def attend_case(draw: Callable[..., Any], *, tokens: int, asked: int) -> tuple:
    """Keys and values are part of a cache; some tokens are masked, one row's last parts wholly."""
    import torch

    queries = draw(3, asked, 2, 16).transpose(1, 2)
    keys, values = draw(2, 3, 2, tokens + 40, 16)[..., :tokens, :].unbind(0)
    mask = draw(3, 1, 1, tokens + 8)[..., :tokens]
    mask[0, ..., 5:] = torch.finfo(mask.dtype).min
    return "attend", (queries, keys, values, mask)


def merge_case(draw: Callable[..., Any]) -> tuple:
    import torch

    shapes = (3, 2, 3 * 4, 2, 16), (2, 6, 4, 2, 16)
    first, second = (draw(*shape, dtype=torch.float32) for shape in shapes)
    sums = draw(3, 2, 2, 12, dtype=torch.float32), draw(2, 6, 2, 4, dtype=torch.float32)
    return "merge", (first, 3 * sums[0], second, 3 * sums[1], 3, 8, draw(1).dtype)


CASES: dict[str, Callable[[Callable[..., Any]], tuple]] = {
    "norm": lambda draw: norm_case(draw, centred=False, added=False),
    "layer norm": lambda draw: norm_case(draw, centred=True, added=False),
    "add, norm": lambda draw: norm_case(draw, centred=False, added=True),
    "add, layer norm": lambda draw: norm_case(draw, centred=True, added=True),
    "norm backward": lambda draw: norm_backward_case(draw, centred=False, first=True),
    "add, norm backward": lambda draw: norm_backward_case(draw, centred=False, first=False),
    "layer norm backward": lambda draw: norm_backward_case(draw, centred=True, first=True),
    "add, layer norm backward": lambda draw: norm_backward_case(draw, centred=True, first=False),
    "gated": lambda draw: ("gated", (*draw(3, 2600).chunk(2, dim=-1), 8)),
    "gated backward": lambda draw: (
        "gated_backward",
        (draw(3, 1300), draw(3, 1300), draw(3, 1300)),
    ),
    "quick_gelu": lambda draw: ("quick_gelu", (draw(3, 1300),)),
    "quick_gelu backward": lambda draw: ("quick_gelu_backward", (draw(3, 1300), draw(3, 1300))),
    "turn": turn_case,
    "turn into cache": cache_case,
    "attend": lambda draw: attend_case(draw, tokens=150, asked=6),
    "attend, many queries": lambda draw: attend_case(draw, tokens=70, asked=80),
    "merge": merge_case,
    "block sums": lambda draw: (
        "block_sums",
        (3 * (scores := draw(3, 2100)), 3 * scores.amax(-1, keepdim=True), 64),
    ),
}


def compare(name: str, dtype: Any, device: str = "cpu") -> None:  # noqa: ANN401
    """Compare the kernel (interpreted on a CPU) with plain torch."""
    import torch
    from torch import Tensor

    from medreason.generation import fused_operators

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape).to(dtype)

    with torch.device(device):
        operator, args = CASES[name](draw)
    plain, on_cuda = fused_operators.implementations(operator)
    results = []
    for implementation in (plain, on_cuda):
        given = [a.clone() if isinstance(a, Tensor) and operator == "turn_into_cache" else a
                 for a in args]  # fmt: skip
        result = implementation(*given)
        parts = list(result) if isinstance(result, tuple) else [result]
        if operator == "turn_into_cache":
            parts.append(given[3])
        results.append([part.float() for part in parts])
    width = args[0].shape[-1] if operator in ("norm", "add_norm", "gated") else None
    for expected, part in zip(*results, strict=True):
        if operator == "norm_backward" and part.shape != expected.shape:  # by programs
            part, expected = part.sum(0), expected.sum(0)
        elif operator == "merge":
            part, expected = part[:, :-8], expected[:, :-8]  # room
        elif width is not None:
            part, expected = part[..., :width], expected[..., :width]
        step = 2**-8 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(part, expected, rtol=2 * step, atol=step)


def test_interpreted_kernels_compute_what_plain_torch_does() -> None:
    code = INTERPRETED.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("same") == 2 * len(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_on_a_gpu_compute_what_plain_torch_does(name: str, dtype: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    compare(name, getattr(torch, dtype), "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from triton.runtime.jit import JITFunction

    compiled: set[str] = set()
    of_tensor = {
        **{torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float64: "*fp64"},
        torch.int64: "*i64",
    }

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:  # noqa: ANN401
        options = {name: constants.pop(name) for name in ("num_stages",) if name in constants}
        names = [name for name in kernel.arg_names if name not in constants]
        signature: dict[str, str] = dict.fromkeys(constants, "constexpr")
        for name, value in zip(names, args, strict=True):
            match value:
                case torch.Tensor():
                    signature[name] = of_tensor[value.dtype]
                case None:
                    signature[name] = "constexpr"
                    constants[name] = None
                case _:
                    signature[name] = "fp32" if isinstance(value, float) else "i32"
        ordered = {name: signature[name] for name in kernel.arg_names}
        source = ASTSource(kernel, ordered, constants)
        assert compile(source, GPUTarget("cuda", capability, 32), options).asm["cubin"]
        compiled.add(kernel.__name__)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    from medreason.generation import fused_operators

    for case in CASES.values():
        operator, args = case(lambda *shape, dtype=torch.bfloat16: torch.randn(*shape).to(dtype))
        fused_operators.implementations(operator)[1](*args)
    assert len(compiled) == 9
