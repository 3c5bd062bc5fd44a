"""The decoding step, eager or with fixed shapes, so that CUDA can replay it as one graph.

Token by token, a small batch leaves a GPU waiting for Python to launch hundreds of kernels.
Launched as one graph, a step takes as long as reading the weights takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from medreason.generation.kv_cache import PreallocatedLayer
from medreason.generation.packing import ALIGNED

_log = logging.getLogger(__name__)

WINDOW = 128
"""Tokens that one graph decodes. The next one attends to more keys, without the rows that ended."""

KEPT_SHARE = 0.9
"""Rows that have ended leave an eager batch once no more than this share of it is active."""

WARM_UP_STEPS = 2
"""Steps before one is captured: libraries choose kernels and allocate workspaces in them."""


class EagerStep:
    """A decoding step as transformers runs it: attention sees a KV cache that grows by a token."""

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor) -> None:
        self._model = model
        self._cache = cache
        # Without padding no mask is needed, and attention may take a faster kernel.
        self._mask = None if bool(mask.all()) else mask

    def drop_rows(self, active: Tensor, remaining: int) -> Tensor | None:
        """The rows that stay, where some of those that are not `active` leave now; `remaining` are
        active. Each time the KV cache is copied, so a few that have ended are carried along until
        they are a tenth of the batch."""
        if not 0 < remaining <= KEPT_SHARE * len(active):
            return None
        rows = active.nonzero()[:, 0]
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows] if self._mask is not None else None
        return rows

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
    """The same decoding step with fixed shapes, on CUDA captured once a window and replayed.

    A graph replays the same kernels on the same addresses. So attention sees the KV cache up to the
    end of the window from its first step on, a mask hides what is not yet written, and all that
    changes from step to step (token, position, mask, where to write) is written into tensors that
    stay. Elsewhere than on CUDA the same step runs eagerly, which is how tests compare it.

    For attention that takes a bool mask (sdpa), and weights that stay where and as they are. Of
    models whose layers are known `kept_graphs` runs fewer kernels and keeps the graphs.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor, room: int) -> None:
        """`mask` (rows, tokens) of what the KV cache holds; it has `room` for more tokens."""
        self._model = model
        self._cache = cache
        self._length = mask.shape[1]
        self._end = self._length + room
        # What is not yet written is hidden, and so are the last numbers, up to a width at which
        # CUDA's kernels take rows of numbers without copying them.
        visible = nn.functional.pad(mask.bool(), (0, room + -self._end % ALIGNED))
        self._mask = visible[:, None, None]
        self._captures = captures_on(mask.device)
        self._open_window()

    def _open_window(self) -> None:
        # One graph for the whole completion would attend to `room` tokens in every step; one for
        # each token would be captured more often than replayed.
        device, rows = self._mask.device, len(self._mask)
        self._window_end = min(self._length + WINDOW, self._end)
        # A tensor, not a number: a number would be part of the captured kernels.
        self._write_position = torch.tensor([self._length], device=device)
        for layer in self._cache.layers:
            assert isinstance(layer, PreallocatedLayer)
            layer.fix_shape(self._write_position, self._window_end)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(3, rows, 1, dtype=torch.long, device=device)
        self._warm_up_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def drop_rows(self, active: Tensor, remaining: int) -> Tensor | None:
        """As of `EagerStep`, but between two windows: they change the shapes."""
        if self._length != self._window_end or not 0 < remaining < len(active):
            return None
        rows = active.nonzero()[:, 0]
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]
        return rows

    def __call__(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits (rows, vocabulary), overwritten by the next call, behind tokens (rows) at mRoPE
        positions (3, rows, 1)."""
        self.skip(0)
        self._tokens.copy_(tokens[:, None])
        self._position.copy_(position)
        self._length += 1
        if self._captures and self._graph is None and self._warm_up_steps == WARM_UP_STEPS:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            return self._logits
        self._warm_up_steps += 1
        return self.run()

    def skip(self, tokens: int) -> None:
        """Take so many as decoded, and open the window of the next one."""
        self._length += tokens
        if self._length >= self._window_end:
            self._open_window()

    def run(self) -> Tensor:
        """The step on the fixed tensors; nothing in it waits for the device."""
        self._mask.index_fill_(3, self._write_position, value=True)
        logits = self._model(
            input_ids=self._tokens,
            # Of four axes, so that transformers passes it on as it is.
            attention_mask=self._mask[..., : self._window_end],
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        # In place and as the last kernel, so that each replay writes one place further.
        self._write_position += 1
        return logits

    def _capture(self) -> None:
        self._graph = captured(self._run_captured)
        self._captures = self._graph is not None

    def _run_captured(self) -> None:
        self._logits = self.run()


def captures_on(device: torch.device) -> bool:
    return device.type == "cuda"


def captured(
    run: Callable[[], None], pool: tuple[int, int] | None = None
) -> torch.cuda.CUDAGraph | None:
    """The kernels of `run`, which are recorded and not run; None, with a warning, where CUDA cannot
    capture them. `pool`: memory that graphs share which are never replayed at once."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # thread_local: another thread, such as MLflow's, may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):  # pyright: ignore
            run()
    except RuntimeError as error:
        _log.warning("decoding goes on without CUDA graphs: %s", error)
        # torch leaves the stream of a capture only where the capture begins and ends well.
        torch.cuda.set_stream(stream)
        return None
    return graph
