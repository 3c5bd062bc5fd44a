"""Texts as words, and their overlap."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles; the articles stay if nothing else does."""
    text = unicodedata.normalize("NFKC", text).casefold()
    tokens = re.findall(r"\d+(?:\.\d+)+|[^\W_]+", text)
    return [word for word in tokens if word not in ("a", "an", "the")] or tokens


def overlap(text: str, reference: str) -> float:
    """0 to 1: F1 of the words of both texts, each counted as often as it occurs."""
    counts, reference_counts = Counter(words(text)), Counter(words(reference))
    shared = (counts & reference_counts).total()
    return 2 * shared / (counts.total() + reference_counts.total()) if shared else 0.0
