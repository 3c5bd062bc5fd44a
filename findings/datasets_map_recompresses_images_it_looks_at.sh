#!/usr/bin/env bash
# datasets 5.2.0: a `map` that only looks at an image writes it anew, JPEG with Pillow's quality of 75, lossless WebP as a lossy one.
#
# Rows are decoded on access. A function that reads `row["image"].width` leaves a decoded image in the row, and `map` encodes it again
# in the format it came from, with that format's default settings; the bytes it came from are thrown away. No access, no change; a
# function that gives its row back untouched and `filter` change nothing either. Each further `map` compresses once more. PNG is safe.
#
# Expected: adding a column leaves the others as they are.
# Seen: pixels that differ by up to 41 of 255 for JPEG of quality 95 and by up to 31 for lossless WebP, in less than half of the bytes.
#
# Why it matters: counting visual tokens, filtering by size in two steps or hashing pixels in `map` degrades the images that the model
# is trained and tested on, and hashes of the same file differ before and after. Images read from paths are spared.
#
# Output seen on 2026-11-29:
#   datasets 5.2.0, Pillow 13.0.0
#   JPEG 3320 bytes; after a map that reads its width 1440, pixels differ by up to 41; after five 1435, by up to 74
#   WEBP 5280 bytes; after a map that reads its width 876, pixels differ by up to 31; after five 850, by up to 61
#   PNG  7265 bytes; after a map that reads its width 7265, pixels differ by up to 0; after five 7265, by up to 0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env && uv pip install --quiet --python env/bin/python datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import io

import datasets
import numpy as np
import PIL
from datasets import Dataset, Image
from PIL import Image as Pillow

print(f"datasets {datasets.__version__}, Pillow {PIL.__version__}")
noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
picture = Pillow.fromarray(noise).resize((64, 64), Pillow.Resampling.BICUBIC)
FORMATS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}


def stored(data):
    return data.cast_column("image", Image(decode=False))[0]["image"]["bytes"]


def pixels(data):
    return np.asarray(data[0]["image"], np.int16)


def width(row):
    return {"width": row["image"].width}


for name, settings in FORMATS.items():
    file = io.BytesIO()
    picture.save(file, name, **settings)
    rows = {"image": [{"bytes": file.getvalue(), "path": None}], "question": ["which organ?"]}
    data = Dataset.from_dict(rows).cast_column("image", Image())
    others = (
        data.map(lambda row: {"question": row["question"].upper()}),
        data.map(lambda row: row),
        data.filter(lambda row: row["image"].width == 64),
    )
    assert all(stored(other) == stored(data) for other in others)
    once, often = data.map(width), data
    for _ in range(5):
        often = often.map(lambda row: {**row, "width": row["image"].width})
    sizes = [len(stored(each)) for each in (data, once, often)]
    differ = [int(abs(pixels(each) - pixels(data)).max()) for each in (once, often)]
    print(
        f"{name:<4} {sizes[0]} bytes; after a map that reads its width {sizes[1]}, pixels differ by up to {differ[0]}; "
        f"after five {sizes[2]}, by up to {differ[1]}"
    )
    if name == "PNG":
        assert differ == [0, 0]
    else:
        assert 0 < differ[0] < differ[1], "changed: map keeps the bytes of an image"
PY
