"""Axial chest CT: Hounsfield units on a plate, then one of four windows, seen from below."""

from __future__ import annotations

import numpy as np

from medreason.phantom.atlas import Atlas, Case, Facet
from medreason.phantom.canvas import (
    Plate,
    Point,
    Y,
    arrow,
    colour,
    free_angle,
    outline,
    paint,
    smooth,
    texture,
    wavy,
    window,
)

_WINDOWS = ((-480.0, 1250.0), (40.0, 420.0), (430.0, 1700.0), (190.0, 680.0))  # (level, width)
_LUNG_X, _LUNG_RX, _LUNG_RY = 0.315, 0.24, 0.4
_NODULE = (0.07, 0.125, 0.185)
_CONSOLIDATION = (0.15, 0.23, 0.33)
_EFFUSION = (0.18, 0.32, 0.5)
_CHAMBERS = (
    (0.09, 0.03, 0.125, 0.072, 0.75),
    (-0.01, -0.115, 0.16, 0.062, 0.4),
    (-0.155, -0.03, 0.075, 0.085, 0.3),
    (-0.045, 0.115, 0.1, 0.055, 0.1),
)
_ARMS = ((-1, 1), (-1,), (1,), ())


def _wall(plate: Plate, center: Point, size: float, boxy: float) -> None:
    """Skin, fat, muscle, ribs, sternum and the hollow of the chest."""
    cx, cy = center
    layers = ((0.71, 0.61, 40), (0.7, 0.6, -100), (0.635, 0.53, 55), (0.59, 0.485, -80))
    for rx, ry, density in layers:
        plate.shape(outline(center, rx * size, ry * size, power=boxy), density)
    for side in (-1, 1):
        plate.shape(outline((cx + side * 0.3, cy - 0.485 * size), 0.2, 0.035, side * 0.25), 55)
        plate.shape(outline((cx + side * 0.13, cy + 0.46 * size), 0.1, 0.075), 55)
        for k, angle in enumerate(np.linspace(-1.15, 1.2, 6)):
            x = cx + side * 0.575 * size * np.cos(angle)
            y = cy + 0.475 * size * np.sin(angle)
            slope = np.arctan2(0.475 * np.cos(angle), -0.575 * np.sin(angle) * side)
            plate.shape(outline((x, y), 0.085 - 0.006 * (k % 3), 0.026, slope), 750)
            plate.shape(outline((x, y), 0.06, 0.011, slope), 250)
    plate.shape(outline((cx, cy - 0.48 * size), 0.11, 0.034), 600)
    plate.shape(outline((cx, cy - 0.48 * size), 0.085, 0.018), 180)


def _mediastinum(plate: Plate, center: Point, size: float, heart: Point, contrast: bool) -> None:
    cx, cy = center
    blood = 380 if contrast else 45
    plate.shape(outline((cx + 0.01, cy + 0.02), 0.1, 0.4 * size), -70)
    plate.shape(outline((cx + 0.015, cy + 0.06), 0.075, 0.2), 40)
    plate.shape(outline(heart, 0.265 * size, 0.205 * size, 0.5), 55 if contrast else 30)
    for x, y, rx, ry, angle in _CHAMBERS:
        plate.shape(outline((heart[0] + x, heart[1] + y), rx * size, ry * size, angle), blood)
    plate.shape(outline((cx + 0.12, cy + 0.23), 0.066, 0.066), blood + 10)
    plate.shape(outline((cx + 0.02, cy + 0.16), 0.035, 0.028), 40)
    for side in (-1, 1):
        arm = [(cx, cy + 0.39), (cx + side * 0.2, cy + 0.39)]
        plate.line(arm, 0.045, 500)
    plate.line([(cx, cy + 0.38), (cx, cy + 0.55 * size)], 0.045, 480)
    plate.shape(outline((cx, cy + 0.315), 0.118, 0.095), 620)
    plate.shape(outline((cx, cy + 0.315), 0.098, 0.076), 260)
    plate.shape(outline((cx, cy + 0.425), 0.062, 0.05), 520)
    plate.shape(outline((cx, cy + 0.425), 0.042, 0.034), 20)


def _limbs(plate: Plate, center: Point, sides: tuple[int, ...], shift: Point) -> None:
    """The couch, and the arms that lie on it."""
    bend = [(x, center[1] + 0.72 - 0.08 * x * x) for x in np.linspace(-0.8, 0.8, 12)]
    plate.line(bend, 0.03, -150)
    for side in sides:
        place = (center[0] + side * (0.86 + shift[0]), center[1] + 0.12 + shift[1])
        for radius, density in ((0.125, -100), (0.107, 55), (0.045, 1100), (0.02, 200)):
            plate.shape(outline(place, radius, radius * 1.12), density)


def _vessels(hila: list[Point], noise: np.random.Generator, blood: float) -> np.ndarray:
    plate = Plate(-1000)
    for x, y in hila:
        for angle in np.arange(14) * 0.45 + noise.uniform(0, 0.4):
            points, turn, width = [(x, y)], angle, 0.028
            for _ in range(4):
                turn += noise.normal(0, 0.35)
                step = noise.uniform(0.05, 0.1)
                px, py = points[-1]
                points.append((px + step * np.cos(turn), py + step * np.sin(turn) * 1.3))
                plate.line(points[-2:], width, blood - 100)
                width *= 0.72
        spots = noise.uniform(-1, 1, (26, 2)) * (0.22, 0.37)
        for dx, dy in spots:
            plate.shape(outline((x + dx, y + dy), 0.008, 0.009), blood - 150)
    return plate.picture()


def _lesion(
    case: Case, lung: Point, side: int, noise: np.random.Generator
) -> tuple[np.ndarray, Point]:
    """A mask of the finding in one lung, and where it lies."""
    grade, vary = case.grading - 1, noise.uniform(0.94, 1.06)
    match case.disease:
        case 1:
            turn, reach = noise.uniform(-1.4, 1.4), noise.uniform(0.2, 0.42)
            x = lung[0] + side * _LUNG_RX * reach * np.cos(turn)
            place = (x, lung[1] + _LUNG_RY * reach * np.sin(turn))
            return _nodule(place, _NODULE[grade] * vary, noise), place
        case 2:
            place = (lung[0] + side * 0.1, lung[1] + noise.uniform(-0.12, 0.16))
            return _consolidation(place, _CONSOLIDATION[grade] * vary, noise), place
        case _:
            return _effusion(lung, side, _EFFUSION[grade] * vary), (lung[0], lung[1] + 0.3)


def _rays(place: Point, angles: np.ndarray, inner: float, outer: float) -> list[list[Point]]:
    x, y = place
    turns = [(float(np.cos(a)), float(np.sin(a))) for a in angles]
    return [[(x + r * c, y + r * s) for r in (inner, outer)] for c, s in turns]


def _nodule(place: Point, radius: float, noise: np.random.Generator) -> np.ndarray:
    plate = Plate()
    for spike in noise.uniform(0, 2 * np.pi, 12):
        plate.line(
            _rays(place, np.array([spike]), 0, radius * noise.uniform(1.15, 1.4))[0], 0.014, 0.7
        )
    plate.shape(wavy(place, radius, noise, 0.08), 1)
    return plate.picture()


def _consolidation(place: Point, radius: float, noise: np.random.Generator) -> np.ndarray:
    plate = Plate()
    plate.shape(wavy(place, radius, noise, 0.55), 1)
    for bronchus in _rays(place, np.arange(7) * 0.9, radius * 0.15, radius * 0.7):
        plate.line(bronchus, 0.014, 0.25)
    ragged = smooth(plate.picture(), 2) + 0.16 * texture(noise, 5)
    return np.clip((ragged - 0.35) * 3, 0, 1)


def _effusion(lung: Point, side: int, rise: float) -> np.ndarray:
    """The lung floats up and forward; the rest of its cavity is fluid."""
    plate = Plate()
    plate.shape(outline(lung, _LUNG_RX + 0.02, _LUNG_RY + 0.02), 1)
    afloat = (lung[0] - side * rise * 0.35, lung[1] - rise)
    plate.shape(outline(afloat, _LUNG_RX * 1.12, _LUNG_RY * 1.04), 0)
    return plate.picture()


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    size, boxy = body.uniform(0.95, 1.03), body.uniform(2.15, 2.6)
    center = (float(body.uniform(-0.03, 0.03)), float(body.uniform(-0.08, 0.0)))
    heart_x = center[0] + float(body.uniform(0.08, 0.13))
    heart = (heart_x, center[1] - float(body.uniform(0.09, 0.15)))
    limbs = (float(body.uniform(-0.02, 0.02)), float(body.uniform(-0.08, 0.08)))
    contrast = case.modality_recognition == 3

    plate, air = Plate(-1000), Plate()
    _limbs(plate, center, _ARMS[case.attributes], limbs)
    _wall(plate, center, size, boxy)
    lungs = [(center[0] + side * _LUNG_X * size, center[1] + 0.01) for side in (-1, 1)]
    for lung in lungs:
        for layer, value in ((plate, -860.0), (air, 1.0)):
            layer.shape(outline(lung, _LUNG_RX * size, _LUNG_RY * size, power=2.3), value)
    _mediastinum(plate, center, size, heart, contrast)
    density = plate.picture()
    inside = air.picture() * np.clip((-300 - density) / 500, 0, 1)
    hila = [(center[0] + side * 0.17, center[1] + 0.02) for side in (-1, 1)]
    vessels = _vessels(hila, noise, 330 if contrast else 40)
    density = np.maximum(density, np.where(inside > 0.3, vessels, -1000))
    density += inside * (40 * texture(noise, 8) + 60 * (Y - center[1]))

    avoid: list[Point] = []
    if case.disease:
        # An arrow on one lung leaves the finding to the other, so that it cannot cover it.
        side = (int(noise.choice((-1, 1))),) * 2 + (1, -1)
        mask, place = _lesion(case, lungs[(side[case.anatomy] + 1) // 2], side[case.anatomy], noise)
        matter = (45, 5 + 70 * texture(noise, 5), 12)[case.disease - 1]
        density = paint(density, mask * inside, matter)
        avoid.append(place)
    density = smooth(density, 0.8) + 22 * texture(noise, 2) + 10 * texture(noise, 4)

    dx, dy = noise.uniform(-1, 1, 2)
    tip = (
        (heart[0] + 0.11 * dx, heart[1] + 0.08 * dy),
        (center[0] + 0.05 * dx, center[1] + 0.315 + 0.04 * dy),
        (lungs[0][0] + 0.1 * dx, lungs[0][1] + 0.18 * dy),
        (lungs[1][0] + 0.1 + 0.05 * dx, lungs[1][1] + 0.1 + 0.14 * dy),
    )[case.anatomy]
    level, width = _WINDOWS[case.modality_recognition]
    picture = colour(window(density, level + noise.normal(0, 0.02) * width, width))
    return arrow(picture, tip, free_angle(tip, noise, avoid))


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which structure does the arrow mark on this chest CT?",
            "What does the tip of the arrow lie on in this axial CT slice?",
            "Which anatomical structure is indicated in this CT of the thorax?",
        ),
        options=("heart", "vertebra", "lung on the right", "lung on the left"),
        explanation="The arrow tip lies on the {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which finding do the lungs show on this chest CT?",
            "What is the main pulmonary or pleural finding of this CT slice?",
            "How would you read the lungs and pleura on this axial CT?",
        ),
        options=("clear lungs", "lung nodule", "consolidation", "pleural effusion"),
        explanation="This slice is most consistent with {answer}.",
    ),
    grading=Facet(
        questions=(
            "How severe is the abnormality on this chest CT?",
            "Which severity would you assign to the CT finding?",
            "What degree of abnormality does this axial chest CT show?",
        ),
        options=("absent", "mild", "moderate", "severe"),
        explanation="Judged by its size, the abnormality is {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which display window was used for this chest CT?",
            "How is the density range of this CT slice windowed?",
            "In which CT window is this slice of the chest shown?",
        ),
        options=(
            "window for lungs",
            "window for soft tissue",
            "window for bone",
            "window for vessels",
        ),
        explanation="The grey values are those of the {answer}.",
    ),
    attributes=Facet(
        questions=(
            "Which arms lie beside the chest in this CT slice?",
            "On this axial CT, which arms rest next to the body?",
            "Which arms are included in the field of view of this chest CT?",
        ),
        options=("both arms", "only the right", "only the left", "neither"),
        explanation="Beside the trunk the slice shows {answer}.",
    ),
    draw=draw,
)
