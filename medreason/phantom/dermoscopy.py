"""Skin under the dermatoscope: pigment, blood, hairs and a reference sticker, four techniques."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medreason.phantom import canvas
from medreason.phantom.atlas import Atlas, Case, Facet

_MILLIMETRE = 0.08  # 25 mm across the picture
_RADIUS = ((0.0, 0.0), (0.15, 0.185), (0.27, 0.34), (0.46, 0.54))  # by grade
# How much melanin and blood absorb of red, green and blue.
_MELANIN = (0.75, 1.35, 1.8)
_BLOOD = (0.18, 1.1, 0.85)
_TONES = ((1.0, 0.9, 0.85), (0.96, 0.92, 0.92), (0.7, 0.62, 1.0), (1.0, 0.95, 0.78))  # by technique
_ULTRAVIOLET = 2
_STICKERS = ((0.08, 0.3, 0.85), (0.05, 0.6, 0.25), (0.85, 0.06, 0.1), (0.97, 0.97, 0.97))


@dataclass
class _Skin:
    """Amounts of the pigments of the skin, each (SIZE, SIZE)."""

    melanin: np.ndarray
    blood: np.ndarray
    veil: np.ndarray
    """Whitish-blue haze, 0..1."""
    hair: np.ndarray


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    tilt, tan, flush = body.uniform(-0.3, 0.3), body.uniform(0, 0.34), body.uniform(0.04, 0.18)
    furrows = canvas.texture(body, 11), canvas.texture(body, 7)
    skin = _healthy(tan, flush, furrows, noise)
    tips = _landmarks(skin, tilt, noise)
    if case.disease:
        centre = (noise.uniform(-0.07, 0.07), noise.uniform(-0.07, 0.07))
        radius = noise.uniform(*_RADIUS[case.grading])
        (_nevus, _melanoma, _carcinoma)[case.disease - 1](skin, centre, radius, noise)
    _hairs(skin, noise)
    technique, corner = case.modality_recognition, np.pi / 4 + tilt + noise.integers(4) * np.pi / 2
    over = _sticker(corner, case.attributes, technique, noise)
    if technique == 1:
        over = [*over, *_bubbles(noise), _scale()]
    if technique == 3:
        over = [_glare(noise), *over]
    picture = _lens(canvas.overlay(*_lit(skin, technique, over)), technique, noise)
    tip = tips[case.anatomy]
    return canvas.arrow(picture, tip, canvas.free_angle(tip, noise, avoid=[(0, 0), (0, 0)]))


def _healthy(
    tan: float, flush: float, furrows: tuple[np.ndarray, np.ndarray], noise: np.random.Generator
) -> _Skin:
    lines = sum(np.exp(-((field / 0.16) ** 2)) for field in furrows)
    patches = canvas.texture(noise, 40)
    return _Skin(
        melanin=0.1 + tan + 0.02 * patches + 0.06 * lines,
        blood=flush + 0.03 * canvas.texture(noise, 28) + 0.03 * canvas.texture(noise, 3),
        veil=np.zeros_like(patches),
        hair=np.zeros_like(patches),
    )


def _landmarks(skin: _Skin, tilt: float, noise: np.random.Generator) -> list[canvas.Point]:
    """Draws hair, crease, follicle and freckle around the centre; a place on each of them."""

    def turned(x: float, y: float) -> canvas.Point:
        return x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)

    bow, along = noise.uniform(-0.12, 0.12), noise.uniform(-0.3, 0.3, 2).tolist()
    side, track = float(noise.choice([-1, 1])), np.linspace(-1.3, 1.3, 25)
    lines, folds, spots = canvas.Plate(), canvas.Plate(), canvas.Plate()
    hair = [turned(x, -0.74 + bow * x**2 + 0.02 * np.sin(4 * x)) for x in track]
    lines.line(hair, 0.044, 1.0)
    skin.hair += canvas.smooth(lines.picture(), 0.5)
    folds.line([turned(x, 0.74 - 0.15 * x**2) for x in track], 0.1, 1.0)
    sharp, soft = canvas.smooth(folds.picture(), 1.5), canvas.smooth(folds.picture(), 3.5)
    skin.blood += 0.2 * sharp + 0.22 * soft
    skin.melanin += (0.2 + 0.02 * canvas.texture(noise, 5)) * sharp + 0.18 * soft
    follicle, freckle = turned(0.74 * side, along[0] * 0.6), turned(-0.74 * side, along[1] * 0.6)
    away = np.hypot(canvas.X - follicle[0], canvas.Y - follicle[1])
    skin.veil += 0.6 * canvas.edge(away - 0.1, 0.03)
    skin.melanin += 1.7 * canvas.edge(away - 0.045, 0.02)
    spots.shape(canvas.wavy(freckle, 0.085, noise, rough=0.25), 0.62)
    skin.melanin += canvas.smooth(spots.picture(), 1.8)
    x, x_crease = along
    on_hair = turned(x, -0.74 + bow * x**2 + 0.02 * np.sin(4 * x))
    on_crease = turned(x_crease, 0.74 - 0.15 * x_crease**2)
    return [on_hair, on_crease, follicle, freckle]


def _nevus(skin: _Skin, centre: canvas.Point, radius: float, noise: np.random.Generator) -> None:
    """Round, evenly brown, with a regular pigment network that fades out at the border."""
    mask = _patch([canvas.wavy(centre, radius, noise, rough=0.06)], 3.5)
    away = np.hypot(canvas.X - centre[0], canvas.Y - centre[1]) / radius
    shade = 0.62 - 0.16 * away + 0.06 * canvas.texture(noise, 14) + 0.17 * _network(noise)
    skin.melanin += mask * shade
    skin.blood += 0.1 * mask


def _network(noise: np.random.Generator) -> np.ndarray:
    """A honeycomb of brown lines, bent so that no two meshes are alike."""
    x = canvas.X + 0.03 * canvas.texture(noise, 24)
    y = canvas.Y + 0.03 * canvas.texture(noise, 24)
    waves = [
        np.cos(98 * (x * np.cos(a) + y * np.sin(a)))
        for a in noise.uniform(0, 1) + np.arange(3) * np.pi / 3
    ]
    return np.clip((0.6 - sum(waves)) / 2, 0, 1)


def _melanoma(skin: _Skin, centre: canvas.Point, radius: float, noise: np.random.Generator) -> None:
    """Ragged, lopsided, of many colours: brown, black blotches, blue-white veil, red."""
    theta = noise.uniform(0, 2 * np.pi)
    aside = np.array((np.cos(theta), np.sin(theta))) * radius
    lobe = (centre[0] + 0.5 * aside[0], centre[1] + 0.5 * aside[1])
    borders = [
        canvas.wavy(centre, radius * 0.86, noise, 0.2),
        canvas.wavy(lobe, radius * 0.62, noise, 0.25),
    ]
    mask = _patch(borders, 1.2)
    speck = canvas.texture(noise, 16)
    shade = 0.8 + 0.25 * speck + 0.25 * canvas.texture(noise, 6)
    skin.melanin += mask * np.clip(shade, 0.25, 2)
    dark = _patch([canvas.wavy(lobe, radius * 0.5, noise, rough=0.35)], 2)
    skin.melanin += mask * dark * 1.6
    veil = (centre[0] - 0.38 * aside[0], centre[1] - 0.38 * aside[1])
    skin.veil += 0.62 * mask * _patch([canvas.wavy(veil, radius * 0.38, noise, rough=0.3)], 3)
    skin.blood += 0.7 * mask * canvas.edge(0.4 - speck, 0.4)


def _carcinoma(
    skin: _Skin, centre: canvas.Point, radius: float, noise: np.random.Generator
) -> None:
    """Pearly pink, with branching vessels and a few blue-grey nests."""
    mask = _patch([canvas.wavy(centre, radius, noise, rough=0.12)], 2)
    skin.melanin *= 1 - 0.6 * mask
    skin.blood += mask * (0.42 + 0.06 * canvas.texture(noise, 12))
    rim = np.clip(mask - canvas.smooth(mask, 9), 0, 1)
    skin.veil += 0.14 * mask + 0.4 * rim
    tree = canvas.Plate()
    for angle in np.arange(4) * 1.57 + noise.uniform(0, 1.5):
        start = (centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle))
        _vessel(
            tree,
            start,
            angle + np.pi + noise.normal(0, 0.2),
            radius * 0.95,
            0.02 + 0.02 * radius,
            noise,
        )
    vessels = canvas.smooth(tree.picture(), 0.6)
    skin.blood += 1.9 * mask * vessels
    skin.melanin += 0.3 * mask * vessels
    nests = []
    for angle in np.arange(3) * 2.1 + noise.uniform(0, 2):
        x = centre[0] + radius * 0.62 * float(np.cos(angle))
        y = centre[1] + radius * 0.62 * float(np.sin(angle))
        nests.append(canvas.outline((x, y), 0.045, 0.035, angle))
    spots = _patch(nests, 1.3)
    skin.melanin += 0.8 * spots
    skin.veil += 0.25 * spots


def _patch(borders: list[list[canvas.Point]], blur: float) -> np.ndarray:
    """A mask of the area inside any of the borders; `blur` in pixels."""
    plate = canvas.Plate()
    for border in borders:
        plate.shape(border, 1.0)
    return canvas.smooth(plate.picture(), blur)


def _vessel(
    tree: canvas.Plate,
    start: canvas.Point,
    angle: float,
    length: float,
    width: float,
    noise: np.random.Generator,
) -> None:
    """A winding vessel that splits into thinner ones."""
    angles = angle + np.cumsum(noise.normal(0, 0.28, 7))
    steps = length / 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.cumsum(np.vstack([start, steps]), axis=0)
    tree.line(points.tolist(), width, 1.0)
    if width > 0.012:
        for place in (2, 4, 6):
            turn = noise.choice([-1, 1]) * noise.uniform(0.5, 1)
            x, y = points[place].tolist()
            _vessel(tree, (x, y), angles[place] + turn, length * 0.5, width * 0.55, noise)


def _hairs(skin: _Skin, noise: np.random.Generator) -> None:
    """A few fine hairs."""
    plate = canvas.Plate()
    for _ in range(int(noise.integers(2, 6))):
        x, y = noise.uniform(-0.9, 0.9, 2)
        angles = noise.uniform(0, 2 * np.pi) + np.cumsum(noise.normal(0.03, 0.05, 12))
        points = np.cumsum(0.07 * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
        plate.line([(x + a, y + b) for a, b in points], 0.012, 0.6)
    skin.hair += plate.picture()


_Layer = tuple[np.ndarray, tuple[float, float, float]]
"""(mask, colour)"""


def _lit(skin: _Skin, technique: int, over: list[_Layer]) -> tuple[np.ndarray, list[_Layer]]:
    """The light that comes back from the skin, and the layers to lay over it."""
    melanin, blood = np.clip(skin.melanin, 0, 3), np.clip(skin.blood, 0, 3)
    veil, hair = np.clip(skin.veil, 0, 1), np.clip(skin.hair, 0, 1)
    tones = _TONES[technique]
    if technique == _ULTRAVIOLET:
        absorbed = 1.5 * melanin + 0.75 * blood
        planes = [
            tone * np.exp(-k * absorbed) for tone, k in zip(tones, (1.1, 1.15, 0.7), strict=True)
        ]
        return np.stack(planes, axis=-1), [
            (veil * 0.8, (0.55, 0.49, 0.86)),
            (hair * 0.85, (0.04, 0.03, 0.12)),
            *over,
        ]
    if technique == 3:
        melanin, blood, hair = (canvas.smooth(amount, 1.2) for amount in (melanin, blood, hair))
    depth = (1.0, 1.1, 1.0, 0.8)[technique]
    planes = [
        tone * np.exp(-depth * (melanin * m + blood * b))
        for tone, m, b in zip(tones, _MELANIN, _BLOOD, strict=True)
    ]
    return np.stack(planes, axis=-1), [
        (veil, (0.7, 0.72, 0.78)),
        (hair * 0.9, (0.12, 0.07, 0.05)),
        *over,
    ]


def _sticker(
    corner: float, colour: int, technique: int, noise: np.random.Generator
) -> list[_Layer]:
    """The coloured reference sticker that skin clinics put beside the lesion, with its shadow."""
    distance = noise.uniform(0.8, 0.84)
    x, y = distance * np.cos(corner), distance * np.sin(corner)
    bright = 0.85 if technique == _ULTRAVIOLET else noise.uniform(0.92, 1)
    red, green, blue = _STICKERS[colour]
    return [
        (
            0.45 * _patch([canvas.outline((x + 0.012, y + 0.02), 0.14, 0.14)], 2.5),
            (0.1, 0.07, 0.07),
        ),
        (
            _patch([canvas.outline((x, y), 0.13, 0.13)], 0.5),
            (red * bright, green * bright, blue * bright),
        ),
    ]


def _lens(picture: np.ndarray, technique: int, noise: np.random.Generator) -> np.ndarray:
    """Falling light, the round contact plate, the grain of the sensor."""
    away = np.hypot(canvas.X, canvas.Y)
    light = 1.02 - (0.1, 0.1, 0.3, 0.1)[technique] * away**2
    if technique == 1:
        light = light * canvas.edge(away - 0.99, 0.015)
    if technique == 3:
        angle = noise.uniform(0, 2 * np.pi)
        slope = canvas.X * np.cos(angle) + canvas.Y * np.sin(angle)
        light = 0.86 + 0.3 * slope - 0.12 * slope**2
    light = light * (1 + noise.normal(0, 0.028, light.shape))
    return np.clip(np.stack([picture[..., i] * light for i in range(3)], axis=-1), 0, 1)


def _bubbles(noise: np.random.Generator) -> list[_Layer]:
    """Air caught in the contact fluid: bright rings with a highlight."""
    rings, glints = canvas.Plate(), canvas.Plate()
    for angle in noise.uniform(0, 2 * np.pi, 9):
        distance, size = noise.uniform(0.45, 0.95), noise.uniform(0.025, 0.07)
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        ring = canvas.outline((x, y), size, size)
        rings.line([*ring[::2], ring[0]], 0.014, 1.0)
        glint = (x - size * 0.45, y - size * 0.45)
        glints.shape(canvas.outline(glint, size * 0.25, size * 0.25), 0.85)
    bright = np.maximum(0.5 * rings.picture(), canvas.smooth(glints.picture(), 0.6))
    shade = 0.45 * canvas.smooth(rings.picture(), 2.0)
    return [(shade, (0.25, 0.18, 0.16)), (bright, (1, 0.99, 0.97))]


def _scale() -> _Layer:
    """The millimetre scale on the contact plate."""
    ticks = canvas.Plate()
    for i in range(-6, 7):
        x = i * _MILLIMETRE
        foot = float(np.sqrt(0.94 - x**2))
        ticks.line([(x, foot), (x, foot - (0.1 if i % 5 == 0 else 0.06))], 0.014, 1.0)
    return ticks.picture(), (0.08, 0.08, 0.08)


def _glare(noise: np.random.Generator) -> _Layer:
    """The flash on unpolarised, oily skin."""
    x, y = noise.uniform(-0.6, 0.6, 2)
    flash = np.exp(-((canvas.X - x) ** 2 + (canvas.Y - y) ** 2) / 0.5)
    bumps = 0.8 * canvas.texture(noise, 4.5) + 0.6 * canvas.texture(noise, 9)
    shine = canvas.smooth(np.clip(bumps - 0.5, 0, 1.2), 0.9) * flash * 0.6 + 0.14 * flash
    return np.clip(shine, 0, 0.8), (1.0, 0.98, 0.92)


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which skin structure does the arrow mark in this picture?",
            "What lies at the arrow tip on this skin image?",
            "On this close view of the skin, where does the arrow point?",
        ),
        options=("hair shaft", "skin crease", "hair follicle", "small freckle"),
        explanation="On the skin, the arrow indicates a {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which diagnosis fits this skin image?",
            "What does this picture of the skin show?",
            "Which kind of skin change can be seen here?",
        ),
        options=("healthy skin", "melanocytic nevus", "malignant melanoma", "basal cell carcinoma"),
        explanation="Colours and borders here fit {answer}.",
    ),
    grading=Facet(
        questions=(
            "How large is the lesion on this skin image (small: below 5 mm, large: above 10)?",
            "With 5 and 10 mm as limits, which size has the skin lesion?",
            "Which size class (limits 5 and 10 mm) does the lesion on the skin have?",
        ),
        options=("no visible lesion", "small", "medium-sized", "large"),
        explanation="Measured across, the size class is: {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which technique was used for this skin image?",
            "How was this picture of the skin taken?",
            "What kind of skin imaging is this?",
        ),
        options=(
            "polarised light",
            "immersion fluid",
            "ultraviolet lamp",
            "clinical photography",
        ),
        explanation="The skin was imaged with {answer}.",
    ),
    attributes=Facet(
        questions=(
            "What colour is the reference sticker on the skin?",
            "Which sticker was placed beside the examined skin area?",
            "Which colour does the round sticker in this skin image have?",
        ),
        options=("blue", "green", "red", "white"),
        explanation="The round sticker beside the field is {answer}.",
    ),
    draw=draw,
)
