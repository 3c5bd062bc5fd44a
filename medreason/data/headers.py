"""What the chunks of a PNG say: its number of pixels, which Pillow does not check, and its names.

With a larger size in the header the rest of the image is black, with a smaller one it is cropped,
both without an error. Source: W3C PNG, sections 7.2 "Scanlines" and 8.1 "Interlace methods".
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def refuse_other_size(path: Path, content: bytes) -> None:
    """Raise ValueError for a PNG that has more or fewer pixels than its header says.

    Other formats pass, and damaged files, which fail to decode anyway.
    """
    if not content.startswith(SIGNATURE):
        return
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    passes = (*_ADAM7, (0, 1, 1, 2)) if interlaced else ((0, 0, 1, 1),)
    expected = 0  # bytes
    for x, y, step_x, step_y in passes:
        across, down = (width - x + step_x - 1) // step_x, (height - y + step_y - 1) // step_y
        if across > 0 and down > 0:
            expected += down * (1 + (across * depth * _CHANNELS[colour] + 7) // 8)
    inflated = _inflated(content, limit=expected + 1)
    if inflated != expected:
        more = "fewer" if inflated < expected else "more"
        raise ValueError(
            f"{path}: holds {more} pixels than the {width} x {height} of its header; "
            "copy or download the image again"
        )


def chunk_names(path: Path) -> set[bytes]:
    """The kinds of a PNG's chunks, b"IHDR" and so on, and the keywords of those with text."""
    names, place = set(), len(SIGNATURE)
    with path.open("rb") as file:
        while len(start := _read_at(file, place)) >= 8:
            size, kind = struct.unpack(">I4s", start[:8])
            names |= {kind, start[8:].partition(b"\0")[0]} if kind in _TEXTS else {kind}
            place += 12 + size
    return names


_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_LONGEST_KEYWORD = 79


def _read_at(file: BinaryIO, place: int) -> bytes:
    """Size, kind and a keyword, as far as there are any."""
    file.seek(place)
    return file.read(8 + _LONGEST_KEYWORD + 1)


def _inflated(content: bytes, limit: int) -> int:
    """Number of bytes of pixels, counted up to `limit`."""
    inflate, count, place = zlib.decompressobj(), 0, 8
    while place + 8 <= len(content) and count < limit:
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind == b"IDAT":
            pixels = inflate.decompress(content[place + 8 : place + 8 + size], limit - count)
            count += len(pixels)
        elif kind == b"IEND":
            break
        place += 12 + size
    return count + len(inflate.flush()) if count < limit else count
