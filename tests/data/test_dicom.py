"""DICOM as devices write it: depths, windows, inverted grey, colours, palettes, several frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medreason.data.images import check, open_rgb

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (extra dicom)")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)


def written(path: Path, pixels: np.ndarray, photometric: str, **more: Any) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


GREY = np.array([[0, 100, 200, 4000]], dtype=np.int16)


@pytest.mark.parametrize(
    ("photometric", "more", "seen"),
    [
        ("MONOCHROME2", {}, [0, 6, 13, 255]),
        ("MONOCHROME1", {}, [255, 249, 242, 0]),
        ("MONOCHROME2", {"WindowCenter": 100, "WindowWidth": 200}, [0, 128, 255, 255]),
    ],
)
def test_grey_values_go_through_their_window(
    tmp_path: Path, photometric: str, more: dict[str, int], seen: list[int]
) -> None:
    path = written(tmp_path / "a.dcm", GREY, photometric, **more)
    assert np.asarray(open_rgb(path))[0, :, 0].tolist() == seen
    check(path)


@pytest.mark.parametrize(
    ("photometric", "pixel", "seen"),
    [
        ("RGB", np.array([255, 10, 128], np.uint8), [255, 10, 128]),
        ("RGB", np.array([65535, 0, 32768], np.uint16), [255, 0, 128]),
        ("YBR_FULL", np.array([76, 85, 255], np.uint8), [254, 0, 0]),
    ],
)
def test_colours_come_as_8_bit_rgb(
    tmp_path: Path, photometric: str, pixel: np.ndarray, seen: list[int]
) -> None:
    path = written(tmp_path / "a.dcm", np.tile(pixel, (1, 2, 1)), photometric)
    assert np.asarray(open_rgb(path))[0, 0].tolist() == seen


def test_palette_is_looked_up(tmp_path: Path) -> None:
    palette: dict[str, Any] = {}
    for colour, values in (("Red", (0, 65535)), ("Green", (0, 0)), ("Blue", (65535, 0))):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = np.array(values, np.uint16).tobytes()
    pixels = np.array([[0, 1]], np.uint8)
    path = written(tmp_path / "a.dcm", pixels, "PALETTE COLOR", **palette)
    assert np.asarray(open_rgb(path))[0].tolist() == [[0, 0, 255], [255, 0, 0]]


def test_several_frames_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", GREY, "MONOCHROME2", NumberOfFrames=2)
    data = pydicom.dcmread(path)
    data.PixelData = 2 * GREY.tobytes()
    data.save_as(path)
    with pytest.raises(ValueError, match="2 frames"):
        open_rgb(path)
