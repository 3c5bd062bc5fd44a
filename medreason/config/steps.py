"""What `model/steps` sets for a model that needs other steps than the papers'.

For the tiny model they stand in our own files, beside the methods that they change: nothing is said
of them. Somebody's own method or steps may come as a surprise.
"""

from __future__ import annotations

from pathlib import Path

from hydra.conf import RuntimeConf
from omegaconf import DictConfig, OmegaConf

from medreason.config.files import CONF
from medreason.config.key_names import leaves
from medreason.console import as_typed

_GROUP = "model/steps"
_CHOICE = f"{_GROUP}@_global_"
_ACTIONS = ("train", "plan", "bench")


def line(composed: DictConfig, runtime: RuntimeConf, *, brief: bool = False) -> str | None:
    """Which file applies and what it sets, in `brief` how many values; None where none does, where
    nothing trains, and where file and method are this package's."""
    option, method = runtime.choices.get(_CHOICE), runtime.choices.get("method")
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    files = [file for f in folders if (file := f / _GROUP / f"{option}.yaml").is_file()]
    if not files or composed.action.name not in _ACTIONS:
        return None
    methods = [file for f in folders if (file := f / "method" / f"{method}.yaml").is_file()]
    if all(file.is_relative_to(CONF) for file in (files[0], *methods)):
        return None
    values = leaves(OmegaConf.to_container(OmegaConf.load(files[0])))
    in_effect = [
        f"{key}={as_typed(v)}" for key, v in values if OmegaConf.select(composed, key) == v
    ]
    if not in_effect:
        return None
    name = files[0].relative_to(files[0].parents[3])  # FOLDER/model/steps/...
    listed = f"{len(in_effect)} values" if brief else ", ".join(in_effect)
    return (
        f"model={composed.model.name}: {name} sets {listed}; "
        f"'~{_CHOICE}' keeps the values of method={composed.method.name}"
    )
