"""DICOM as devices write it: depths, windows, inverted grey, colours, palettes, several frames."""

from __future__ import annotations

import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medreason import data
from medreason.config import Handling
from medreason.data import image_cache, prepare
from medreason.data.images import check, open_rgb, size_of
from medreason.generation.rows import original_image
from medreason.samples import SOFT_TISSUE, WINDOWS, Sample, Window

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (extra dicom)")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)


def written(path: Path, pixels: np.ndarray, photometric: str, **more: Any) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


GREY = np.array([[0, 100, 200, 4000]], dtype=np.int16)


@pytest.mark.parametrize(
    ("photometric", "more", "seen"),
    [
        ("MONOCHROME2", {}, [0, 6, 13, 255]),
        ("MONOCHROME1", {}, [255, 249, 242, 0]),
        ("MONOCHROME2", {"WindowCenter": 100, "WindowWidth": 200}, [0, 128, 255, 255]),
    ],
)
def test_grey_values_go_through_their_window(
    tmp_path: Path, photometric: str, more: dict[str, int], seen: list[int]
) -> None:
    path = written(tmp_path / "a.dcm", GREY, photometric, **more)
    assert np.asarray(open_rgb(path))[0, :, 0].tolist() == seen
    check(path)


@pytest.mark.parametrize(
    ("photometric", "pixel", "seen"),
    [
        ("RGB", np.array([255, 10, 128], np.uint8), [255, 10, 128]),
        ("RGB", np.array([65535, 0, 32768], np.uint16), [255, 0, 128]),
        ("RGB", np.array([4095, 0, 2048], np.uint16), [255, 0, 128]),
        ("YBR_FULL", np.array([76, 85, 255], np.uint8), [254, 0, 0]),
    ],
)
def test_colours_come_as_8_bit_rgb(
    tmp_path: Path, photometric: str, pixel: np.ndarray, seen: list[int]
) -> None:
    path = written(tmp_path / "a.dcm", np.tile(pixel, (1, 2, 1)), photometric)
    assert np.asarray(open_rgb(path))[0, 0].tolist() == seen


def test_palette_is_looked_up(tmp_path: Path) -> None:
    palette: dict[str, Any] = {}
    for colour, values in (("Red", (0, 65535)), ("Green", (0, 0)), ("Blue", (65535, 0))):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = np.array(values, np.uint16).tobytes()
    pixels = np.array([[0, 1]], np.uint8)
    path = written(tmp_path / "a.dcm", pixels, "PALETTE COLOR", **palette)
    assert np.asarray(open_rgb(path))[0].tolist() == [[0, 0, 255], [255, 0, 0]]


def test_several_frames_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", GREY, "MONOCHROME2", NumberOfFrames=2)
    data = pydicom.dcmread(path)
    data.PixelData = 2 * GREY.tobytes()
    data.save_as(path)
    with pytest.raises(ValueError, match="2 frames"):
        open_rgb(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_of_8_bit_entries_in_16_bit_words(bits: int, tmp_path: Path) -> None:
    """Some devices declare the words, some the entries."""
    palette: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        entries = np.array([0, 1, 128, 255], np.uint16).tobytes()
        palette[f"{colour}PaletteColorLookupTableData"] = entries
    pixels = np.array([[0, 1, 2, 3]], np.uint8)
    path = written(tmp_path / "a.dcm", pixels, "PALETTE COLOR", **palette)
    assert grey_row(path) == [0, 1, 128, 255]


def table(entries: np.ndarray, bits: int, first: int = 0) -> Dataset:
    """The item of a sequence of lookup tables."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    packed = entries.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    item.add_new("LUTData", "OW", packed + b"\0" * (len(packed) % 2))
    return item


def grey_row(path: Path, window: Window = SOFT_TISSUE) -> list[int]:
    check(path)
    return np.asarray(open_rgb(path, window))[0, :, 0].tolist()


BEYOND = np.array([[0, 100, 255, 256, 300, 1000]], np.uint16)
CLAMPED = [0, 100, 255, 255, 255, 255]


def test_values_beyond_a_palette_of_8_bit_entries_get_its_last_entry(tmp_path: Path) -> None:
    """pydicom 3.0.2 wraps them modulo 256."""
    palette: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{colour}PaletteColorLookupTableData"] = np.arange(256, dtype=np.uint8).tobytes()
    assert grey_row(written(tmp_path / "a.dcm", BEYOND, "PALETTE COLOR", **palette)) == CLAMPED


@pytest.mark.parametrize(
    ("entries", "bits", "pixels", "seen"),
    [
        (np.arange(256), 8, BEYOND, CLAMPED),
        (np.arange(4096) // 16, 8, np.array([[0, 1000, 4095]], np.uint16), [0, 62, 255]),
        (np.arange(4096), 12, np.array([[0, 1000, 4095]], np.uint16), [0, 62, 255]),
        (np.arange(4096), 16, np.array([[0, 1000, 4095]], np.uint16), [0, 62, 255]),
        (np.arange(4096) * 16, 16, np.array([[0, 1000, 4095]], np.uint16), [0, 62, 255]),
        (np.arange(256)[::-1], 8, np.array([[0, 100, 255]], np.uint16), [255, 155, 0]),
    ],
)
def test_voi_tables_are_looked_up(
    tmp_path: Path, entries: np.ndarray, bits: int, pixels: np.ndarray, seen: list[int]
) -> None:
    tables = [table(entries, bits)]
    path = written(tmp_path / "a.dcm", pixels, "MONOCHROME2", VOILUTSequence=tables)
    assert grey_row(path) == seen
    inverted = written(tmp_path / "b.dcm", pixels, "MONOCHROME1", VOILUTSequence=tables)
    assert grey_row(inverted) == [255 - grey for grey in seen]


def test_a_voi_table_of_signed_values(tmp_path: Path) -> None:
    pixels = np.array([[-1000, -50, 0, 27, 1000]], np.int16)
    tables = [table(np.arange(256), 8, first=-128)]
    path = written(tmp_path / "a.dcm", pixels, "MONOCHROME2", VOILUTSequence=tables)
    assert grey_row(path) == [0, 78, 128, 155, 255]


SERIES = {"SmallestPixelValueInSeries": 0, "LargestPixelValueInSeries": 1000}


@pytest.mark.parametrize(
    ("pixels", "more", "seen"),
    [
        (np.array([[100, 150]], np.uint8), {}, [100, 150]),
        (np.array([[100, 150]], np.uint8), {"Modality": "CT"}, [100, 150]),
        (np.array([[-28, 22]], np.int8), {}, [100, 150]),
        (np.array([[1000, 2000]], np.uint16), {"BitsStored": 12, "HighBit": 11}, [62, 125]),
        (np.array([[-48, 952]], np.int16), {"BitsStored": 12, "HighBit": 11}, [125, 187]),
        (np.array([[100, 150]], np.uint16), {"BitsStored": 8, "HighBit": 7}, [100, 150]),
        (np.array([[300, 300, 800]], np.uint16), {}, [0, 0, 255]),
        (np.array([[300, 300, 800]], np.uint16), SERIES, [77, 77, 204]),
        (np.array([[300, 800, 2000]], np.uint16), SERIES, [77, 204, 255]),
        (np.array([[-999, 300, 800]], np.int16), {"PixelPaddingValue": -999}, [0, 0, 255]),
        (np.array([[1000, 2000]], np.uint16), {"WindowCenter": 1500, "WindowWidth": 0}, [0, 255]),
    ],
)
def test_grey_values_without_a_window_have_the_range_of_their_declared_bits(
    tmp_path: Path, pixels: np.ndarray, more: dict[str, Any], seen: list[int]
) -> None:
    """Where these fill their word, as 16 of 16 do, that of the series, else that of the image."""
    assert grey_row(written(tmp_path / "a.dcm", pixels, "MONOCHROME2", **more)) == seen
    more |= {"RescaleSlope": 2, "RescaleIntercept": -1024} if "Modality" not in more else {}
    assert grey_row(written(tmp_path / "a.dcm", pixels, "MONOCHROME2", **more)) == seen


HOUNSFIELD = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize(
    ("window", "units", "seen"),
    [
        ({"WindowCenter": 40.5, "WindowWidth": 401}, [40, 240], [128, 255]),
        ({"WindowCenter": 40.5, "WindowWidth": 401}, [40, 40], [128, 128]),
        ({"WindowCenter": [40.5, -600], "WindowWidth": [401, 1500]}, [40, 240], [128, 255]),
        (
            {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
            [-160, 40, 140, 240],
            [0, 128, 191, 255],
        ),
        (
            {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"},
            [-1000, 40, 140, 1000],
            [0, 128, 186, 255],
        ),
        ({}, [-200, 40, 240], [0, 128, 255]),
    ],
)
def test_one_hounsfield_unit_has_one_grey(
    tmp_path: Path, window: dict[str, Any], units: list[int], seen: list[int]
) -> None:
    """Whatever else the slice shows."""
    for extremes in ([-1024, 3000], [0, 0]):
        pixels = (np.array([units + extremes]) + 1024).astype(np.uint16)
        path = written(tmp_path / "a.dcm", pixels, "MONOCHROME2", **HOUNSFIELD, **window)
        assert grey_row(path)[: len(units)] == seen


def test_windows_of_enhanced_images_are_in_their_functional_groups(tmp_path: Path) -> None:
    rescale, window, group = Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    window.WindowCenter, window.WindowWidth = 40.5, 401
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
    pixels = np.array([[1064, 1264]], np.uint16)
    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        path = written(tmp_path / "a.dcm", pixels, "MONOCHROME2", Modality="CT", **{place: [group]})
        assert grey_row(path) == [128, 255]


def test_the_window_of_data_is_that_of_ct_files_that_name_none(tmp_path: Path) -> None:
    pixels = np.array([[424, 1064, 1424]], np.uint16)  # -600, 40, 400 HU
    own = {"WindowCenter": 40.5, "WindowWidth": 401}
    named = written(tmp_path / "named.dcm", pixels, "MONOCHROME2", **HOUNSFIELD, **own)
    plain = written(tmp_path / "plain.dcm", pixels, "MONOCHROME2", **HOUNSFIELD)
    mr = written(tmp_path / "mr.dcm", pixels, "MONOCHROME2", Modality="MR", **own)

    def window(value: object, source: str = "file") -> Window:
        return Handling(window=value, window_from=source).ct_window  # pyright: ignore

    assert grey_row(plain, window("soft_tissue")) == [0, 128, 255]
    assert grey_row(plain, window("lung")) == [128, 236, 255]
    assert grey_row(plain, window("bone")) == [0, 77, 128]
    assert grey_row(plain, window([40, 80])) == grey_row(plain, window("brain")) == [0, 129, 255]
    assert grey_row(named, window("lung")) == [0, 128, 255]
    assert grey_row(named, window("lung", "data")) == [128, 236, 255]
    assert grey_row(mr, window("lung", "data")) == grey_row(mr)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("lungs", r"data\.window='lungs'; known: .*did you mean 'lung'"),
        ([40], r"data\.window=\[40\]; needs soft_tissue, lung, .* or \[center, width\]"),
        ([40, 0], "width of 1 or more"),
        (40, r"data\.window=40; it takes"),
    ],
)
def test_a_window_that_is_none_is_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Handling(window=value)  # pyright: ignore


def test_the_window_is_part_of_the_digest_of_dicom_alone(tmp_path: Path) -> None:
    pixels = np.array([[424, 1064, 1424]], np.uint16)
    path = written(tmp_path / "a", pixels, "MONOCHROME2", **HOUNSFIELD)
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    lung, bone = WINDOWS["lung"], WINDOWS["bone"]
    images = [path, tmp_path / "b.png"]
    for _ in range(2):  # read, then from the cache
        first = image_cache.digests(images, tmp_path / "cache", window=lung)
        second = image_cache.digests(images, tmp_path / "cache", window=bone)
        assert first[path] != second[path]
        assert first[images[1]] == second[images[1]]


def test_another_window_is_another_data_set_where_images_are_dicom(tmp_path: Path) -> None:
    written(tmp_path / "a", np.array([[424, 1064]], np.uint16), "MONOCHROME2", **HOUNSFIELD)
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    digests: dict[str, set[str]] = {"a": set(), "b.png": set()}
    for image, window in itertools.product(digests, ("lung", [-600, 1500], "bone")):
        rows = [{"image": image, "problem": "Which? A)x, B)y", "solution": "A"}]
        (tmp_path / "CT_test.json").write_text(json.dumps(rows))
        spec = {"_target_": "medreason.data.med_r1.read", "root": str(tmp_path), "files": []}
        spec |= {"window": window}
        samples = data._load.__wrapped__(json.dumps(spec), None, tmp_path / "cache").samples
        assert samples[0].window == Handling(window=window).ct_window  # pyright: ignore
        images = data.image_digests(spec, tmp_path / "cache", samples)
        digests[image].add(data.digest(samples, images))
    assert {image: len(values) for image, values in digests.items()} == {"a": 2, "b.png": 1}


def test_training_evaluation_and_prepare_show_the_window_of_the_data_set(tmp_path: Path) -> None:
    arguments = pytest.importorskip("medreason.training.arguments")
    path = written(tmp_path / "a", np.full((4, 4), 424, np.uint16), "MONOCHROME2", **HOUNSFIELD)
    lung = WINDOWS["lung"]
    fields = ("id", path, "Which?", ("x", "y"), "A", None, "ct", "disease", "own", None, "train")
    sample = Sample(*fields, window=lung)
    prepare.prepare({path: tmp_path / "a.png"}, 4, "stretch", 1, window=lung)
    pictures = {
        "evaluation": original_image(sample),
        "training": arguments.lazy_rows([sample], lambda _: {"prompt": ""})[0]["image"],
        "prepare": open_rgb(tmp_path / "a.png"),
    }
    greys = {name: picture.getpixel((0, 0)) for name, picture in pictures.items()}
    assert greys == dict.fromkeys(pictures, (128, 128, 128))
    assert open_rgb(path).getpixel((0, 0)) == (0, 0, 0)


def test_dicom_is_known_by_its_header_where_it_has_no_suffix(tmp_path: Path) -> None:
    pixels = np.array([[100, 150]], np.uint8)
    for name in ("IM000001", "a.IMA", "b.png"):
        path = written(tmp_path / name, pixels, "MONOCHROME2")
        assert grey_row(path) == [100, 150]
        assert size_of(path) == (2, 1)


def test_dicom_without_its_header_is_read_where_its_suffix_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", np.array([[100, 150]], np.uint8), "MONOCHROME2")
    whole = path.read_bytes()
    path.write_bytes(whole[132:])  # from its first element on
    assert grey_row(path) == [100, 150]
    meta = 12 + struct.unpack("<I", whole[140:144])[0]  # the group of the file itself
    path.write_bytes(whole[132 + meta :])
    assert grey_row(path) == [100, 150]
    assert size_of(path) == (2, 1)


def test_dicom_without_an_image_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", GREY, "MONOCHROME2")
    data = pydicom.dcmread(path)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(data, name)
    data.save_as(path)
    with pytest.raises(ValueError, match=r"holds no image \(Secondary Capture Image Storage\)"):
        check(path)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (
            JPEGLSLossless,
            r"JPEG-LS Lossless .* pip install pyjpegls \(or 'pylibjpeg\[all\]' or python-gdcm\)",
        ),
        (MPEG2MPML, r"nothing here reads its compression \(MPEG2 .* save it uncompressed"),
    ],
)
def test_a_compression_that_needs_another_package_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, words: str
) -> None:
    if syntax == JPEGLSLossless:
        from pydicom.pixels.decoders.base import JPEGLSLosslessDecoder

        missing = {"gdcm": ("gdcm",), "pylibjpeg": ("pylibjpeg",), "pyjpegls": ("pyjpegls",)}
        monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
        monkeypatch.setattr(JPEGLSLosslessDecoder, "_unavailable", missing)
    path = written(tmp_path / "a.dcm", GREY, "MONOCHROME2")
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\xff\xd8\xff\xf7" + bytes(20)])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    with pytest.raises(ValueError, match=words) as caught:
        check(path)
    assert "again" not in str(caught.value)
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # the remedy
    data.PixelData = GREY.tobytes()
    data["PixelData"].VR = "OW"
    data["PixelData"].is_undefined_length = False
    data.save_as(path)
    check(path)


def reference(
    stored: np.ndarray, bits: int, line: tuple[float, float], window: dict[str, Any], inverted: bool
) -> list[float]:
    """The rule of the README in the words of DICOM PS3.3 C.11.2.1, pixel by pixel."""
    units = [float(v) * line[0] + line[1] for v in stored[0]]
    half = 2 ** (bits - 1)
    ends = [-half, half - 1] if stored.dtype.kind == "i" else [0, 2 * half - 1]
    low, high = sorted(end * line[0] + line[1] for end in ends)
    if bits == 16:
        low, high = min(units), max(units)
    c, w = window.get("WindowCenter", 0), window.get("WindowWidth", 1)
    function = window.get("VOILUTFunction")
    if function == "LINEAR":
        low, high = c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2
    elif function == "LINEAR_EXACT":
        low, high = c - w / 2, c + w / 2
    greys = [0 if x <= low else 255 if x > high else (x - low) / (high - low) * 255 for x in units]
    if function == "SIGMOID":
        greys = [255 / (1 + math.exp(min(-4 * (x - c) / w, 700))) for x in units]
    return [255 - grey if inverted else grey for grey in greys]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_depth_window_sign_and_photometric_interpretation(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    allocated = data.draw(st.sampled_from([8, 16]))
    bits = data.draw(st.integers(2, allocated))
    signed, inverted = data.draw(st.booleans()), data.draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=6))
    stored = np.array([values], f"{'i' if signed else 'u'}{allocated // 8}")
    slope = data.draw(st.sampled_from([1, 0.5, 2, -1]))
    intercept = data.draw(st.sampled_from([0, -1024, 10.5]))
    named: dict[str, Any] = {}
    if data.draw(st.booleans()):
        functions = st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"])
        named = {"WindowCenter": data.draw(st.integers(-1500, 3000))}
        named |= {"WindowWidth": data.draw(st.integers(10, 4000))}
        named |= {"VOILUTFunction": data.draw(functions)}
    path = written(
        tmp_path_factory.mktemp("dicom") / "a",
        stored,
        "MONOCHROME1" if inverted else "MONOCHROME2",
        BitsStored=bits,
        HighBit=bits - 1,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        **named,
    )
    expected = reference(stored, bits, (slope, intercept), named, inverted)
    # Rounded to the nearest; sums in another order may put a half on either side.
    assert np.abs(np.array(grey_row(path)) - expected).max() <= 0.5 + 1e-9
