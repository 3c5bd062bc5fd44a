"""Images count by their content, wherever they lie; each is read once, and never again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from medreason import data
from medreason.data import image_cache
from medreason.samples import Sample

SPEC = {"_target_": "medreason.data.med_r1.read", "files": [], "images": "none"}


def release(root: Path, names: list[str], seed: int = 0) -> Path:
    """Rows about uncompressed images of one size: equal in name and bytes, not in pixels."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), (seed + i) % 256).save(path)
    rows = [{"image": n, "problem": "Which? A)x, B)y", "solution": "A"} for n in names]
    (root / "CT_test.json").write_text(json.dumps(rows))
    return root


def digest_of(root: Path, cache: Path) -> str:
    data._load.cache_clear()
    spec = SPEC | {"root": str(root)}
    samples = data.load(spec, cache)
    return data.digest(samples, data.image_digests(spec, cache, samples))


def test_same_images_in_another_folder_are_the_same_data(tmp_path: Path) -> None:
    names = ["a/1.bmp", "b/1.bmp", "2.bmp"]
    here, there = (release(tmp_path / place, names) for place in ("here", "there"))
    assert digest_of(here, tmp_path) == digest_of(there, tmp_path)


def test_another_picture_under_the_same_name_and_size_is_other_data(tmp_path: Path) -> None:
    root = release(tmp_path / "root", ["1.bmp", "2.bmp"])
    before, size = digest_of(root, tmp_path), (root / "1.bmp").stat().st_size
    Image.new("L", (16, 16), 200).save(root / "1.bmp")
    assert (root / "1.bmp").stat().st_size == size
    assert digest_of(root, tmp_path) != before


def test_a_picture_moved_to_a_name_with_its_old_time_is_seen(tmp_path: Path) -> None:
    root = release(tmp_path / "root", ["1.bmp", "2.bmp"])
    for name in ("1.bmp", "2.bmp"):
        os.utime(root / name, (1, 1))  # as an archive that sets all times alike leaves them
    before = digest_of(root, tmp_path)
    (root / "2.bmp").replace(root / "1.bmp")
    Image.new("L", (16, 16), 1).save(root / "2.bmp")
    os.utime(root / "2.bmp", (1, 1))
    assert digest_of(root, tmp_path) != before


def test_corrected_image_paths_are_other_data(tmp_path: Path) -> None:
    """The same file name and size in another folder was the same data once."""
    root = release(tmp_path / "root", ["a/1.bmp", "b/1.bmp"])
    rows = json.loads((root / "CT_test.json").read_text())
    before = digest_of(root, tmp_path)
    rows[0]["image"], rows[1]["image"] = rows[1]["image"], rows[0]["image"]
    (root / "CT_test.json").write_text(json.dumps(rows))
    assert digest_of(root, tmp_path) != before


def test_missing_images_count_by_their_path_below_the_root(tmp_path: Path) -> None:
    here, there = (release(tmp_path / place, ["a/1.bmp", "b/1.bmp"]) for place in ("x", "y"))
    whole = digest_of(here, tmp_path)
    for root in (here, there):
        (root / "a/1.bmp").unlink()
    missing = digest_of(here, tmp_path)
    assert missing == digest_of(there, tmp_path) != whole
    (here / "a/1.bmp").symlink_to(here / "b/1.bmp")
    (here / "b/1.bmp").unlink()
    assert digest_of(here, tmp_path) != missing
    paths = [here / "a/1.bmp", here / "b/1.bmp", here, here / "a\0.bmp"]
    assert set(image_cache.digests(paths, tmp_path, here).values()) == {
        "missing a/1.bmp",
        "missing b/1.bmp",
        "missing .",
        "missing a\0.bmp",
    }


def test_question_digest_follows_content_and_not_the_id() -> None:
    def digest(image: str, *changes: object, id: str = "f:0", path: str = "a.png") -> str:
        question, options, answer = changes or ("Which?", ("x", "y"), "A")
        sample = Sample(
            id, Path(path), str(question), options, str(answer), None, "ct", "disease", "s", "p", "test"  # noqa: E501
        )  # fmt: skip
        return data.question_digest(sample, image)

    first = digest("0" * 16)
    assert len(first) == 16
    assert first == digest("0" * 16, id="other:7", path="elsewhere/b.png")
    others = {
        digest("1" * 16),
        digest("0" * 16, "What?", ("x", "y"), "A"),
        digest("0" * 16, "Which?", ("x", "z"), "A"),
        digest("0" * 16, "Which?", ("x", "y"), "B"),
    }
    assert len(others | {first}) == 5


COUNT_OPENS = """
import sys, time
from pathlib import Path
opened = []
sys.addaudithook(lambda event, of: opened.append(str(of[0])) if event == "open" else None)
import medreason.data as data
began = time.process_time()
spec = {"_target_": "medreason.data.med_r1.read", "root": sys.argv[1], "images": sys.argv[3]}
samples = data.load(spec, Path(sys.argv[2]))
digest = data.digest(samples, data.image_digests(spec, Path(sys.argv[2]), samples))
print(digest, sum(name.endswith(".bmp") for name in opened), time.process_time() - began)
"""


@pytest.mark.parametrize("images", ["decode", "none"])
def test_second_start_reads_no_image(images: str, tmp_path: Path) -> None:
    root = release(tmp_path / "root", [f"{i % 7}/{i}.bmp" for i in range(2000)])

    def start() -> tuple[str, int, float, str]:
        command = [sys.executable, "-c", COUNT_OPENS, str(root), str(tmp_path / "cache"), images]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        digest, opened, seconds = done.stdout.split()
        return digest, int(opened), float(seconds), done.stderr

    first, second = start(), start()
    assert first[1] >= 2000
    assert "reading 2,000 images once; their digests are kept in" in first[3]
    assert (second[0], second[1], second[3]) == (first[0], 0, "")
    assert second[2] < 1  # seconds of a core: 0.3 on an idle machine
    changed = root / "3/3.bmp"
    Image.new("L", (16, 16), 77).save(changed)
    third = start()
    assert third[0] != first[0]
    assert 1 <= third[1] <= 4  # times that this one image is opened


def test_an_image_that_is_damaged_later_is_found(tmp_path: Path) -> None:
    root = release(tmp_path / "root", ["1.bmp", "2.bmp"])
    paths = [root / "1.bmp", root / "2.bmp"]
    assert image_cache.problems(paths, tmp_path) == {}
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    for _ in range(2):  # a bad one is not remembered: what it lacks may be installed by now
        assert list(image_cache.problems(paths, tmp_path)) == paths[:1]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\x00", b"0" * 64 + b"\n{}", "cut off", "one digit"]
)
def test_a_damaged_cache_is_thrown_away(damage: bytes | str, tmp_path: Path) -> None:
    root = release(tmp_path / "root", ["1.bmp", "2.bmp"])
    before, file = digest_of(root, tmp_path), tmp_path / image_cache.FILE
    content = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "one digit":
        file.write_bytes(content.replace(b", false]", b", true]"))
    else:
        file.write_bytes(damage)
    assert digest_of(root, tmp_path) == before
    assert file.read_bytes().count(b"bmp") == 2


def digests_of(folder: Path, cache: Path) -> dict[Path, str]:
    return image_cache.digests(folder.glob("*.bmp"), cache)


def test_several_writers_at_once_keep_what_all_of_them_read(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(4)]
    for seed, folder in enumerate(folders):
        release(folder, [f"{i}.bmp" for i in range(40)], seed=50 * seed)
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(digests_of, folders, [tmp_path] * 4))
    kept = image_cache._entries(tmp_path / image_cache.FILE)
    assert sorted(len(images) for images in kept.values()) == [40] * 4
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_cache_that_cannot_be_written_is_only_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = release(tmp_path / "root", ["1.bmp"])
    (tmp_path / "file").touch()
    assert digest_of(root, tmp_path / "file/cache") == digest_of(root, tmp_path)
    assert "cannot be written" in capsys.readouterr().err


def test_a_change_right_after_reading_is_seen(tmp_path: Path) -> None:
    """Within one tick of the clock two contents of one size have the same time."""
    path = tmp_path / "1.bmp"
    seen = set()
    for value in range(20):
        Image.new("L", (16, 16), value).save(path)
        seen.add(image_cache.digests([path], tmp_path)[path])
    assert len(seen) == 20


def test_eighty_thousand_known_images_take_a_second_of_a_core(tmp_path: Path) -> None:
    """The file is read, and compared, not the images."""
    entries = {f"/images/{k}": {f"{i}.png": [9, 1, 2, "0" * 16, True] for i in range(1000)}
               for k in range(82)}  # fmt: skip
    image_cache._keep(entries, tmp_path)
    seconds = []
    for _ in range(3):  # time of this process, and the least: what a busy machine changes little
        began = time.process_time()
        assert sum(map(len, image_cache._entries(tmp_path / image_cache.FILE).values())) == 82_000
        seconds.append(time.process_time() - began)
    assert min(seconds) < 2


def test_known_digests_are_those_of_images_that_were_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = release(tmp_path, ["1.bmp", "2.bmp"])
    images = [root / "1.bmp", root / "2.bmp", root / "no.bmp"]
    read = image_cache.digests(images[:1], tmp_path / "cache", root)
    monkeypatch.setattr(image_cache, "_inspect", None)  # what would read an image
    known = image_cache.known(images, tmp_path / "cache", root)
    assert known == read | {images[1]: "missing 2.bmp", images[2]: "missing no.bmp"}
    assert [image_cache.is_known(digest) for digest in known.values()] == [True, False, False]
