"""Odd image files become RGB, damaged ones are named."""

from __future__ import annotations

import importlib.util
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medreason.data import images

GREY = np.linspace(0, 255, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_opens_as_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(GREY.astype(np.uint8)).convert("RGB").convert(mode).save(path)
    opened = images.open_rgb(path)
    assert (opened.mode, opened.size) == ("RGB", (64, 48))
    assert np.asarray(opened)[-1].mean() > 200 > 55 > np.asarray(opened)[0].mean()


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 4095), (np.int32, 70_000)])
def test_deep_grey_keeps_its_range(dtype: type, top: int, tmp_path: Path) -> None:
    Image.fromarray((GREY * (top / 255)).astype(dtype)).save(tmp_path / "deep.tif")
    values = np.asarray(images.open_rgb(tmp_path / "deep.tif"))[..., 0]
    assert np.abs(values - GREY).max() <= 1


def test_a_flat_deep_image_is_black_and_not_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "flat.png")
    assert np.asarray(images.open_rgb(tmp_path / "flat.png")).max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixels_are_black(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        Image.new("P", (4, 4), 1).save(path, transparency=1)
    else:
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert np.asarray(images.open_rgb(path)).max() == 0


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    assert images.open_rgb(tmp_path / "a.jpg").size == (48, 64)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_damaged_files_are_named_with_a_remedy(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    images.check(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an image", whole[:40]):
        path.write_bytes(content)
        for function in (images.check, images.open_rgb):
            with pytest.raises(ValueError, match=rf"a\.{suffix}.*again"):
                function(path)
    path.unlink()
    with pytest.raises(ValueError, match="no such file"):
        images.check(path)


def test_squares_and_blanks_have_the_size_asked_for() -> None:
    assert images.resize_square(Image.new("RGB", (64, 48)), 32).size == (32, 32)
    assert images.blank(32).size == (32, 32)
    assert images.blank((64, 48)).size == (64, 48)
    assert images.blank(2).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(("height", "words"), [(24, "more pixels"), (96, "fewer pixels")])
def test_a_png_whose_header_lies_about_its_size_is_named(
    height: int, words: str, tmp_path: Path
) -> None:
    """Pillow gives such an image without a word: cut, or black from where its pixels end."""
    path = tmp_path / "a.png"
    for mode in ("RGB", "L", "1", "P"):
        Image.fromarray(GREY.astype(np.uint8)).convert(mode).save(path)
        images.check(path)
        content = bytearray(path.read_bytes())
        content[20:24] = struct.pack(">I", height)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.png: holds {words} than the 64 x {height} of"):
            images.check(path)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    for function in (images.check, images.open_rgb):
        with pytest.raises(ValueError, match=r"64 x 48 are more than 3,000 pixels.*bomb"):
            function(tmp_path / "a.png")


def test_dicom_needs_its_extra_and_is_read_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"no dicom")
    installed = importlib.util.find_spec("pydicom") is not None
    message = "cannot be decoded" if installed else r"pip install -e '\.\[dicom\]'"
    with pytest.raises(ValueError, match=message):
        images.open_rgb(path)
