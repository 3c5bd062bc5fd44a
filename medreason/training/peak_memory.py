"""The highest memory of a step: of the GPU, or of this process on a CPU."""

from __future__ import annotations

import threading

import torch

from medreason.runs.process_memory import private_bytes


class PeakMemory:
    """Highest memory within a `with`: of the GPU as torch counts it, else `private_bytes`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._thread.join()
