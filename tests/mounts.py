"""Commands in a mount namespace of their own, since nothing is read-only to root."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

_UNSHARE = ("unshare", "--map-root-user", "--mount", "sh", "-c")
READ_ONLY = "--bind {0} {0} && mount -o remount,ro,bind {0}"


def mounted(mount: str, command: Sequence[str]) -> list[str]:
    """The command behind `mount MOUNT`; skips the test where nothing may be mounted."""
    if subprocess.run([*_UNSHARE, "mount -t tmpfs none /mnt"], check=False).returncode:
        pytest.skip("this machine lets no process mount anything")
    return [*_UNSHARE, f'mount {mount} && exec "$@"', "sh", *command]
