"""Drawing on a square of SIZE pixels: soft masks, strokes, textures, an arrow. numpy only.

Coordinates: x to the right, y downwards, from -1 to 1. Masks and pictures are floats in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 224

_AXIS = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
X, Y = np.meshgrid(_AXIS, _AXIS)  # (SIZE, SIZE) each

Point = tuple[float, float]


def edge(distance: np.ndarray, softness: float = 0.02) -> np.ndarray:
    """A mask that is 1 where `distance` is negative and falls to 0 over `softness`."""
    return np.clip(0.5 - distance / (2 * softness), 0, 1)


def ellipse(
    center: Point, rx: float, ry: float, angle: float = 0.0, softness: float = 0.02
) -> np.ndarray:
    """A filled ellipse; `angle` in radians, clockwise on the screen."""
    dx, dy = X - center[0], Y - center[1]
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = -dx * np.sin(angle) + dy * np.cos(angle)
    radius = np.sqrt((u / rx) ** 2 + (v / ry) ** 2)
    return edge((radius - 1) * min(rx, ry), softness)


def blob(
    center: Point,
    radius: float,
    rng: np.random.Generator,
    rough: float = 0.15,
    softness: float = 0.02,
) -> np.ndarray:
    """A disc with a wavy border; `rough` is the size of the waves relative to the radius."""
    theta = np.arctan2(Y - center[1], X - center[0])
    wave = sum(
        rng.normal(0, rough / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
        for k in range(2, 7)
    )
    return edge(np.hypot(X - center[0], Y - center[1]) - radius * (1 + wave), softness)


def stroke(points: Sequence[Point], width: float, blur: float = 0.0) -> np.ndarray:
    """A line through the points; `width` and `blur` in coordinate units."""
    return polygon(points, width=width, blur=blur)


def polygon(points: Sequence[Point], width: float | None = None, blur: float = 0.0) -> np.ndarray:
    """A filled polygon, or its open outline where a width is given; anti-aliased."""
    scale = 3
    image = Image.new("L", (SIZE * scale, SIZE * scale))
    pixels = [((x + 1) / 2 * SIZE * scale, (y + 1) / 2 * SIZE * scale) for x, y in points]
    pen = ImageDraw.Draw(image)
    if width is None:
        pen.polygon(pixels, fill=255)
    else:
        pen.line(pixels, fill=255, width=max(1, round(width / 2 * SIZE * scale)), joint="curve")
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur / 2 * SIZE * scale))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float) / 255


def smooth(picture: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of one channel; `radius` in pixels."""
    # Pillow's GaussianBlur refuses float images; two small matrix products are as fast.
    kernel = _gaussian(round(radius, 1))
    return np.asarray(kernel @ picture.astype(np.float32) @ kernel.T, dtype=float)


@lru_cache(maxsize=64)
def _gaussian(radius: float) -> np.ndarray:
    pixels = np.arange(SIZE)
    kernel = np.exp(-0.5 * ((pixels[:, None] - pixels) / max(radius, 0.1)) ** 2)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def texture(rng: np.random.Generator, grain: float) -> np.ndarray:
    """Random texture of mean 0 and deviation 1; `grain` is the size of its spots in pixels."""
    coarse = max(4, round(SIZE / grain))
    field = Image.fromarray(rng.normal(0, 1, (coarse, coarse)).astype(np.float32), mode="F")
    picture = np.asarray(field.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=float)
    return (picture - picture.mean()) / (picture.std() + 1e-6)


def paint(
    picture: np.ndarray, mask: np.ndarray, value: float | Sequence[float] | np.ndarray
) -> np.ndarray:
    """`value` laid over the picture where the mask is 1; grey (H, W) or colour (H, W, 3)."""
    if picture.ndim == 3:
        mask = mask[..., None]
    return picture * (1 - mask) + np.asarray(value) * mask


def window(density: np.ndarray, level: float, width: float) -> np.ndarray:
    """Densities (Hounsfield units) to grey, as a CT workstation shows them."""
    return np.clip((density - level) / width + 0.5, 0, 1)


def colour(grey: np.ndarray) -> np.ndarray:
    """(H, W) grey to (H, W, 3)."""
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2)


def arrow(
    picture: np.ndarray, tip: Point, angle: float, tint: Sequence[float] = (1, 0.9, 0.1)
) -> np.ndarray:
    """A reader's arrow whose tip lies at `tip`, coming from the direction `angle` (radians)."""
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    origin = np.array(tip)
    head = [origin, origin + 0.15 * along + 0.085 * across, origin + 0.15 * along - 0.085 * across]
    tail = [origin + 0.12 * along, origin + 0.34 * along]
    shape = np.maximum(
        polygon([(float(x), float(y)) for x, y in head]),
        stroke([(float(x), float(y)) for x, y in tail], 0.055),
    )
    halo = np.clip(smooth(shape, 1.5) * 3, 0, 1)
    # Only the square around the arrow changes.
    low = [int(np.clip((v + 1) / 2 * SIZE - 48, 0, SIZE)) for v in tip]
    area = (slice(low[1], low[1] + 97), slice(low[0], low[0] + 97))
    marked = np.array(picture, dtype=float)
    marked[area] = paint(paint(marked[area], halo[area], (0.0, 0.0, 0.0)), shape[area], tint)
    return marked


class Plate:
    """Flat shapes, each with a value of its own, drawn at double size and averaged down once."""

    def __init__(self, value: float = 0.0) -> None:
        self._image = Image.new("F", (SIZE * 2, SIZE * 2), value)
        self._pen = ImageDraw.Draw(self._image)

    def shape(self, points: Sequence[Point], value: float) -> None:
        self._pen.polygon([((x + 1) * SIZE, (y + 1) * SIZE) for x, y in points], fill=value)

    def line(self, points: Sequence[Point], width: float, value: float) -> None:
        pixels = [((x + 1) * SIZE, (y + 1) * SIZE) for x, y in points]
        self._pen.line(pixels, fill=value, width=max(1, round(width * SIZE)), joint="curve")

    def picture(self) -> np.ndarray:
        small = self._image.resize((SIZE, SIZE), Image.Resampling.BOX)
        return np.asarray(small, dtype=float)


def outline(
    center: Point, rx: float, ry: float, angle: float = 0.0, power: float = 2.0
) -> list[Point]:
    """The border of an ellipse as 48 points; a `power` above 2 makes it boxier."""
    theta = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    u = rx * np.sign(np.cos(theta)) * np.abs(np.cos(theta)) ** (2 / power)
    v = ry * np.sign(np.sin(theta)) * np.abs(np.sin(theta)) ** (2 / power)
    x = center[0] + u * np.cos(angle) - v * np.sin(angle)
    y = center[1] + u * np.sin(angle) + v * np.cos(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def free_angle(tip: Point, rng: np.random.Generator, avoid: Sequence[Point] = ()) -> float:
    """A random direction for an arrow at `tip` whose shaft stays in the picture and off `avoid`."""
    angles = rng.uniform(0, 2 * np.pi, 12)
    shaft = np.array([0.12, 0.24, 0.36])
    x = tip[0] + np.cos(angles)[:, None] * shaft
    y = tip[1] + np.sin(angles)[:, None] * shaft
    room = np.minimum(0.96 - np.abs(x).max(axis=1), 0.96 - np.abs(y).max(axis=1)).clip(max=0)
    clear = [np.hypot(x - a, y - b).min(axis=1).clip(max=0.4) for a, b in avoid]
    return float(angles[np.argmax(room * 3 + sum(clear, np.zeros(12)))])


def wavy(
    center: Point, radius: float, rng: np.random.Generator, rough: float = 0.15
) -> list[Point]:
    """The border of a disc with waves of the size `rough` relative to the radius, as 64 points."""
    theta = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    k = np.arange(2, 8)[:, None]
    waves = (
        rng.normal(0, rough, k.shape) / k * np.cos(k * theta + rng.uniform(0, 2 * np.pi, k.shape))
    )
    r = radius * (1 + waves.sum(axis=0))
    x, y = center[0] + r * np.cos(theta), center[1] + r * np.sin(theta)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def overlay(
    picture: np.ndarray, layers: Sequence[tuple[np.ndarray, Sequence[float]]]
) -> np.ndarray:
    """`paint` for several (mask, colour) layers in turn, much faster: one channel at a time."""
    planes = []
    for channel in range(3):
        plane = np.ascontiguousarray(picture[..., channel])
        for mask, tint in layers:
            plane = plane * (1 - mask) + tint[channel] * mask
        planes.append(plane)
    return np.stack(planes, axis=-1)
