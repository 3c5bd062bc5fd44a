"""Frontal chest radiograph: attenuation of soft tissue, bone and metal, added up along the beam."""

from __future__ import annotations

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
)

_ZONES = (-0.46, -0.13, 0.17)  # heights of the upper, middle and lower lung zone
_FLUID = (0.13, -0.24, -0.62)  # level of an effusion that reaches one, two or three zones
_COLLAPSE = ((-0.2, 0.26), (0.1, 0.31), (0.75, 0.36))  # (lower end, width) of the free air


def _lateral(y: np.ndarray | float) -> np.ndarray:
    """Half the inner width of the chest at a height."""
    return 0.67 * np.sqrt(np.clip(1 - ((np.asarray(y) - 0.5) / 1.27) ** 2, 0, None))


def _lung(side: int, dome: float, wide: float) -> np.ndarray:
    x = X * side
    floor = dome + 0.17 * ((x - 0.3) / 0.33) ** 2
    return edge(
        np.maximum.reduce([(x - _lateral(Y[:, :1]) * wide) * 0.8, 0.09 - x, (Y - floor) * 0.8]),
        0.02,
    )


def _trunk(wide: float, bubble: Point) -> np.ndarray:
    """Everything outside the lungs: neck, shoulders, flanks, mediastinum, heart, bowel gas."""
    plate = Plate(0.02)
    flank = (
        (0.17, -1),
        (0.2, -0.88),
        (0.5, -0.78),
        (0.86, -0.66),
        (1.0, -0.5),
        (1.0, -0.1),
        (0.84, 0.1),
    )
    half = [(x * wide, y) for x, y in (*flank, (0.82, 0.5), (0.84, 1.05))]
    plate.shape([*half, *[(-x, y) for x, y in reversed(half)]], 0.56)
    for side in (-1, 1):
        plate.line([(side * 0.97, -0.5), (side * 0.93, -0.1)], 0.3, 0.52)
    plate.shape(outline(bubble, 0.15, 0.085, 0.1, power=2.4), 0.28)
    return smooth(plate.picture(), 2.5) + 0.16 * edge(0.45 - Y[:, :1], 0.25)


def _mediastinum(heart: Point, size: float) -> np.ndarray:
    plate = Plate()
    plate.shape([(-0.1, -1), (0.1, -1), (0.105, 0.6), (-0.12, 0.6), (-0.13, -0.3)], 0.27)
    plate.shape(outline((0.085, -0.3), 0.09, 0.085), 0.4)
    plate.shape(outline((0.1, -0.12), 0.1, 0.12, -0.3), 0.38)
    plate.shape(outline((heart[0] - 0.15, heart[1] - 0.03), 0.15 * size, 0.22), 0.44)
    plate.shape(outline(heart, 0.3 * size, 0.225 * size, 0.45), 0.46)
    return smooth(plate.picture(), 2.2)


def _band(x: np.ndarray, y: np.ndarray, width: float) -> list[Point]:
    """A curved band of constant width as a polygon; far cheaper than a line with round joints."""
    dx, dy = np.gradient(x), np.gradient(y)
    across = width / 2 / np.hypot(dx, dy)
    upper, lower = (x + dy * across, y - dx * across), (x - dy * across, y + dx * across)
    xs, ys = (np.concatenate([a, b[::-1]]) for a, b in zip(upper, lower, strict=True))
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _ribs(back: Plate, front: Plate, wide: float, pitch: float) -> None:
    t = np.linspace(0, 1, 12)
    for k in range(10):
        y = -0.74 + pitch * k
        height = y - 0.07 * np.sin(np.pi * t) + (0.1 + 0.012 * k) * t**1.6
        reach = 0.06 + (_lateral(y + 0.1) * wide * 1.03 - 0.06) * np.sin(t * np.pi / 2)
        forward = reach[-1] - (reach[-1] - 0.22 - 0.02 * k) * t**1.7
        falling = height[-1] + (y + 0.32 + 0.02 * k - height[-1]) * t**0.8
        for side in (-1, 1):
            back.shape(_band(side * reach, height, 0.062), 0.165)
            back.shape(_band(side * reach, height, 0.04), 0.115)
            if k < 7:
                front.shape(_band(side * forward, falling, 0.066), 0.1)
                front.shape(_band(side * forward, falling, 0.046), 0.07)


def _bones(wide: float, pitch: float) -> np.ndarray:
    """Bones in front and behind overlap, so each half of the cage has a plate of its own."""
    back, front = Plate(), Plate()
    _ribs(back, front, wide, pitch)
    for y in -1.0 + 0.155 * np.arange(13):
        front.shape(outline((0, y), 0.085, 0.066, power=4), 0.12)
        front.shape(outline((0, y), 0.018, 0.03), 0.22)
    collar = ((0.07, -0.62), (0.25, -0.66), (0.45, -0.75), (0.68, -0.74))
    blade = ((0.72, -0.66), (0.82, -0.3), (0.7, 0.0), (0.63, -0.4))
    for side in (-1, 1):
        front.line([(side * x, y) for x, y in collar], 0.075, 0.3)
        front.line([(side * x, y) for x, y in collar], 0.045, 0.2)
        front.shape([(side * x, y) for x, y in blade], 0.06)
        back.shape(outline((side * 0.88, -0.62), 0.1, 0.1), 0.24)
        back.line([(side * 0.9, -0.6), (side * 0.97, 0.1)], 0.13, 0.24)
    return smooth(back.picture() + front.picture(), 0.9)


def _windpipe() -> np.ndarray:
    plate, fork = Plate(), (0.01, -0.4)
    plate.line([(0.0, -1.0), (0.005, -0.6), fork], 0.11, 1)
    for end in ((-0.13, -0.26), (0.15, -0.22)):
        plate.line([fork, end], 0.07, 0.8)
    return smooth(plate.picture(), 1.2)


def _markings(noise: np.random.Generator) -> np.ndarray:
    """Vessels that fan out from the hila and thin out towards the periphery."""
    plate = Plate()
    for side in (-1, 1):
        plate.shape(outline((side * 0.17, -0.06), 0.06, 0.12, side * 0.3), 0.16)
        for angle in np.linspace(-1.5, 1.5, 13) + noise.uniform(-0.1, 0.1, 13):
            x, y, turn, width = side * 0.15, -0.06, angle, 0.034
            for _ in range(5):
                turn += noise.normal(0, 0.2)
                step = noise.uniform(0.06, 0.12)
                end = (x + side * step * np.cos(turn), y + step * np.sin(turn) * 1.25)
                plate.line([(x, y), end], width, 0.05 + 3 * width)
                (x, y), width = end, width * 0.72
    return smooth(plate.picture(), 1.3)


def _device(kind: int, shift: Point) -> np.ndarray:
    plate = Plate()
    sx, sy = shift
    if kind == 0:
        lead = [
            (0.42 + sx, -0.5),
            (0.2, -0.62),
            (0.0, -0.5),
            (-0.08, -0.1),
            (-0.02, 0.2),
            (0.2, 0.3),
        ]
        plate.line(lead, 0.024, 0.9)
        plate.shape(outline((0.46 + sx, -0.42 + sy), 0.125, 0.105, 0.2, power=3.5), 1)
        plate.shape(outline((0.43 + sx, -0.41 + sy), 0.06, 0.05, 0.2, power=3.5), 0.8)
    elif kind == 1:
        plate.line(
            [(-0.42 + sx, -0.4 + sy), (-0.3, -0.66), (-0.14, -0.6), (-0.1, -0.1)], 0.024, 0.85
        )
        plate.shape(outline((-0.42 + sx, -0.38 + sy), 0.1, 0.1), 1)
        plate.shape(outline((-0.42 + sx, -0.38 + sy), 0.055, 0.055), 0.45)
    elif kind == 2:
        for y in np.linspace(-0.42, 0.38, 6) + sy:
            loop = outline((sx * 0.4, float(y)), 0.07, 0.04, 0.15)
            plate.line([*loop, loop[0]], 0.026, 1)
    else:
        for x, y, tail in ((-0.5, -0.5, -1), (0.52, -0.48, -1), (-0.55, 0.3, 1), (0.58, 0.34, 1)):
            plate.line(
                [(x + sx, y + sy), (x * 1.05 + sx, y + tail * 0.3), (x * 0.7, tail * 1.0)],
                0.02,
                0.8,
            )
            plate.shape(outline((x + sx, y + sy), 0.068, 0.068), 1)
    return plate.picture()


def _finding(
    case: Case, lung: np.ndarray, side: int, wide: float, noise: np.random.Generator
) -> tuple[np.ndarray, float, list[Point]]:
    """Mask, attenuation and places of the finding."""
    grade, x = case.grading - 1, X * side
    if case.disease == 1:
        first = int(noise.integers(0, 3 - grade))
        places = [(side * noise.uniform(0.3, 0.38), _ZONES[first + k]) for k in range(case.grading)]
        cloud = sum(
            np.exp(-0.5 * (((X - a) / 0.15) ** 2 + ((Y - b) / 0.14) ** 2) ** 1.6) for a, b in places
        )
        cloud = np.clip(cloud, 0, 1) * (1 + 0.3 * texture(noise, 16) + 0.22 * texture(noise, 7))
        return smooth(np.clip(cloud * 1.4 - 0.2, 0, 0.95), 1.2) * lung, 0.72, places
    if case.disease == 2:
        level = _FLUID[grade] + noise.uniform(-0.04, 0.04)
        meniscus = level + 0.1 - 0.3 * (x / 0.6) ** 2
        return edge(meniscus - Y, 0.04) * (X * side > 0), 0.68, [(side * 0.45, 0.25)]
    end, width = _COLLAPSE[grade]
    band = width * noise.uniform(0.92, 1.08) * np.clip((end - Y[:, :1]) / 0.35, 0, 1) ** 0.6
    retracted = np.minimum(_lateral(Y[:, :1]) * wide - x, (Y + 0.76) * 0.8) - band
    return edge(retracted, 0.012) * lung, 0.0, [(side * 0.45, -0.45)]


def _exposed(
    technique: int,
    soft: np.ndarray,
    bone: np.ndarray,
    ghost: np.ndarray,
    device: np.ndarray,
    noise: np.random.Generator,
) -> np.ndarray:
    """The film of each technique, from soft tissue and bone."""
    if technique == 2:
        # Subtraction is never complete: changes of the lung remain as a faint ghost.
        picture = 0.12 + 0.22 * soft + 0.5 * ghost + 1.9 * bone
    else:
        picture = soft + (0.06 if technique == 3 else 1.0) * bone
    picture = 0.93 * np.clip(picture, 0, 1) ** (1.0 if technique == 2 else 1.1)
    picture = smooth(paint(picture, device, 1), 0.6) * noise.uniform(0.94, 1.04)
    picture += (0.03 if technique >= 2 else 0.016) * texture(noise, 1.5)
    return 1 - np.clip(picture, 0, 1) if technique == 1 else picture


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    wide, size = body.uniform(0.95, 1.04), body.uniform(0.88, 1.06)
    pitch = body.uniform(0.118, 0.13)
    heart = (0.13 + float(body.uniform(-0.02, 0.03)), 0.2 + float(body.uniform(-0.02, 0.03)))
    domes = (float(body.uniform(0.3, 0.36)), float(body.uniform(0.38, 0.43)))
    bubble = (float(body.uniform(0.32, 0.42)), domes[1] + 0.19)

    lungs = [_lung(side, dome, wide) for side, dome in zip((-1, 1), domes, strict=True)]
    field = lungs[0] + lungs[1]
    aerated = 0.17 + _markings(noise) + 0.02 * texture(noise, 9)
    avoid: list[Point] = []
    if case.disease:
        side = int(noise.choice((-1, 1)))
        lung = lungs[(side + 1) // 2]
        mask, value, avoid = _finding(case, lung, side, wide, noise)
        aerated = paint(aerated, mask, value)
        if case.disease == 3:
            aerated += 0.45 * smooth(np.clip(mask * (1 - mask) * 4, 0, 1) * lung, 0.7)
    trunk, middle = _trunk(wide, bubble), _mediastinum(heart, size)
    soft = paint(trunk, field, aerated) - 0.2 * _windpipe()
    soft += middle * np.where(field > 0.5, 1.1 * (1 - aerated), 0.62)
    bone = _bones(wide, pitch) * (1 - 1.1 * middle)
    device = _device(case.attributes, (noise.uniform(-0.05, 0.05), noise.uniform(-0.04, 0.04)))
    picture = _exposed(
        case.modality_recognition, soft, bone, field * (aerated - 0.17), device, noise
    )

    dx, dy = noise.uniform(-1, 1, 2)
    tip = (
        (heart[0] + 0.03 + 0.1 * dx, heart[1] + 0.08 * dy),
        (0.03 * dx, -0.66 + 0.13 * dy),
        (-0.38 + 0.15 * dx, domes[0] + 0.34 + 0.1 * dy),
        (bubble[0] + 0.08 * dx, bubble[1] + 0.04 * dy),
    )[case.anatomy]
    return arrow(colour(picture), tip, free_angle(tip, noise, avoid))


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which structure does the arrow mark on this chest radiograph?",
            "What lies at the tip of the arrow on this chest X-ray?",
            "Which structure is indicated in this frontal radiograph?",
        ),
        options=("heart", "trachea", "liver", "gastric bubble"),
        explanation="On the radiograph the arrow reaches the {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which finding is present on this chest radiograph?",
            "How do you read the lung fields on this chest X-ray?",
            "What does this frontal chest radiograph show?",
        ),
        options=("no acute finding", "pneumonia", "pleural fluid", "pneumothorax"),
        explanation="The lung fields are compatible with {answer}.",
    ),
    grading=Facet(
        questions=(
            "How many zones of one lung are affected on this chest X-ray?",
            "Over how many lung zones does the radiographic finding extend?",
            "What is the zonal extent of the finding on this radiograph?",
        ),
        options=("none", "one", "two", "three"),
        explanation="Of the zones of this lung the finding involves {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which kind of chest radiograph is this?",
            "How was this X-ray image of the chest processed?",
            "Which radiographic technique gives this view of the chest?",
        ),
        options=(
            "standard radiograph",
            "inverted display",
            "dual-energy bone image",
            "dual-energy soft-tissue view",
        ),
        explanation="Grey scale and ribs match the {answer}.",
    ),
    attributes=Facet(
        questions=(
            "Which medical device is seen on this chest radiograph?",
            "What metal hardware is projected over the chest on this X-ray?",
            "Which implanted or attached device does this radiograph show?",
        ),
        options=("cardiac pacemaker", "venous port", "sternal wires", "ECG electrodes"),
        explanation="The metal projected over the chest is recognised as {answer}.",
    ),
    draw=draw,
)
