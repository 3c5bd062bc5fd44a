"""Fundus pictures: optic disc, fovea and vessel tree behind a round aperture, four techniques."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medreason.phantom import canvas
from medreason.phantom.atlas import Atlas, Case, Facet

_APERTURE = 0.94
_DISC = 0.19
_REACH = 0.62  # from disc to fovea


@dataclass
class _Eye:
    """The maps that all techniques share, each (SIZE, SIZE) in 0..1, and where things lie."""

    light: np.ndarray
    mottle: np.ndarray
    macula: np.ndarray
    disc: np.ndarray
    cup: np.ndarray
    halo: np.ndarray
    """Wasted pigment around the disc."""
    arteries: np.ndarray
    veins: np.ndarray
    blood: np.ndarray
    drusen: np.ndarray


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    # The patient's values come first and in full, whatever this image shows.
    tree = _tree(np.random.default_rng(body.integers(2**32)))
    tilt, tint, grain = body.uniform(-0.12, 0.12), body.uniform(-1, 1), canvas.texture(body, 9)
    disc, fovea = _places(case.attributes, noise)
    temporal = 1 if fovea[0] > disc[0] else -1
    eye = _eye(case, disc, fovea, _placed(tree, disc, temporal, tilt), grain, noise)
    picture = _develop(case.modality_recognition, eye, tint)
    inside = canvas.edge(np.hypot(canvas.X, canvas.Y) - _APERTURE, 0.012)
    seen = inside * (1 + noise.normal(0, 0.035, inside.shape))
    picture = np.clip(np.stack([picture[..., i] * seen for i in range(3)], axis=-1), 0, 1)
    tip = _tip(case.anatomy, disc, fovea, _placed(tree[:2], disc, temporal, tilt), noise)
    return canvas.arrow(picture, tip, canvas.free_angle(tip, noise, avoid=[disc, fovea]))


def _places(view: int, noise: np.random.Generator) -> tuple[canvas.Point, canvas.Point]:
    """(disc, fovea); in a right eye the disc lies to the right of the fovea."""
    nasal = 1 if view in (0, 2) else -1
    x, y = noise.uniform(-0.05, 0.05, 2)
    if view < 2:
        return (nasal * _REACH + x, y - 0.05), (x, y + 0.03)
    return (x, y - 0.03), (x - nasal * _REACH, y + 0.05)


_Branch = tuple[np.ndarray, float, bool]
"""(points (n, 2) in units where the disc is the origin and the fovea at (0.62, 0), width, vein)."""


def _tree(rng: np.random.Generator) -> list[_Branch]:
    """The vessels of one eye; the upper and the lower temporal vein come first."""
    trunks, twigs = [], []
    for vein in (True, False):
        for side, up in ((1, -1), (1, 1), (-1, -1), (-1, 1)):
            v = np.linspace(0.02, 0.66 if side > 0 else 0.8, 26)
            reach = rng.uniform(2.5, 3.0) if side > 0 else rng.uniform(0.9, 1.3)
            drift = 0.03 if vein else -0.035
            # All leave the disc on the nasal side of its cup.
            u = side * reach * v**2.3 + drift * np.sin(np.pi * np.arange(26) / 25) - 0.06
            wave = 0.012 * np.sin(v * rng.uniform(12, 20) + rng.uniform(0, 6))
            points = np.stack([u + wave, up * (v + wave)], axis=1)
            width = (0.042 if vein else 0.029) * (1 if side > 0 else 0.8)
            trunks.append((points, width, vein))
            for start in rng.choice(np.arange(5, 22), 4, replace=False):
                heading = np.subtract(points[start + 1], points[start])
                angle = np.arctan2(heading[1], heading[0]) + rng.choice([-1, 1]) * rng.uniform(
                    0.5, 0.9
                )
                twigs += _grow(points[start], angle, width * 0.55, vein, rng, 1)
    return trunks + twigs


def _grow(
    start: np.ndarray, angle: float, width: float, vein: bool, rng: np.random.Generator, order: int
) -> list[_Branch]:
    """A twig and its own twigs, ending before the centre of the macula."""
    angles = angle + np.cumsum(rng.normal(rng.normal(0, 0.09), 0.12, int(rng.integers(7, 14))))
    steps = 0.045 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.cumsum(np.vstack([start, steps]), axis=0)
    barred = np.hypot(points[:, 0] - _REACH, points[:, 1]) < 0.16
    barred |= np.hypot(points[:, 0], points[:, 1]) < _DISC
    if barred.any():
        points = points[: np.argmax(barred)]
    twigs: list[_Branch] = [(points, width, vein)] if len(points) > 2 else []
    if order and len(points) > 4:
        for spot in rng.choice(np.arange(2, len(points)), 2, replace=False):
            turn = rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
            twigs += _grow(points[spot], angle + turn, width * 0.65, vein, rng, order - 1)
    return twigs


def _placed(tree: list[_Branch], disc: canvas.Point, temporal: int, tilt: float) -> list[_Branch]:
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    flip = np.array([temporal, 1])
    return [(p @ turn * flip + np.array(disc), width, vein) for p, width, vein in tree]


def _eye(
    case: Case,
    disc: canvas.Point,
    fovea: canvas.Point,
    vessels: list[_Branch],
    grain: np.ndarray,
    noise: np.random.Generator,
) -> _Eye:
    plates = canvas.Plate(), canvas.Plate()
    for points, width, vein in vessels:
        for part in (0.0, 0.35, 0.7):  # vessels taper
            first = int(part * len(points))
            piece = points[first : int((part + 0.35) * len(points)) + 2].tolist()
            if len(piece) > 1:
                plates[vein].line(piece, width * (1 - 0.55 * part), 1.0)
    damage = case.grading if case.disease == 2 else 0
    ratio = (0.3, 0.52, 0.72, 0.92)[damage] + noise.uniform(-0.03, 0.03)
    away = np.hypot(canvas.X - disc[0], canvas.Y - disc[1])
    return _Eye(
        light=1 - 0.42 * (canvas.X**2 + canvas.Y**2) + 0.05 * canvas.texture(noise, 90),
        mottle=grain * 0.5 + canvas.texture(noise, 4) * 0.3,
        macula=np.exp(-((canvas.X - fovea[0]) ** 2 + (canvas.Y - fovea[1]) ** 2) / 0.03),
        disc=canvas.ellipse(disc, _DISC * 0.93, _DISC * 1.05, softness=0.025),
        cup=canvas.ellipse(disc, _DISC * 0.93 * ratio, _DISC * 1.05 * ratio, softness=0.02),
        halo=canvas.edge(away - _DISC - 0.035 * damage, 0.03) * (damage > 0),
        arteries=canvas.smooth(plates[0].picture(), 0.6),
        veins=canvas.smooth(plates[1].picture(), 0.6),
        blood=_blood(case, disc, fovea, noise),
        drusen=_drusen(case, fovea, noise),
    )


def _blood(
    case: Case, disc: canvas.Point, fovea: canvas.Point, noise: np.random.Generator
) -> np.ndarray:
    """Blot haemorrhages, spread over the retina without touching each other."""
    plate = canvas.Plate()
    centers: list[canvas.Point] = [disc, fovea]
    count = (0, 5, 12, 26)[case.grading if case.disease == 1 else 0] + 2
    for _ in range(600):
        x, y = noise.uniform(-0.85, 0.85, 2)
        if len(centers) >= count:
            break
        gaps = np.hypot(*(np.array(centers) - (x, y)).T)
        gaps[:2] -= 0.12  # disc and fovea stay free
        if gaps.min() > 0.17 and np.hypot(x, y) < 0.82:
            centers.append((x, y))
            for dx, dy in noise.normal(0, 0.024, (3, 2)):
                rx, ry = noise.uniform(0.028, 0.062, 2)
                plate.shape(canvas.outline((x + dx, y + dy), rx, ry, noise.uniform(0, 3)), 1.0)
    return canvas.smooth(plate.picture(), 0.9)


def _drusen(case: Case, fovea: canvas.Point, noise: np.random.Generator) -> np.ndarray:
    """Pale deposits around the fovea."""
    plate = canvas.Plate()
    grade = case.grading if case.disease == 3 else 0
    count, spread, size = ((0, 0, 0), (7, 0.13, 0.034), (20, 0.22, 0.04), (52, 0.33, 0.046))[grade]
    for _ in range(count):
        angle, distance = noise.uniform(0, 2 * np.pi), spread * np.sqrt(noise.uniform(0, 1))
        centre = (fovea[0] + distance * np.cos(angle), fovea[1] + distance * np.sin(angle))
        rx, ry = size * noise.uniform(0.6, 1.15, 2)
        plate.shape(canvas.outline(centre, rx, ry), float(noise.uniform(0.75, 1)))
    return canvas.smooth(plate.picture(), 1.1)


def _develop(kind: int, eye: _Eye, tint: float) -> np.ndarray:
    return (_photograph, _red_free, _angiogram, _autofluorescence)[kind](eye, tint)


def _photograph(eye: _Eye, tint: float) -> np.ndarray:
    light = eye.light * (1 + 0.05 * eye.mottle) * (1 - 0.38 * eye.macula)
    ground = (0.86, 0.41 + 0.05 * tint, 0.18 + 0.05 * tint)
    layers = [
        (0.5 * eye.halo, (0.95, 0.72, 0.45)),
        (0.9 * eye.drusen, (0.98, 0.85, 0.45)),
        (eye.disc, (0.93, 0.6, 0.34)),
        (0.95 * eye.cup, (1.0, 0.93, 0.72)),
        (0.7 * eye.arteries, (0.66, 0.17, 0.08)),
        (0.8 * eye.veins, (0.45, 0.08, 0.06)),
        (0.9 * eye.blood, (0.38, 0.03, 0.02)),
    ]
    return canvas.overlay(np.stack([light * value for value in ground], axis=-1), layers)


def _red_free(eye: _Eye, tint: float) -> np.ndarray:
    grey = 0.56 * eye.light * (1 + 0.06 * eye.mottle) * (1 - 0.5 * eye.macula) + 0.02 * tint
    grey = canvas.paint(grey, 0.5 * eye.halo, 0.78)
    grey = canvas.paint(grey, eye.drusen * 0.9, 0.95)
    grey = canvas.paint(canvas.paint(grey, eye.disc, 0.64), eye.cup, 1.0)
    grey = canvas.paint(canvas.paint(grey, eye.arteries * 0.65, 0.2), eye.veins * 0.85, 0.1)
    grey = canvas.paint(grey, eye.blood * 0.95, 0.04)
    return np.stack([grey * value for value in (0.45, 1.0, 0.5)], axis=-1)


def _angiogram(eye: _Eye, tint: float) -> np.ndarray:
    grey = 0.34 * eye.light * (1 + 0.14 * eye.mottle) * (1 - 0.75 * eye.macula) + 0.01 * tint
    grey = canvas.paint(grey, 0.6 * eye.halo, 0.75)
    grey = canvas.paint(grey, eye.drusen * 0.85, 0.8)
    grey = canvas.paint(canvas.paint(grey, eye.disc, 0.55), eye.cup, 0.12)
    grey = canvas.paint(canvas.paint(grey, eye.arteries * 0.9, 0.95), eye.veins * 0.9, 0.86)
    return canvas.colour(canvas.paint(grey, eye.blood * 0.97, 0.01))


def _autofluorescence(eye: _Eye, tint: float) -> np.ndarray:
    grey = 0.58 * eye.light * (1 + 0.12 * eye.mottle) * (1 - 0.6 * eye.macula) + 0.02 * tint
    grey = canvas.paint(grey, 0.7 * eye.halo, 0.85)
    grey = canvas.paint(grey, eye.drusen * 0.9, 0.97)
    grey = canvas.paint(canvas.paint(grey, eye.disc, 0.24), eye.cup, 0.02)
    grey = canvas.paint(canvas.paint(grey, eye.arteries * 0.7, 0.16), eye.veins * 0.85, 0.08)
    return canvas.colour(canvas.paint(grey, eye.blood * 0.97, 0.03))


def _tip(
    anatomy: int,
    disc: canvas.Point,
    fovea: canvas.Point,
    arcades: list[_Branch],
    noise: np.random.Generator,
) -> canvas.Point:
    if anatomy < 2:
        # Off the centre of the disc, so that the arrow leaves the cup free.
        angle, distance = noise.uniform(0, 2 * np.pi), (0.13, 0.05)[anatomy]
        x, y = (disc, fovea)[anatomy]
        return float(x + distance * np.cos(angle)), float(y + distance * np.sin(angle))
    x, y = arcades[anatomy - 2][0][int(noise.integers(12, 19))]
    return float(x), float(y)


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which structure does the arrow mark on this fundus picture?",
            "What lies under the arrow tip in this view of the retina?",
            "On this ocular fundus, where does the arrow point?",
        ),
        options=("optic disc", "central fovea", "superior arcade", "inferior arcade"),
        explanation="In this eye the arrow tip reaches the {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which eye condition does this fundus picture show?",
            "What is the diagnosis for this retina?",
            "Which disorder do disc, vessels and macula suggest here?",
        ),
        options=("healthy retina", "diabetic retinopathy", "open-angle glaucoma", "macular drusen"),
        explanation="Disc, vessels and macula suggest {answer}.",
    ),
    grading=Facet(
        questions=(
            "How advanced is the damage on this fundus picture?",
            "Which stage of damage does this retina show?",
            "How would you stage the changes in this eye?",
        ),
        options=("absent", "early", "moderate", "severe"),
        explanation="By extent, the damage of this eye is {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which technique recorded this fundus picture?",
            "How was this image of the retina taken?",
            "What type of retinal imaging is this?",
        ),
        options=(
            "colour photography",
            "red-free imaging",
            "fluorescein angiography",
            "autofluorescence",
        ),
        explanation="This retina was recorded by {answer}.",
    ),
    attributes=Facet(
        questions=(
            "Which eye and which field does this fundus picture show?",
            "Whose side and which centring does this retinal view have?",
            "Judging by disc and fovea, which eye and field is this?",
        ),
        options=(
            "right macular field",
            "left macular field",
            "right disc field",
            "left disc field",
        ),
        explanation="Disc and fovea are placed as in a {answer}.",
    ),
    draw=draw,
)
