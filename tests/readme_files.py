"""The files that READMEs show: code whose first line is a comment with a path."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"```(?:python|yaml)\n(# ([\w/]+\.\w+)\n.*?)```", re.DOTALL)


def shown_in(page: str) -> dict[str, str]:
    """Path -> content of the files that a README of this repository shows."""
    text = (Path(__file__).parents[1] / page).read_text()
    return {name: content for content, name in _BLOCK.findall(text)}


def write(files: dict[str, str], folder: Path) -> None:
    """Write them below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
