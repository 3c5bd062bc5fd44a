#!/usr/bin/env bash
# datasets 5.2.0: what `map` draws on an image that was read from a path is lost, and the untouched file is what it stores and exports.
#
# An image that Pillow opened by path keeps its `filename` when it is changed in place (ImageDraw, paste, thumbnail, seek to another
# page). datasets sees the name and stores the path in place of the pixels. The same function on the same picture held as bytes keeps
# its change, and so does one that returns a copy.
#
# Expected: four black rows, a size of 4 x 4, the second page (value 50), whichever way the picture is stored.
# Seen by path: no black pixel, 8 x 8, the first page (value 200); `save_to_disk` writes the bytes of the original file.
#
# Why it matters: names burnt into ultrasound and secondary captures are hidden with ImageDraw. The code is right, the call ends
# without a warning, and the data set that is passed on shows the names. Folders of images (`imagefolder`) are read by path.
#
# Output seen on 2026-11-29:
#   datasets 5.2.0, Pillow 13.0.0
#   hide       by path: black rows 0, size (8, 8), value 200    as bytes: black rows 4, size (8, 8), value 200
#   shrink     by path: black rows 0, size (8, 8), value 200    as bytes: black rows 0, size (4, 4), value 200
#   page two   by path: black rows 0, size (8, 8), value 200    as bytes: black rows 0, size (8, 8), value 50
#   hide, copy by path: black rows 4, size (8, 8), value 200    as bytes: black rows 4, size (8, 8), value 200
#   saved data set of "hide" by path holds the original file: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env && uv pip install --quiet --python env/bin/python datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" HF_DATASETS_DISABLE_PROGRESS_BARS=1
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from pathlib import Path

import datasets
import numpy as np
import PIL
from datasets import Dataset, Image, load_from_disk
from PIL import Image as Pillow
from PIL import ImageDraw

print(f"datasets {datasets.__version__}, Pillow {PIL.__version__}")
FILE = Path("scan.tif")
Pillow.new("L", (8, 8), 200).save(FILE, save_all=True, append_images=[Pillow.new("L", (8, 8), 50)])
by_path = Dataset.from_dict({"image": [str(FILE)]}).cast_column("image", Image())
as_bytes = Dataset.from_dict({"image": [{"bytes": FILE.read_bytes(), "path": None}]}).cast_column("image", Image())


def hide(row):
    ImageDraw.Draw(row["image"]).rectangle((0, 0, 7, 3), fill=0)
    return row


def shrink(row):
    row["image"].thumbnail((4, 4))
    return row


def page_two(row):
    row["image"].seek(1)
    return row


def hide_on_copy(row):
    return hide({"image": row["image"].copy()})


def seen(data):
    pixels = np.asarray(data[0]["image"])
    return int((pixels == 0).all(1).sum()), pixels.shape, int(pixels.max())


kept = {hide: (4, (8, 8), 200), shrink: (0, (4, 4), 200), page_two: (0, (8, 8), 50), hide_on_copy: (4, (8, 8), 200)}
names = {hide: "hide", shrink: "shrink", page_two: "page two", hide_on_copy: "hide, copy"}
for edit, right in kept.items():
    ways = seen(by_path.map(edit)), seen(as_bytes.map(edit))
    shown = [f"black rows {rows}, size {size}, value {value}" for rows, size, value in ways]
    print(f"{names[edit]:<10} by path: {shown[0]}    as bytes: {shown[1]}")
    assert ways[1] == right
    assert ways[0] == (right if edit is hide_on_copy else (0, (8, 8), 200)), "changed: the edit by path is kept"
by_path.map(hide).save_to_disk("hidden")
stored = load_from_disk("hidden").cast_column("image", Image(decode=False))[0]["image"]["bytes"]
print('saved data set of "hide" by path holds the original file:', stored == FILE.read_bytes())
assert stored == FILE.read_bytes(), "changed"
PY
