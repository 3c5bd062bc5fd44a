"""The flags of the command line, which are Hydra's, and what is typed like one by mistake."""

from __future__ import annotations

import difflib
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Collection
from importlib import metadata
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from medreason.config import key_names


def parse(groups: Collection[str]) -> Namespace:
    """What `sys.argv` has, read as Hydra reads it, with flags and overrides in any order.

    Raises:
        ValueError: a flag that there is not, or one without its value.
    """
    parser = get_args_parser()
    parser.error = _refuse
    shown: Any = next(a for a in parser._actions if "--version" in a.option_strings)
    shown.version = f"medreason {metadata.version('medreason')}"  # in place of Hydra's
    arguments, unknown = parser.parse_known_intermixed_args(sys.argv[1:])
    if unknown:
        raise ValueError(f"{unknown[0]}: {_meant(unknown[0], parser, groups)}")
    return arguments


def _refuse(message: str) -> NoReturn:
    """In place of argparse's own, which shows its usage of a file of this package."""
    if message.startswith("ambiguous option: --config "):
        message = (
            "--config: no such flag; a file of values is an option of a group: "
            "DIR/experiment/NAME.yaml is chosen by --config-dir DIR experiment=NAME"
        )
    raise ValueError(f"{message}; --help shows what can be typed")


def _meant(typed: str, parser: ArgumentParser, groups: Collection[str]) -> str:
    """What may be meant by a word with dashes that is no flag."""
    flag, _, value = typed.partition("=")
    key = flag.lstrip("-")
    if key in groups or _is_key(key):
        return f"groups and keys are typed without dashes: {key}={value or '...'}"
    if key.replace("_", "-") == "dry-run":
        return "no such flag; action=plan says what a command would do"
    flags = [name for action in parser._actions for name in action.option_strings]
    flags = [name for name in flags if name.startswith("--")]
    if near := difflib.get_close_matches(flag, flags, n=1, cutoff=0.7):
        return f"no such flag; did you mean {near[0]}?"
    meant = key_names.hint(key).replace(" mean ", " mean, without dashes, ")
    return f"no such flag{meant or '; --help shows what can be typed'}"


def _is_key(key: str) -> bool:
    try:
        key_names.refuse_unknown(key)
    except ValueError:
        return False
    return True
