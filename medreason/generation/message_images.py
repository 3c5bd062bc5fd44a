"""The image of a message, named by path or URL, as a file that evaluation reads."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import requests
from PIL import Image

from medreason.data.images import check
from medreason.data.rgb import to_rgb

_TIMEOUT_SECONDS = 60


def image_file(image: str | Image.Image, root: Path, fetched: Path) -> Path:
    """The file of an image: path (below `root`), `file://`, data URL, http(s) URL or PIL image.

    Local files stay where they are, the content of URLs is written to the folder `fetched`. Both
    are for `data.images.open_rgb`, so a message is answered as an evaluation answers it. PIL images
    are written as that function would open them.

    Raises:
        ValueError: names the image that cannot be read, and what to do.
    """
    if isinstance(image, str) and not image.startswith(("data:", "http://", "https://")):
        path = root / image.removeprefix("file://")
        check(path)
        return path
    content = image if isinstance(image, str) else (image.mode, image.size, image.tobytes())
    path = fetched / hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    if not path.exists():  # several questions may be about one image
        try:
            if isinstance(image, str):
                path.write_bytes(_content(image))
            else:
                to_rgb(image).save(path, "PNG")
            check(path)
        except (ValueError, OSError) as error:  # those of requests are an OSError
            path.unlink(missing_ok=True)
            reason = str(error.__cause__ or error).removeprefix(f"{path}: ")
            raise ValueError(
                f"{str(image)[:80]}: cannot be fetched ({reason[:300]}); give a file, a "
                "complete data URL (data:image/png;base64,...) or an address that can be reached"
            ) from error
    return path


def _content(url: str) -> bytes:
    """What a data URL holds, or an address answers."""
    if not url.startswith("data:"):
        response = requests.get(url, timeout=_TIMEOUT_SECONDS)
        response.raise_for_status()
        return response.content
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("not in base64")
    return base64.b64decode(body)
