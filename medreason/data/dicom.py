"""DICOM files to images; needs pydicom (the extra `dicom`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = (".dcm", ".dicom")


def open_dicom(path: Path) -> Image.Image:
    """The only frame: colours as RGB, grey values after its window (VOI LUT) as 32-bit floats.

    Raises ValueError where pydicom is missing, or the file has several frames or no pixels.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ValueError(
            f"{path}: DICOM needs pydicom; install it with pip install -e '.[dicom]'"
        ) from error
    try:
        data = dcmread(path)
        pixels = data.pixel_array
    except (InvalidDicomError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); copy the image again") from error
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise ValueError(
            f"{path}: has {data.NumberOfFrames} frames; save the one that the question is about"
        )
    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
    if pixels.ndim == 3:
        excess_bits = pixels.dtype.itemsize * 8 - 8
        return Image.fromarray((pixels >> excess_bits).astype(np.uint8))
    grey = np.asarray(apply_voi_lut(apply_modality_lut(pixels, data), data), dtype=np.float32)
    if data.PhotometricInterpretation == "MONOCHROME1":  # 0 is white
        grey = grey.max() - grey
    return Image.fromarray(grey)
