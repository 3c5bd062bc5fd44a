"""Rules that many values share. Each error names the key, its value and what is allowed."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

from medreason import moved

MOST_DRAFT_TOKENS = 32


def one_of(key: str, value: str, known: Iterable[str], others: str = "") -> None:
    """Refuse a value that is not known; `others` says how it may become so."""
    if value not in known:
        hint = ""
        if renamed := moved.VALUES.get(key, {}).get(value):
            hint = f"; {value!r} is now {renamed}"
        elif near := _near(str(value), list(known)):
            hint = f"; did you mean {' or '.join(map(repr, near))}?"
        raise ValueError(f"{key}={value!r}; known: {', '.join(map(repr, known))}{others}{hint}")


def _near(value: str, known: Sequence[str]) -> list[str]:
    """What is the value in any case and with any signs between its words, or begins as it does, or
    lies in a folder under this name, or else what is spelt most like it."""
    plain = {_plain(name): name for name in known}
    if _plain(value) in plain:
        return [plain[_plain(value)]]
    longer = [name for name in known if value and name.startswith(f"{value.lower()}_")]
    inside = [name for name in known if value and name.lower().endswith(f"/{value.lower()}")]
    return longer or inside or difflib.get_close_matches(value, known, n=1)


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "_", name.lower())


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


def typed(key: str, value: str | Sequence[str]) -> str:
    """`key=text` or `key=[first,second]` as one types it in a shell, so that Hydra reads texts."""
    texts = [value] if isinstance(value, str) else value
    words = [text if _is_bare(text) else "'" + _escaped(text) + "'" for text in texts]
    override = f"{key}={words[0] if isinstance(value, str) else '[' + ','.join(words) + ']'}"
    plain = not re.search(r'["$`\\!]', override)
    return f'"{override}"' if "'" in override and plain else shlex.quote(override)


_BARE = re.compile(r"[A-Za-z_][\w-]*(?: [\w-]+)*", re.ASCII)
_NO_TEXT = ("true", "false", "null", "nan", "inf")


def _is_bare(text: str) -> bool:
    """Whether Hydra reads it as this very text without quotes."""
    return bool(_BARE.fullmatch(text)) and text.lower() not in _NO_TEXT


def _escaped(text: str) -> str:
    return text.replace("'", "\\'")


def kind_of(value: object) -> str:
    """What a value of JSON or YAML is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    if isinstance(value, bool):
        return "true or false"
    is_number = isinstance(value, int | float)
    return "a number" if is_number else names.get(type(value), type(value).__name__)
