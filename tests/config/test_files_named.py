"""Every value of a configuration is read from config.yaml as it was written."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from medreason import config as configuration
from medreason.config import Config

Compose = Callable[..., Config]
NUMBERS = ("1e5", "12e45678", "2026", "2026_11_27", "0o17", "1:30", "-1E-3", ".5", "+.inf", "0x1F")
WORDS = ("yes", "no", "null", "~", "", "=", "2026-11-27", "\x85", "a\nb\n", "\ufeff", "#", "a: b")
Part = TypeVar("Part")
texts = st.one_of(
    st.sampled_from((*NUMBERS, *WORDS)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text(string.digits + "eE+-._:xo", max_size=8),
)
# No subnormal numbers: a training in the same process may have set torch to flush them to 0.
scalars = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_subnormal=False),
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def replaced(part: Part, name: str, value: object) -> Part | None:
    """A dataclass with one field replaced, or None where its own rules refuse the value."""
    try:
        return dataclasses.replace(part, **{name: value})  # pyright: ignore[reportArgumentType]
    except ValueError:
        return None


def free_texts(config: Config) -> Iterator[tuple[str, str]]:
    """(group, field) of texts that no rule restricts; the group of a field at the top is empty."""
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if isinstance(part, str):
            yield "", field.name
        elif dataclasses.is_dataclass(part):
            for inner in dataclasses.fields(part):
                is_text = inner.type in ("str", "str | None")
                if is_text and replaced(part, inner.name, "1e5") is not None:
                    yield field.name, inner.name


@pytest.fixture
def config(composed: Compose) -> Config:
    return composed("method=rarl", "modality=[ct,oct]")


def test_texts_that_are_changed_below_are_among_those_of_users(config: Config) -> None:
    known = set(free_texts(config))
    assert {("", "sweep"), ("", "outputs"), ("model", "revision"), ("judge", "model")} <= known


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), tree=st.dictionaries(texts, trees, max_size=4))
@example(data=None, tree={"root": "2026", "table": "1e5", "12e45678": [".5", 1e-6, 1e22]})
def test_configuration_reads_back_equal_whatever_its_texts(
    config: Config, tmp_path: Path, data: st.DataObject | None, tree: dict[str, Any]
) -> None:
    for group, name in free_texts(config):
        text = data.draw(texts, label=f"{group}.{name}") if data else "1e5"
        part = getattr(config, group) if group else config
        changed = replaced(part, name, text)
        if changed is not None and group:
            changed = replaced(config, group, changed)
        config = changed or config
    method = dataclasses.replace(config.method, trl={**tree, "num_generations": 4})
    config = dataclasses.replace(config, method=method, adapter=tree)
    path = tmp_path / "config.yaml"
    configuration.write(config, path)
    assert configuration.read(path) == config
    if "${" not in path.read_text(encoding="utf-8") and "???" not in path.read_text("utf-8"):
        assert OmegaConf.to_container(OmegaConf.load(path)) == dataclasses.asdict(config)


@pytest.mark.parametrize("text", NUMBERS)
def test_text_like_a_number_is_quoted(config: Config, tmp_path: Path, text: str) -> None:
    configuration.write(dataclasses.replace(config, sweep=text), tmp_path / "config.yaml")
    assert f'sweep: "{text}"' in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["sweep"] == text
