#!/usr/bin/env bash
# Pillow 13.0.0 heeds a TIFF's sign and photometric interpretation by the number of bits, without a word: WhiteIsZero is turned with
# 8 bits and not with 16, signed 8-bit values come out unsigned, and unsigned 32-bit values from 2^31 come out negative.
#
# Expected: 16-bit WhiteIsZero turned as 8-bit is (0 -> 65535), or both left; int8 -100 as -100; uint32 4000000000 as itself.
# Seen: 16-bit WhiteIsZero as stored, so a radiograph is shown as its own negative while its 8-bit copy is not; int8 -100 -> 156,
# brighter than 100; uint32 4000000000 -> -294967296, darker than 0.
#
# Why it matters: radiographs, autoradiographs and gels are stored WhiteIsZero, label maps and difference images as int8, counts of
# detectors as uint32. One collection in two depths has two polarities.
#
# Output seen on 2026-11-28:
#   pillow 13.0.0, tifffile 2026.3.3
#   uint8  WhiteIsZero  stored [0, 1, 100, 200]             L     [255, 254, 155, 55]
#   uint16 WhiteIsZero  stored [0, 1, 100, 60000]           I;16  [0, 1, 100, 60000]
#   int8   BlackIsZero  stored [-100, -1, 0, 100]           L     [156, 255, 0, 100]
#   int16  BlackIsZero  stored [-100, -1, 0, 100]           I     [-100, -1, 0, 100]
#   uint32 BlackIsZero  stored [0, 1, 100, 4000000000]      I     [0, 1, 100, -294967296]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv env && env/bin/pip install --quiet pillow==13.0.0 numpy==2.3.5 tifffile==2026.3.3
env/bin/python - <<'PY'
import io

import numpy as np
import PIL
import tifffile
from PIL import Image

print(f"pillow {PIL.__version__}, tifffile {tifffile.__version__}")
CASES = (
    ("uint8", "WhiteIsZero", [0, 1, 100, 200], "L", [255, 254, 155, 55]),
    ("uint16", "WhiteIsZero", [0, 1, 100, 60000], "I;16", [0, 1, 100, 60000]),
    ("int8", "BlackIsZero", [-100, -1, 0, 100], "L", [156, 255, 0, 100]),
    ("int16", "BlackIsZero", [-100, -1, 0, 100], "I", [-100, -1, 0, 100]),
    ("uint32", "BlackIsZero", [0, 1, 100, 4000000000], "I", [0, 1, 100, -294967296]),
)
for kind, photometric, stored, mode, expected in CASES:
    file = io.BytesIO()
    named = {"WhiteIsZero": "miniswhite", "BlackIsZero": "minisblack"}[photometric]
    tifffile.imwrite(file, np.array([stored], kind), photometric=named)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.load()
        seen = np.asarray(image)[0].tolist()
        print(f"{kind:<6} {photometric}  stored {stored!s:<28} {image.mode:<5} {seen}")
        assert (image.mode, seen) == (mode, expected), "changed"
PY
