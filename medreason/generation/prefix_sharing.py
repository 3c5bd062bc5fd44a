"""Questions about an image share it: it is decoded, encoded and prefilled once for all of them.

The rows of a batch that show the same image begin with the same tokens, up to the image's last. The
KV cache of such a prefix is computed once and repeated for its rows, and the rest of each row's
prompt is prefilled behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import ProcessorMixin

from medreason.data.images import blank, open_rgb, size_of
from medreason.generation.generate import prompt_texts
from medreason.generation.images_ahead import ImagesAhead
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.packed_pass import packed_pass
from medreason.generation.prefill import Prefill, mrope_positions
from medreason.generation.prepared_inputs import PreparedInputs, ProcessedImage, PromptText
from medreason.generation.rows import SHOWN_IMAGES, EvaluationRow
from medreason.generation.vision_cache import takes_vision_features
from medreason.samples import Window

_SLOTS = 32

_ImageKey = Path | tuple[int, int] | None
"""What a row shows: a file, a grey image of (width, height), or nothing."""
_ShownImage = Path | tuple[int, int]


def sharing_obstacles(model: PreTrainedModel) -> list[str]:
    """Why this model's questions cannot share their images, as far as it says so itself."""
    name, attention = type(model).__name__, model.config._attn_implementation
    layers = getattr(model.config.get_text_config(), "layer_types", None) or []
    obstacles = {
        f"{name} takes no mRoPE positions": not hasattr(
            getattr(model, "model", None), "get_rope_index"
        ),
        f"{name} takes no vision features": not takes_vision_features(model),
        f"attention={attention!r} takes no mask": attention not in ("sdpa", "eager"),
        "sliding-window attention": any(kind != "full_attention" for kind in layers),
    }
    return [reason for reason, applies in obstacles.items() if applies]


def in_order(rows: Sequence[EvaluationRow]) -> list[int]:
    """Indices of the rows, those about one image together, images with the longest prompts first:
    what takes most memory comes first, and fails early if it fails. Rows that show a grey image or
    none come last, those that ask alike together."""
    longest: dict[Path, int] = {}
    for row in rows:
        longest[row.sample.image] = max(longest.get(row.sample.image, 0), len(row.prompt))

    def order(i: int) -> tuple[bool | int | str | Path, ...]:
        row = rows[i]
        image, control = row.sample.image, row.control
        if control in SHOWN_IMAGES:
            return True, control, row.prompt
        return False, -longest[image], image, control != "original", control, -len(row.prompt)

    return sorted(range(len(rows)), key=order)


def batches(rows: Sequence[EvaluationRow], size: int) -> Iterator[list[int]]:
    """The rows `in_order`, so many at a time."""
    indices = in_order(rows)
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


@dataclass(frozen=True)
class PrefilledPrefixes:
    """Rows whose prompt prefixes are prefilled. Several rows have the same prefix."""

    rest_ids: list[list[int]]
    """The prompt of each row behind its prefix; one token at least."""
    ending_ids: list[list[list[int]]]
    """Of each row and ending the tokens behind the prompt."""
    entries: Tensor
    """(rows): which of the prefixes is the row's."""
    mask: Tensor
    """(prefixes, tokens)"""
    next_position: Tensor
    """(prefixes): the mRoPE position behind each."""
    cache: DynamicCache
    """The KV cache of the prefixes, each once."""
    prompt_tokens: list[int]
    """Of each row, its prefix included."""

    def of_rows(self, places: Sequence[int]) -> PrefilledPrefixes:
        """Those of some of the rows."""
        return replace(
            self,
            rest_ids=[self.rest_ids[place] for place in places],
            ending_ids=[self.ending_ids[place] for place in places],
            entries=self.entries[torch.tensor(places, device=self.entries.device)],
            prompt_tokens=[self.prompt_tokens[place] for place in places],
        )

    def positions(self, rest_mask: Tensor) -> Tensor:
        """mRoPE positions (3, rows, tokens) behind the prefixes."""
        # The rest is text, whose three mRoPE positions are the same and count up by one.
        steps = (rest_mask.cumsum(-1) - 1).clamp(min=0)
        return (self.next_position[self.entries][:, None] + steps).expand(3, -1, -1)


class PrefixPrefiller:
    """Prefills rows batch by batch. The images of the last batch are kept for the next."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        prepared: PreparedInputs | None = None,
    ) -> None:
        """`prepared` has what an earlier prefiller of the same processor prepared."""
        self._model: Any = model
        self._processor: Any = processor
        self._windows: dict[Path, Window] = {}
        self._passes = packed_pass(model)
        self._features: dict[_ImageKey, tuple[Tensor, Tensor]] = {}
        """Vision features (tokens, width) and grid (1, 3)."""
        self._prepared = prepared
        self._sizes = {} if prepared is None else prepared.sizes
        self._load: Callable[[Sequence[_ShownImage]], list[ProcessedImage]] = self._processed

    @contextmanager
    def loading_ahead(self, rows: Sequence[EvaluationRow]) -> Iterator[None]:
        """Within, other threads read and process the images of the rows, in their order."""
        self._windows = {row.sample.image: row.sample.window for row in rows}
        keys = (key for row in rows if (key := self.shown(row)) is not None)
        ahead = ImagesAhead(lambda key: self._processed([key])[0], keys)
        self._load = lambda keys: [ahead(key) for key in keys]
        try:
            yield
        finally:
            ahead.close()
            self._load = self._processed

    def shown(self, row: EvaluationRow) -> _ImageKey:
        """What the row shows. Rows that show the same and have one prompt have one answer."""
        path = row.sample.image
        match row.control:
            case "no_image":
                return None
            case "blank_image":
                # Grey images of one size are one image, whatever they stand for.
                if path not in self._sizes:
                    self._sizes[path] = size_of(path)
                return self._sizes[path]
            case _:
                return path

    def prefill_prefixes(
        self, rows: Sequence[EvaluationRow], endings: Sequence[Sequence[str]] | None = None
    ) -> PrefilledPrefixes:
        """Compute the KV cache of each image, with what stands before it, once for all its rows.

        The tokens with which all `endings` of a row begin become part of its prompt.
        """
        images = self._encode_images(rows)
        prompts, ending_ids = self._prompts(rows, images, endings or [()] * len(rows))
        prefixes, entries, shown = self._group(prompts, images)
        cache, mask, positions = self._prefill(prefixes, shown)
        return PrefilledPrefixes(
            rest_ids=[
                ids[len(prefixes[entry]) :] for ids, entry in zip(prompts, entries, strict=True)
            ],
            ending_ids=ending_ids,
            entries=torch.tensor(entries, device=mask.device),
            mask=mask,
            # The largest of the three axes, since an image's positions grow by height and width.
            next_position=positions.amax((0, 2)) + 1,
            cache=cache,
            prompt_tokens=[len(ids) for ids in prompts],
        )

    def _prompts(
        self,
        rows: Sequence[EvaluationRow],
        images: Sequence[_ImageKey],
        endings: Sequence[Sequence[str]],
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Token ids of each row's prompt, and of what follows it in each of its endings."""
        # Prompt and ending are one text: a tokenizer may merge tokens where they meet.
        ids_of_rows = self._tokenize(rows, images, [texts or ("",) for texts in endings])
        prompts = [
            common_prefix(ids) if texts else ids[0]
            for ids, texts in zip(ids_of_rows, endings, strict=True)
        ]
        behind = [
            [ids[len(prompt) :] for ids in ids_of_texts] if texts else []
            for prompt, ids_of_texts, texts in zip(prompts, ids_of_rows, endings, strict=True)
        ]
        return prompts, behind

    def prefill_rest(
        self, prefixes: PrefilledPrefixes, room: int, drafts: Sequence[Sequence[int]] = ()
    ) -> Prefill:
        """Prefill the rest of each row's prompt behind its prefix's KV cache, which is repeated for
        the rows and has `room` for more tokens. The rows' `drafts` are read with their prompts."""
        rests, drafts = prefixes.rest_ids, drafts or [()] * len(prefixes.rest_ids)
        ids, rest_mask = self.pad_left(
            [[*rest, *draft] for rest, draft in zip(rests, drafts, strict=True)]
        )
        drafted = [len(draft) for draft in drafts]
        read = [1 + count for count in drafted]
        before = prefixes.mask[prefixes.entries]
        padding = int(before.any(0).int().argmax())  # prefixes of other rows may be longer
        before = before[:, padding:]
        # Rounded up, so that rows which take the places of others mostly have equally much room.
        room += -(before.shape[1] + ids.shape[1] + room) % _SLOTS
        cache = repeat_kv_cache(
            prefixes.cache, prefixes.entries, ids.shape[1] + room, first=padding
        )
        mask = torch.cat([before, rest_mask], dim=1)
        positions = prefixes.positions(rest_mask)
        if self._passes is not None:
            logits = self._passes.of_prompts(
                ids, rest_mask, positions, cache, before=before, read=read
            )
        else:
            of_rows = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=max(read),
            ).logits
            logits = torch.cat([row[-count:] for row, count in zip(of_rows, read, strict=True)])
        return Prefill(
            logits,
            positions[:, :, -1:] - torch.tensor(drafted, device=ids.device)[:, None],
            mask,
            lambda: cache,
            self._passes,
            drafted=drafted,
        )

    def pad_left(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(ids, mask), (rows, tokens), so that every row ends at the last place."""
        padding, width = self._processor.tokenizer.pad_token_id, max(map(len, rows))
        ids = [[*itertools.repeat(padding, width - len(row)), *row] for row in rows]
        begin = torch.tensor([[width - len(row)] for row in rows], device=self._model.device)
        mask = torch.arange(width, device=begin.device) >= begin
        return torch.tensor(ids, device=begin.device), mask.long()

    def _encode_images(self, rows: Sequence[EvaluationRow]) -> list[_ImageKey]:
        """What each row shows. Images that the last batch did not show are encoded."""
        self._windows |= {row.sample.image: row.sample.window for row in rows}
        keys = [self.shown(row) for row in rows]
        new = [key for key in dict.fromkeys(keys) if key is not None and key not in self._features]
        # Batches follow the order of images, so one that is not shown again is never needed again.
        still_shown = {key: self._features[key] for key in keys if key in self._features}
        self._features = still_shown | dict(zip(new, self._encode(self._load(new)), strict=True))
        return keys

    def _processed(self, keys: Sequence[_ShownImage]) -> list[ProcessedImage]:
        def process(new: Sequence[tuple[_ShownImage, Window | None]]) -> list[ProcessedImage]:
            images = [
                open_rgb(key, self._windows[key]) if isinstance(key, Path) else blank(key)
                for key, _ in new
            ]
            inputs = self._processor.image_processor(images=images, return_tensors="pt")
            grids = inputs["image_grid_thw"]
            pixels = inputs["pixel_values"].split(grids.prod(-1).tolist())
            return list(zip(pixels, grids.split(1), strict=True))

        windows = [self._windows[key] if isinstance(key, Path) else None for key in keys]
        shown = list(zip(keys, windows, strict=True))
        return (self._prepared or PreparedInputs()).images(shown, process)

    def _encode(self, images: Sequence[ProcessedImage]) -> list[tuple[Tensor, Tensor]]:
        """(vision features, grid) of each processed image."""
        if not images:
            return []
        pixels, grids = (
            torch.cat(parts).to(self._model.device) for parts in zip(*images, strict=True)
        )
        outputs = self._model.get_image_features(
            pixels.to(self._model.dtype), grids, return_dict=True
        )
        return list(zip(outputs.pooler_output, grids.split(1), strict=True))

    def _tokenize(
        self,
        rows: Sequence[EvaluationRow],
        images: Sequence[_ImageKey],
        endings: Sequence[Sequence[str]],
    ) -> list[list[list[int]]]:
        """Ids of each row's prompt with each of its endings, with a placeholder for each of its
        image's features.

        As the processor makes them, which would process the image again for each text.
        """
        texts = [
            (row.prompt, image is not None, end)
            for row, image, ends in zip(rows, images, endings, strict=True)
            for end in ends
        ]
        prepared = self._prepared or PreparedInputs()
        ids_of_texts = iter(prepared.ids(texts, self._ids_of_texts))
        placeholder = self._processor.image_token_id
        ids_of_rows = [[*itertools.islice(ids_of_texts, len(ends))] for ends in endings]
        for ids_of_row, image in zip(ids_of_rows, images, strict=True):
            for ids in ids_of_row if image is not None else ():
                place = ids.index(placeholder)
                ids[place : place + 1] = [placeholder] * len(self._features[image][0])
        return ids_of_rows

    def _ids_of_texts(self, texts: Sequence[PromptText]) -> list[list[int]]:
        prompts = [*dict.fromkeys(text[:2] for text in texts)]
        in_template = prompt_texts(
            self._processor, [prompt for prompt, _ in prompts], [image for _, image in prompts]
        )
        text_of = dict(zip(prompts, in_template, strict=True))
        return self._processor.tokenizer([text_of[text[:2]] + text[2] for text in texts])[
            "input_ids"
        ]

    def _group(
        self, prompts: Sequence[list[int]], images: Sequence[_ImageKey]
    ) -> tuple[list[list[int]], list[int], list[tuple[Tensor, Tensor]]]:
        """(prefixes, each row's entry in them, features and grid of each prefix with an image)."""
        groups: dict[tuple[_ImageKey, tuple[int, ...]], list[int]] = {}
        for i, (image, ids) in enumerate(zip(images, prompts, strict=True)):
            groups.setdefault((image, self._ids_through_image(image, ids)), []).append(i)
        prefixes, entry_of_row, shown = list[list[int]](), dict[int, int](), []
        for (image, through_image), rows in groups.items():
            ids_of_rows = [prompts[i] for i in rows]
            # Rows without an image share what their prompts have in common.
            least = len(through_image) or len(common_prefix(ids_of_rows))
            for length, members in few_prefixes(ids_of_rows, least):
                entry_of_row |= {rows[member]: len(prefixes) for member in members}
                prefixes.append(ids_of_rows[members[0]][:length])
                shown += [self._features[image]] if image is not None else []
        return prefixes, [entry_of_row[i] for i in range(len(prompts))], shown

    def _ids_through_image(self, image: _ImageKey, ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens of a prompt up to its image's last one; none without an image."""
        if image is None:
            return ()
        return tuple(ids[: len(ids) - ids[::-1].index(self._processor.image_token_id)])

    def _prefill(
        self, prefixes: Sequence[Sequence[int]], shown: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[DynamicCache, Tensor, Tensor]:
        """(KV cache, mask (prefixes, tokens), mRoPE positions (3, prefixes, tokens))."""
        ids, mask = self.pad_left(prefixes)
        grids = torch.cat([grid for _, grid in shown]) if shown else None
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == self._processor.image_token_id).int(),
            "image_grid_thw": grids,
        }
        positions = mrope_positions(self._model, inputs)
        features = tuple(features for features, _ in shown)
        if self._passes is not None:
            cache = self._passes.empty_cache(*ids.shape)
            image = (torch.cat(features), self._processor.image_token_id) if shown else None
            self._passes.of_prompts(ids, mask, positions, cache, image=image, read="none")
            return cache, mask, positions
        encoded = BaseModelOutputWithPooling(pooler_output=features)  # pyright: ignore[reportArgumentType]
        outputs = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            mm_encoder_outputs={"image": encoded} if shown else None,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.past_key_values, mask, positions


def few_prefixes(rows: Sequence[list[int]], least: int) -> list[tuple[int, list[int]]]:
    """(tokens of a prefix, places of the rows that share it), so that the model reads few tokens:
    each prefix once, and of each row what is behind it.

    All rows share their first `least` tokens, which a longer prefix reads again. A prefix is
    shorter than each of its rows.
    """
    places = sorted(range(len(rows)), key=rows.__getitem__)
    # Rows in this order share what all neighbours among them do.
    shared = [len(common_prefix([rows[a], rows[b]])) for a, b in itertools.pairwise(places)]
    partitions = [_neighbours(rows, places, shared, least, alone) for alone in (0, least)]
    return min(partitions, key=lambda each: sum(n * (1 - len(members)) for n, members in each))


def _neighbours(
    rows: Sequence[list[int]], places: Sequence[int], shared: Sequence[int], least: int, alone: int
) -> list[tuple[int, list[int]]]:
    """The best prefixes of rows that stand beside each other in `places`, where a row that stands
    alone saves `alone` tokens. Such rows have one prefix of `least` tokens."""
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    """Of the first so many rows: tokens saved; first row of the last prefix; its tokens."""
    for end in range(1, len(rows) + 1):
        options, common = [(best[end - 1][0] + alone, end - 1, least)], len(rows[places[end - 1]])
        for first in range(end - 2, -1, -1):
            common = min(common, shared[first])
            options.append((best[first][0] + common * (end - first - 1), first, common))
        best.append(max(options))
    prefixes, others, end = list[tuple[int, list[int]]](), list[int](), len(rows)
    while end:
        _, first, length = best[end]
        if first == end - 1:
            others.append(places[first])
        else:
            prefixes.append((length, [*places[first:end]]))
        end = first
    return [*prefixes, (least, others)] if others else prefixes


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens with which all rows begin, and at least one less than the shortest has."""
    # What the first and the last of sorted rows share, all share.
    first, last = min(rows), max(rows)
    low, high = 0, min(map(len, rows)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == last[low:middle] else (low, middle - 1)
    return first[:low]
