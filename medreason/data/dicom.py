"""DICOM files to 8-bit images; needs pydicom (the extra `dicom`).

Tables are looked up here, since pydicom 3.0.2 wraps values beyond 255 where entries have 8 bits.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from medreason.console import install_command
from medreason.data import grey
from medreason.samples import Window

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
_COLOURS = ("Red", "Green", "Blue")
_PACKAGES = {"pyjpegls": "pyjpegls", "pylibjpeg": "'pylibjpeg[all]'", "gdcm": "python-gdcm"}
"""Decoder of pydicom -> what pip installs."""
_DAMAGED = (
    "{}: cannot be decoded ({}); copy the image again, or save it as PNG where another program "
    "opens it"
)


class _Values(NamedTuple):
    """Values after the modality transformation."""

    values: np.ndarray
    declared: tuple[float, float] | None
    """Range of the bits that the file declares, or where these fill their word and so say nothing
    of the values, that of its series; None where it names neither."""


def is_dicom(path: Path, start: bytes) -> bool:
    """Whether a file that begins with these 132 bytes is DICOM, by its suffix or its header."""
    other = start.startswith((b"\xff\xd8\xff", b"\x89PNG"))  # a JPEG or PNG under that name
    return start[128:132] == b"DICM" or (path.suffix.lower() in SUFFIXES and not other)


def has_header(path: Path) -> bool:
    """Whether a file is DICOM."""
    with path.open("rb") as stream:
        return is_dicom(path, stream.read(132))


def size(path: Path) -> tuple[int, int]:
    """(width, height) that the header says. Raises ValueError where it says none."""
    data = _read(path, path.read_bytes(), pixels=False)
    return int(data.Columns), int(data.Rows)


def open_dicom(path: Path, content: bytes, window: Window) -> Image.Image:
    """The only frame, in 8 bits: colours as RGB, grey values as L.

    Raises ValueError where pydicom or a decoder is missing, or the file has several frames or none.
    """
    data = _read(path, content)
    pixels = _pixels(path, data)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        return Image.fromarray(_palette(pixels, data))
    if pixels.ndim == 3:
        bits = int(data.BitsStored)
        if bits == 16:
            bits = grey.depth_of(int(pixels.max()))
        return Image.fromarray(grey.eight_bits(grey.stretched(pixels, 0, (1 << bits) - 1)))
    brightness = _brightness(pixels, data, window)
    if data.PhotometricInterpretation == "MONOCHROME1":  # 0 is white
        brightness = 1 - brightness
    return Image.fromarray(grey.eight_bits(brightness))


def _read(path: Path, content: bytes, *, pixels: bool = True) -> Dataset:
    """The file's elements. Raises ValueError unless it holds one image."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    except ImportError as error:
        raise ValueError(
            f"{path}: DICOM needs pydicom; install it with {install_command('dicom')}"
        ) from error
    # Without the header that the standard asks for, the first element is of group 2 or 8.
    bare = content[:2] in (b"\x02\0", b"\x08\0")
    try:
        data = dcmread(BytesIO(content), stop_before_pixels=not pixels, force=bare)
        if bare and "TransferSyntaxUID" not in data.file_meta:
            implicit, _ = data.original_encoding
            data.file_meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            )
    except InvalidDicomError as error:
        raise ValueError(
            f"{path}: is no DICOM, whatever its name says; copy the image again, or give it the "
            "suffix of what it is"
        ) from error
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(_DAMAGED.format(path, error)) from error
    if "Rows" not in data or "Columns" not in data:
        kind = data.file_meta.get("MediaStorageSOPClassUID")
        raise ValueError(
            f"{path}: holds no image ({kind.name if kind else 'of no kind'}); name one that does, "
            "or copy it again where it is cut off"
        )
    if (frames := int(data.get("NumberOfFrames") or 1)) > 1:
        raise ValueError(f"{path}: has {frames} frames; save the one that the question is about")
    return data


def _pixels(path: Path, data: Dataset) -> np.ndarray:
    """(rows, columns) of grey values or palette places, (rows, columns, 3) of colours."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and int(data.Rows) * int(data.Columns) > limit:
        raise ValueError(
            f"{path}: {data.Columns} x {data.Rows} are more than {limit:,} pixels; scale it down"
        )
    if missing := _missing_decoder(data):
        raise ValueError(f"{path}: {missing}")
    try:
        return data.pixel_array
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(_DAMAGED.format(path, error)) from error


def _missing_decoder(data: Dataset) -> str:
    """What to install or convert before the pixels can be read; empty where they can."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        return ""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return (
            f"nothing here reads its compression ({syntax.name}); save it uncompressed, as with "
            "gdcmconv --raw"
        )
    if decoder.is_available:
        return ""
    plugins = {line.split(" - ")[0] for line in decoder.missing_dependencies}
    first, *others = [package for plugin, package in _PACKAGES.items() if plugin in plugins]
    also = f" (or {' or '.join(others)})" if others else ""
    return (
        f"its compression ({syntax.name}) needs another package; pip install {first}{also}, or "
        "save it uncompressed, as with gdcmconv --raw"
    )


def _palette(pixels: np.ndarray, data: Dataset) -> np.ndarray:
    """(rows, columns, 3) in 8 bits."""
    names = [f"{colour}PaletteColorLookupTable" for colour in _COLOURS]
    if any(f"Segmented{name}Data" in data for name in names):
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(pixels, data)
        return grey.eight_bits(grey.stretched(colours, 0, np.iinfo(colours.dtype).max))
    tables = [_Table.of(data, f"{name}Descriptor", f"{name}Data") for name in names]
    bits = max(table.bits for table in tables)
    colours = np.stack([table.look_up(pixels) for table in tables], axis=-1)
    return grey.eight_bits(grey.stretched(colours, 0, (1 << bits) - 1))


class _Table(NamedTuple):
    """A lookup table. Source: DICOM PS3.3 C.7.6.3.1.5 and C.11.2.1.1."""

    first: int
    """The value that the first entry is for."""
    entries: np.ndarray
    bits: int
    """Of an entry. Where 16 are declared, the usual depth that holds the greatest entry: devices
    write 8-bit entries into 16-bit words and declare the words."""

    @classmethod
    def of(cls, data: Dataset, descriptor: str, entries: str) -> _Table:
        count, first, declared = (int(number) for number in data[descriptor].value)
        count = count or 1 << 16
        content = data[entries].value
        if not isinstance(content, bytes):
            content = (np.atleast_1d(content).astype(np.int64) & 0xFFFF).astype("<u2").tobytes()
        in_words = len(content) >= 2 * count  # else in bytes
        values = np.frombuffer(content, "<u2" if in_words else "u1")[:count]
        depth = grey.depth_of(int(values.max()))
        bits = declared if depth <= declared < 16 else depth
        return cls(first, values, bits)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entry of each value; values beyond the table get its first or last entry."""
        first = self.first
        if first >= 1 << 15 and values.min() < 0:  # read as unsigned, where values are signed
            first -= 1 << 16
        places = np.rint(values.astype(np.float64)).astype(np.int64) - first
        return self.entries[np.clip(places, 0, len(self.entries) - 1)]


def _brightness(pixels: np.ndarray, data: Dataset, window: Window) -> np.ndarray:
    """0 to 1 of each grey value, by the first that applies: the file's table or window, the window
    of CT, the range of the declared bits, that of the series, the range of the values."""
    transformed = _after_modality(pixels, data)
    values = transformed.values
    of_ct = _is_in_hounsfield_units(data)
    if not (of_ct and window.replaces_that_of_files):
        voi = _functional_group(data, "FrameVOILUTSequence")
        if tables := voi.get("VOILUTSequence"):
            table = _Table.of(tables[0], "LUTDescriptor", "LUTData")
            return grey.stretched(table.look_up(values), 0, (1 << table.bits) - 1)
        function = str(voi.get("VOILUTFunction") or "LINEAR")
        center, width = _first(voi, "WindowCenter"), _first(voi, "WindowWidth")
        least_width = 1.0 if function == "LINEAR" else 0.0
        if center is not None and width is not None and width >= least_width and width > 0:
            return grey.windowed(values, center, width, function)
    if of_ct:
        return grey.windowed(values, window.center, window.width)
    low, high = transformed.declared or grey.range_of(values[~_is_padding(pixels, data)])
    return grey.stretched(values, low, high)


def _after_modality(pixels: np.ndarray, data: Dataset) -> _Values:
    """Values in the modality's unit: Hounsfield units of CT."""
    if tables := data.get("ModalityLUTSequence"):
        table = _Table.of(tables[0], "LUTDescriptor", "LUTData")
        return _Values(table.look_up(pixels), (0, (1 << table.bits) - 1))
    group = _functional_group(data, "PixelValueTransformationSequence")
    slope = float(group.get("RescaleSlope") or 1)
    intercept = float(group.get("RescaleIntercept") or 0)
    values = pixels * slope + intercept
    bits = int(data.get("BitsStored") or 0)
    if 0 < bits <= 8 or 0 < bits < int(data.BitsAllocated):
        ends = grey.range_of_bits(bits, signed=bool(data.get("PixelRepresentation")))
    elif not (ends := _range_of_series(data)):
        return _Values(values, None)
    low, high = sorted(slope * end + intercept for end in ends)
    return _Values(values, (low, high))


def _range_of_series(data: Dataset) -> tuple[int, int] | None:
    """Least and greatest stored value of all images of its series, where the file names them."""
    low, high = data.get("SmallestPixelValueInSeries"), data.get("LargestPixelValueInSeries")
    named = isinstance(low, int) and isinstance(high, int) and low < high
    return (low, high) if named else None


def _is_in_hounsfield_units(data: Dataset) -> bool:
    """Whether it is a CT image whose values are not those of a screenshot or in another unit."""
    group = _functional_group(data, "PixelValueTransformationSequence")
    is_measured = int(data.get("BitsStored") or 0) > 8 or "RescaleIntercept" in group
    unit = str(group.get("RescaleType") or "HU")
    return data.get("Modality") == "CT" and is_measured and unit.startswith("HU")


def _functional_group(data: Dataset, name: str) -> Dataset:
    """Where the elements of a functional group are: enhanced images have them in a sequence."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(data.get(groups) or ())[:1]:
            if group.get(name):
                return group[name].value[0]
    return data


def _is_padding(pixels: np.ndarray, data: Dataset) -> np.ndarray:
    """Which pixels are no part of the picture."""
    first = data.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(pixels.shape, dtype=bool)
    last = data.get("PixelPaddingRangeLimit", first)
    return (pixels >= min(first, last)) & (pixels <= max(first, last))


def _first(data: Dataset, name: str) -> float | None:
    """The first of the numbers of an element; None where it has none."""
    value = data.get(name)
    numbers = np.atleast_1d([] if value is None or value == "" else value)
    return float(numbers[0]) if numbers.size else None
