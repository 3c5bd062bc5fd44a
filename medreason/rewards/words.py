"""Texts as words, and how much two of them share."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles; the articles stay if nothing else does."""
    text = unicodedata.normalize("NFKC", text).casefold()
    found = re.findall(r"\d+(?:\.\d+)+|[^\W_]+", text)
    return [word for word in found if word not in ("a", "an", "the")] or found


def overlap(text: str, reference: str) -> float:
    found, wanted = Counter(words(text)), Counter(words(reference))
    shared = (found & wanted).total()
    return 2 * shared / (found.total() + wanted.total()) if shared else 0.0
