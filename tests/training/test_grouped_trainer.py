"""Grouped training gives the weights that stock TRL gives."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel, Qwen2VLPreTrainedModel, TrainerCallback
from transformers.integrations import accelerate as placement
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOTrainer
from trl.trainer import utils as trl_utils

from medreason import data, phantom
from medreason.config import Config, Hardware
from medreason.generation import fused_layers, packed_attention
from medreason.generation.drafts import DraftHistory
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.models.load import (
    END_TOKENS,
    VISION_TOKENS,
    load_model,
    load_processor,
    meta_model,
)
from medreason.models.patch_embedding import multiplies_patches
from medreason.runs.keys import train_parts
from medreason.runs.run_folder import RunFolder
from medreason.samples import TASKS, Sample
from medreason.training import grpo, memory_estimate, sharing_check, vllm_rollout
from medreason.training.group_batches import OncePerQuestionProcessor
from medreason.training.grouped_trainer import GroupedGRPOTrainer
from medreason.training.sharing_check import sharing_obstacles
from medreason.training.vllm_rollout import VllmGRPOTrainer

Compose = Callable[..., Config]
SMALL = (
    "modality=ct",
    "method.prompts_per_step=4",
    "hardware.per_device_prompts=2",
    "method.trl.num_generations=4",
    "method.trl.max_completion_length=12",
    "method.trl.learning_rate=1e-4",
)


QUESTIONS: list[Sample] = []


@pytest.fixture(scope="module", autouse=True)
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sample]]:
    loaded = phantom.load(tmp_path_factory.mktemp("cache"), train_images=4, test_images=1, seed=0)
    chosen = data.select(loaded, "train", ["ct"], TASKS)
    QUESTIONS[:] = chosen
    yield chosen
    QUESTIONS.clear()


def built(config: Config, folder: Path, *, patch_products: bool | None = None) -> GRPOTrainer:
    """With patches embedded as transformers does where TRL is what others are compared with."""
    if patch_products is None:
        patch_products = config.rollout.name != "trl"
    return grpo.trainer(
        config,
        QUESTIONS,
        load_model(
            config.model,
            config.hardware,
            full_precision=not config.adapter,
            patch_products=patch_products,
        ),
        load_processor(config.model),
        RunFolder(folder),
        [],
    )


def force_completions(trainer: GRPOTrainer) -> None:
    """Replace sampling by completions that depend on prompt and place alone, and the first reward.

    They have 1 to 12 tokens; those of 12 are truncated.
    """
    end = trainer.eos_token_ids[0]

    def completions(
        prompt_ids: list[list[int]], *_: object, **__: object
    ) -> tuple[list[list[int]], list[list[None]] | None]:
        rows = []
        for i, prompt in enumerate(prompt_ids):
            draw = torch.Generator().manual_seed(sum(prompt) * 4 + i % 4)
            length = (0, 3, 7, 12)[i % 4]
            tokens = torch.randint(20, 400, (length,), generator=draw).tolist()
            rows.append(tokens if length == 12 else [*tokens, end])
        # None is what vLLM gives for a token that it cannot score.
        return rows, [[None] * len(ids) for ids in rows] if trainer.use_vllm else None

    trainer._generate_single_turn = completions
    # Any reward that differs within most groups will do; every third group has equal ones.
    trainer.reward_funcs[0] = lambda completion_ids, sample, **_: [
        float(sum(ids) % 7) if place % 3 else 1.0
        for ids, place in zip(completion_ids, sample, strict=True)
    ]


def trained(config: Config, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list]:
    """(weights before training, weights after it, logs)."""
    trainer = built(config, folder)
    trainer.reward_funcs[1:] = [lambda completion_ids, **_: [0.0] * len(completion_ids)]
    force_completions(trainer)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return before, after, [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        (20, ["method.trl.beta=0.0"]),
        (4, ["method.trl.beta=0.04"]),
        (6, ["method.trl.beta=0.0", "method.trl.num_iterations=2"]),
        (4, ["method.trl.beta=0.04", "method.trl.mask_truncated_completions=true"]),
        (4, ["hardware.gradient_checkpointing=true"]),
        (4, ["adapter=lora_r8", "adapter.lora_dropout=0", "method.trl.beta=0.04"]),
        (4, ["method.trl.loss_type=dapo", "method.trl.beta=0.0", "method.trl.temperature=0.7"]),
        (4, ["method.trl.loss_type=bnpo", "hardware.per_device_prompts=4"]),
        (4, ["method.trl.loss_type=dr_grpo"]),
        (4, ["method.trl.loss_type=cispo", "+method.trl.epsilon_high=5.0"]),
        (4, ["+method.trl.importance_sampling_level=sequence", "method.trl.num_iterations=2"]),
        (4, ["hardware.attention=eager"]),
    ],
    ids=lambda value: "" if isinstance(value, int) else ",".join(v.split(".")[-1] for v in value),
)
def test_weights_are_those_of_trl_for_the_same_completions(
    composed: Compose, tmp_path: Path, steps: int, more: list[str]
) -> None:
    assert_weights_are_those_of_trl(composed, tmp_path, steps, more)


@pytest.mark.parametrize(
    "more",
    [
        ["method.trl.beta=0.04"],
        ["method.trl.beta=0.0", "hardware.gradient_checkpointing=true"],
        ["adapter=lora_r8", "adapter.lora_dropout=0", "method.trl.beta=0.04"],
    ],
    ids=["beta", "gradient_checkpointing", "lora_r8"],
)
def test_weights_of_layers_in_few_kernels_are_those_of_trl(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    fused: list[bool] = []

    def fuse(model: PreTrainedModel) -> bool:
        fused.append(fused_layers.fuse(model))
        return fused[-1]

    monkeypatch.setattr(Hardware, "uses_fused_layers", property(lambda _: True))
    monkeypatch.setattr(grpo, "fused_layers", SimpleNamespace(fuse=fuse))
    assert_weights_are_those_of_trl(composed, tmp_path, 4, more)
    # The policy and its reference, where that is a model of its own; TRL's rollout has none.
    assert fused == [True] * (2 if more == ["method.trl.beta=0.04"] else 1)


def assert_weights_are_those_of_trl(
    composed: Compose, tmp_path: Path, steps: int, more: list[str]
) -> None:
    small = [o for o in SMALL if o.split("=")[0] not in {p.split("=")[0] for p in more}]
    (before, grouped, logs), (_, baseline, baseline_logs) = (
        trained(
            composed(*small, *more, f"method.trl.max_steps={steps}", f"rollout={engine}"),
            tmp_path / engine,
        )
        for engine in ("grouped", "trl")
    )
    assert len(logs) == steps
    assert {"loss", "grad_norm", "entropy", "skipped_groups"} <= set(logs[0])
    for row, expected in zip(logs, baseline_logs, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4, rel=1e-3)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-3)
    moved = torch.stack([(baseline[n] - before[n]).norm() for n in baseline]).norm()
    difference = torch.stack([(baseline[n] - grouped[n]).norm() for n in baseline]).norm()
    assert moved > 0
    assert difference / moved < 0.01


def test_weights_of_qwen2_5_vl_are_those_of_trl(
    composed: Compose, tmp_path: Path, qwen2_5_vl: Path
) -> None:
    model = f"model.path={qwen2_5_vl}"
    assert_weights_are_those_of_trl(composed, tmp_path, 2, ["method.trl.beta=0.0", model])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What trainers asked of vLLM, which is not there."""
    built: list[dict[str, Any]] = []
    monkeypatch.setattr(
        vllm_rollout, "Engine", lambda **settings: built.append(settings) or SimpleNamespace()
    )
    return built


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize(
    "more",
    [
        ["method.trl.beta=0.0", "method.trl.num_iterations=2", "hardware.per_device_prompts=4"],
        ["adapter=lora_r8", "adapter.lora_dropout=0", "method.trl.beta=0.04"],
        ["method.trl.loss_type=dapo", "+rollout.vllm.vllm_importance_sampling_mode=token_truncate"],
    ],
    ids=lambda value: ",".join(v.split(".")[-1] for v in value),
)
def test_weights_are_the_same_whether_vllm_or_we_draw_the_same_completions(
    composed: Compose, tmp_path: Path, more: list[str]
) -> None:
    small = [o for o in SMALL if o.split("=")[0] not in {p.split("=")[0] for p in more}]
    small.append("method.trl.max_steps=4")
    own = [o for o in more if "vllm" not in o]
    before, ours, own_logs = trained(composed(*small, *own, "rollout=grouped"), tmp_path / "ours")
    moved = torch.stack([(ours[n] - before[n]).norm() for n in ours]).norm()
    assert moved > 0
    for update in ("grouped", "trl"):
        config = composed(*small, "rollout=vllm", f"rollout.update={update}", *more)
        _, vllm, logs = trained(config, tmp_path / update)
        assert ("skipped_groups" in logs[0]) is (update == "grouped")
        assert logs[0]["sampling/importance_sampling_ratio/min"] == 1.0
        for row, expected in zip(logs, own_logs, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4, rel=1e-3)
        difference = torch.stack([(ours[n] - vllm[n]).norm() for n in ours]).norm()
        assert difference / moved < 0.01


def test_vllm_ends_a_reply_and_bans_vision_tokens_as_we_do(
    composed: Compose, tmp_path: Path, engines: list[dict[str, Any]]
) -> None:
    trainer = built(composed(*SMALL, "rollout=vllm"), tmp_path)
    (engine,) = engines
    settings = engine["generation_kwargs"]
    ids = trainer._tokenizer.convert_tokens_to_ids
    assert settings["stop_token_ids"] == ids([*END_TOKENS])
    assert settings["logit_bias"] == dict.fromkeys(ids([*VISION_TOKENS]), -100.0)
    assert (engine["completions"], engine["precision"]) == (4, "float32")


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("update", ["grouped", "trl"])
def test_log_probabilities_are_compared_with_vllm_without_dropout_which_trl_leaves_on(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    dropout = ("adapter=lora_r8", "adapter.lora_dropout=0.5", "rollout=vllm")
    trainer = built(composed(*SMALL, *dropout, f"rollout.update={update}"), tmp_path)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    force_completions(trainer)
    rows = next(iter(trainer.get_train_dataloader()))

    def scored_twice() -> list[Tensor]:
        score = trainer._generate_and_score_completions
        return [score(rows)["old_per_token_logps"] for _ in range(2)]

    assert torch.equal(*scored_twice())
    # Where this fails, TRL has mended it: take the method out of `VllmGRPOTrainer`.
    monkeypatch.delattr(VllmGRPOTrainer, "_get_per_token_logps_and_entropies")
    assert not torch.equal(*scored_twice())


@pytest.mark.usefixtures("engines")
def test_update_that_cannot_be_shared_with_vllm_is_refused_by_its_own_key(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstacle = {"sharing_obstacles": lambda _: ["a mixture of experts"]}
    monkeypatch.setattr(sharing_check, *obstacle.popitem())
    with pytest.raises(ValueError, match=r"^rollout\.update=grouped .*choose rollout\.update=trl"):
        built(composed(*SMALL, "rollout=vllm"), tmp_path)


def test_groups_without_gradient_are_skipped_counted_and_logged(
    composed: Compose, tmp_path: Path
) -> None:
    _, _, logs = trained(
        composed(*SMALL, "method.trl.beta=0.0", "method.trl.max_steps=5"), tmp_path / "skipping"
    )
    assert sum(row["skipped_groups"] for row in logs) > 0
    assert all(0 < row["entropy"] < 10 for row in logs)
    _, _, logs = trained(
        composed(*SMALL, "method.trl.beta=0.04", "method.trl.max_steps=2"), tmp_path / "pulled"
    )
    assert all(row["skipped_groups"] == 0 for row in logs)


def test_completions_do_not_depend_on_the_split_of_the_batch(
    composed: Compose, tmp_path: Path
) -> None:
    sampled = []
    for per_device in (1, 4):
        small = [o for o in SMALL if "per_device" not in o]
        trainer = built(
            composed(*small, f"hardware.per_device_prompts={per_device}", "method.trl.max_steps=1"),
            tmp_path / str(per_device),
        )
        trainer.train()
        assert isinstance(trainer, GroupedGRPOTrainer)
        logs = trainer._logs
        texts = [turns[0]["content"] for turns in logs["completion"]]
        sampled.append(sorted(zip(logs["extra"]["sample"], texts, strict=True)))
    assert len(sampled[0]) == 16
    assert sampled[0] == sampled[1]


class CutHistory(TrainerCallback):
    """Behind each step nothing is known of earlier ones, as behind a resume."""

    def __init__(self, trainer: GroupedGRPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: object, **__: object) -> None:
        self.trainer.drafts = DraftHistory()


def test_drafts_leave_the_rollouts_as_they_are_and_are_counted(
    composed: Compose, tmp_path: Path
) -> None:
    sampled, logs = [], []
    for tokens, cut in (("0", False), ("4", False), ("4", True)):
        trainer = built(
            composed(*SMALL, "method.trl.max_steps=2", f"rollout.draft_tokens={tokens}"),
            tmp_path / f"{tokens}-{cut}",
        )
        assert isinstance(trainer, GroupedGRPOTrainer)
        if cut:
            trainer.add_callback(CutHistory(trainer))
        trainer.train()
        sampled.append([turns[0]["content"] for turns in trainer._logs["completion"]])
        logs.append(trainer.state.log_history[1])
    assert len(sampled[0]) == 16
    assert sampled[0] == sampled[1] == sampled[2]
    assert "tokens_per_pass" not in logs[0]
    assert logs[1]["tokens_per_pass"] > logs[2]["tokens_per_pass"] > 1
    assert 0 < logs[1]["draft_acceptance"] <= 1


def test_model_that_cannot_share_is_refused_or_trained_unshared(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    banned = (*SMALL, "method.trl.max_steps=1", "method.trl.repetition_penalty=1.3")
    with pytest.raises(ValueError, match=r"repetition_penalty.*rollout=trl"):
        built(composed(*banned), tmp_path / "refused")
    with caplog.at_level(logging.WARNING):
        trainer = built(composed(*banned, "rollout.fallback=unshared"), tmp_path / "unshared")
    assert "going on as rollout=trl" in caplog.text
    trainer.train()
    assert "skipped_groups" not in trainer.state.log_history[0]


def test_model_that_ignores_the_positions_is_found_before_the_first_update(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medreason.generation import packing
    from medreason.generation.packing import PackedSequences

    original = PackedSequences

    def counted(**fields: Tensor) -> PackedSequences:
        positions = torch.arange(fields["input_ids"].shape[1])
        return original(**fields | {"position_ids": positions.expand_as(fields["position_ids"])})

    monkeypatch.setattr(packing, "PackedSequences", counted)
    trainer = built(composed(*SMALL, "method.trl.max_steps=1"), tmp_path)
    with pytest.raises(ValueError, match=r"differ from TRL's by .*does not follow mask"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(("rounding", "refused"), [(0.0, True), (0.04, True), (0.06, False)])
def test_difference_from_trl_is_judged_by_that_of_trl_from_itself(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounding: float,
    refused: bool,
) -> None:
    monkeypatch.setattr(sharing_check, "mean_differences", lambda *_: (0.2, rounding))
    trainer = built(composed(*SMALL, "hardware.precision=bfloat16"), tmp_path)
    assert isinstance(trainer, GroupedGRPOTrainer)
    row = {"image": object()}
    if not refused:
        return trainer._check_sharing(row)
    with pytest.raises(ValueError, match=r"differ from TRL's by 0\.2, more than 0\.1"):
        trainer._check_sharing(row)


def test_trl_differs_from_itself_in_a_batch_of_another_shape(
    composed: Compose, tmp_path: Path
) -> None:
    trainer = built(composed(*SMALL, "hardware.precision=bfloat16"), tmp_path)
    assert isinstance(trainer, GroupedGRPOTrainer)
    row = next(iter(trainer.get_train_dataloader()))[0]
    difference, rounding = sharing_check.mean_differences(trainer, trainer.shared_logps, row)
    assert 0 < rounding < 0.05
    assert difference < 4 * rounding


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("blocks", [True, False])
def test_attention_that_drops_the_mask_is_found_in_any_precision(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, blocks: bool
) -> None:
    def maskless(*inputs: Any, **more: Any) -> tuple[Tensor, None]:
        return sdpa_attention_forward(*inputs[:4], **more | {"attention_mask": None})

    def kernel(*inputs: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
        return scaled_dot_product_attention(*inputs, **how)

    if blocks:
        monkeypatch.setattr(packed_attention, "scaled_dot_product_attention", kernel)
    else:
        monkeypatch.setattr(Qwen2VLPreTrainedModel, "_supports_attention_backend", False)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", maskless)  # pyright: ignore[reportArgumentType]
    trainer = built(
        composed(*SMALL, "method.trl.max_steps=1", f"hardware.precision={precision}"), tmp_path
    )
    with pytest.raises(ValueError, match=r"the same with another mask: it does not follow it"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_cut_groups_and_a_model_without_mrope_are_named(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = built(composed(*SMALL), tmp_path)
    assert sharing_obstacles(trainer) == []
    trainer.args.per_device_train_batch_size = 6
    assert sharing_obstacles(trainer) == ["6 rows a device cut groups of 4"]
    trainer.args.per_device_train_batch_size = 8
    monkeypatch.delattr(type(trainer.model.model), "get_rope_index")
    assert sharing_obstacles(trainer) == [
        f"{type(trainer.model).__name__} takes no mRoPE positions"
    ]


def test_rows_that_are_not_whole_groups_are_refused(composed: Compose) -> None:
    once = OncePerQuestionProcessor(load_processor(composed("method=grpo").model), 2)
    conversations = [[{"role": "user", "content": text}] for text in ("Which?", "Where?")]
    with pytest.raises(ValueError, match=r"does not hold whole groups of 2 completions"):
        once.apply_chat_template(conversations, tokenize=True)


def test_reference_is_the_start_model_or_there_is_none(composed: Compose, tmp_path: Path) -> None:
    assert grpo._reference_arguments(composed("method=grpo", "method.trl.beta=0")) == {}
    with_beta = ("method=grpo", "method.trl.beta=0.04", "model.revision=abc")
    assert grpo._reference_arguments(composed(*with_beta)) == {
        "model_init_kwargs": {"device_map": None, "revision": "abc"}
    }
    assert grpo._reference_arguments(composed(*with_beta, "adapter=lora_r8")) == {}
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"method.trl.beta=0.04.*an adapter.*action=export"):
        grpo._reference_arguments(composed(*with_beta, f"model.path={tmp_path}"))


def test_reference_goes_whole_to_the_device_of_the_training(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL has transformers leave on the CPU what does not fit on a GPU, here meta with a MB."""
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(trl_utils, "PartialState", lambda: on_gpu)
    room = {"meta": 10**6, "cpu": 10**9}
    monkeypatch.setattr(placement, "get_balanced_memory", lambda *_, **__: room)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    trainer = built(composed(*SMALL, "method.trl.beta=0.04"), tmp_path)
    assert isinstance(trainer.ref_model, PreTrainedModel)
    assert {tensor.device.type for tensor in trainer.ref_model.parameters()} == {"meta"}


@pytest.mark.parametrize("products", [True, False])
def test_reference_embeds_patches_as_the_policy(
    composed: Compose, tmp_path: Path, products: bool
) -> None:
    config = composed(*SMALL, "method.trl.beta=0.04")
    trainer = built(config, tmp_path, patch_products=products)
    for model in (trainer.model, trainer.ref_model):
        assert isinstance(model, PreTrainedModel)
        assert multiplies_patches(model) == products


@pytest.mark.parametrize("rollout", ["grouped", "trl"])
def test_reference_with_products_in_bfloat16_gives_the_same_bits(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollout: str
) -> None:
    config = composed(
        *("modality=ct", "method.prompts_per_step=1", "hardware.per_device_prompts=1"),
        *("method.trl.num_generations=2", "method.trl.max_completion_length=4"),
        *("hardware.precision=bfloat16", "method.trl.beta=0.04", f"rollout={rollout}"),
    )
    logps, sizes = [], []
    for name in ("rounded", "float32"):
        if name == "float32":
            monkeypatch.setattr(grpo, "_round_products_of_reference", lambda *_: None)
        trainer = built(config, tmp_path / name)
        force_completions(trainer)
        rows = next(iter(trainer.get_train_dataloader()))
        logps.append(trainer._generate_and_score_completions(rows)["ref_per_token_logps"])
        assert trainer.ref_model is not None
        sizes.append(sum(p.nbytes for p in trainer.ref_model.parameters()))
    assert torch.equal(*logps)
    assert sizes[0] < 0.7 * sizes[1]
    assert memory_estimate._reference(config, meta_model(config.model)) == sizes[0]


def constant_then_varied(trainer: GRPOTrainer, constant_calls: int) -> list[list[list[int]]]:
    """Rewards that are equal for the first calls; returns the completions of each call."""
    calls: list[list[list[int]]] = []

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        calls.append([list(ids) for ids in completion_ids])
        varied = len(calls) > constant_calls
        return [float(i % 2) if varied else 1.0 for i in range(len(completion_ids))]

    trainer.reward_funcs[:] = [reward]
    trainer.reward_func_names[:] = ["varied"]
    trainer.reward_processing_classes[:] = [None]
    trainer.reward_weights = torch.ones(1)
    return calls


@pytest.mark.parametrize(
    ("constant_calls", "redrawn", "skipped"), [(0, 0, 0), (1, 4, 0), (9, 8, 4)]
)
def test_groups_of_equal_rewards_are_sampled_again(
    composed: Compose, tmp_path: Path, constant_calls: int, redrawn: int, skipped: int
) -> None:
    trainer = built(
        composed(
            *SMALL,
            *("method.trl.beta=0.0", "method.trl.max_steps=1", "rollout.dynamic_sampling=2"),
            "method.trl.temperature=1.5",
        ),
        tmp_path,
    )
    calls = constant_then_varied(trainer, constant_calls)
    trainer.train()
    (row,) = (row for row in trainer.state.log_history if "loss" in row)
    assert (row["redrawn_groups"], row["skipped_groups"]) == (redrawn, skipped)
    assert len(calls) == {0: 1, 4: 2, 8: 3}[redrawn]
    assert all(earlier != later for earlier, later in itertools.pairwise(calls))


def test_dynamic_sampling_is_part_of_the_train_key_and_needs_shared_prompts(
    composed: Compose, tmp_path: Path
) -> None:
    once, twice = composed("method=grpo"), composed("method=grpo", "rollout.dynamic_sampling=2")
    drawn_again = [train_parts(c, "data", "model")["rollout"] for c in (once, twice)]
    assert [rollout["dynamic_sampling"] for rollout in drawn_again] == [0, 2]
    with pytest.raises(ValueError, match=r"rollout.dynamic_sampling=2 needs rollout=grouped"):
        composed("rollout=trl", "rollout.dynamic_sampling=2")
    with pytest.raises(ValueError, match=r"without it there is no rollout.dynamic_sampling=1"):
        built(
            composed(
                *SMALL,
                *("method.trl.repetition_penalty=1.3", "rollout.fallback=unshared"),
                "rollout.dynamic_sampling=1",
            ),
            tmp_path,
        )


def test_frozen_vision_tower_encodes_an_image_once_in_all_steps_and_runs(
    composed: Compose, tmp_path: Path
) -> None:
    adapted = ("adapter=lora_r8", "method.trl.beta=0.04", "method.trl.max_steps=2")
    config = composed(*SMALL, *adapted, "method.trl.num_train_epochs=2")
    counts = []
    for place in ("first", "second"):
        trainer = built(config, tmp_path / place)
        force_completions(trainer)
        trainer.train()
        assert isinstance(trainer, GroupedGRPOTrainer)
        (cache,) = (cache for cache in trainer._vision_caches.values() if cache is not None)
        counts.append(cache.encoded)
    assert 0 < counts[0] <= len({sample.image for sample in QUESTIONS})
    assert counts[1] == 0
    assert list((config.folder / "cache" / "vision").rglob("*.safetensors"))


@pytest.mark.parametrize("keeps", [True, False])
def test_graphs_stay_beside_the_update_or_are_freed_before_it(
    composed: Compose, tmp_path: Path, keeps: bool
) -> None:
    steps = ("method=grpo", *SMALL, "method.trl.max_steps=2", "method.trl.beta=0.0")
    steps += ("rollout.draft_tokens=0",)  # which would go without graphs
    trainer = built(composed(*steps), tmp_path)
    assert isinstance(trainer, GroupedGRPOTrainer)
    graphs, held = DecodingGraphs(), []
    trainer._graphs, trainer.keeps_graphs = graphs, keeps
    compute_loss = trainer._compute_loss

    def observed(*args: Any) -> Tensor:
        held.append(graphs.kept_bytes)
        return compute_loss(*args)

    trainer._compute_loss = observed
    trainer.train()
    assert len(held) == 4
    assert all(size > 0 for size in held) if keeps else not any(held)
    plain = built(composed(*steps), tmp_path / "plain")
    plain.train()
    rewards = [
        [row["reward"] for row in each.state.log_history if "reward" in row]
        for each in (trainer, plain)
    ]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)


def test_a_card_says_whether_graphs_stay(composed: Compose) -> None:
    card = ("method=grpo", "model=qwen2_vl_2b", "hardware=gpu", "method.trl.beta=0.0")
    for room, keeps in ((1000, True), (40, False)):
        config = composed(*card, "hardware.per_device_prompts=1", f"hardware.device_gb={room}")
        assert grpo._graph_settings(config, []) == {"cuda_graphs": True, "keep_graphs": keeps}
    assert grpo._graph_settings(composed("method=grpo", "hardware=cpu"), []) == {}
