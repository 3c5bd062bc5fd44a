"""The one door to image files: any format and depth to 8-bit RGB, upright, transparency on white.

`README.md`, "Images", is the rule in words. Nothing else in the package calls Pillow's `open`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from medreason.data import dicom, headers, rgb
from medreason.samples import SOFT_TISSUE, Window

MAX_RATIO = 200
"""Longer over shorter side, at most: above it the image processors of all Qwen-VL models raise.

Source: `smart_resize` in transformers/models/qwen2_vl/image_processing_qwen2_vl.py.
"""

# Errors that Pillow raises for damaged files; they differ by format.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AssertionError,
    OverflowError,
    struct.error,
    zlib.error,
)
_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_PLAIN_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
"""Of these modes and formats nothing can fail after decoding."""
_REDUCED_OR_MASK = 0b101
"""Bits of the TIFF tag NewSubfileType."""
_PNG_ORIENTATION = {b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp"}
"""Names of PNG chunks in which Pillow finds an orientation: EXIF, its text form, XMP."""
_UNREAD_FORMATS = (
    (4, rb"ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC"),
    (0, rb"\xff\xd8\xff\xf7", "JPEG-LS (the packages imagecodecs and pillow-jpls read it)"),
    (0, rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (344, rb"(ni1|n\+1)\0", "NIfTI, a volume"),
    (0, rb"\x1f\x8b", "a gzip archive"),
    (0, rb"PK\x03\x04", "a zip archive"),
    (0, rb"NRRD", "NRRD, a volume"),
    (0, rb"ObjectType", "MetaImage, a volume"),
    (0, rb"\x89HDF", "HDF5"),
    (0, rb"\x93NUMPY", "an array of NumPy"),
    (0, rb"%PDF", "PDF"),
    (0, rb"%!PS", "PostScript"),
    (0, rb"\s*<(svg|\?xml)", "SVG or XML"),
)
"""(place, signature, name) of files that come as images and that nothing here reads."""


def open_rgb(path: Path, window: Window = SOFT_TISSUE) -> Image.Image:
    """Decode a file, turned upright by its EXIF rotation, transparent pixels on white.

    `window` is that of CT images in DICOM. Raises ValueError where the file cannot be decoded.
    """
    with _errors_with_remedy(path):
        content = _content(path)
        if dicom.is_dicom(path, content[:132]):
            return dicom.open_dicom(path, content, window).convert("RGB")
        return rgb.to_rgb(_decoded(content))


def size_of(path: Path) -> tuple[int, int]:
    """(width, height), upright; only the header is decoded.

    Raises ValueError where that cannot be read.
    """
    with _errors_with_remedy(path):
        _refuse_absent(path)
        with path.open("rb") as file:
            start = file.read(132)
        if dicom.is_dicom(path, start):
            return dicom.size(path)
        with Image.open(path) as image:
            # Of a TIFF, Pillow has turned the size already.
            turned = image.format != "TIFF" and _orientation(image, path) in (5, 6, 7, 8)
            width, height = image.size
            return (height, width) if turned else (width, height)


def _orientation(image: Image.Image, path: Path) -> int | None:
    """EXIF's. Of a PNG without any such chunk Pillow would decode all pixels to find none."""
    if image.format == "PNG" and not _PNG_ORIENTATION & headers.chunk_names(path):
        return None
    return image.getexif().get(Tag.Orientation)


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


def is_named_as_image(path: Path) -> bool:
    """Whether its suffix is one of the formats that are read here."""
    known = Image.registered_extensions()
    suffix = path.suffix.lower()
    return suffix in dicom.SUFFIXES or known.get(suffix, "") in Image.OPEN


def check(path: Path) -> None:
    """Decode the file. Raises ValueError where `open_rgb` would, or no model takes its shape."""
    with _errors_with_remedy(path):
        content = _content(path)
        if dicom.is_dicom(path, content[:132]):
            size = dicom.open_dicom(path, content, SOFT_TISSUE).size
        else:
            size = _checked_size(content)
            headers.refuse_other_size(path, content)
    if problem := shape_problem(size):
        raise ValueError(f"{path}: {problem}")


def shape_problem(size: tuple[int, int]) -> str:
    """Why no model's own processor takes an image of this width and height; empty where they do."""
    if max(size) <= MAX_RATIO * min(size):
        return ""
    return (
        f"{size[0]} x {size[1]} pixels, one side more than {MAX_RATIO} times the other, which the "
        "models' processors refuse; crop or pad it"
    )


def _checked_size(content: bytes) -> tuple[int, int]:
    with _opened(content) as image:
        size = image.size
        # A JPEG is decoded at an eighth of its size, several times as fast; every byte is read.
        image.draft(None, (1, 1))
        image.load()
        image.getexif()
        if image.mode not in _PLAIN_MODES or image.format not in _PLAIN_FORMATS:
            rgb.to_rgb(image)
        return size


@contextmanager
def _opened(content: bytes) -> Iterator[ImageFile.ImageFile]:
    """The file's only picture, before it is decoded.

    From memory: by its path, Pillow 11.3 to 13.0 scrambles an uncompressed TIFF that is to be
    turned by a quarter.
    """
    with Image.open(BytesIO(content)) as image:
        _refuse_bomb(image)
        if (pages := _pages(image)) > 1:
            raise _RefusedError(
                f"has {pages} pages or frames; save the one that the question is about"
            )
        planar = image.format == "TIFF" and image.tag_v2.get(Tag.PlanarConfiguration) == 2  # pyright: ignore
        if planar and 16 in image.tag_v2.get(Tag.BitsPerSample, ()):  # pyright: ignore
            raise _RefusedError(
                "has 16-bit colours in separate planes, which Pillow misreads; save it as PNG"
            )
        yield image


class _RefusedError(ValueError):
    """What is wrong with a file, with its remedy, without its path."""


def _pages(image: Image.Image) -> int:
    """Pictures of a stack or animation. Not the previews in a phone's photo, nor layers, nor the
    smaller copies and masks in a TIFF."""
    frames = getattr(image, "n_frames", 1)
    if image.format in ("MPO", "PSD"):
        return 1
    if image.format != "TIFF":
        return frames
    # ImageJ writes a large stack as one page with its number in the description.
    described = re.search(
        r"^ImageJ=(?s:.*)^images=(\d+)", _tiff_text(image, Tag.ImageDescription), re.MULTILINE
    )
    if frames > 1:
        kinds = []
        for frame in range(frames):
            image.seek(frame)
            kinds.append(image.tag_v2.get(Tag.NewSubfileType, 0))  # pyright: ignore
        image.seek(0)
        frames = sum(not kind & _REDUCED_OR_MASK for kind in kinds)
    return max(frames, int(described[1]) if described else 1)


def _tiff_text(image: Image.Image, tag: int) -> str:
    value = image.tag_v2.get(tag, "")  # pyright: ignore
    return value if isinstance(value, str) else ""


def _decoded(content: bytes) -> Image.Image:
    """The picture in the mode of its file, of 16-bit colours the 8 highest of their bits."""
    with _opened(content) as image:
        size, low_bytes = image.size, rgb.tiles_of_low_bytes(image.tile)
        image.load()
        if image.size != size:
            raise ValueError(f"is {image.size}, its header says {size}")
        if low_bytes is None:
            return image
        with Image.open(BytesIO(content)) as other:
            other.tile = low_bytes
            low = np.asarray(other)
        return rgb.from_16_bits(image, low, is_grey=rgb.rawmode(low_bytes[0]) == "RGBA")


def _refuse_absent(path: Path) -> None:
    """Whatever is no file: a folder, a link to itself, a pipe, which would be waited for."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the path of an image in it")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; correct the path, or copy the image there")


def _content(path: Path) -> bytes:
    _refuse_absent(path)
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path}: 0 bytes; copy or download the image again")
    return content


def _refuse_bomb(image: Image.Image) -> None:
    """Up to twice its limit Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise _RefusedError(
            f"{image.width} x {image.height} are more than {limit:,} pixels, as in a decompression "
            "bomb; scale a slide down first"
        )


@contextmanager
def _errors_with_remedy(path: Path) -> Iterator[None]:
    """Whatever Pillow raises becomes a ValueError with the path and what to do."""
    try:
        yield
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}; scale a slide down first") from error
    except _UNREADABLE as error:
        if str(error).startswith(f"{path}: "):  # raised by us, with its own remedy
            raise
        raise ValueError(f"{path}: {_remedy(path, error)}") from error


def _remedy(path: Path, error: BaseException) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    for place, signature, name in _UNREAD_FORMATS:
        if re.match(signature, start[place:]):
            return f"is {name}, which nothing here reads; save it as PNG"
    if re.match(rb"\s*<(!doctype html|html)", start, re.IGNORECASE):
        return (
            "is a web page in place of the image; download it again, logged in where that needs it"
        )
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image; fetch the images with git lfs pull"
    if start[:4] in TiffImagePlugin.PREFIXES and (kind := _unread_kind_of_tiff(path)):
        return f"is a kind of TIFF that Pillow does not read ({kind}); save it as PNG"
    known = path.suffix.lower() in Image.registered_extensions() or not path.suffix
    if isinstance(error, UnidentifiedImageError) and not known:
        return "is no format that is read here (PNG, JPEG, TIFF, DICOM ...); save it as PNG"
    reason = re.sub(r" <_io\.BytesIO object at 0x\w+>", "", str(error))
    return (
        f"cannot be decoded ({reason}); copy or download the image again, or save it as PNG where "
        "another program opens it"
    )


def _unread_kind_of_tiff(path: Path) -> str:
    """The samples or the compression that Pillow does not read; empty for a damaged file."""
    try:
        TiffImagePlugin.TiffImageFile(path)
    except SyntaxError as error:
        match error.args:
            case (KeyError(args=[int(compression)]), *_):
                return f"compression {compression}"
            case ("unknown pixel mode", *_):
                return "unusual samples, such as 64-bit or 16-bit floats"
    except _UNREADABLE:
        pass
    return ""
