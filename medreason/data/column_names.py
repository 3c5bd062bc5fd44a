"""Names of columns, whatever their letter case and whether space, `_` or `-` parts their words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence


def plain(name: str) -> str:
    """A column's name without what people write in one way or another."""
    return re.sub(r"[\s_-]", "", name).lower()


def by_plain(names: Sequence[str]) -> dict[str, str]:
    """Plain name -> the column, where one column alone has it."""
    columns: dict[str, list[str]] = defaultdict(list)
    for name in names:
        columns[plain(name)].append(name)
    return {name: members[0] for name, members in columns.items() if len(members) == 1}
