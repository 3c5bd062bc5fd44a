"""Image files to 8-bit RGB, whatever format and depth a release has."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medreason.data import dicom, headers

# Errors that Pillow raises for damaged files; they differ by format.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def open_rgb(path: Path) -> Image.Image:
    """Decode a file, turned upright by its EXIF rotation.

    Transparent pixels become black. Grey values of more than 8 bits are scaled from the darkest to
    the brightest of the image, since Pillow would clip all above 255. Raises ValueError where the
    file cannot be decoded.
    """
    _refuse_empty(path)
    try:
        if path.suffix.lower() in dicom.SUFFIXES:
            return _rgb(dicom.open_dicom(path))
        with Image.open(path) as image:
            _refuse_bomb(path, image)
            size = image.size
            image.load()
            if image.size != size:
                raise ValueError(f"is {image.size}, its header says {size}")
            return _rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        raise ValueError(_remedy(path, error)) from error


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to size x size pixels, bicubic, without keeping the proportions.

    Source: Med-R1 resizes to 384 x 384 so (experiments/med_r1/README.md, "Data").
    """
    return image.resize((size, size), Image.Resampling.BICUBIC)


def pad_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to fit size x size pixels, bicubic, keeping the proportions, with black padding."""
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color="black")


def blank(size: int | tuple[int, int]) -> Image.Image:
    """A mid-grey image of one side length or of (width, height), for the control `blank_image`."""
    return Image.new("RGB", (size, size) if isinstance(size, int) else size, (128, 128, 128))


def check(path: Path) -> None:
    """Decode the file. Raises ValueError where it is missing, empty, truncated or no image."""
    _refuse_empty(path)
    try:
        if path.suffix.lower() in dicom.SUFFIXES:
            dicom.open_dicom(path)
            return
        with Image.open(path) as image:
            _refuse_bomb(path, image)
            # A JPEG is decoded at an eighth of its size, several times as fast; every byte is read.
            image.draft(None, (1, 1))
            image.load()
        headers.refuse_other_size(path)
    except _UNREADABLE as error:
        raise ValueError(_remedy(path, error)) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = values.min(), values.max()
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), coloured).convert(
            "RGB"
        )
    return image.convert("RGB")


def _refuse_empty(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the data root, or copy the image there")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: 0 bytes; copy or download the image again")


def _refuse_bomb(path: Path, image: Image.Image) -> None:
    """Up to twice its limit Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} are more than {limit:,} pixels, as in a decompression "
            "bomb; scale a slide down first"
        )


def _remedy(path: Path, error: BaseException) -> str:
    if str(error).startswith(f"{path}: "):  # raised by us, with its own remedy
        return str(error)
    return f"{path}: cannot be decoded ({error}); copy or download the image again"
