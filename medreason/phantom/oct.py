"""Macular OCT B-scans: retinal layers with speckle, fluid or drusen, four displays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medreason.phantom import canvas
from medreason.phantom.atlas import Atlas, Case, Facet

_RPE = 0.055  # thickness of the pigment epithelium
# Reflectivity by depth: 0 at the outer border of the retina, 1 at its inner surface.
_DEPTH = (
    0.0,
    0.05,
    0.07,
    0.15,
    0.18,
    0.21,
    0.24,
    0.42,
    0.46,
    0.54,
    0.58,
    0.7,
    0.73,
    0.86,
    0.9,
    2.0,
)
_REFLEX = (0.3, 0.3, 0.8, 0.8, 0.3, 0.4, 0.2, 0.2, 0.5, 0.5, 0.24, 0.26, 0.5, 0.52, 0.4, 0.4)
# A false-colour scale: level, then red, green, blue.
_RAINBOW = np.array(
    [
        (0.0, 0.0, 0.0, 0.15),
        (0.15, 0.0, 0.1, 0.6),
        (0.35, 0.0, 0.65, 0.7),
        (0.5, 0.2, 0.85, 0.2),
        (0.65, 0.95, 0.9, 0.1),
        (0.85, 0.95, 0.2, 0.05),
        (1.0, 1.0, 0.9, 0.9),
    ]
)


@dataclass
class _Layers:
    """Heights (y) of the interfaces at each column of the picture."""

    surface: np.ndarray
    fibre: np.ndarray
    """Lower border of the nerve fibre layer."""
    outer: np.ndarray
    pigment: np.ndarray
    membrane: np.ndarray
    """Bruch's membrane: the pigment epithelium where nothing lifts it."""
    sclera: np.ndarray
    fovea: float
    normal: float
    """Thickness of the retina beside the fovea without disease."""


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    layers = _layers(case, body, noise)
    flow = canvas.texture(noise, 3.5)
    grey = _tissue(layers, canvas.texture(body, 11))
    if case.disease == 1:
        grey = _cysts(grey, layers, case.grading, noise)
    grey = grey * _shadows(body, noise)[None, :] * noise.uniform(0.92, 1.08)
    grey = canvas.smooth(grey, 0.7) * np.exp(
        0.28 * canvas.smooth(noise.normal(size=grey.shape), 0.6)
    )
    grey = np.clip(grey + noise.normal(0.035, 0.025, grey.shape), 0, 1)
    picture = _display(case.modality_recognition, grey, flow, layers)
    tip = _tip(case.anatomy, layers, noise)
    angle = canvas.free_angle(tip, noise, avoid=[(layers.fovea, float(layers.outer.mean()) - 0.2)])
    return canvas.arrow(picture, tip, angle)


def _layers(case: Case, body: np.random.Generator, noise: np.random.Generator) -> _Layers:
    x = canvas.X[0]
    normal, pit, width = body.uniform(0.36, 0.42), body.uniform(0.5, 0.62), body.uniform(0.13, 0.17)
    depth, choroid = body.uniform(0.34, 0.44), body.uniform(0.26, 0.36)
    fovea = body.uniform(-0.12, 0.12) + noise.uniform(-0.06, 0.06)
    membrane = depth + noise.uniform(-0.04, 0.04) + _course(case.attributes, x, noise)
    bumps, fluid, swelling = _elevation(case, x, fovea, noise)
    pigment = membrane - bumps
    outer = pigment - fluid
    hollow = np.exp(-(((x - fovea) / width) ** 2) / 2)
    flank = np.exp(-((np.abs(x - fovea) - 0.4) ** 2) / 0.06)
    thickness = normal * (1 - pit * hollow + 0.08 * flank - 0.1 * np.abs(x)) + swelling
    # Over drusen the retina gives way, so its surface is lifted less than its outer border.
    surface = outer - thickness + 0.45 * bumps
    fibre = surface + 0.025 + 0.085 * (1 - np.exp(-(((x - fovea) / 0.35) ** 2)))
    sclera = membrane + _RPE + choroid * (1 + 0.12 * np.sin(3 * x + body.uniform(0, 6)))
    return _Layers(surface, fibre, outer, pigment, membrane, sclera, fovea, normal)


def _course(kind: int, x: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    slope, curve = noise.uniform(-0.025, 0.025), noise.uniform(0, 0.03)
    steep = noise.uniform(0.2, 0.29)
    if kind == 3:
        return slope * x + noise.uniform(0.1, 0.16) - noise.uniform(0.38, 0.48) * x**2
    return (slope, steep, -steep)[kind] * x - curve * x**2


def _elevation(
    case: Case, x: np.ndarray, fovea: float, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bumps of the pigment epithelium, fluid under the retina, swelling of the retina)."""
    none = np.zeros_like(x)
    step = max(case.grading - 1, 0)
    if case.disease == 1:
        height = (0.14, 0.3, 0.47)[step] * noise.uniform(0.94, 1.06)
        return none, none, height * np.exp(-(((x - fovea) / (0.42 + 0.06 * step)) ** 4))
    if case.disease == 2:
        height = (0.11, 0.2, 0.31)[step]
        centres = fovea + (np.arange(4) - 1.5) * 0.29 + noise.uniform(-0.04, 0.04, 4)
        heights = height * noise.uniform(0.85, 1.1, 4)
        widths = noise.uniform(0.085, 0.11, 4)
        mounds = heights[:, None] * np.exp(
            -(np.abs((x - centres[:, None]) / widths[:, None]) ** 2.6)
        )
        return mounds.sum(axis=0), none, none
    if case.disease == 3:
        height = (0.15, 0.32, 0.5)[step] * noise.uniform(0.94, 1.06)
        half = (0.42, 0.52, 0.6)[step] * noise.uniform(0.95, 1.05)
        inside = 1 - ((x - fovea - noise.uniform(-0.06, 0.06)) / half) ** 2
        return none, height * np.clip(inside, 0, 1) ** 0.8, none
    return none, none, none


def _tissue(layers: _Layers, grain: np.ndarray) -> np.ndarray:
    y, soft = canvas.Y, 0.008
    thickness = layers.outer - layers.surface
    # Inner layers thin out towards the pit and stretch over a swelling.
    squeeze = np.where(thickness > layers.normal, layers.normal / thickness, 1.0)
    depth = (layers.outer - y) / layers.normal * squeeze
    grey = np.full(y.shape, 0.02)
    retina = canvas.edge(layers.surface - y, soft) * canvas.edge(y - layers.outer, soft)
    grey = canvas.paint(grey, retina, np.interp(depth, _DEPTH, _REFLEX))
    grey = canvas.paint(
        grey, canvas.edge(layers.surface - y, soft) * canvas.edge(y - layers.fibre, soft), 0.82
    )
    below = np.clip((y - layers.membrane) / (layers.sclera - layers.membrane), 0, 1.6)
    choroid = (0.6 - 0.22 * below) * (1 - 0.42 * canvas.edge(grain * 0.1 + 0.02, 0.04))
    beyond = 0.42 * np.exp(-np.clip(y - layers.sclera, 0, 2) * 4)
    deep = np.where(y < layers.sclera, choroid, beyond)
    grey = canvas.paint(grey, canvas.edge(layers.membrane - y, soft), deep)
    mound = canvas.edge(layers.pigment - y, soft) * canvas.edge(y - layers.membrane, soft)
    grey = canvas.paint(grey, mound, 0.38)
    bright = canvas.edge(layers.pigment - y, soft) * canvas.edge(y - layers.pigment - _RPE, soft)
    return canvas.paint(grey, bright, 0.97)


def _cysts(grey: np.ndarray, layers: _Layers, grade: int, noise: np.random.Generator) -> np.ndarray:
    """Dark spaces in the nuclear layers, the largest under the fovea."""
    plate = canvas.Plate()
    count = (3, 5, 6)[grade - 1]
    for offset in (np.arange(count) - (count - 1) / 2) * 0.155:
        x = layers.fovea + offset + noise.uniform(-0.015, 0.015)
        column = int(np.clip((x + 1) / 2 * canvas.SIZE, 0, canvas.SIZE - 1))
        top, bottom = layers.fibre[column], layers.outer[column]
        tall = (bottom - top) * noise.uniform(0.2, 0.34) * (1 - 0.6 * abs(offset))
        wide = noise.uniform(0.052, 0.074)
        middle = (top + bottom) / 2 + noise.uniform(-0.05, 0.03)
        tilt = noise.uniform(-0.15, 0.15)
        plate.shape(canvas.outline((x, middle), wide, tall, tilt, power=2.4), 1.0)
    return canvas.paint(grey, canvas.smooth(plate.picture(), 0.8), 0.03)


def _shadows(body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Brightness by column: shading of the scan and a few thin vessel shadows."""
    x = canvas.X[0]
    light = 1 - 0.12 * (x - noise.uniform(-0.3, 0.3)) ** 2
    for centre in body.uniform(-0.95, 0.95, 4):
        light = light * (1 - 0.22 * np.exp(-(((x - centre) / 0.015) ** 2)))
    return light


def _display(kind: int, grey: np.ndarray, flow: np.ndarray, layers: _Layers) -> np.ndarray:
    if kind == 1:
        return canvas.colour(1 - grey)
    if kind == 2:
        return np.stack(
            [np.interp(grey, _RAINBOW[:, 0], _RAINBOW[:, i]) for i in (1, 2, 3)], axis=-1
        )
    picture = canvas.colour(grey)
    if kind == 3:
        y = canvas.Y
        inner = (y > layers.surface) & (y < layers.surface + 0.55 * (layers.outer - layers.surface))
        deep = (y > layers.membrane + _RPE) & (y < layers.sclera)
        perfused = canvas.smooth(((flow > 0.55) & inner) * 1.0 + ((flow > -0.3) & deep) * 0.9, 0.6)
        picture = canvas.paint(picture, np.clip(perfused, 0, 1) * (grey > 0.1), (0.95, 0.12, 0.06))
    return picture


def _tip(anatomy: int, layers: _Layers, noise: np.random.Generator) -> canvas.Point:
    """A place inside the structure, beside the fovea where disease leaves the layers apart."""
    x = float(noise.choice([-1, 1]) * noise.uniform(0.56, 0.82))
    column = int((x + 1) / 2 * canvas.SIZE)
    surface, fibre = layers.surface[column], layers.fibre[column]
    membrane, sclera = layers.pigment[column] + _RPE, layers.sclera[column]
    share = noise.uniform(0.35, 0.65)
    y = (
        surface - 0.2 - share * max(surface + 0.75, 0.3) * 0.6,
        surface + share * (fibre - surface),
        layers.pigment[column] + share * _RPE,
        membrane + share * (sclera - membrane) + 0.03,
    )[anatomy]
    return x, float(y)


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which structure does the arrow mark on this OCT scan?",
            "What does the arrow tip touch on this macular OCT?",
            "On this retinal B-scan, where does the arrow point?",
        ),
        options=("vitreous body", "nerve fibre layer", "pigment epithelium", "choroid"),
        explanation="On this scan the arrow marks the {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which condition does this macular OCT show?",
            "What is the diagnosis on this OCT scan of the macula?",
            "Which finding do the retinal layers of this OCT scan show?",
        ),
        options=("regular macula", "cystoid oedema", "macular drusen", "serous detachment"),
        explanation="The layers of the macula indicate {answer}.",
    ),
    grading=Facet(
        questions=(
            "How far is the retina or its epithelium lifted on this OCT scan?",
            "What is the degree of elevation on this macular OCT?",
            "How would you grade the height of the finding on this OCT scan?",
        ),
        options=("zero", "low", "medium", "high"),
        explanation="Measured on the B-scan, the elevation is {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which display does this OCT image use?",
            "What kind of OCT picture is this?",
            "In which form is this OCT scan presented?",
        ),
        options=("greyscale", "inverted greys", "rainbow colours", "angiographic overlay"),
        explanation="The B-scan is displayed with {answer}.",
    ),
    attributes=Facet(
        questions=(
            "How does the retina run across this OCT scan?",
            "Which course does the retina take from side to side in this B-scan?",
            "What is the overall lie of the retina on this OCT image?",
        ),
        options=("level course", "climb to the left", "climb to the right", "bowl-like curve"),
        explanation="From side to side it takes a {answer}.",
    ),
    draw=draw,
)
