#!/usr/bin/env bash
# Pillow 13.0.0 turns an uncompressed TIFF with Orientation 6 or 8 wrongly when it is opened by path, and rightly when the same
# bytes are opened from memory.
#
# Expected for pixels 0..7 in two rows of four and Orientation 6: two columns, four rows, [[4,0],[5,1],[6,2],[7,3]].
# Seen by path: size still 4 x 2 and [[6,4,2,0],[7,5,3,1]], pixels that belong to no rotation of the picture; no warning, and
# ImageOps.exif_transpose leaves it as it is. With LZW compression both ways are right. The path is memory-mapped in the stored
# shape, the rotation is then applied to a buffer of the other shape.
#
# Why it matters: microscopes and slide scanners write uncompressed TIFF with an orientation; a non-square image is scrambled,
# a square one looks plausible.
#
# Output seen on 2026-11-28:
#   pillow 13.0.0
#   raw by path   (4, 2) [[6, 4, 2, 0], [7, 5, 3, 1]]
#   raw by bytes  (2, 4) [[4, 0], [5, 1], [6, 2], [7, 3]]
#   lzw by path   (2, 4) [[4, 0], [5, 1], [6, 2], [7, 3]]
#   lzw by bytes  (2, 4) [[4, 0], [5, 1], [6, 2], [7, 3]]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv env && env/bin/pip install --quiet pillow==13.0.0 numpy==2.3.5
env/bin/python - <<'PY'
import io
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__)
RIGHT = ((2, 4), [[4, 0], [5, 1], [6, 2], [7, 3]])
SCRAMBLED = ((4, 2), [[6, 4, 2, 0], [7, 5, 3, 1]])
stored = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4))
seen = {}
for name, compression in (("raw", "raw"), ("lzw", "tiff_lzw")):
    path = Path(f"{name}.tif")
    stored.save(path, compression=compression, tiffinfo={274: 6})
    for way, source in (("path", path), ("bytes", io.BytesIO(path.read_bytes()))):
        with Image.open(source) as image:
            image.load()
            seen[name, way] = image.size, np.asarray(image).tolist()
        print(f"{name} by {way:<6}", *seen[name, way])
assert seen["raw", "path"] == SCRAMBLED, "changed: opening by path"
assert seen["raw", "bytes"] == seen["lzw", "path"] == seen["lzw", "bytes"] == RIGHT, "changed"
PY
