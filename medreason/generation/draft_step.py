"""The decoding step with drafts: each row's last token and its draft in one pass of the model.

The tokens of all rows are one sequence, so the products of the layers take as many positions as
there are tokens, however unequal the drafts are; attention alone goes row by row. A row writes from
its own next slot on, so what was rejected is overwritten by the next pass.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from medreason.generation import packed_attention
from medreason.generation.kv_cache import PreallocatedLayer
from medreason.generation.packed_attention import DraftLayout
from medreason.generation.packed_pass import PackedPass, RowLayout
from medreason.generation.packing import additive_mask
from medreason.generation.prefill import Prefill
from medreason.generation.tolerance import computed_in
from medreason.models.load import without_adapter

_log = logging.getLogger(__name__)


class DraftStep:
    """Rows in a KV cache of `PreallocatedLayer`s, each with tokens of its own length."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache: DynamicCache | None = None
        self._visible: Tensor
        """(rows, slots): False where a prompt has padding."""
        self._behind_prompt: dict[int, tuple[int, int]] = {}
        """(slot, mRoPE position) behind the prompt of each row."""
        self.rows: list[int] = []
        """Those in the KV cache, in its order."""
        base = without_adapter(model)
        self._dtype = computed_in(base)
        text = base.config.get_text_config()
        self._shared_heads = text.num_attention_heads // text.num_key_value_heads
        self._passes: PackedPass | None = None
        self.positions_of_pass = _positions_of_pass(base)
        """A pass costs as much beside its positions as so many further positions."""

    def add_rows(
        self, rows: Sequence[int], prefill: Prefill, room: int, *, ended: Sequence[int] = ()
    ) -> None:
        """Take the KV cache of prefilled rows, which has `room` for more tokens, in the places of
        rows that have `ended`, and then behind the rows that are here."""
        self._passes = prefill.passes
        cache, visible = prefill.cache(), prefill.mask.bool()
        visible = nn.functional.pad(visible, (0, room), value=True)
        places = [self.rows.index(row) for row in ended[: len(rows)]]
        if self._cache is None:
            self._cache, self._visible = cache, visible
        else:
            for layer, new in zip(self._cache.layers, cache.layers, strict=True):
                assert isinstance(layer, PreallocatedLayer)
                assert isinstance(new, PreallocatedLayer)
                layer.take_rows(new, places)
            slots = max(self._visible.shape[1], visible.shape[1])
            self._visible, visible = (
                nn.functional.pad(part, (0, slots - part.shape[1]))
                for part in (self._visible, visible)
            )
            self._visible[places] = visible[: len(places)]
            self._visible = torch.cat([self._visible, visible[len(places) :]])
        slots = prefill.mask.shape[1]
        positions = prefill.position[0, :, 0].tolist()
        drafted = prefill.drafted or [0] * len(rows)
        for row, position, count in zip(rows, positions, drafted, strict=True):
            self._behind_prompt[row] = slots - count, position + 1
        for place, row in zip(places, rows, strict=False):
            del self._behind_prompt[self.rows[place]]
            self.rows[place] = row
        self.rows += rows[len(places) :]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all others, which copies the KV cache."""
        if not rows:
            self._cache = None
        if self._cache is not None:
            places = [self.rows.index(row) for row in rows]
            places = torch.tensor(places, device=self._visible.device)
            self._cache.batch_select_indices(places)
            self._visible = self._visible[places]
        self._behind_prompt = {row: self._behind_prompt[row] for row in rows}
        self.rows = [*rows]

    def __call__(self, tokens: Mapping[int, Sequence[int]], done: Mapping[int, int]) -> Tensor:
        """Logits (tokens of all rows, vocabulary) behind each token, row after row.

        `tokens` of a row are the last one that it decoded and its draft; `done` says how many it
        decoded before that one.
        """
        assert self._cache is not None
        width, device = max(map(len, tokens.values())), self._visible.device
        columns = itertools.chain.from_iterable(self._columns(tokens, done, width))
        columns = torch.tensor([*columns], device=device).view(-1, 5)
        ids, places, slots, positions, places_of_tokens = columns.T
        # Slots behind the furthest token are read by nobody.
        length = int(slots.max()) + 1
        token_of_place = torch.zeros(len(self.rows) * width, dtype=torch.long, device=device)
        token_of_place[places_of_tokens] = torch.arange(len(ids), device=device)
        visible = self._seen(slots[token_of_place].view(-1, width), length)
        if self._passes is not None:
            layout = RowLayout(places, slots, length, token_of_place, places_of_tokens, visible)
            hidden = self._passes.embed(ids)
            return self._passes.of_tokens(hidden, positions.expand(3, -1), layout, self._cache)
        for layer in self._cache.layers:
            assert isinstance(layer, PreallocatedLayer)
            layer.write_at(places, slots, length)
        return self._model(
            input_ids=ids[None],
            attention_mask=self._mask(visible),
            position_ids=positions.expand(3, 1, -1),
            past_key_values=self._cache,
            use_cache=True,
            draft_layout=DraftLayout(width, token_of_place, places_of_tokens),
        ).logits[0]

    def _columns(
        self, tokens: Mapping[int, Sequence[int]], done: Mapping[int, int], width: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """(token, place of its row, slot, position, its place among rows of `width`) of each."""
        place_of_row = {row: place for place, row in enumerate(self.rows)}
        for row, ids in tokens.items():
            place, (slot, position) = place_of_row[row], self._behind_prompt[row]
            for offset, (token, count) in enumerate(zip(ids, itertools.count(done[row]))):
                yield token, place, slot + count, position + count, place * width + offset

    def _seen(self, slots: Tensor, length: int) -> Tensor:
        """(rows, width, length), bool, for tokens at `slots` (rows, width): each sees its row's
        prompt and what its row has in the slots up to its own."""
        behind = torch.arange(length, device=slots.device) <= slots[:, :, None]
        return behind & self._visible[:, None, :length]

    def _mask(self, visible: Tensor) -> Tensor:
        """(rows, 1, heads of a key head x width, length)"""
        return additive_mask(visible.repeat(1, self._shared_heads, 1)[:, None], self._dtype)


def takes_draft_step(model: PreTrainedModel) -> bool:
    """Whether the model's attention follows a `DraftLayout`, which it then does from now on."""
    base = without_adapter(model)
    packed_attention.enable(base)
    return packed_attention.enabled(base)


def takes_drafts(model: PreTrainedModel) -> bool:
    """`takes_draft_step`, with a warning where not."""
    if takes_draft_step(model):
        return True
    attention = without_adapter(model).config._attn_implementation
    _log.warning("attention=%s takes no drafts; going on without", attention)
    return False


def _positions_of_pass(model: PreTrainedModel) -> float:
    """Computed, not timed, so that equal runs make equal passes, whose rounding is the same."""
    text = model.config.get_text_config()
    layers, head = text.num_hidden_layers, text.vocab_size * text.hidden_size
    weights = sum(p.numel() for p in model.model.language_model.layers.parameters()) + head
    # Of one core of a current CPU, in seconds; measured on the tiny model (2026-11-29).
    of_pass = layers * 1.5e-3 + weights * 4 / 10e9
    of_position = layers * 4e-6 + weights * 2 / 75e9
    return of_pass / of_position
