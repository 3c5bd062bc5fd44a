#!/usr/bin/env bash
# Pillow 13.0.0 reads an uncompressed TIFF of 16-bit RGB in separate planes (PlanarConfiguration 2) as other pixels, without an error;
# the same picture is read right with LZW or deflate, or with interleaved planes.
#
# Expected for channels 0, 3000, 6000, ...: their upper bytes 0, 11, 23, 35, 46, 58, 70, 82, 93 in the first row.
# Seen: [0, 184, 112], [0, 11, 23], [40, 224, 152]: low and high bytes of one plane mixed; the picture looks like noise over itself.
#
# Why it matters: ImageJ, Bio-Formats and slide scanners write colour with 16 bits in planes of their own, and uncompressed. Mode and
# size are right, so a data set that is checked by opening each file passes.
#
# Output seen on 2026-11-28:
#   pillow 13.0.0, tifffile 2026.3.3
#   interleaved none     [[0, 11, 23], [35, 46, 58], [70, 82, 93]]
#   interleaved lzw      [[0, 11, 23], [35, 46, 58], [70, 82, 93]]
#   planes      none     [[0, 184, 112], [0, 11, 23], [40, 224, 152]]
#   planes      lzw      [[0, 11, 23], [35, 46, 58], [70, 82, 93]]
#   planes      deflate  [[0, 11, 23], [35, 46, 58], [70, 82, 93]]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv env
env/bin/pip install --quiet pillow==13.0.0 numpy==2.3.5 tifffile==2026.3.3 imagecodecs==2026.3.6
env/bin/python - <<'PY'
import io

import numpy as np
import PIL
import tifffile
from PIL import Image

print(f"pillow {PIL.__version__}, tifffile {tifffile.__version__}")
picture = np.arange(18, dtype=np.uint16).reshape(2, 3, 3) * 3000
RIGHT = (picture >> 8)[0].tolist()
MIXED = [[0, 184, 112], [0, 11, 23], [40, 224, 152]]


def first_row(planes, compression):
    file = io.BytesIO()
    stored = picture.transpose(2, 0, 1) if planes == "separate" else picture
    tifffile.imwrite(file, stored, photometric="rgb", planarconfig=planes, compression=compression)
    assert np.array_equal(tifffile.imread(io.BytesIO(file.getvalue())), stored)  # the file is right
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert (image.mode, image.size) == ("RGB", (3, 2))
        return np.asarray(image)[0].tolist()


for planes, compression in (
    *(("contig", None), ("contig", "lzw")),
    *(("separate", None), ("separate", "lzw"), ("separate", "deflate")),
):
    row = first_row(planes, compression)
    name = "planes" if planes == "separate" else "interleaved"
    print(f"{name:<11} {compression or 'none':<8} {row}")
    assert row == (MIXED if (planes, compression) == ("separate", None) else RIGHT), "changed"
PY
