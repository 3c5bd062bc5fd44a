"""Questions about an image share it: decoded, processed and seen once, whatever they ask of it.

All rows of a batch that show the same picture begin with the same tokens, up to the image's last.
These are read once; their keys and values are repeated for the rows, and behind them each row's own
tokens are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import ProcessorMixin
from trl.trainer.utils import pad

from medreason.data.images import blank, open_rgb
from medreason.generation.generate import prompt_texts
from medreason.generation.prefill import mrope_positions
from medreason.generation.rows import EvaluationRow
from medreason.generation.vision_cache import takes_features


def hindrances(model: PreTrainedModel) -> list[str]:
    """Why this model's questions cannot share their images, as far as it says so itself."""
    name, attention = type(model).__name__, model.config._attn_implementation
    layers = getattr(model.config.get_text_config(), "layer_types", None) or []
    found = {
        f"{name} takes no mRoPE positions": not hasattr(
            getattr(model, "model", None), "get_rope_index"
        ),
        f"{name} takes no vision features": not takes_features(model),
        f"attention={attention!r} takes no mask": attention not in ("sdpa", "eager"),
        "sliding-window attention": any(kind != "full_attention" for kind in layers),
    }
    return [reason for reason, hinders in found.items() if hinders]


def batches(asked: Sequence[EvaluationRow], size: int) -> Iterator[list[int]]:
    """Places of rows, those about one image together, images with the longest prompts first."""
    longest: dict[Path, int] = {}
    for row in asked:
        longest[row.sample.image] = max(longest.get(row.sample.image, 0), len(row.prompt))

    def place(i: int) -> tuple:
        row = asked[i]
        image = row.sample.image
        return -longest[image], image, row.control != "original", row.control, -len(row.prompt)

    order = sorted(range(len(asked)), key=place)
    for start in range(0, len(order), size):
        yield order[start : start + size]


@dataclass(frozen=True)
class PrefilledPrefixes:
    """Rows whose beginnings have been read."""

    own: list[list[int]]
    """The tokens of each row that are still to be read; one at least."""
    endings: list[list[list[int]]]
    """What may stand behind them: of each row and ending the tokens in which it differs."""
    entries: Tensor
    """(rows): which of the beginnings is the row's."""
    mask: Tensor
    """(beginnings, tokens)"""
    next_position: Tensor
    """(beginnings): the mRoPE position behind each."""
    cache: DynamicCache
    lengths: list[int]
    """Tokens of each row, its beginning included."""

    def positions(self, own_mask: Tensor) -> Tensor:
        """mRoPE positions (3, rows, own tokens) of what is read behind: text."""
        steps = (own_mask.cumsum(-1) - 1).clamp(min=0)
        return (self.next_position[self.entries][:, None] + steps).expand(3, -1, -1)


class PrefixPrefiller:
    """Reads rows batch by batch. The pictures of the last batch are kept for the next."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        sizes: Mapping[Path, tuple[int, int]] | None = None,
    ) -> None:
        """`sizes` (width, height) of images that are known; the others are opened for them."""
        self._model: Any = model
        self._processor: Any = processor
        self._seen: dict[Hashable, tuple[Tensor, Tensor]] = {}
        """Picture -> features (tokens, width) and grid (1, 3)."""
        self._sizes: dict[Path, tuple[int, int]] = dict(sizes or {})

    def begin(
        self, rows: Sequence[EvaluationRow], endings: Sequence[Sequence[str]] | None = None
    ) -> PrefilledPrefixes:
        """Read each picture with what stands before it. What a row's endings have in common
        becomes part of its prompt."""
        pictures = self._see(rows)
        ids, rests = [], []
        for row, picture, texts in zip(rows, pictures, endings or [()] * len(rows), strict=True):
            whole = self._tokens(row, picture, texts or ("",))
            ids.append(common_prefix(whole) if texts else whole[0])
            rests.append([tokens[len(ids[-1]) :] for tokens in whole] if texts else [])
        image_token = self._processor.image_token_id
        groups: dict[Hashable, list[int]] = {}
        for i, (picture, row) in enumerate(zip(pictures, ids, strict=True)):
            through = len(row) - row[::-1].index(image_token) if picture is not None else 0
            groups.setdefault((picture, *row[:through]), []).append(i)
        beginnings, shown = [], []
        entries = torch.empty(len(rows), dtype=torch.long)
        for entry, (group, members) in enumerate(groups.items()):
            picture, *beginning = group  # pyright: ignore[reportGeneralTypeIssues]
            if picture is not None:
                shown.append(self._seen[picture])
            beginnings.append(beginning or common_prefix([ids[i] for i in members]))
            entries[members] = entry
        own = [row[len(beginnings[e]) :] for row, e in zip(ids, entries.tolist(), strict=True)]
        cache, mask, positions = self._read(beginnings, shown)
        return PrefilledPrefixes(
            own=own,
            endings=rests,
            entries=entries.to(mask.device),
            mask=mask,
            next_position=positions.amax((0, 2)) + 1,
            cache=cache,
            lengths=[len(row) for row in ids],
        )

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(ids, mask), (rows, tokens), padded on the left."""
        tensors = [torch.tensor(row, device=self._model.device) for row in rows]
        padding = self._processor.tokenizer.pad_token_id
        mask = pad([torch.ones_like(row) for row in tensors], 0, padding_side="left")
        return pad(tensors, padding, padding_side="left"), mask

    def _see(self, rows: Sequence[EvaluationRow]) -> list[Hashable]:
        """What each row shows: a file, grey of a size, or nothing. New pictures are encoded."""
        opened = {}

        def image(path: Path):  # noqa: ANN202
            if path not in opened:
                opened[path] = open_rgb(path)
                self._sizes[path] = opened[path].size
            return opened[path]

        pictures: list[Hashable] = []
        for row in rows:
            path = row.sample.image
            match row.control:
                case "no_image":
                    pictures.append(None)
                case "blank_image":
                    pictures.append(self._sizes.get(path) or image(path).size)
                case _:
                    pictures.append(path)
        new = [p for p in dict.fromkeys(pictures) if p is not None and p not in self._seen]
        images = [image(p) if isinstance(p, Path) else blank(p) for p in new]  # pyright: ignore[reportArgumentType]
        kept = {p: self._seen[p] for p in pictures if p in self._seen}
        self._seen = kept | dict(zip(new, self._encoded(images), strict=True))
        return pictures

    def _encoded(self, images: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        if not images:
            return []
        inputs = self._processor.image_processor(images=list(images), return_tensors="pt")
        grids = inputs["image_grid_thw"].to(self._model.device)
        pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
        features = self._model.get_image_features(pixels, grids, return_dict=True).pooler_output
        return list(zip(features, grids.split(1), strict=True))

    def _tokens(
        self, row: EvaluationRow, picture: Hashable, replies: Sequence[str]
    ) -> list[list[int]]:
        """Of the prompt with each reply, with as many placeholders as its picture has features."""
        (prompt,) = prompt_texts(self._processor, [row.prompt], [picture is not None])
        found = self._processor.tokenizer([prompt + reply for reply in replies])["input_ids"]
        token = self._processor.image_token_id
        for ids in found if picture is not None else ():
            place = ids.index(token)
            ids[place : place + 1] = [token] * len(self._seen[picture][0])
        return found

    def _read(
        self, beginnings: Sequence[Sequence[int]], shown: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[DynamicCache, Tensor, Tensor]:
        """(cache, mask (beginnings, tokens), mRoPE positions (3, beginnings, tokens))."""
        ids, mask = self.padded(beginnings)
        grids = torch.cat([grid for _, grid in shown]) if shown else None
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == self._processor.image_token_id).int(),
            "image_grid_thw": grids,
        }
        positions = mrope_positions(self._model, inputs)
        features = BaseModelOutputWithPooling(pooler_output=tuple(f for f, _ in shown))  # pyright: ignore[reportArgumentType]
        outputs = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            mm_encoder_outputs={"image": features} if shown else None,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.past_key_values, mask, positions


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens with which all rows begin, and at least one less than the shortest has."""
    columns = zip(*rows, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda column: len({*column}) == 1, columns))
    return rows[0][: min(same, *(len(row) - 1 for row in rows))]
