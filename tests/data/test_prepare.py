"""Any image becomes a square; what was killed goes on without redoing or losing one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from medreason import data
from medreason.data import prepare
from medreason.data.images import open_rgb

FORMATS = ("RGB.png", "L.jpg", "RGB.tif", "RGB.bmp", "I;16.png", "P.png", "RGBA.png", "CMYK.jpg")


def draw(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> Path:
    """An image in the mode and format its name ends with: `....I;16.png`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    mode = path.name.split(".")[-2]
    picture = Image.fromarray(noise)
    if mode == "I;16":
        picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    elif mode != "RGB":
        picture = picture.convert(mode)
    picture.save(path)
    return path


def release(root: Path, count: int, size: tuple[int, int] = (64, 48)) -> list[str]:
    names = [f"Images/set {i % 3} & (b)/{i:04}.{FORMATS[i % len(FORMATS)]}" for i in range(count)]
    for i, name in enumerate(names):
        draw(root / name, i, size)
    rows = [{"image": n, "problem": "Which? A)x, B)y", "solution": "A"} for n in names]
    (root / "CT_test.json").write_text(json.dumps(rows))
    return names


def words(root: Path, *more: str) -> list[str]:
    always = ["action=prepare", "data=med_r1", f"data.root={root}", "prepare.size=96", "seed=0"]
    return [*always, *more]


def prepared(root: Path, *more: str) -> None:
    commands.medreason(*words(root, *more)).check_returncode()


def checksums(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and inode of every image: a file that was made again has another inode."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_ino,
        )
        for path in folder.rglob("*.png")
    }


def test_every_format_becomes_a_square_under_a_name_of_its_own(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    images = {draw(raw / folder / f"a.{name}", 0) for folder in "xy" for name in FORMATS}
    todo = prepare.targets_of(images, raw, tmp_path / "made")
    assert len(set(todo.values())) == len(images) == 16
    assert prepare.prepare(todo, 32, "stretch", 1) == {}
    for image, target in todo.items():
        assert (Image.open(target).mode, Image.open(target).size) == ("RGB", (32, 32))
        assert target == tmp_path / "made" / f"{image.relative_to(raw)}.png"


def test_padding_keeps_the_proportions_and_stretching_does_not(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    for fit, corner in (("stretch", 255), ("pad", 0)):
        todo = {tmp_path / "a.png": tmp_path / fit / "a.png"}
        prepare.prepare(todo, 40, fit, 1)
        square = open_rgb(tmp_path / fit / "a.png")
        assert square.getpixel((0, 0)) == (corner,) * 3
        assert square.getpixel((20, 20)) == (255, 255, 255)


def test_finished_images_are_left_alone_and_changed_ones_made_again(tmp_path: Path) -> None:
    images = {draw(tmp_path / f"raw/{i}.RGB.png", i) for i in range(6)}
    todo = prepare.targets_of(images, None, tmp_path / "made")
    prepare.prepare(todo, 32, "stretch", 1)
    before = checksums(tmp_path / "made")
    (tmp_path / "made/.77-1.unfinished").write_bytes(b"half")
    changed = draw(tmp_path / "raw/0.RGB.png", 99)
    os.utime(changed, (1, 1))
    assert prepare.prepare(todo, 32, "stretch", 1) == {}
    after = checksums(tmp_path / "made")
    assert {name for name in before if before[name] != after[name]} == {"0.RGB.png.png"}
    assert not list((tmp_path / "made").glob(".*"))


def test_bad_images_are_named_and_the_others_prepared(tmp_path: Path) -> None:
    names = release(tmp_path, 10)
    (tmp_path / names[3]).write_bytes(b"no image")
    (tmp_path / names[7]).unlink()
    more = [f"outputs={tmp_path}/out"]
    message = refused(tmp_path, *more)
    for reason in (
        "2 bad rows",
        "row 3: image",
        "cannot be decoded",
        "row 7: image",
        "no such file",
    ):
        assert reason in message
    folder = tmp_path / "out/prepared/med_r1-96-stretch"
    made = checksums(folder)
    assert len(made) == 8
    with pytest.raises(ValueError, match="action=prepare did not finish"):
        data.load({"_target_": "medreason.data.prepared.read", "root": str(folder)}, tmp_path)
    more.append("data.bad_rows=skip")
    prepared(tmp_path, *more)
    assert checksums(folder) == made
    moved = folder.rename(tmp_path / "elsewhere")
    samples = data.load({"_target_": "medreason.data.prepared.read", "root": str(moved)}, tmp_path)
    assert len(samples) == 8
    assert all(s.image.is_relative_to(moved) for s in samples)
    summary = json.loads((moved / "prepared.json").read_text())
    assert (summary["rows"], len(summary["bad_rows"])) == (8, 2)
    spec = {"_target_": "medreason.data.prepared.read", "root": str(moved)}
    assert summary["digest"] == data.digest(samples, data.image_digests(spec, tmp_path, samples))


def refused(root: Path, *more: str) -> str:
    done = commands.medreason(*words(root, *more))
    assert done.returncode == 1
    return done.stderr


def test_another_set_does_not_overwrite_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        release(root, 4)
    more = [f"outputs={tmp_path}/out"]
    folder = tmp_path / "out/prepared/med_r1-96-stretch"
    prepared(first, *more)
    digest = json.loads((folder / "prepared.json").read_text())["digest"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = refused(second, *more)
    assert f"is of another set (data.root='{first}', digest {digest}), this command" in message
    assert f"prepares data.root='{second}'; set prepare.folder=..." in message
    other = [*more, f"prepare.folder={folder}", "prepare.size=32", "data.options=normalised"]
    assert "data.options='as_published', size=96, digest" in refused(first, *other)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    prepared(first, *more, "data.bad_rows=skip")


def test_validation_rows_that_are_left_out_are_counted_with_the_words_that_keep_them(
    tmp_path: Path,
) -> None:
    sides = ("train", "test", "val")
    for side in sides:
        draw(tmp_path / f"{side}.RGB.png", sides.index(side))
    lines = [f"{side}.RGB.png,Is it?,yes,{side}" for side in sides]
    (tmp_path / "q.csv").write_text("\n".join(["image,question,answer,fold", *lines]))
    set_of = ["data=hub", f"data.hub={tmp_path}/q.csv", f"outputs={tmp_path}/out"]
    words = ["action=prepare", *set_of, "prepare.size=32", "seed=0"]
    published = ["validation=in_domain", "validation.source=published"]
    done = commands.medreason(*words, f"prepare.folder={tmp_path}/two")
    assert (
        "3 rows: 1 asked about in train, 1 in test; 1 of fold=val left out (validation=in_domain "
        "validation.source=published asks them)"
    ) in done.stderr
    done = commands.medreason(*words, *published, f"prepare.folder={tmp_path}/three")
    assert "1 in validation" in done.stderr
    plan = ["action=audit", "data=prepared", *published, f"outputs={tmp_path}/out"]
    refusal = commands.medreason(*plan, f"data.root={tmp_path}/two").stderr
    assert f"data.root={tmp_path}/two has no validation rows of its own; where the set" in refusal
    assert "repeat its action=prepare with validation=in_domain validation.source=published" in (
        refusal
    )
    assert "medreason.data" not in refusal
    done = commands.medreason(*plan, f"data.root={tmp_path}/three")
    assert done.returncode == 0, done.stderr


def test_a_set_that_was_begun_in_the_folder_is_not_mixed_with_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        names = release(root, 4)
    (first / names[0]).write_bytes(b"no image")
    more = [f"outputs={tmp_path}/out"]
    refused(first, *more)
    assert f"(data.root='{first}', unfinished)" in refused(second, *more)


def test_a_killed_preparation_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    release(tmp_path, 160, (200, 150))
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    prepared(tmp_path, f"prepare.folder={whole}")
    running = subprocess.Popen(
        [sys.executable, "-m", "medreason", *words(tmp_path, f"prepare.folder={torn}")],
        stderr=subprocess.DEVNULL,
    )
    while len(list(torn.rglob("*.png"))) < 40:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1.5)  # the workers see that their parent is gone
    before = checksums(torn)
    assert 40 <= len(before) < 160
    prepared(tmp_path, f"prepare.folder={torn}")
    after = checksums(torn)
    assert {name: after[name] for name in before} == before
    assert {n: c for n, (c, _) in after.items()} == {n: c for n, (c, _) in checksums(whole).items()}
    assert not list(torn.rglob("*.unfinished"))
