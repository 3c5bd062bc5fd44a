"""The image of a message, named by path or URL, as a file that evaluation reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from medreason.data.images import check

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow, base64 and requests raise, whose errors are an OSError."""


def image_file(image: str | Image.Image, root: Path, fetched: Path) -> Path:
    """The file of an image: path (below `root`), `file://`, data URL, http(s) URL or PIL image.

    Local files stay where they are, for `data.images.open_rgb`, the one rule of all data sets: a
    message about one is answered as an evaluation answers it. The other images come from
    `qwen_vl_utils` and are written to the folder `fetched`, whole and lossless. Its rules differ:
    transparency is laid on white, no EXIF rotation is applied, and both sides are resized to
    multiples of 28 pixels.

    Raises:
        ValueError: names the image that cannot be read, and what to do.
    """
    if isinstance(image, str) and not image.startswith(("data:", "http://", "https://")):
        path = root / image.removeprefix("file://")
        check(path)
        return path
    # torch and torchvision, seconds: a local file needs neither
    from qwen_vl_utils import fetch_image

    content = image if isinstance(image, str) else (image.mode, image.size, image.tobytes())
    path = fetched / f"{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}.png"
    if not path.exists():  # several questions may be about one image
        try:
            fetch_image({"image": image}).save(path)
        except _UNREADABLE as error:
            raise ValueError(
                f"{str(image)[:80]}: cannot be fetched ({str(error)[:300]}); give a file, a "
                "complete data URL (data:image/png;base64,...) or an address that can be reached"
            ) from error
    return path
