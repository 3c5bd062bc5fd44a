"""Odd image files become RGB, damaged ones are named."""

from __future__ import annotations

import ast
import importlib.util
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

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


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16"])
def test_transparent_pixels_are_white_as_in_the_processor(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new(mode, (4, 4), 0 if mode in ("P", "L", "LA", "I;16") else (0, 0, 0))
    if mode in ("RGBA", "LA"):
        image.putalpha(0)
        image.save(path)
    else:
        image.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert np.asarray(images.open_rgb(path)).min() == 255


def test_half_transparent_pixels_are_those_of_transformers(tmp_path: Path) -> None:
    transforms = pytest.importorskip("transformers.image_transforms")
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    for mode in ("RGBA", "LA"):
        image = Image.fromarray(noise).convert(mode)
        image.save(tmp_path / "a.png")
        expected = transforms.convert_to_rgb(image, return_numpy=True)
        assert np.array_equal(np.asarray(images.open_rgb(tmp_path / "a.png")), expected)


TURNED = {
    1: [[0, 1, 2, 3], [4, 5, 6, 7]],
    2: [[3, 2, 1, 0], [7, 6, 5, 4]],
    3: [[7, 6, 5, 4], [3, 2, 1, 0]],
    4: [[4, 5, 6, 7], [0, 1, 2, 3]],
    5: [[0, 4], [1, 5], [2, 6], [3, 7]],
    6: [[4, 0], [5, 1], [6, 2], [7, 3]],
    7: [[7, 3], [6, 2], [5, 1], [4, 0]],
    8: [[3, 7], [2, 6], [1, 5], [0, 4]],
}
"""EXIF orientation -> the picture of 0 to 7 in two rows of four."""


@pytest.mark.parametrize("form", ["raw", "tiff_lzw", "png", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_are_turned_upright(form: str, orientation: int, tmp_path: Path) -> None:
    """By its path, Pillow 11.3 to 13.0 scrambles an uncompressed TIFF of orientation 5 to 8."""
    stored = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if form in ("png", "webp"):
        path = tmp_path / f"a.{form}"
        stored.save(path, exif=exif, lossless=True)
    else:
        path = tmp_path / "a.tif"
        stored.save(path, compression=form, tiffinfo={0x0112: orientation})
    images.check(path)
    opened = images.open_rgb(path)
    assert np.asarray(opened)[..., 0].tolist() == TURNED[orientation]
    assert images.size_of(path) == opened.size


def test_damaged_exif_is_found_by_the_check_or_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\x07" * 40):
        Image.new("RGB", (64, 48)).save(path, exif=exif)
        try:
            images.check(path)
        except ValueError:
            continue
        assert images.open_rgb(path).size == (64, 48)


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


TIFF_TYPES = {"u": 1, "i": 2, "f": 3}
"""Kind of a NumPy type -> the tag SampleFormat."""


def tiff(
    path: Path, values: np.ndarray, photometric: int = 1, bits: int | None = None, planes: int = 1
) -> Path:
    """An uncompressed little-endian TIFF, as Pillow does not write it."""
    height, width, *bands = values.shape
    count, data = (bands or [1])[0], values
    if planes == 2:
        data = np.moveaxis(values, -1, 0)
    packed, each = data.tobytes(), data.nbytes // (count if planes == 2 else 1)
    strips = count if planes == 2 else 1
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits or values.dtype.itemsize * 8] * count),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [0] * strips),
        277: (3, [count]),
        278: (4, [height]),
        279: (4, [each] * strips),
        284: (3, [planes]),
        339: (3, [TIFF_TYPES[values.dtype.kind]] * count),
    }
    place, directory, more = 8 + 2 + 12 * len(tags) + 4, b"", b""
    long = {tag: 4 * len(v) if t == 4 else 2 * len(v) for tag, (t, v) in tags.items()}
    start = place + sum(size for size in long.values() if size > 4)
    tags[273] = (4, [start + i * each for i in range(strips)])
    for tag, (kind, numbers) in tags.items():
        content = struct.pack(f"<{len(numbers)}{'I' if kind == 4 else 'H'}", *numbers)
        if len(content) > 4:
            more, content = more + content, struct.pack("<I", place + len(more))
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(head + directory + bytes(4) + more + packed)
    return path


def row(path: Path) -> list[int]:
    images.check(path)
    return np.asarray(images.open_rgb(path))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("values", "kind", "photometric", "seen"),
    [
        ([0, 32768, 65535], "uint16", 1, [0, 128, 255]),
        ([0, 32768, 65535], "uint16", 0, [255, 127, 0]),
        ([0, 1 << 31, (1 << 32) - 1], "uint32", 1, [0, 128, 255]),
        ([-100, 0, 100], "int16", 1, [0, 128, 255]),
        ([-100_000, 0, 100_000], "int32", 1, [0, 128, 255]),
        ([-128, 0, 127], "int8", 1, [0, 128, 255]),
        ([0.0, 0.5, 1.0], "float32", 1, [0, 128, 255]),
        ([0.0, 0.5, 1.0], "float32", 0, [255, 128, 0]),
        ([0.0, 0.5, 1.0, np.inf], "float32", 1, [0, 128, 255, 255]),
        ([-np.inf, 0.0, 0.5, 1.0], "float32", 1, [0, 0, 128, 255]),
        ([np.nan, 0.0, 0.5, 1.0], "float32", 1, [0, 0, 128, 255]),
        ([np.nan, np.inf], "float32", 1, [0, 0]),
        ([0, 128, 255], "uint8", 0, [255, 127, 0]),
    ],
)
def test_grey_values_of_tiffs(
    values: list[float], kind: str, photometric: int, seen: list[int], tmp_path: Path
) -> None:
    assert row(tiff(tmp_path / "a.tif", np.array([values], kind), photometric)) == seen


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([0, 2048, 4095], [0, 128, 255]),
        ([0, 128, 255], [0, 128, 255]),
        ([0, 512, 1023], [0, 128, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([20000, 40000, 300], [78, 156, 1]),
    ],
)
@pytest.mark.parametrize("form", ["png", "tif", "alpha.png", "grey_alpha.png"])
def test_16_bit_colours_keep_the_bits_that_are_used(
    form: str, values: list[int], seen: list[int], tmp_path: Path
) -> None:
    path, words = tmp_path / f"a.{form}", np.array([values], np.uint16)
    match form:
        case "tif":
            tiff(path, np.stack([words] * 3, axis=-1), photometric=2)
        case "png":
            png16(path, np.stack([words] * 3, axis=-1), colour=2)
        case "alpha.png":
            png16(path, np.stack([*[words] * 3, np.full_like(words, 65535)], axis=-1), colour=6)
        case _:
            png16(path, np.stack([words, np.full_like(words, 65535)], axis=-1), colour=4)
    assert row(path) == seen


def test_transparent_16_bit_colours_are_white(tmp_path: Path) -> None:
    words = np.array([[[0, 1, 2], [4095, 300, 20]]], np.uint16)
    png16(tmp_path / "a.png", words, colour=2, more=chunk(b"tRNS", struct.pack(">3H", 0, 1, 2)))
    seen = np.asarray(images.open_rgb(tmp_path / "a.png"))[0].tolist()
    assert seen == [[255, 255, 255], [255, 19, 1]]
    clear = np.dstack([words, np.array([[0, 65535]], np.uint16)])
    png16(tmp_path / "b.png", clear, colour=6)
    assert np.asarray(images.open_rgb(tmp_path / "b.png"))[0].tolist() == seen


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png16(path: Path, words: np.ndarray, colour: int, more: bytes = b"") -> Path:
    height, width, _ = words.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in words)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return path


def test_colours_in_separate_16_bit_planes_are_refused(tmp_path: Path) -> None:
    """Pillow 13 gives other pixels without a word."""
    colours = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    path = tiff(tmp_path / "a.tif", colours, photometric=2, planes=2)
    for function in (images.check, images.open_rgb):
        with pytest.raises(ValueError, match=r"16-bit colours in separate planes.*save it as PNG"):
            function(path)


def test_lab_colours_become_rgb(tmp_path: Path) -> None:
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    red = Image.new("RGB", (4, 4), (200, 30, 40))
    lab = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    images.check(tmp_path / "a.tif")
    seen = images.open_rgb(tmp_path / "a.tif").getpixel((0, 0))
    assert np.abs(np.array(seen) - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_stacks_and_animations_are_refused_and_one_page_of_them_is_read(
    suffix: str, tmp_path: Path
) -> None:
    """As DICOM of several frames is; the remedy is followed."""
    path = tmp_path / f"a.{suffix}"
    pages = [Image.new("RGB", (64, 48), colour) for colour in ("black", "red", "white")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for function in (images.check, images.open_rgb):
        with pytest.raises(ValueError, match=r"has 3 pages or frames; save the one that"):
            function(path)
    with Image.open(path) as stack:
        stack.seek(1)
        stack.convert("RGB").save(path)
    images.check(path)
    assert images.open_rgb(path).getpixel((0, 0)) == (255, 0, 0) or suffix == "webp"


def test_previews_in_a_file_are_no_stack(tmp_path: Path) -> None:
    large, small = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (32, 24))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    large.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    large.save(tmp_path / "a.mpo", save_all=True, append_images=[small])
    for path in (tmp_path / "a.tif", tmp_path / "a.mpo"):
        images.check(path)
        assert images.open_rgb(path).size == (64, 48)


def test_a_stack_of_imagej_in_one_page_is_refused(tmp_path: Path) -> None:
    description = "ImageJ=1.54f\nimages=12\nslices=12\n"
    Image.new("L", (64, 48)).save(tmp_path / "a.tif", tiffinfo={270: description})
    with pytest.raises(ValueError, match="has 12 pages or frames"):
        images.check(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(40), "is HEIC, which nothing here reads"),
        (
            "a.jls",
            b"\xff\xd8\xff\xf7" + bytes(40),
            "is JPEG-LS .*imagecodecs and pillow-jpls read it",
        ),
        ("a.nii", bytes(344) + b"n+1\0", "is NIfTI, a volume"),
        ("a.nii.gz", b"\x1f\x8b" + bytes(40), "is a gzip archive"),
        ("a.svs2", b"something else", "is no format that is read here"),
        ("a.pdf", b"%PDF-1.7", "is PDF, which nothing here reads; save it as PNG"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript, which nothing here reads|PNG"),
    ],
)
def test_a_file_that_nothing_reads_is_not_to_be_copied_again(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for function in (images.check, images.open_rgb):
        with pytest.raises(ValueError, match=words) as caught:
            function(tmp_path / name)
        assert "again" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "compression", "words"),
    [
        (np.zeros((2, 2), np.float64), 1, "unusual samples, such as 64-bit"),
        (np.zeros((2, 2), np.float16), 1, "unusual samples, such as 64-bit"),
        (np.zeros((2, 2), np.uint8), 50002, "compression 50002"),
    ],
)
def test_a_kind_of_tiff_that_pillow_does_not_read_is_named(
    values: np.ndarray, compression: int, words: str, tmp_path: Path
) -> None:
    path = tiff(tmp_path / "a.tif", values)
    one, other = (struct.pack("<HHIHH", 259, 3, 1, kind, 0) for kind in (1, compression))
    path.write_bytes(path.read_bytes().replace(one, other))
    with pytest.raises(ValueError, match=rf"TIFF that Pillow does not read \({words}") as caught:
        images.check(path)
    assert "again" not in str(caught.value)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        images.check(tmp_path / "a.png")


@pytest.mark.parametrize(
    "size", [(402, 2), (2, 402), (201, 1), (400, 2), (200, 1), (1, 1), (27, 27)]
)
def test_shapes_are_refused_as_the_processors_of_the_models_refuse_them(
    size: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    from transformers import Qwen2VLImageProcessor

    path = tmp_path / "a.png"
    Image.new("RGB", size).save(path)
    # Patches of Qwen2-VL and Qwen2.5-VL, and of Qwen3-VL.
    for patch in (14, 16):
        processor = Qwen2VLImageProcessor(patch_size=patch)
        try:
            processor(images=images.open_rgb(path), return_tensors="pt")
            refused = False
        except ValueError:
            refused = True
        assert refused == bool(images.shape_problem(size))
    if images.shape_problem(size):
        with pytest.raises(
            ValueError, match=r"a\.png: .* one side more than 200 times .*crop or pad"
        ):
            images.check(path)
    else:
        images.check(path)


@pytest.mark.parametrize("chunk", ["eXIf", "eXIf behind the pixels", "XMP", "ImageMagick"])
def test_rotation_of_a_png_is_found_wherever_it_stands(chunk: str, tmp_path: Path) -> None:
    path, exif, text = tmp_path / "a.png", Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    match chunk:
        case "XMP":
            text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        case "ImageMagick":
            stored = exif.tobytes()
            text.add_text("Raw profile type exif", f"\nexif\n{len(stored):8}\n{stored.hex()}\n")
    Image.new("L", (4, 2)).save(
        path, exif=exif if chunk.startswith("eXIf") else Image.Exif(), pnginfo=text
    )
    if chunk.endswith("pixels"):
        content = path.read_bytes()
        place = content.index(b"eXIf") - 4
        end = place + 12 + int.from_bytes(content[place : place + 4])
        path.write_bytes(content[:place] + content[end:-12] + content[place:end] + content[-12:])
    assert images.size_of(path) == images.open_rgb(path).size == (2, 4)


def test_size_of_a_png_decodes_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "Raw profile type exif")
    text.add_itxt("Comment", "a phantom")
    Image.new("L", (4, 2)).save(tmp_path / "a.png", pnginfo=text)
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    assert images.size_of(tmp_path / "a.png") == (4, 2)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "F"]
)
def test_what_the_check_passes_opens_in_every_format_that_pillow_writes(
    mode: str, tmp_path: Path
) -> None:
    Image.init()
    base = Image.fromarray(GREY.astype(np.uint8)).convert("RGBA" if "A" in mode else "L")
    image = base if mode == base.mode else base.convert("L").convert(mode.replace("I;16", "I"))
    image = image.convert("I;16") if mode == "I;16" else image
    opened = []
    for form in Image.SAVE:
        path = tmp_path / f"a.{form.lower()}"
        try:
            image.save(path, form)
            images.check(path)
        except (ValueError, OSError, KeyError):  # no format of this mode, or none that is read
            continue
        assert images.open_rgb(path).mode == "RGB"
        assert images.size_of(path) == images.open_rgb(path).size
        opened.append(form)
    assert "TIFF" in opened or mode == "PA"


def test_nothing_else_opens_image_files() -> None:
    """One door: a second one would know neither DICOM nor rotation nor depth."""
    openers = ("open", "fetch_image", "load_image", "imread", "decode_image", "read_image")
    package, doors = Path(images.__file__).parents[1], set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            of_pillow = name in ("Image.open", "PIL.Image.open", "ImageFile.Parser")
            if of_pillow or (name.split(".")[-1] in openers[1:]):
                doors.add(path.relative_to(package).as_posix())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                assert "open" not in {alias.name for alias in node.names}, path
    assert doors == {"data/images.py"}


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


def test_a_web_page_in_place_of_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("\n<!DOCTYPE html><html>Log in</html>")
    with pytest.raises(ValueError, match="is a web page in place of the image"):
        images.check(tmp_path / "a.jpg")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    problems = {"folder": "is a folder", "loop": "no such file", "pipe": "no such file"}
    for name, problem in ((f"{stem}.png", problem) for stem, problem in problems.items()):
        for function in (images.check, images.size_of, images.open_rgb):
            with pytest.raises(ValueError, match=f"{name}: {problem}"):
                function(tmp_path / name)


def test_a_jpeg_named_dcm_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.dcm", "JPEG")
    images.check(tmp_path / "a.dcm")
    assert images.size_of(tmp_path / "a.dcm") == images.open_rgb(tmp_path / "a.dcm").size == (4, 2)


def test_a_slide_beyond_pillows_own_limit_is_to_be_scaled_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for function in (images.check, images.size_of, images.open_rgb):
        with pytest.raises(ValueError, match="scale a slide down first") as caught:
            function(tmp_path / "a.png")
        assert "again" not in str(caught.value)


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
    message = "a.dcm: is no DICOM, whatever" if installed else r"install it with .*\[dicom\]'"
    with pytest.raises(ValueError, match=message):
        images.open_rgb(path)
