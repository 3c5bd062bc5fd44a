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
