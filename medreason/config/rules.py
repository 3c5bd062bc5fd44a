"""Rules that many values share. Each error names the key, its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from medreason import moved

MOST_DRAFT_TOKENS = 32


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        hint = ""
        if renamed := moved.VALUES.get(key, {}).get(value):
            hint = f"; {value!r} is now {renamed}"
        elif near := difflib.get_close_matches(str(value), list(known), n=1):
            hint = f"; did you mean {near[0]!r}?"
        raise ValueError(f"{key}={value!r}; known: {', '.join(map(repr, known))}{hint}")


def subset(key: str, values: list[str], known: Iterable[str]) -> None:
    if not values and not key.endswith(".controls"):
        raise ValueError(f"{key} is empty; known: {', '.join(map(repr, known))}")
    for value in values:
        one_of(key, value, known)
        if values.count(value) > 1:
            raise ValueError(f"{key} names {value!r} {values.count(value)} times; name it once")


def positive(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{key}={value}; it must be at least 1")


def allowed_draft_tokens(key: str, value: str) -> None:
    if value != "auto" and not (value.isdecimal() and int(value) <= MOST_DRAFT_TOKENS):
        raise ValueError(f"{key}={value}; give auto, 0 (no drafts) or at most {MOST_DRAFT_TOKENS}")
