"""Pictures that Pillow decoded, of any mode and depth, to 8-bit RGB, upright, on white."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms, ImageFile
from PIL.ExifTags import Base as Tag

from medreason.data import grey

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright."""
_WHITE_IS_ZERO, _SIGNED = 0, 2
"""Values of the TIFF tags PhotometricInterpretation and SampleFormat."""


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as `images.open_rgb` gives its file."""
    turn = _TURNS.get(image.getexif().get(Tag.Orientation, 1))
    colours = _colours(image)
    return colours if turn is None else colours.transpose(turn)


def _colours(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return _deep_grey(image)
    if _tiff_tag(image, Tag.SampleFormat) == _SIGNED and image.mode == "L":
        return Image.fromarray(np.asarray(image) ^ 128).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data:
        coloured = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits, from black, the least, to white, the greatest of the range
    that the file declares, or else of the image."""
    values = np.asarray(image)
    bits, signed = _tiff_tag(image, Tag.BitsPerSample), _tiff_tag(image, Tag.SampleFormat)
    if bits == 32 and values.dtype == np.int32 and signed != _SIGNED:
        values = values.view(np.uint32)  # Pillow reads them as signed
    low, high = grey.range_of_bits(bits) if bits and 8 < bits < 16 else grey.range_of(values)
    brightness = grey.stretched(values, low, high)
    if _tiff_tag(image, Tag.PhotometricInterpretation) == _WHITE_IS_ZERO:
        brightness = 1 - brightness
    if (clear := image.info.get("transparency")) is not None:
        brightness = np.where(values == clear, 1.0, brightness)
    return Image.fromarray(grey.eight_bits(brightness)).convert("RGB")


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """A tag of a TIFF, of its first band; None where it is absent or the file is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def rawmode(tile: ImageFile._Tile) -> str:
    """How the bytes of a tile become pixels, in Pillow's words: `RGB;16B`."""
    args = tile.args
    return str(args[0]) if isinstance(args, tuple) else str(args)


def tiles_of_low_bytes(tiles: Sequence[ImageFile._Tile]) -> list[ImageFile._Tile] | None:
    """Tiles that decode the low byte of each 16-bit colour, of which Pillow decodes the high one:
    the same bytes read in the other order. None where colours have 8 bits."""
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    result = []
    for tile in tiles:
        match = re.fullmatch(r"(RGB|RGBX|RGBA|LA);16([BLN])", rawmode(tile))
        if not match:
            return None
        # Grey and alpha, two bytes each, as four bands: high, low, high, low.
        other = "RGBA" if match[1] == "LA" else f"{match[1]};16{swapped[match[2]]}"
        args = tile.args if isinstance(tile.args, tuple) else ()
        result.append(tile._replace(args=(other, *args[1:]) if args else other))
    return result or None


def from_16_bits(image: Image.Image, low: np.ndarray, *, is_grey: bool) -> Image.Image:
    """8 of the bits that the colours use: a camera's 12 bits in 16-bit words become 8."""
    high = np.asarray(image)
    low = np.repeat(low[..., 1:2], 3, axis=-1) if is_grey else low[..., :3]
    colours = high[..., :3].astype(np.int64) * 256 + low
    white = (1 << grey.depth_of(int(colours.max()))) - 1
    scaled = Image.fromarray(grey.eight_bits(grey.stretched(colours, 0, white)))
    if image.mode == "RGBA":
        scaled.putalpha(image.getchannel("A"))
    elif clear := image.info.get("transparency"):
        opaque = (colours != np.array(clear)).any(axis=-1)
        scaled.putalpha(Image.fromarray((255 * opaque).astype(np.uint8)))
    scaled.getexif()[Tag.Orientation] = image.getexif().get(Tag.Orientation, 1)
    return scaled
