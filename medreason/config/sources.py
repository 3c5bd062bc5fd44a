"""What a function at a `_target_` is, for the keys: the source it is made of, or who published it.

Nothing is run to find out: modules are looked up where Python would, and their import statements
read. Of a user's module the source counts, and that of the user's own modules it imports. What a
module imports by other means than an import statement, and files it reads, are not seen.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import pkgutil
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import FileFinder, ModuleSpec
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]


def identity(target: str) -> str:
    """`medreason 0.1.0` for ours, `scikit-learn 1.7.2` for a function of an installed package.

    For a user's: its module and the digest of the sources, which are independent of their folder.
    """
    module = target.rpartition(".")[0]
    package = module.partition(".")[0]
    if package == "medreason":
        return f"medreason {_version('medreason')}"
    file = _file(module)
    if file and _INSTALLED & {*file.parts} and (published := _distributions().get(package)):
        return ", ".join(sorted({f"{name} {_version(name)}" for name in published}))
    return f"{module} {_digest(module)}"


def _digest(module: str) -> str:
    """Of the sources of a module, of its packages and of the user's modules they import."""
    sources: dict[str, str] = {}
    ahead = [module]
    while ahead:
        name = ahead.pop()
        file = _file(name)
        if name in sources or file is None or (sources and not _is_users(name, file)):
            continue
        source = file.read_bytes()
        sources[name] = hashlib.sha256(source).hexdigest()
        ahead += _parents(name)
        if file.suffix == ".py":
            ahead += _imports(source, name if file.stem == "__init__" else name.rpartition(".")[0])
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:12]


def _is_users(name: str, file: Path) -> bool:
    if name.partition(".")[0] == "medreason" or _INSTALLED & {*file.parts}:
        return False
    return not any(file.is_relative_to(folder) for folder in _STANDARD)


@functools.lru_cache(maxsize=1024)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Absolute names that the import statements may mean: of modules, and of what is in them."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # imported by nobody, or it would fail there
        return ()
    return tuple(name for node in ast.walk(tree) for name in _imported(node, package))


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from (alias.name, *_parents(alias.name))
    elif isinstance(node, ast.ImportFrom):
        try:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError:  # beyond the top package
            return
        yield from (base, *_parents(base))
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _parents(name: str) -> list[str]:
    """The packages that importing a module imports before it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _file(name: str) -> Path | None:
    """The file of a module; None where there is no such module, or none with a file.

    `importlib.util.find_spec` runs the packages around a module, so only the first name is its.
    """
    first, *others = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module without a spec, as `__main__`
        return None
    for part in others:
        spec = _submodule(part, spec.submodule_search_locations or ()) if spec else None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin).absolute()  # a link from site-packages is in site-packages


def _submodule(name: str, folders: Iterable[str]) -> ModuleSpec | None:
    """The module of this name in the folders of a package; else a package without a file."""
    portions: list[str] = []
    for folder in folders:
        finder = pkgutil.get_importer(folder)
        spec = finder.find_spec(name) if isinstance(finder, FileFinder) else None
        if spec and spec.loader:
            return spec
        portions += (spec and spec.submodule_search_locations) or ()
    package = ModuleSpec(name, None)
    package.submodule_search_locations = portions
    return package


@functools.cache
def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


@functools.cache  # it reads the list of files of each package
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
