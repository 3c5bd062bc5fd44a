"""A function a user wrote is the source it is made of; another is the version installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from medreason.config import sources

FILES = {
    "rewards_of_mine.py": """
import json, numpy, typing
import project.deep.words as words
from project import lengths
from neighbour import *
def short(reply, sample): return lengths.limit(reply) + words.count(reply)
def late(reply, sample):
    import imported_late
""",
    "neighbour.py": "from medreason.rewards import answer\nexplode = 1 / 1\n",
    "imported_late.py": "raise SystemExit('this must not run')\n",
    "project/__init__.py": "raise SystemExit('this must not run')\n",
    "project/lengths.py": "from . import constants\nfrom .deep.more import x\n",
    "project/constants.py": "LIMIT = 20\n",
    "project/deep/words.py": "from ... import beyond\nfrom ..other import a_name\n",  # a namespace
    "project/deep/more.py": "x = 1\n",
    "project/other.py": "import rewards_of_mine\na_name = 1\n",  # a circle
    "project/unused.py": "y = 1\n",
    "unrelated.py": "import project.unused\n",
}
USED = [name for name in FILES if name not in ("project/unused.py", "unrelated.py")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write(tmp_path / "code")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    before = {*sys.modules}
    yield tmp_path / "code"
    assert not {name.partition(".")[0] for name in {*sys.modules} - before} & {
        Path(name).parts[0].removesuffix(".py") for name in FILES
    }


def write(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    importlib.invalidate_caches()


def identity() -> str:
    return sources.identity("rewards_of_mine.short")


@pytest.mark.parametrize("name", USED)
def test_an_edit_of_any_module_it_imports_is_another_function(folder: Path, name: str) -> None:
    before = identity()
    assert before.startswith("rewards_of_mine ")
    (folder / name).write_text(FILES[name] + "# edited\n")
    assert identity() != before
    (folder / name).write_text(FILES[name])
    assert identity() == before


@pytest.mark.parametrize("name", [name for name in FILES if name not in USED])
def test_an_edit_of_a_module_it_does_not_import_changes_nothing(folder: Path, name: str) -> None:
    before = identity()
    (folder / name).write_text(FILES[name] + "# edited\n")
    assert identity() == before


def test_the_same_sources_in_another_folder_are_the_same_function(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    write(tmp_path / "moved")
    monkeypatch.syspath_prepend(str(tmp_path / "moved"))
    assert identity() == before


def test_a_module_that_does_not_parse_or_is_compiled_counts_by_its_bytes(folder: Path) -> None:
    (folder / "neighbour.py").write_text("def (")
    broken = identity()
    (folder / "neighbour.py").write_text("def ((")
    assert identity() != broken
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (folder / "neighbour.py").unlink()
    (folder / f"neighbour{suffix}").write_bytes(b"\x7fELF")
    importlib.invalidate_caches()
    compiled = identity()
    (folder / f"neighbour{suffix}").write_bytes(b"\x7fELF2")
    assert compiled not in (identity(), broken)


def test_an_installed_function_is_its_distribution_and_ours_is_medreason() -> None:
    assert sources.identity("sklearn.metrics.f1_score") == f"scikit-learn {version('scikit-learn')}"
    ours = f"medreason {version('medreason')}"
    assert sources.identity("medreason.rewards.answer.correct") == ours


def test_loose_and_standard_modules_are_known_by_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = tmp_path / "site-packages"
    loose.mkdir()
    (loose / "loose_module.py").write_text("import numpy\n")
    monkeypatch.syspath_prepend(str(loose))
    before = sources.identity("loose_module.f")
    (loose / "loose_module.py").write_text("import numpy as np\n")
    assert before.startswith("loose_module ")
    assert sources.identity("loose_module.f") != before
    assert sources.identity("statistics.mean").startswith("statistics ")
