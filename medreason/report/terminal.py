"""Tables of rich on stdout, by the way of all results."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from medreason.console import show


class Terminal(Console):
    """Prints as `console.show`: where nobody reads any longer, rich would end the process."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **options)
        show(captured.get(), end="")
