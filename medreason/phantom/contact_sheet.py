"""A picture of all modalities for README.md: `python -m medreason.phantom.contact_sheet FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from medreason import phantom
from medreason.samples import MODALITIES

_COLUMNS, _SIDE, _CAPTION = 4, 200, 40  # pixels


def contact_sheet(seed: int = 0) -> Image.Image:
    """An image of each modality above the finding and the grade that were drawn into it."""
    rows = -(-len(MODALITIES) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, rows * (_SIDE + _CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (modality, name) in enumerate(MODALITIES.items()):
        x, y = place % _COLUMNS * _SIDE, place // _COLUMNS * (_SIDE + _CAPTION)
        pictures = phantom.plan(modality, "train", 48, seed)
        picture = next(p for p in pictures if p.case.grading == 2 and p.case.disease == 1)
        image = Image.fromarray(phantom.render(picture))
        sheet.paste(image.resize((_SIDE - 4, _SIDE - 4), Image.Resampling.LANCZOS), (x + 2, y + 2))
        atlas = phantom.atlas(modality)
        finding = atlas.disease.options[picture.case.disease]
        grade = atlas.grading.options[picture.case.grading]
        pen.text((x + 4, y + _SIDE + 2), f"{name}\n{finding}, {grade}", "black", font, spacing=2)
    return sheet


if __name__ == "__main__":
    contact_sheet().save(Path(sys.argv[1]), quality=82)
