"""The image of a message is read as evaluation reads it, wherever it comes from."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from medreason.data.images import open_rgb
from medreason.generation.message_images import image_file

SIDES = (112, 85)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server for the files of `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def gradient(path: Path, size: tuple[int, int] = SIDES) -> Path:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def have_equal_pixels(path: Path, other: Path) -> bool:
    return ImageChops.difference(open_rgb(path), open_rgb(other)).getbbox() is None


def test_local_file_is_read_where_it_is(tmp_path: Path) -> None:
    path = gradient(tmp_path / "a.png", (150, 97))
    for image in ("a.png", str(path), f"file://{path}"):
        assert image_file(image, tmp_path, tmp_path / "fetched") == path


def test_data_url_address_and_pil_image_have_the_pixels_of_the_file(
    tmp_path: Path, address: str
) -> None:
    path, fetched = gradient(tmp_path / "a.png"), tmp_path / "fetched"
    fetched.mkdir()
    for image in (data_url(path), f"{address}/a.png", Image.open(path)):
        file = image_file(image, tmp_path, fetched)
        assert have_equal_pixels(file, path)
        assert image_file(image, tmp_path, fetched) == file
    assert len(list(fetched.iterdir())) == 3


def test_fetched_images_follow_the_rule_of_files(tmp_path: Path, address: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for mode in ("RGBA", "LA"):
        path = tmp_path / f"{mode}.png"
        Image.linear_gradient("L").resize((150, 97)).convert(mode).save(path, exif=exif)
        with Image.open(path) as image:
            image.load()
            image.putalpha(100)
            image.save(path, exif=exif)
            for form in (data_url(path), f"{address}/{path.name}", image):
                file = image_file(form, tmp_path, tmp_path)
                assert open_rgb(file).size == (97, 150)
                assert have_equal_pixels(file, path)


def test_a_stack_and_a_strip_are_refused_from_an_address_too(tmp_path: Path) -> None:
    stack, strip = tmp_path / "stack.tif", tmp_path / "strip.png"
    Image.new("L", SIDES).save(stack, save_all=True, append_images=[Image.new("L", SIDES)])
    Image.new("L", (402, 2)).save(strip)
    for path, words in ((stack, "has 2 pages or frames"), (strip, "402 x 2 pixels, one side more")):
        for image in (data_url(path), str(path)):
            with pytest.raises(ValueError, match=words):
                image_file(image, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("gone.png", r"gone\.png: no such file"),
        ("file:///gone.png", r"/gone\.png: no such file"),
        ("data:image/png;base64,bm8gaW1hZ2U=", r"^data:image/png;base64,bm8.*cannot be fetched"),
        ("data:image/png,raw", "give a file, a complete data URL"),
        ("data:image/png;base64,abc", "cannot be fetched"),
        ("http://127.0.0.1:1/a.png", r"http://127.0.0.1:1/a.png: cannot be fetched .*refused"),
        ("ADDRESS/gone.png", r"cannot be fetched \(404"),
        ("ADDRESS/page.html", r"cannot be fetched \(cannot identify image"),
    ],
)
def test_image_that_cannot_be_read_is_named(
    tmp_path: Path, address: str, image: str, words: str
) -> None:
    (tmp_path / "page.html").write_text("<p>no image</p>")
    with pytest.raises(ValueError, match=words) as caught:
        image_file(image.replace("ADDRESS", address), tmp_path, tmp_path)
    assert len(str(caught.value)) < 600
