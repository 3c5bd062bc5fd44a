"""Axial head MRI at the level of the ventricles: one tissue map, the signals of four sequences."""

from __future__ import annotations

import numpy as np
from PIL import Image

from medreason.phantom.atlas import Atlas, Case, Facet
from medreason.phantom.canvas import (
    Plate,
    Point,
    X,
    Y,
    arrow,
    colour,
    free_angle,
    outline,
    paint,
    smooth,
    texture,
    wavy,
)

# Signals in the order of the sequences: T1, T2, FLAIR, DWI.
_SIGNALS = {
    "scalp": (0.88, 0.62, 0.6, 0.1),
    "skull": (0.07, 0.06, 0.05, 0.02),
    "marrow": (0.3, 0.2, 0.18, 0.04),
    "fluid": (0.1, 0.98, 0.06, 0.07),
    "grey": (0.42, 0.56, 0.5, 0.4),
    "white": (0.66, 0.36, 0.38, 0.33),
    "nuclei": (0.5, 0.45, 0.46, 0.37),
    "capsule": (0.98, 0.98, 0.95, 0.9),
    "oedema": (0.46, 0.72, 0.74, 0.42),
    "rim": (0.95, 0.5, 0.9, 0.85),
    "core": (0.22, 0.88, 0.7, 0.72),
    "infarct": (0.3, 0.84, 0.86, 1.0),
    "plaque": (0.24, 0.92, 1.0, 0.85),
}
Signal = dict[str, float]

_TUMOUR = (0.085, 0.15, 0.23)
_TERRITORY = (0.42, 0.9, 1.5)  # radians
_PLAQUES = (2, 5, 10)
_QUADRANTS = ((-1, -1), (1, -1), (-1, 1), (1, 1))


def _folds(plate: Plate, signal: Signal, rx: float, ry: float, body: np.random.Generator) -> None:
    """Cortex: grey matter dips along each sulcus, with fluid in its middle."""
    angles = np.linspace(0, 2 * np.pi, 37)[:-1] + body.uniform(-0.05, 0.05, 36)
    depths, turns = body.uniform(0.12, 0.26, 36), body.uniform(-0.5, 0.5, (36, 2))
    paths = []
    for angle, depth, (first, second) in zip(angles, depths, turns, strict=True):
        steps = ((1.0, 0.0), (1 - depth * 0.4, first * 0.12), (1 - depth, second * 0.25))
        paths.append([(rx * k * np.cos(angle + d), ry * k * np.sin(angle + d)) for k, d in steps])
    for path in paths:
        plate.line(path, 0.075, signal["grey"])
        plate.shape(outline(path[-1], 0.036, 0.036), signal["grey"])
    for path in paths:
        plate.line(path, 0.02, signal["fluid"])
        plate.line([(x * 1.02, y * 1.02) for x, y in path[:2]], 0.034, signal["fluid"])


def _brain(plate: Plate, signal: Signal, rx: float, ry: float, body: np.random.Generator) -> None:
    plate.shape(outline((0, 0), rx + 0.025, ry + 0.025), signal["fluid"])
    plate.shape(outline((0, 0), rx, ry), signal["grey"])
    plate.shape(outline((0, 0), rx * 0.88, ry * 0.9), signal["white"])
    _folds(plate, signal, rx, ry, body)
    for y in (-0.66, 0.66):
        plate.line([(0, y * 1.05), (0, y * 0.5)], 0.09, signal["grey"])
        plate.line([(0, y * 1.1), (0, y * 0.5)], 0.024, signal["fluid"])
    horn, spread = body.uniform(0.85, 1.25), body.uniform(-0.02, 0.03)
    for side in (-1, 1):
        insula = [(side * rx, -0.1), (side * 0.42, -0.06), (side * 0.4, 0.1)]
        plate.line(insula, 0.1, signal["grey"])
        plate.line(insula, 0.032, signal["fluid"])
        plate.shape(outline((side * 0.25, -0.04), 0.055, 0.15, side * -0.2), signal["nuclei"])
        plate.shape(outline((side * 0.1, 0.06), 0.08, 0.11, side * -0.3), signal["nuclei"])
        plate.shape(outline((side * 0.155, -0.2), 0.05, 0.1, side * -0.3), signal["nuclei"])
        front, back = (side * (0.085 + spread), -0.21), (side * (0.19 + spread), 0.28)
        plate.shape(outline(front, 0.056 * horn, 0.14, side * -0.3), signal["fluid"])
        plate.shape(outline(back, 0.05 * horn, 0.15, side * -0.35), signal["fluid"])
        plate.shape(outline((back[0], back[1] + 0.01), 0.022, 0.05), signal["nuclei"])
    plate.shape(outline((0, 0.03), 0.018, 0.1), signal["fluid"])


def _lesion(
    case: Case, signal: Signal, side: int, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Point]:
    """The signal of the finding, its mask, and where it lies."""
    grade, value, mask = case.grading - 1, Plate(), Plate()
    place = (side * noise.uniform(0.27, 0.33), noise.uniform(-0.32, 0.32))
    if case.disease == 1:
        radius = _TUMOUR[grade] * noise.uniform(0.95, 1.05)
        halo = wavy(place, radius * 1.25 + 0.04, noise, 0.3)
        border, inner = wavy(place, radius, noise, 0.12), wavy(place, radius * 0.68, noise, 0.2)
        for shape, tissue in ((halo, "oedema"), (border, "rim"), (inner, "core")):
            value.shape(shape, signal[tissue])
        mask.shape(halo, 1)
    elif case.disease == 2:
        middle, half = noise.uniform(-0.35, 0.35), _TERRITORY[grade] / 2
        angles = np.linspace(middle - half, middle + half, 16)
        reach = 0.9 + noise.normal(0, 0.02, 16)
        rim = [
            (side * 0.62 * r * np.cos(a), 0.8 * r * np.sin(a))
            for r, a in zip(reach, angles, strict=True)
        ]
        apex = (side * 0.16, 0.35 * np.sin(middle))
        value, place = Plate(signal["infarct"]), rim[8]
        mask.shape([apex, *rim], 1)
    else:
        value, count = Plate(signal["plaque"]), _PLAQUES[grade]
        for k in range(count):
            flank = side * (-1) ** k
            y = -0.42 + 0.84 * ((k // 2 + noise.uniform(0.2, 0.8)) / (count / 2 + 0.5))
            x = flank * (0.2 + 0.12 * (k // 2 % 2) + noise.uniform(0, 0.05))
            mask.shape(outline((x, y), 0.078, 0.052, flank * noise.uniform(-0.6, 0.6)), 1)
    soft = smooth(mask.picture(), 1.2)
    if case.disease == 2:
        soft = np.clip((smooth(soft, 2) + 0.14 * texture(noise, 9) - 0.5) * 3 + 0.5, 0, 1)
    return value.picture(), soft, place


def _turned(picture: np.ndarray, tilt: float) -> np.ndarray:
    image = Image.fromarray(picture.astype(np.float32)).rotate(
        -np.degrees(tilt), Image.Resampling.BILINEAR
    )
    return np.asarray(image, dtype=float)


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    rx, ry, tilt = body.uniform(0.53, 0.58), body.uniform(0.68, 0.73), body.uniform(-0.12, 0.12)
    sequence = case.modality_recognition
    signal = {tissue: values[sequence] for tissue, values in _SIGNALS.items()}

    plate, inside = Plate(), Plate()
    layers = ((0.13, "scalp"), (0.085, "skull"), (0.065, "marrow"), (0.045, "skull"))
    for margin, tissue in layers:
        plate.shape(outline((0, 0), rx + margin, ry + margin, power=2.1), signal[tissue])
    _brain(plate, signal, rx, ry, body)
    right, down = _QUADRANTS[case.attributes]
    mark = (right * (rx * 0.72 + 0.17), down * (ry * 0.72 + 0.15))
    plate.shape(outline(mark, 0.08, 0.08), signal["capsule"])
    picture = plate.picture()

    side = int(noise.choice((-1, 1)))
    avoid: list[Point] = [mark]
    if case.disease:
        value, mask, place = _lesion(case, signal, -side, noise)
        inside.shape(outline((0, 0), rx * 0.98, ry * 0.98), 1)
        picture = paint(picture, mask * inside.picture(), value)
        avoid.append(place)

    picture = smooth(_turned(picture, tilt), 1.7 if sequence == 3 else 0.9)
    drift = noise.uniform(-0.12, 0.12, 2)
    picture *= (1 + drift[0] * X + drift[1] * Y) * (1 + 0.05 * texture(noise, 6))
    grain = 0.045 if sequence == 3 else 0.022
    picture = np.hypot(picture + grain * texture(noise, 1.6), grain * texture(noise, 1.6))

    spread = noise.uniform(-1, 1, 2)
    spots = (
        (side * 0.22 + 0.1 * spread[0], -0.52 + 0.08 * spread[1]),
        (side * 0.2 + 0.1 * spread[0], 0.55 + 0.06 * spread[1]),
        (side * 0.42 + 0.02 * spread[0], 0.0 + 0.08 * spread[1]),
        (side * 0.09 + 0.02 * spread[0], -0.2 + 0.07 * spread[1]),
    )
    x, y = spots[case.anatomy]
    tip = (x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt))
    return arrow(colour(picture), tip, free_angle(tip, noise, avoid))


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which part of the brain does the arrow mark on this MRI?",
            "Where does the tip of the arrow lie in this axial head MRI?",
            "Which brain structure is indicated on this MR image?",
        ),
        options=("frontal lobe", "occipital lobe", "insular cortex", "lateral ventricle"),
        explanation="In this slice the arrow indicates the {answer}.",
    ),
    disease=Facet(
        questions=(
            "What does this head MRI show?",
            "Which reading fits the brain on this axial MR image?",
            "What is the main finding in this MRI of the head?",
        ),
        options=("normal brain", "brain tumour", "ischaemic stroke", "demyelinating plaques"),
        explanation="The signal pattern is that of {answer}.",
    ),
    grading=Facet(
        questions=(
            "How large is the lesion load on this head MRI?",
            "Which lesion load would you report for this MR image?",
            "How much of the brain is affected on this MRI?",
        ),
        options=("zero", "low", "medium", "high"),
        explanation="By the affected brain volume the lesion load is {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which MRI sequence produced this image of the head?",
            "How is this axial brain MR image weighted?",
            "With which pulse sequence was this head MRI acquired?",
        ),
        options=("T1 weighting", "T2 contrast", "FLAIR sequence", "diffusion encoding"),
        explanation="Fluid and tissue are those of {answer}.",
    ),
    attributes=Facet(
        questions=(
            "Where is the marker capsule attached in this head MRI?",
            "At which corner of the head does the MR marker capsule lie?",
            "Which position has the skin capsule on this axial MRI?",
        ),
        options=("right anterior", "left anterior", "right posterior", "left posterior"),
        explanation="The bright capsule on the skin lies {answer}.",
    ),
    draw=draw,
)
