"""Fields of classes of TRL, transformers and PEFT, read from their source, and values checked
against annotations. Nothing here imports torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

_FILES = {
    "SFTConfig": "trl/trainer/sft_config.py",
    "GRPOConfig": "trl/trainer/grpo_config.py",
    "_BaseConfig": "trl/trainer/base_config.py",
    "TrainingArguments": "transformers/training_args.py",
    "LoraConfig": "peft/tuners/lora/config.py",
    "PeftConfig": "peft/config.py",
    "PeftConfigMixin": "peft/config.py",
    "SchedulerType": "transformers/trainer_utils.py",
    "OptimizerNames": "transformers/training_args.py",
}
"""Class -> the file of its package that defines it."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "Path": (str,),
    "None": (type(None),),
    **dict.fromkeys(("list", "tuple", "set", "Sequence", "Iterable", "Collection"), (list,)),
    **dict.fromkeys(("dict", "Mapping"), (dict,)),
}
"""Name in an annotation -> the types of YAML that it takes."""


@functools.cache
def fields_of(name: str) -> Mapping[str, str]:
    """Field -> annotation, of a class in `_FILES` and those it inherits from; empty where its
    package is not installed."""
    body = _definition(name)
    if body is None:
        return {}
    fields: dict[str, str] = {}
    for base in reversed(body.bases):
        if (inherited := ast.unparse(base)) in _FILES:
            fields |= fields_of(inherited)
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields[statement.target.id] = ast.unparse(statement.annotation)
    return fields


@functools.cache
def words_of(annotation: str) -> tuple[str, ...]:
    """The words an annotation allows, where it names an enumeration of transformers."""
    names = (node.id for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Name))
    body = next((_definition(n) for n in names if n in ("SchedulerType", "OptimizerNames")), None)
    values = [s.value for s in body.body if isinstance(s, ast.Assign)] if body else []
    return tuple(
        v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)
    )


def accepts(annotation: str, value: object) -> bool:
    """Whether a value of YAML has the type that an annotation names; what is not known here, such
    as a class of a user, takes every value."""
    return _accepts(_parsed(annotation), value)


_WORDS = {
    "bool": ("true or false", "truths"),
    "int": ("a whole number", "whole numbers"),
    "float": ("a number", "numbers"),
    "str": ("a text", "texts"),
    "Path": ("a path", "paths"),
    "None": ("null", "nulls"),
    **dict.fromkeys(
        ("list", "tuple", "set", "Sequence", "Iterable", "Collection"), ("a list", "lists")
    ),
    **dict.fromkeys(("dict", "Mapping"), ("a mapping", "mappings")),
}
"""Name in an annotation -> what to call one value, and several."""


def in_words(annotation: str) -> str:
    """What an annotation takes, in words: `a list of texts or null`; a class that is not known here
    by its name."""
    return _words(_parsed(annotation))


def _words(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return in_words(text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return " or ".join(dict.fromkeys((_words(left), _words(right))))
        case ast.Subscript(value=generic, slice=inner):
            return _words_of_generic(_name(generic), inner)
    name = _name(node)
    return _WORDS[name][0] if name in _WORDS else name


def _words_of_generic(name: str, inner: ast.expr) -> str:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return ", ".join(ast.unparse(part) for part in parts)
    if name in ("Optional", "Union"):
        both = [_words(part) for part in parts] + ["null"] * (name == "Optional")
        return " or ".join(dict.fromkeys(both))
    if name == "Annotated":
        return _words(parts[0])
    if list in _TYPES.get(name, ()) and _name(parts[0]) in _WORDS:
        return f"a list of {_WORDS[_name(parts[0])][1]}"
    return _WORDS[name][0] if name in _WORDS else name


def wrong_part(key: str, value: object, annotation: str) -> tuple[str, object, str]:
    """(key, value, annotation) of the first value that is not accepted, inside of mappings too."""
    node = _parsed(annotation)
    inner = _value_of_mapping(node)
    if isinstance(value, dict) and inner is not None:
        for name, element in value.items():
            if not _accepts(inner, element):
                return wrong_part(f"{key}.{name}", element, ast.unparse(inner))
    return key, value, annotation


def _value_of_mapping(node: ast.expr) -> ast.expr | None:
    """The annotation of a mapping's values, where one of a union is a mapping."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _value_of_mapping(left) or _value_of_mapping(right)
        case ast.Subscript(value=generic, slice=ast.Tuple(elts=[_, inner])):
            return inner if dict in _TYPES.get(_name(generic), ()) else None
    return None


def form(key: str, value: object, annotation: str) -> str:
    """`; write ...`, where a value of another type can be written as one that is accepted."""
    word = str(value).lower()
    if word in ("none", "null", "~") and accepts(annotation, None):
        return "; write null"
    if isinstance(value, int | float) and accepts(annotation, ""):
        return f"; for a text, type both pairs of quotes: \"{key}='{word}'\""
    if isinstance(value, str) and _is_number(value) and accepts(annotation, 1):
        return "; write it without quotes"
    numbers = isinstance(value, list) and value and all(isinstance(v, int | float) for v in value)
    if isinstance(value, list) and numbers and accepts(annotation, [""]):
        texts = ",".join(f"'{each}'" for each in value)
        return f'; for texts, type both pairs of quotes: "{key}=[{texts}]"'
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _accepts(node: ast.expr, value: object) -> bool:
    match node:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as text):  # a forward reference
            return accepts(text, value)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _accepts(left, value) or _accepts(right, value)
        case ast.Subscript(value=generic, slice=inner):
            return _accepts_generic(_name(generic), inner, value)
    known = _TYPES.get(_name(node))
    if known is None:
        return True
    return isinstance(value, known) and (bool in known or not isinstance(value, bool))


def _accepts_generic(name: str, inner: ast.expr, value: object) -> bool:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Optional":
        return value is None or _accepts(inner, value)
    if name == "Union":
        return any(_accepts(part, value) for part in parts)
    if name == "Annotated":
        return _accepts(parts[0], value)
    if name == "Literal":
        words = [part.value for part in parts if isinstance(part, ast.Constant)]
        patterns = [w.partition("[")[0] for w in words if isinstance(w, str) and "[" in w]
        return any(type(w) is type(value) and w == value for w in words) or (
            isinstance(value, str) and any(map(value.startswith, patterns))
        )
    known = _TYPES.get(name)
    if known is None:
        return True
    if isinstance(value, dict) and dict in known:
        return all(_accepts(parts[-1], element) for element in value.values())
    if not isinstance(value, list) or list not in known:
        return False
    fixed = name == "tuple" and not (len(parts) > 1 and ast.unparse(parts[-1]) == "...")
    kinds = parts if fixed else [parts[0]] * len(value)
    return len(kinds) == len(value) and all(map(_accepts, kinds, value))


def _name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


@functools.cache
def _parsed(annotation: str) -> ast.expr:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:  # a function of a user may be annotated with anything
        return ast.Name("object")


def _definition(name: str) -> ast.ClassDef | None:
    module = _module(_FILES[name])
    classes = [s for s in module.body if isinstance(s, ast.ClassDef)] if module else []
    return next((c for c in classes if c.name == name), None)


@functools.cache
def _module(file: str) -> ast.Module | None:
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)  # imports nothing of a package at the top
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders))) / inside if folders else None
    return ast.parse(path.read_text(encoding="utf-8")) if path and path.is_file() else None
