"""Features of a frozen vision tower: encoded once, within a limit, safe beside other processes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from medreason.config import Hardware, Model
from medreason.generation.vision_cache import (
    VisionCache,
    takes_vision_features,
    vision_tower_is_frozen,
)
from medreason.models.load import load_model
from medreason.models.patch_embedding import multiply_patches
from medreason.runs.files import atomic

GRID = torch.tensor([[1, 4, 4]])


class Tower(nn.Module):
    """As much of a model as makes features: 4 tokens of 8 values for 16 patches of 6."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.device = torch.device("cpu")
        torch.manual_seed(seed)
        self.visual = nn.Linear(24, 8)

    def get_image_features(self, pixels: Tensor, grids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.visual(pixels.view(-1, 24)).split(4))


def images(count: int, first: int = 0) -> list[Tensor]:
    return [torch.full((16, 6), float(i)) for i in range(first, first + count)]


def cache_in(folder: Path | None, seed: int = 0, limit: float = 1e9) -> VisionCache:
    return VisionCache(Tower(seed), "float32", folder, int(limit))


def features_of(cache: VisionCache, pixels: list[Tensor]) -> tuple[Tensor, ...]:
    return cache(pixels, [GRID] * len(pixels))["image"].pooler_output  # pyright: ignore


def test_an_image_is_encoded_once_across_steps_and_runs(tmp_path: Path) -> None:
    first = cache_in(tmp_path)
    two, three = images(2), images(3)
    expected = Tower().get_image_features(torch.cat(three), GRID).pooler_output
    features_of(first, [two[0], two[1], two[0]])
    assert first.encoded == 2
    features = features_of(first, three)
    assert first.encoded == 3
    again = cache_in(tmp_path)
    torch.testing.assert_close(features_of(again, three), features)
    torch.testing.assert_close(features, expected)
    assert again.encoded == 0


def test_features_do_not_depend_on_the_images_beside() -> None:
    """Else a run would depend on what earlier runs have left in the cache."""
    hardware = Hardware("cpu", "cpu", 1, "1", 1, "float32")
    model = load_model(Model(name="tiny", path="tiny"), hardware)
    grids = [torch.tensor([[1, *sides]]) for sides in [(6, 8)] * 4 + [(8, 8)]]
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(int(grid.prod()), 1176, generator=generator) for grid in grids]
    together = VisionCache(model, "float32", None, 0)(pixels, grids)["image"].pooler_output
    fewer = VisionCache(model, "float32", None, 0)
    fewer(pixels[1:2], grids[1:2])
    apart = fewer(pixels, grids)["image"].pooler_output
    assert all(map(torch.equal, together, apart))


def test_features_of_another_number_of_threads_are_not_read(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    features_of(cache_in(tmp_path), images(1))
    try:
        torch.set_num_threads(threads + 1)
        other = cache_in(tmp_path)
        features_of(other, images(1))
    finally:
        torch.set_num_threads(threads)
    again = cache_in(tmp_path)
    features_of(again, images(1))
    assert (other.encoded, again.encoded) == (1, 0)


def test_another_tower_precision_or_grid_has_other_features(tmp_path: Path) -> None:
    features_of(cache_in(tmp_path), images(1))
    other = cache_in(tmp_path, seed=1)
    features_of(other, images(1))
    half = VisionCache(Tower(), "bfloat16", tmp_path, 10**9)
    features_of(half, images(1))
    turned = cache_in(tmp_path)
    turned(images(1), [torch.tensor([[1, 2, 8]])])
    assert other.encoded == half.encoded == turned.encoded == 1


def test_features_of_a_convolution_are_not_those_of_a_product(tmp_path: Path) -> None:
    class Embedding(Tower):
        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.Sequential(nn.Conv3d(24, 8, 1), nn.Flatten())

        def get_image_features(self, pixels: Tensor, grids: Tensor, **_: object) -> SimpleNamespace:
            features = self.visual(pixels.view(-1, 24, 1, 1, 1))
            return SimpleNamespace(pooler_output=features.split(4))

    for multiplies in (False, True):
        tower = Embedding()
        if multiplies:
            multiply_patches(tower)
        cache = VisionCache(tower, "float32", tmp_path, 10**9)  # pyright: ignore[reportArgumentType]
        features_of(cache, images(1))
        assert cache.encoded == 1


def test_image_of_a_damaged_file_is_encoded_again(tmp_path: Path) -> None:
    features_of(cache_in(tmp_path), images(1))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    again = cache_in(tmp_path)
    features_of(again, images(1))
    assert again.encoded == 1
    last = cache_in(tmp_path)
    features_of(last, images(1))
    assert last.encoded == 0


def test_disk_stays_within_its_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, limit=6000)
    for i in range(97):
        features_of(cache, images(1, first=i))
    files = list(tmp_path.rglob("*.safetensors"))
    size = files[0].stat().st_size
    assert sum(path.stat().st_size for path in files) <= 6000 + 32 * size
    again = cache_in(tmp_path, limit=6000)
    features_of(again, images(1, first=96))
    assert again.encoded == 0
    features_of(again, images(1))
    assert again.encoded == 1


def test_two_at_once_lose_nothing_under_a_limit_that_is_always_met(tmp_path: Path) -> None:
    expected = features_of(cache_in(None), images(40))

    towers = [cache_in(tmp_path, limit=2000) for _ in range(4)]  # threads share torch's seed

    def run(seed: int) -> None:
        cache = towers[seed]
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed)) % 40
        for i in order.tolist():
            cache._in_memory.clear()
            torch.testing.assert_close(features_of(cache, images(1, first=i))[0], expected[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert not list(tmp_path.rglob(".*.unfinished"))


def test_a_file_that_another_process_writes_is_not_removed(tmp_path: Path) -> None:
    with atomic(tmp_path / "others.safetensors") as unfinished:
        unfinished.write_bytes(bytes(10_000))
        os.utime(unfinished, (time.time() - 60,) * 2)
        features_of(cache_in(tmp_path, limit=2000), images(1))
        assert unfinished.exists()


def test_tiny_model_takes_features_and_knows_when_its_tower_is_frozen() -> None:
    tiny = load_model(Model(name="tiny", path="tiny"), Hardware("cpu", "cpu", 1, "1", 1, "float32"))
    assert takes_vision_features(tiny)
    assert not vision_tower_is_frozen(tiny)
    tiny.model.visual.requires_grad_(False)
    assert vision_tower_is_frozen(tiny)
