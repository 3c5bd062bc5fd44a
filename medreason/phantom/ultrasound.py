"""Ultrasound of the upper right abdomen: echoes, speckle along the beams, colour overlays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from medreason.phantom.atlas import Atlas, Case, Facet
from medreason.phantom.canvas import (
    Plate,
    Point,
    X,
    Y,
    arrow,
    colour,
    edge,
    free_angle,
    outline,
    paint,
    smooth,
    texture,
    wavy,
)

_CM = 0.112  # coordinate units
_RADIUS_CM = (0.78, 1.5, 2.5)
_APEX = -1.3
_TINTS = ((1.0, 1.0, 1.0), (1.0, 0.76, 0.42), (0.5, 0.78, 1.0), (0.55, 1.0, 0.6))
_FAN = (np.hypot(X, Y - _APEX), np.arctan2(X, Y - _APEX))  # depth and side of each pixel's beam
_BOX = (Y + 1.25, X * 0.8)
_FAN_MASK = edge(np.maximum.reduce([np.abs(_FAN[1]) - 0.46, 0.42 - _FAN[0], _FAN[0] - 2.2]), 0.008)
_BOX_MASK = edge(np.maximum(np.abs(X) - 0.76, np.abs(Y) - 0.9), 0.008)
_COLOUR_BOX = np.maximum(np.abs(_FAN[1] + 0.02) - 0.37, np.abs(_FAN[0] - 1.33) - 0.6)
_PORTAL = ((0.1, 0.36), (0.07, 0.1), (0.02, -0.12), (-0.1, -0.28), (-0.28, -0.38))
_HEPATIC = ((0.3, -0.3), (0.2, -0.37), (0.12, -0.46), (0.07, -0.6))


def _organs(jitter: np.ndarray, gall: Point, kidney: Point, vessels: list[list[Point]]) -> Plate:
    plate, swell, lean = Plate(0.4), 1 + 6 * jitter[1], -0.3 + 8 * jitter[2]
    plate.shape(
        [(-1, -1), (1, -1), (1, -0.76), (0.5, -0.7), (0, -0.69), (-0.5, -0.71), (-1, -0.76)], 0.52
    )
    for y, echo in ((-0.86, 0.85), (-0.79, 0.3), (-0.745, 0.2), (-0.7, 0.9)):
        plate.line([(x, y + 0.03 * x * x + jitter[0]) for x in np.linspace(-1, 1, 9)], 0.025, echo)
    plate.shape(
        [(0.14, 0.2), (0.4, 0.22), (1.0, 0.1), (1, 1), (0.2, 1), (0.1, 0.8), (0.06, 0.4)], 0.5
    )
    dome = _diaphragm(jitter)
    plate.shape([*dome, (0.3, 1.1), (-1, 1.1), (-1, 0)], 0.2)
    plate.line(dome, 0.055, 1.0)
    for rim in (0.04, 0.0):
        for path, width in zip(vessels, (0.1, 0.07), strict=True):
            for k, part in enumerate(pairwise(path)):
                calibre = width * (1 - 0.13 * k) + rim
                plate.line(part, calibre, 0.75 if rim else 0.06)
                plate.shape(outline(part[1], calibre / 2, calibre / 2), 0.75 if rim else 0.06)
    plate.shape(outline(gall, 0.15 * swell, 0.245 * swell, lean), 0.75)
    plate.shape(outline(gall, 0.15 * swell - 0.025, 0.245 * swell - 0.025, lean), 0.02)
    plate.shape(outline(kidney, 0.3, 0.17, -0.15), 0.8)
    plate.shape(outline(kidney, 0.28, 0.15, -0.15), 0.27)
    plate.shape(outline(kidney, 0.18, 0.065, -0.15), 0.9)
    for k in (-0.18, -0.06, 0.06, 0.18):
        plate.shape(outline((kidney[0] + k, kidney[1] - 0.095 - 0.15 * k), 0.035, 0.03), 0.14)
    return plate


def _diaphragm(jitter: np.ndarray) -> list[Point]:
    turn = np.linspace(0.42, 1.02, 14) * np.pi
    return [
        (0.72 * float(np.cos(a)) - 0.05 + jitter[1], 0.8 * float(np.sin(a)) + jitter[2])
        for a in turn
    ]


def _behind(beams: tuple[np.ndarray, np.ndarray], place: Point, radius: float) -> np.ndarray:
    """A mask of the region behind the lesion, which sound reaches only through it."""
    depth, side = beams
    near = np.hypot(X - place[0], Y - place[1]).argmin()
    at, here = depth.flat[near], side.flat[near]
    width = radius / (at if beams is _FAN else 1.25)
    return edge(np.abs(side - here) - 0.92 * width, 0.03) * edge(at + radius * 0.2 - depth, 0.04)


def _speckle(beams: tuple[np.ndarray, np.ndarray], noise: np.random.Generator) -> np.ndarray:
    """Fully developed speckle of mean 1, wider across the beam than along it."""
    field = np.hypot(*noise.normal(0, 0.8, (2, 170, 90)))
    depth, side = beams
    rows = np.clip(depth * 72, 0, 169).astype(int)
    columns = np.clip((side + 0.65) * 68, 0, 89).astype(int)
    return smooth(field[rows, columns], 0.7)


def _heat(value: np.ndarray) -> np.ndarray:
    """0..1 to blue, green, yellow, red."""
    return np.stack([np.clip(1.5 - np.abs(4 * value - peak), 0, 1) for peak in (3, 2, 1)], axis=-1)


def _doppler(
    picture: np.ndarray, vessels: list[list[Point]], hidden: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    red, blue = Plate(), Plate()
    red.line(vessels[0], 0.1, 1)
    blue.line(vessels[1], 0.09, 1)
    for k in range(4):
        (red if k % 2 else blue).shape(
            outline((0.22 + 0.09 * k, 0.5 - 0.02 * k), 0.032, 0.075, 0.3), 1
        )
    inside = np.clip(-_COLOUR_BOX * 60, 0, 1) * (1 - hidden) * np.clip(gain, 0.6, 1)
    picture = paint(picture, red.picture() * inside, (0.95, 0.16, 0.08))
    picture = paint(picture, blue.picture() * inside, (0.1, 0.3, 0.98))
    return paint(picture, edge(np.abs(_COLOUR_BOX) - 0.008, 0.006), (0.95, 0.95, 0.95))


def _elastic(
    picture: np.ndarray, lesion: np.ndarray, stiff: float, noise: np.random.Generator
) -> np.ndarray:
    value = paint(0.4 + 0.06 * texture(noise, 26), smooth(lesion, 2), stiff)
    inside = 0.5 * np.clip(-_COLOUR_BOX * 60, 0, 1)
    picture = paint(picture, edge(np.abs(_COLOUR_BOX) - 0.008, 0.006), (0.95, 0.95, 0.95))
    return picture * (1 - inside[..., None]) + inside[..., None] * _heat(np.clip(value, 0.12, 0.9))


def _console(picture: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Grey-scale bar and depth marks of the scanner's screen."""
    wedge = np.clip((0.2 - Y) / 0.9, 0, 1)[..., None] * tint
    picture = np.where(
        ((np.abs(X + 0.92) < 0.045) & (np.abs(Y + 0.25) < 0.5))[..., None], wedge, picture
    )
    marks = (np.abs(X - 0.95) < 0.022) & (np.abs((Y + 0.9) % (2 * _CM) - 0.012) < 0.01)
    return np.where(marks[..., None], 0.8, picture)


def _finding(
    disease: int,
    echo: np.ndarray,
    beams: tuple[np.ndarray, np.ndarray],
    place: Point,
    radius: float,
    noise: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The echoes with the lesion and what it does to the sound behind it; its mask."""
    spot = Plate()
    spot.shape(wavy(place, radius, noise, (0, 0.04, 0.14, 0.06)[disease]), 1)
    lesion, beyond = spot.picture(), _behind(beams, place, radius)
    match disease:
        case 1:
            raised = np.hypot(X - place[0], Y - place[1] + 0.05)
            rear = lesion * edge(radius - 0.01 - raised, 0.015)
            echo = paint(paint(echo * (1 + 0.75 * beyond), lesion, 0.01), rear, 1.0)
        case 2:
            echo = paint(echo, lesion, 1.12 + 0.12 * texture(noise, 5))
        case _:
            sunk = np.hypot(X - place[0], Y - place[1] - 0.14)
            cap = lesion * edge(radius * 0.97 - sunk, 0.02)
            echo = paint(paint(echo, np.maximum(beyond, lesion) * 0.95, 0.03), cap, 1.5)
    return echo, lesion


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    jitter = body.uniform(-0.02, 0.02, 3)
    gall = (0.33 + float(body.uniform(-0.02, 0.03)), -0.05 + float(body.uniform(-0.04, 0.05)))
    kidney = (0.42 + float(body.uniform(-0.04, 0.03)), 0.5 + float(body.uniform(-0.03, 0.04)))
    bends = body.uniform(-0.025, 0.025, (9, 2))
    vessels = [(np.array(_PORTAL) + bends[:5]).tolist(), (np.array(_HEPATIC) + bends[5:]).tolist()]
    technique = case.modality_recognition
    beams, visible = (_BOX, _BOX_MASK) if technique == 1 else (_FAN, _FAN_MASK)

    echo, lesion = _organs(jitter, gall, kidney, vessels).picture(), np.zeros_like(X)
    echo *= 1 + 0.1 * texture(noise, 12)
    avoid: list[Point] = []
    if case.disease:
        radius = _RADIUS_CM[case.grading - 1] * _CM * noise.uniform(0.94, 1.06)
        roam = noise.uniform(-1, 1, 2) * (0.17 - 0.045 * case.grading)
        avoid.append((-0.225 + float(roam[0]), 0.08 + float(roam[1])))
        echo, lesion = _finding(case.disease, echo, beams, avoid[0], radius, noise)

    gain = noise.uniform(0.9, 1.08) * (1.22 - 0.23 * beams[0])
    speckle = _speckle(beams, noise)
    grey = smooth(echo, 0.9) * gain * (0.25 + 0.75 * speckle) + 0.012 * speckle
    tint = np.array(_TINTS[case.attributes])
    picture = colour(grey * visible) * tint
    if technique == 2:
        picture = _doppler(picture, vessels, lesion, speckle)
    elif technique == 3:
        picture = _elastic(picture, lesion, (0, 0.1, 0.76, 0.9)[case.disease], noise)
    picture = np.clip(_console(picture, tint), 0, 1)

    dx, dy = noise.uniform(-1, 1, 2)
    tip = (
        (-0.1 + 0.1 * dx, -0.51 + 0.07 * dy),
        (gall[0] + 0.05 * dx, gall[1] + 0.1 * dy),
        (kidney[0] + 0.12 * dx, kidney[1] + 0.06 * dy),
        _diaphragm(jitter)[int(noise.integers(3, 9))],
    )[case.anatomy]
    return arrow(picture, tip, free_angle(tip, noise, avoid))


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which structure does the arrow mark on this abdominal ultrasound?",
            "What does the arrow point at in this sonogram?",
            "Which structure is indicated on this ultrasound of the upper abdomen?",
        ),
        options=("liver tissue", "gallbladder", "right kidney", "diaphragm"),
        explanation="In this sonogram the arrow points at the {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which focal change does this liver ultrasound show?",
            "How would you read the liver on this sonogram?",
            "What is the main finding in the liver on this ultrasound image?",
        ),
        options=("no focal change", "simple cyst", "haemangioma", "calcified lesion"),
        explanation="The echoes of this liver speak for {answer}.",
    ),
    grading=Facet(
        questions=(
            "How large is the liver change on this ultrasound (small: below 2 cm, large: above 4)?",
            "With 2 and 4 cm as limits, which size has the focal change in this sonogram?",
            "Which size class (limits 2 and 4 cm) applies to the liver change on this ultrasound?",
        ),
        options=("nothing to measure", "small", "medium-sized", "large"),
        explanation="Against the depth scale on the right there is: {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which ultrasound technique produced this image?",
            "In which scanning mode was this sonogram recorded?",
            "Which probe or mode was used for this ultrasound image?",
        ),
        options=("convex probe", "linear array", "colour Doppler", "elastography"),
        explanation="Field shape and overlay are typical of {answer}.",
    ),
    attributes=Facet(
        questions=(
            "Which tint has the echo map of this ultrasound?",
            "In which tint are the echoes of this sonogram displayed?",
            "What chroma map was selected for this ultrasound image?",
        ),
        options=("grey", "sepia", "blue", "green"),
        explanation="The scanner displays its echoes in {answer}.",
    ),
    draw=draw,
)
