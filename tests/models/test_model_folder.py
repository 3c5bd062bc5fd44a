"""A model folder that cannot be loaded is refused by name before anything is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import errors

from medreason import config as configuration
from medreason.config import Config, Model
from medreason.config.endpoint import ServedModel
from medreason.execution import launch
from medreason.execution.launch import Decision
from medreason.models import adapters, model_folder
from medreason.models.model_folder import EMBEDDED
from medreason.report import model_card
from medreason.report.names import arm_names
from medreason.runs import keys
from medreason.runs.files import write_json
from medreason.runs.run_folder import RunFolder

Compose = Callable[..., Config]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def test_whole_folder_a_hub_id_and_the_embedded_model_pass(copy: Path) -> None:
    for path in (str(copy), "Qwen/Qwen2-VL-2B-Instruct", "tiny"):
        model_folder.check(path)


def test_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.path='\./nowhere': no such folder"):
        model_folder.check("./nowhere")


def test_the_nearest_run_folder_of_a_mistyped_path_is_named(tmp_path: Path) -> None:
    for name in ("grpo-ct-0123456789ab", "sft-ct-0123456789ab"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "state.json", {})
    (tmp_path / "grpo-notes").mkdir()  # no run
    for typed in ("grpo", "grpo/model", "grpo-ct-0123456789ac"):
        with pytest.raises(
            ValueError, match=rf"\); did you mean {tmp_path}/grpo-ct-0123456789ab\?$"
        ):
            model_folder.check(f"{tmp_path}/{typed}")
    with pytest.raises(ValueError, match=r"not a hub id \(owner/name\)$"):
        model_folder.check(f"{tmp_path}/none")


@pytest.mark.parametrize(
    ("file", "words"),
    [("model.safetensors", "no weights"), ("config.json", "neither config.json nor adapter")],
)
def test_folder_that_lacks_a_part_is_refused(copy: Path, file: str, words: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ValueError, match=words):
        model_folder.check(str(copy))


def test_folder_around_a_model_names_the_model(copy: Path) -> None:
    with pytest.raises(ValueError, match=r"neither config\.json nor .*; give \S+/model$"):
        model_folder.check(str(copy.parent))


def test_empty_weights_file_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors: empty or cut off"):
        model_folder.check(str(copy))


def test_shard_that_the_index_names_and_the_folder_lacks_is_named(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-2.safetensors"}}'
    )
    with pytest.raises(ValueError, match=r"model-2\.safetensors"):
        model_folder.check(str(copy))


def test_fingerprint_is_that_of_the_weights_wherever_they_lie(copy: Path) -> None:
    assert model_folder.fingerprint(str(copy)) == model_folder.fingerprint("tiny")
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert model_folder.fingerprint(str(copy)) != model_folder.fingerprint("tiny")
    assert model_folder.fingerprint("Qwen/Qwen2-VL-2B-Instruct") == ""


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"{broken", r"config\.json: cut off or not JSON"),
        ("config.json", b"[]", r"config\.json: holds a list, not an object"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
        ("model.safetensors", b"<html>not found</html>", "no safetensors; copy the weights"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}" + b"?", r"11 bytes of 10; copy"),
    ],
)
def test_a_damaged_file_is_named(copy: Path, file: str, content: bytes, words: str) -> None:
    (copy / file).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        model_folder.check(str(copy))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is not read: load it where it opens"),
        ("model-Q4.gguf", "model-Q4.gguf is not read"),
        ("consolidated.safetensors", r"rename a single file to model\.safetensors"),
        ("model-00001-of-00002.safetensors", r"is not loaded without model\.safetensors\.index"),
    ],
)
def test_weights_under_a_name_that_is_not_loaded_are_named(
    copy: Path, name: str, words: str
) -> None:
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(ValueError, match=words):
        model_folder.check(str(copy))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct@main", r"name a revision by model\.revision"),
        ("https://huggingface.co/Qwen/Qwen2-VL-2B", "not a hub id"),
        (" Qwen/Qwen2-VL-2B", "not a hub id"),
    ],
)
def test_what_is_no_hub_id_is_refused(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model_folder.check(path)


def test_hub_id_that_neither_cache_nor_hub_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.path='no/such': not in the cache.*hf download"):
        model_folder.check_hub("no/such")
    model_folder.check_hub("tiny")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError, "accept its terms"),
        (errors.RepositoryNotFoundError, r"judge\.model='a/b', revision 'v9': no such model"),
        (errors.RevisionNotFoundError, "no such branch, tag or commit"),
        (errors.RemoteEntryNotFoundError, "neither config.json nor adapter_config.json"),
    ],
)
def test_what_the_hub_answers_becomes_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: type[errors.HfHubHTTPError], words: str
) -> None:
    def refuse(*_: object, **_settings: object) -> None:
        raise error.__new__(error, "404")  # its response is of a library that changes with versions

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=words):
        model_folder.check_hub("a/b", "v9", "judge.model")


def test_a_model_of_text_alone_and_quantized_weights_are_refused(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    with pytest.raises(ValueError, match="a model of text alone \\('qwen2'\\)"):
        adapters.check(str(copy))
    changed(copy / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match=r"quantized \(awq\).*adapter=qlora"):
        model_folder.refuse_quantized(str(copy))
    model_folder.refuse_quantized("tiny")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' .* merge another into its base"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type='PROMPT_TUNING'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path .* is None; write there"),
        ({"base_model_name_or_path": "adapter"}, "is an adapter itself; merge it"),
        ({"base_model_name_or_path": "empty"}, "base_model_name_or_path='empty': neither config"),
        ({"base_model_name_or_path": "four_bit"}, r"quantized \(bitsandbytes\)"),
    ],
)
def test_an_adapter_of_another_kind_or_without_its_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    four_bit = Path(shutil.copytree(EMBEDDED, tmp_path / "four_bit"))
    changed(four_bit / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    values = {"peft_type": "LORA", "base_model_name_or_path": str(EMBEDDED)}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    adapters.check("adapter")
    changed(adapter / "adapter_config.json", **settings)
    with pytest.raises(ValueError, match=words):
        adapters.check("adapter")


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    assert model_folder.of_run(Model(path=f"{tmp_path}/run")).path == f"{tmp_path}/run/model"
    for path in (f"{tmp_path}/run/model", "tiny", "owner/name"):
        assert model_folder.of_run(Model(path=path)).path == path
    served = Model(path=f"{tmp_path}/run", endpoint=ServedModel(base_url="http://a/v1", model="m"))
    assert model_folder.of_run(served) == served


def test_a_model_of_a_run_is_called_by_its_run(tmp_path: Path, composed: Compose) -> None:
    run = RunFolder(tmp_path / "outputs/runs/sft-tiny-ct-all-2995d27a8c63")
    shutil.copytree(EMBEDDED, run.model)
    run.update(trained=True)
    shutil.copytree(EMBEDDED, run.checkpoints / "checkpoint-50")
    other = RunFolder(tmp_path / "my best")
    shutil.copytree(EMBEDDED, other.model)
    other.update(trained=True)
    configuration.write(composed("method=sft"), run.config)
    run.update(train_parts={"data": "d"})
    exported = Path(shutil.copytree(EMBEDDED, tmp_path / "exported"))
    card = model_card.card(composed(), run.model, "transformers")
    (exported / "README.md").write_text(card)
    expected = {
        run.path: "sft 2995d27a8c63",
        run.model: "sft 2995d27a8c63",
        run.checkpoints / "checkpoint-50": "sft 2995d27a8c63 checkpoint-50",
        exported: "sft 2995d27a8c63",
        other.path: "my_best",
        "tiny": "",
        "Qwen/Qwen2-VL-2B-Instruct": "",
    }
    for path, weights_of in expected.items():
        config = model_folder.with_model_of_run(composed("method=base", f"model.path='{path}'"))
        assert config.weights_of == weights_of, path
        assert (config.run_name == "base-tiny") == (not weights_of)
        assert arm_names([config]) == [weights_of or "base"]
        trained = model_folder.with_model_of_run(composed("method=sft", f"model.path='{path}'"))
        assert (trained.weights_of, trained.run_name) == ("", "sft-tiny-all-all")
        for parts in (keys.start_parts, keys.training_parts, keys.evaluation_ground):
            assert parts(config) == parts(replace(config, weights_of=""))
        assert Decision.EVALUATE_START.value == "start model, nothing to train"
        said = launch.in_words(Decision.EVALUATE_START, config)
        model = f"the model of {weights_of}" if weights_of else "start model"
        assert said == f"{model}, nothing to train"


def test_weights_of_another_family_or_depth_than_config_json_says_are_refused(
    copy: Path, qwen2_5_vl: Path
) -> None:
    adapters.check(str(qwen2_5_vl))
    shutil.copy(qwen2_5_vl / "model.safetensors", copy)
    with pytest.raises(ValueError, match=r"a qwen2_vl, and the weights are of a qwen2_5_vl; copy"):
        adapters.check(str(copy))
    shutil.copy(EMBEDDED / "model.safetensors", copy)
    config = json.loads((copy / "config.json").read_text())
    changed(copy / "config.json", text_config=config["text_config"] | {"num_hidden_layers": 36})
    with pytest.raises(ValueError, match=r"describes 36 layers, and the weights have \d;"):
        adapters.check(str(copy))


def test_an_architecture_that_transformers_has_not_is_refused(copy: Path) -> None:
    changed(copy / "config.json", model_type="my_vl", auto_map={"AutoModel": "my.Model"})
    with pytest.raises(ValueError, match=r"'my_vl', an architecture .* code that comes with a che"):
        adapters.check(str(copy))


def test_a_folder_of_another_family_than_the_option_is_refused(qwen2_5_vl: Path) -> None:
    model_folder.refuse_other_option(str(qwen2_5_vl), "qwen2_5_vl_3b")
    model_folder.refuse_other_option(str(qwen2_5_vl), "tiny")
    model_folder.refuse_other_option("Qwen/Qwen2-VL-2B-Instruct", "qwen3_vl_2b")
    with pytest.raises(
        ValueError, match=r"holds a qwen2_5_vl, and model=qwen2_vl_2b is a qwen2_vl"
    ):
        model_folder.refuse_other_option(str(qwen2_5_vl), "qwen2_vl_2b")


def test_a_shard_of_another_model_is_named(copy: Path) -> None:
    names = dict.fromkeys(["of.another.model"], "model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(
        ValueError, match=r"of\.another\.model is in model\.safetensors, which does"
    ):
        model_folder.check(str(copy))


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"]
)
def test_a_processor_that_was_cut_off_is_named(copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{file}: cut off or not JSON"):
        model_folder.check(str(copy))
