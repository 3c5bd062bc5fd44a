"""Whether the hub of Hugging Face can be asked: where not, its libraries try for minutes."""

from __future__ import annotations

import functools
import os
import socket
import sys
from urllib.parse import urlsplit
from urllib.request import getproxies

from medreason.console import notice

_CONNECT_SECONDS = 5.0
_CONSTANTS = ("huggingface_hub.constants", "datasets.config")
"""Modules that have read HF_HUB_OFFLINE of the environment once they are imported."""


def read_cache_if_unreached(what: str) -> None:
    """Let this process and those that it starts take `what` from the cache of the hub at once,
    where the hub is not reached; one line says so."""
    if os.environ.get("HF_HUB_OFFLINE") or getproxies() or is_reached():
        return  # a proxy looks addresses up itself
    notice(f"{_host()[0]} is not reached: {what} is looked for in the cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in _CONSTANTS:
        if module := sys.modules.get(name):
            vars(module)["HF_HUB_OFFLINE"] = True


@functools.cache
def is_reached() -> bool:
    try:
        socket.create_connection(_host(), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _host() -> tuple[str, int]:
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
