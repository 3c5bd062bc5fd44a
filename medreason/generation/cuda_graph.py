"""A decoding step whose shapes stay as they are, so that CUDA can replay it as one graph.

Token by token a small batch leaves a GPU waiting for Python to launch hundreds of kernels. Launched
as one graph, a step takes what reading the weights takes.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from medreason.generation.kv_cache import PreallocatedLayer

_log = logging.getLogger(__name__)

WINDOW = 128
"""Tokens a graph is good for: the next one sees more keys, and lacks the rows that have ended."""

_WARM_UP = 2
"""Steps before one is captured: libraries choose kernels and make workspaces in them."""


class EagerStep:
    """A step as the model takes it: what it sees grows with each token."""

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor) -> None:
        self._model = model
        self._cache = cache
        # Without padding no mask is needed, and attention is faster for it.
        self._mask = None if bool(mask.all()) else mask

    def drops(self, left: int, rows: int) -> bool:
        """Whether rows that have ended leave now: each time copies the cache."""
        return 0 < left <= 0.9 * rows

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows] if self._mask is not None else None

    def __call__(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits (rows, vocabulary) behind tokens (rows) at mRoPE positions (3, rows, 1)."""
        if self._mask is not None:
            self._mask = nn.functional.pad(self._mask, (0, 1), value=1)
        return self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=position,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]


class CudaGraphStep:
    """The same step with fixed shapes: it sees all of a window, and a mask hides what is not yet
    written. On CUDA it is captured once a window; elsewhere it runs as it is.

    For attention that takes a bool mask (sdpa), and weights that stay where they are.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor, room: int) -> None:
        """`mask` (rows, tokens) of what the cache holds; behind it there is `room` for tokens."""
        self._model = model
        self._cache = cache
        self._written = mask.shape[1]
        self._mask = nn.functional.pad(mask.bool(), (0, room))
        self._captures = mask.device.type == "cuda"
        self._open()

    def _open(self) -> None:
        device = self._mask.device
        self._end = min(self._written + WINDOW, self._mask.shape[1])
        self._place = torch.tensor([self._written], device=device)
        for layer in self._cache.layers:
            assert isinstance(layer, PreallocatedLayer)
            layer.fix(self._place, self._end)
        rows = len(self._mask)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(3, rows, 1, dtype=torch.long, device=device)
        self._warm = 0
        self._graph: Any = None

    def drops(self, left: int, rows: int) -> bool:
        """Rows that have ended leave between two windows."""
        return self._written == self._end and 0 < left < rows

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def __call__(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits (rows, vocabulary), overwritten by the next call, behind tokens (rows) at mRoPE
        positions (3, rows, 1)."""
        if self._written == self._end:
            self._open()
        self._tokens.copy_(tokens[:, None])
        self._position.copy_(position)
        self._written += 1
        if self._captures and self._graph is None and self._warm == _WARM_UP:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            return self._logits
        self._warm += 1
        return self.run()

    def run(self) -> Tensor:
        """The step on the fixed tensors; nothing in it waits for the device."""
        self._mask.index_fill_(1, self._place, True)
        logits = self._model(
            input_ids=self._tokens,
            attention_mask=self._mask[:, None, None, : self._end],
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._place += 1
        return logits

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self.run()
        except RuntimeError as error:
            _log.warning("decoding goes on without CUDA graphs: %s", error)
            self._captures = False
        else:
            self._graph = graph
