"""Model folders: where a model is on disk, whether it is complete, which one it is. No torch."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from medreason.config import Config, Model, hub
from medreason.runs import status
from medreason.runs.files import read_json
from medreason.runs.run_folder import EvaluationFolder, RunFolder

BUILT_IN = "tiny"
"""As `model.path` the model in this package."""
EMBEDDED = Path(__file__).parent / "tiny" / "weights"
"""The tiny model that ships with the package."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_READ_BYTES = 1 << 20
"""Of each end of a file: reading gigabytes of weights for a digest would take minutes."""


def resolve(path: str) -> str:
    """A folder, or a hub id where no folder of that name exists."""
    return str(EMBEDDED) if path == BUILT_IN else path


def of_run(model: Model) -> Model:
    """The model in a run folder, where `path` is one; any other, and a served one, as it is.

    Raises:
        ValueError: the run has no weights of its own, or none yet.
    """
    if model.is_served or not model.path:
        return model
    folder = RunFolder(Path(model.path))
    if folder.model.is_dir():
        return replace(model, path=str(folder.model))
    if (folder.path / "state.json").exists():
        state = folder.state()
        why = (
            "the run of a start model, which leaves no weights; give the start model, as its "
            "command did"
            if state.trained
            else "this run is unfinished, "
            + status.status(EvaluationFolder(folder, state.evaluating), state)
        )
        raise ValueError(f"model.path={model.path!r}: {why}")
    return model


def with_model_of_run(config: Config) -> Config:
    """The configuration with `of_run` of its model and, where that is only evaluated, the run it
    is of.

    Raises ValueError as `of_run`.
    """
    model = of_run(config.model)
    evaluated = config.method.name == "base" and not model.is_served
    weights_of = run_of(model.path) if evaluated and model.path else ""
    return replace(config, model=model, weights_of=weights_of)


def run_of(path: str) -> str:
    """Method and key of the run whose model, checkpoint or export is in a folder, as
    `sft bcb22e6fd3d3`; the name of a run folder that was given another; empty of other models."""
    folder = Path(path)
    if folder.name == "model" and (folder.parent / "state.json").exists():
        return _short(folder.parent.name)
    above = folder.parent.parent
    if folder.parent.name == "checkpoints" and (above / "state.json").exists():
        return f"{_short(above.name)} {folder.name}"
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    title = _TITLE_OF_EXPORT.search(text)
    return _short(title[1]) if title else ""


def _short(name: str) -> str:
    of_run = _RUN_NAME.fullmatch(name)
    return f"{of_run[1]} {of_run[2]}" if of_run else "_".join(name.split())


_RUN_NAME = re.compile(r"(\w+)-.*-([0-9a-f]{12})")
_TITLE_OF_EXPORT = re.compile(r"^tags: \[.*\bmedreason\]\n---\n# (\w+-\S+-[0-9a-f]{12})$", re.M)
"""Of the card that action=export writes: `report.model_card`."""


def check(path: str, key: str = "model.path") -> None:
    """Refuse a folder, the value of `key`, that cannot be loaded; hub ids are for `check_hub`.

    Raises:
        ValueError: the folder lacks its config or its weights.
    """
    folder = Path(resolve(path))
    if not folder.exists():
        if not _HUB_ID.fullmatch(path):
            hint = (
                "; name a revision by model.revision" if _HUB_ID.match(path) and "@" in path else ""
            )
            hint = _nearest(path) or hint
            raise ValueError(f"{key}={path!r}: no such folder, and not a hub id (owner/name){hint}")
        return
    kinds = ("config.json", "adapter_config.json")
    if not any((folder / name).exists() for name in kinds):
        hint = f"; give {folder / 'model'}" if (folder / "model").is_dir() else ""
        raise ValueError(f"{key}={path!r}: neither {kinds[0]} nor {kinds[1]} in the folder{hint}")
    name = "adapter_model" if (folder / kinds[1]).exists() else "model"
    read_json(folder / (kinds[1] if name == "adapter_model" else kinds[0]))
    for part in (folder / name for name in _OF_PROCESSOR):
        if part.exists():
            read_json(part)
    _refuse_missing_weights(folder, name, key, path)
    for file in _weights(folder):
        tensors(file)


def _nearest(path: str) -> str:
    """`; did you mean ...?` with the run folder or model whose name begins as the first missing
    part of a path, the newest before others, or is spelt most like it; empty where none is."""
    missing = Path(path)
    while not os.path.exists(missing.parent):  # False of what nobody may read
        missing = missing.parent
    files = ("state.json", "config.json", "adapter_config.json")
    there: list[Path] = []
    with contextlib.suppress(OSError):  # a file, or a folder that nobody may read
        folders = [*missing.parent.iterdir()]
        there = [each for each in folders if any(os.path.isfile(each / f) for f in files)]
    begin = [each for each in there if each.name.startswith(missing.name)]
    if begin:
        return f"; did you mean {max(begin, key=lambda each: each.stat().st_mtime)}?"
    near = difflib.get_close_matches(missing.name, [each.name for each in there], n=1)
    return f"; did you mean {missing.parent / near[0]}?" if near else ""


_OF_PROCESSOR = (
    *("tokenizer.json", "tokenizer_config.json"),
    *("processor_config.json", "preprocessor_config.json"),
)
"""JSON files of a model's folder of which transformers does not say that they are cut off."""


def check_hub(path: str, revision: str | None = None, key: str = "model.path") -> None:
    """Refuse a hub id, the value of `key`, of which neither cache nor hub gives a configuration.
    One small file is fetched where it is not cached; a folder is left to `check`.

    Raises:
        ValueError: no such model or revision, no access to it, or no hub to be reached.
    """
    if Path(resolve(path)).exists():
        return
    hub.read_cache_if_unreached(f"{key}={path}")
    from huggingface_hub import errors, hf_hub_download  # 0.3 s

    where = f"{key}={path!r}" + (f", revision {revision!r}" if revision else "")
    try:
        try:
            hf_hub_download(path, "config.json", revision=revision)
        except errors.RemoteEntryNotFoundError:
            hf_hub_download(path, "adapter_config.json", revision=revision)
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(
            f"{where}: not in the cache, and the hub is not reached (or HF_HUB_OFFLINE is set); "
            f"fetch it with `hf download {path}` where there is a network, or give a folder"
            f"{_nearest(path)}"
        ) from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{where}: the hub asks to accept its terms; do so on its page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{where}: no such model on the hub, or a private one; correct the name, or log in "
            f"with `hf auth login`{_nearest(path)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{where}: no such branch, tag or commit; correct it") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(
            f"{where}: neither config.json nor adapter_config.json; give a model in the layout of "
            "transformers"
        ) from error


def _refuse_missing_weights(folder: Path, name: str, key: str, path: str) -> None:
    """Raise ValueError unless the weights are there under the names that are loaded."""
    if not _weights(folder):
        others = [f.name for f in sorted(folder.iterdir()) if f.suffix in (".bin", ".pt", ".gguf")]
        remedy = (
            f"{others[0]} is not read: load it where it opens, and save it with save_pretrained"
            if others
            else "save the model with save_pretrained or copy its weights there"
        )
        raise ValueError(f"{key}={path!r}: no weights (*.safetensors) in the folder; {remedy}")
    indices = list(folder.glob("*.safetensors.index.json"))
    for index in indices:
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise ValueError(f"{index}: has no weight_map; copy the file again")
        if absent := sorted(n for n in set(names.values()) if not (folder / n).exists()):
            raise ValueError(
                f"{index} names {absent[0]}, which is not in the folder; copy it there"
            )
        in_files = {file: tensors(folder / file) for file in sorted(set(names.values()))}
        for tensor, file in names.items():
            if tensor not in in_files[file]:
                raise ValueError(
                    f"{index} says that {tensor} is in {file}, which does not have it: the two are "
                    "of different models; copy all files of one model there"
                )
    if not indices and not (folder / f"{name}.safetensors").exists():
        raise ValueError(
            f"{key}={path!r}: {_weights(folder)[0].name} is not loaded without "
            f"{name}.safetensors.index.json; copy that and all files that it names, or rename a "
            f"single file to {name}.safetensors"
        )


def tensors(file: Path) -> dict[str, list[int]]:
    """Tensor -> shape, from the header of a safetensors file.

    Raises ValueError where it is another file, or cut off.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ValueError(f"{file}: a pointer of Git LFS, not the weights; run git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise ValueError(f"{file}: empty or cut off, or no safetensors; copy the weights again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: no safetensors ({error}); copy the weights again") from error
    header.pop("__metadata__", None)
    expected = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
    if size != expected:
        raise ValueError(f"{file}: {size} bytes of {expected}; copy the weights again")
    return {name: tensor["shape"] for name, tensor in header.items()}


_FAMILIES = {
    "qwen2_vl": "visual.blocks.0.mlp.fc1.weight",
    "qwen2_5_vl": "visual.blocks.0.mlp.gate_proj.weight",
    "qwen3_vl": "visual.deepstack_merger_list.0.norm.weight",
}
"""`model_type` -> the end of the name of a tensor that no other of these families has."""


def refuse_foreign(path: str, key: str = "model.path") -> None:
    """Refuse a whole model in a folder that is of no architecture known here, takes no images, or
    whose weights are of another family or depth than its config.json says.

    Raises:
        ValueError: names both.
    """
    folder = Path(resolve(path))
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not any(word in name for name in config for word in ("vision", "image", "vq")):
        raise ValueError(
            f"{key}={path!r}: config.json describes a model of text alone ({kind!r}); give one "
            "that takes images, such as Qwen/Qwen2-VL-2B-Instruct"
        )
    if not _is_known(kind):
        own = ", and code that comes with a checkpoint is not run" if "auto_map" in config else ""
        raise ValueError(
            f"{key}={path!r}: config.json describes {kind!r}, an architecture that transformers "
            f"{version('transformers')} has not{own}; give a model of another, such as "
            "Qwen/Qwen2-VL-2B-Instruct"
        )
    names = shapes(folder)
    for family, tensor in _FAMILIES.items():
        if kind in _FAMILIES and family != kind and any(name.endswith(tensor) for name in names):
            raise ValueError(
                f"{key}={path!r}: config.json describes a {kind}, and the weights are of a "
                f"{family}; copy config.json and weights of one model there"
            )
    layers = {int(n[1]) for name in names if (n := _LANGUAGE_LAYER.search(name))}
    expected = config.get("text_config", config).get("num_hidden_layers")
    if kind in _FAMILIES and layers and expected and max(layers) + 1 != expected:
        raise ValueError(
            f"{key}={path!r}: config.json describes {expected} layers, and the weights have "
            f"{max(layers) + 1}; copy config.json and weights of one model there"
        )


_LANGUAGE_LAYER = re.compile(r"^model\.(?:language_model\.)?layers\.(\d+)\.")


def _is_known(kind: object) -> bool:
    """Whether transformers has such a model; read from its list of names, since to import it takes
    seconds."""
    package = find_spec("transformers")
    assert package
    assert package.origin
    names = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    return f'("{kind}", ' in names.read_text(encoding="utf-8")


def refuse_other_option(path: str, option: str) -> None:
    """Raise ValueError where a folder holds another family than the option of the group `model`
    that was chosen, whose name begins with its family."""
    file = Path(resolve(path)) / "config.json"
    kind = read_json(file).get("model_type") if file.exists() else None
    expected = next((family for family in _FAMILIES if option.startswith(f"{family}_")), kind)
    if kind in _FAMILIES and kind != expected:
        raise ValueError(
            f"model.path={path!r} holds a {kind}, and model={option} is a {expected}: its settings "
            f"are not those of that model; choose an option of {kind}, or another folder"
        )


def refuse_quantized(path: str, key: str = "model.path") -> None:
    """Raise ValueError for a folder whose weights are in few bits: they can't be trained, and an
    adapter merged into them is rounded away."""
    file = Path(resolve(path)) / "config.json"
    quantized = read_json(file).get("quantization_config") if file.exists() else None
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{key}={path!r}: its weights are quantized ({method}), to be neither trained nor "
            "merged with an adapter; give the model that it was made of (adapter=qlora quantizes "
            "while it loads)"
        )


def is_adapter(path: str) -> bool:
    return (Path(resolve(path)) / "adapter_config.json").exists()


def fingerprint(path: str) -> str:
    """A digest of a folder's model, by sizes and both ends of its files. Empty for a hub id."""
    folder = Path(resolve(path))
    if not folder.exists():
        return ""
    state = hashlib.sha256()
    for file in [*_weights(folder), *sorted([*folder.glob("*.json"), *folder.glob("*.jinja")])]:
        size = file.stat().st_size
        state.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            state.update(stream.read(_READ_BYTES))
            stream.seek(max(size - _READ_BYTES, 0))
            state.update(stream.read(_READ_BYTES))
    return state.hexdigest()[:16]


def shapes(folder: Path) -> dict[str, list[int]]:
    """Tensor -> shape of all weights in a folder; raises ValueError where a file is cut off."""
    return {name: shape for file in _weights(folder) for name, shape in tensors(file).items()}


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
