"""What a killed launcher started ends by itself."""

from __future__ import annotations

import subprocess
import sys

WATCH = """
import sys, time
from medreason.runs import parent_watch
parent_watch.end_with(int(sys.argv[1]))
print("watching", flush=True)
time.sleep(60)
"""


def test_process_ends_with_the_one_it_watches_even_if_nobody_waits_for_that() -> None:
    watched = subprocess.Popen(["sleep", "60"])
    command = [sys.executable, "-c", WATCH, str(watched.pid)]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout
    assert watcher.stdout.readline() == "watching\n"
    watched.kill()  # a zombie from here on, since it is not waited for
    assert watcher.wait(timeout=60) == 1
    watched.wait()
