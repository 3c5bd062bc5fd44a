#!/usr/bin/env bash
# pydicom 3.0.2 wraps pixel values modulo 256 before it looks them up in a table of 8-bit entries, palette and VOI LUT alike.
#
# DICOM says that a value beyond the last entry takes the last entry (PS3.3 C.7.6.3.1.5 and C.11.2.1.1). With entries of 16 bits
# pydicom does so. With entries of 8 bits it copies the values into an array of the entries' type (uint8) first, and limits them
# to the table afterwards: 256 becomes 0, 300 becomes 44, 1000 becomes 232. No warning. A VOI table of 4,096 8-bit entries, a
# usual size for 12-bit pixels, is hit as well: pixel 1000 gets entry 232 in place of entry 1000.
#
# Why it matters: bright structures come out dark, in bands, in every tool that builds on apply_color_lut and apply_voi_lut.
#
# Output seen on 2026-11-28:
#   pydicom 3.0.2
#   pixels               [0, 100, 255, 256, 300, 1000]
#   palette, 8 bits      [0, 100, 255, 0, 44, 232]
#   palette, 16 bits     [0, 100, 255, 255, 255, 255]
#   VOI LUT of 4096, 8 bits: pixel 1000 -> 14, entry 1000 is 62
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv env && env/bin/pip install --quiet pydicom==3.0.2 numpy==2.3.5
env/bin/python - <<'PY'
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_voi_lut
from pydicom.sequence import Sequence

print("pydicom", pydicom.__version__)
pixels = np.array([0, 100, 255, 256, 300, 1000], dtype=np.uint16)


def palette(bits: int) -> list[int]:
    data = Dataset()
    data.PhotometricInterpretation = "PALETTE COLOR"
    data.BitsAllocated = data.BitsStored = 16
    data.PixelRepresentation, data.SamplesPerPixel = 0, 1
    entries = np.arange(256, dtype=np.uint8 if bits == 8 else np.uint16).tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        data[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(data, f"{colour}PaletteColorLookupTableData", entries)
    return apply_color_lut(pixels, data)[:, 0].tolist()


print("pixels              ", pixels.tolist())
print("palette, 8 bits     ", eight := palette(8))
print("palette, 16 bits    ", sixteen := palette(16))
table = Dataset()
entries = [entry // 16 for entry in range(4096)]
table.LUTDescriptor, table.LUTData = [4096, 0, 8], entries
table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
data = Dataset()
data.PhotometricInterpretation = "MONOCHROME2"
data.BitsAllocated, data.BitsStored, data.PixelRepresentation = 16, 12, 0
data.VOILUTSequence = Sequence([table])
voi = int(apply_voi_lut(np.array([1000], dtype=np.uint16), data)[0])
print(f"VOI LUT of 4096, 8 bits: pixel 1000 -> {voi}, entry 1000 is {entries[1000]}")
assert sixteen == [0, 100, 255, 255, 255, 255]
assert eight == [0, 100, 255, 0, 44, 232], "changed: palette of 8-bit entries"
assert voi == entries[1000 % 256] != entries[1000], "changed: VOI table of 8-bit entries"
PY
