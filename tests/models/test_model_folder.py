"""A model folder that cannot be loaded is refused by name before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medreason.models import model_folder
from medreason.models.model_folder import EMBEDDED


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def test_whole_folder_a_hub_id_and_the_embedded_model_pass(copy: Path) -> None:
    for path in (str(copy), "Qwen/Qwen2-VL-2B-Instruct", "tiny"):
        model_folder.check(path)


def test_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.path='\./nowhere': no such folder"):
        model_folder.check("./nowhere")


@pytest.mark.parametrize(
    ("file", "words"),
    [("model.safetensors", "no weights"), ("config.json", "neither config.json nor adapter")],
)
def test_folder_that_lacks_a_part_is_refused(copy: Path, file: str, words: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ValueError, match=words):
        model_folder.check(str(copy))


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
