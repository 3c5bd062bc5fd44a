"""A state.json that another version of medreason wrote is refused by name, never misread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medreason.runs.run_folder import RunFolder


@pytest.mark.parametrize(
    ("removed", "added"),
    [
        ("", "colour"),
        ("trainable_weights", "trainable"),
        ("trained", ""),
    ],
)
def test_state_with_other_keys_is_refused_by_name(tmp_path: Path, removed: str, added: str) -> None:
    folder = RunFolder(tmp_path)
    folder.update(state="done", trained=True)
    path = tmp_path / "state.json"
    values = json.loads(path.read_text())
    values.pop(removed, None)
    path.write_text(json.dumps(values | ({added: 1} if added else {})))
    with pytest.raises(ValueError, match=rf"state\.json.*{added or removed}"):
        folder.state()


def test_state_of_before_a_step_could_be_chosen_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    state = folder.update(state="done", trained=True)
    path = tmp_path / "state.json"
    values = json.loads(path.read_text())
    del values["chosen_step"], values["chosen_because"], values["evaluate_drafts"]
    path.write_text(json.dumps(values))
    assert folder.state() == state


def test_state_with_one_evaluation_a_sweep_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update(state="done", trained=True, sweeps={"runs": ["0123456789ab"]})
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace('[\n   "0123456789ab"\n  ]', '"0123456789ab"'))
    with pytest.raises(ValueError, match=r"another version.*action=evaluate model\.path=.*model"):
        folder.state()
