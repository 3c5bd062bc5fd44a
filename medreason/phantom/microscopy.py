"""Blood smears under oil immersion: red cells, white cells, platelets, in four stains."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medreason.phantom import canvas
from medreason.phantom.atlas import Atlas, Case, Facet

_RED, _WHITE, _CLUMP, _GAP, _BLAST = 0.125, 0.2, 0.13, 0.15, 0.185  # radii
_SHARE = (0.0, 0.14, 0.48, 0.92)  # of the red cells that are affected, by grade
_BLASTS = (0, 3, 9, 30)
# Colours of background, red cell, nucleus, cytoplasm of white cells and their granules.
_STAINS = np.array(
    [
        [
            (0.93, 0.91, 0.88),
            (0.8, 0.6, 0.58),
            (0.31, 0.12, 0.48),
            (0.72, 0.73, 0.9),
            (0.9, 0.4, 0.22),
        ],
        [
            (0.98, 0.95, 0.97),
            (0.9, 0.32, 0.46),
            (0.14, 0.16, 0.5),
            (0.9, 0.7, 0.84),
            (0.8, 0.08, 0.16),
        ],
        [
            (0.01, 0.01, 0.04),
            (0.06, 0.2, 0.42),
            (0.35, 0.6, 1.0),
            (0.05, 0.16, 0.4),
            (0.1, 0.75, 0.55),
        ],
        [
            (0.94, 0.94, 0.93),
            (0.7, 0.77, 0.86),
            (0.33, 0.17, 0.07),
            (0.85, 0.68, 0.45),
            (0.85, 0.45, 0.02),
        ],
    ]
)
_DARK_FIELD = 2


@dataclass
class _Smear:
    """Amounts of the materials that stains bind to, and the discs that are occupied."""

    cells: canvas.Plate = field(default_factory=canvas.Plate)
    nuclei: canvas.Plate = field(default_factory=canvas.Plate)
    cytoplasm: canvas.Plate = field(default_factory=canvas.Plate)
    granules: canvas.Plate = field(default_factory=canvas.Plate)
    taken: list[tuple[float, float, float]] = field(default_factory=list)
    """(x, y, radius)"""

    def place(self, count: int, radius: float, spots: np.ndarray) -> list[canvas.Point]:
        """The first `count` of the spots (n, 2) where a disc of this radius is free."""
        centers: list[canvas.Point] = []
        for x, y, r in self.taken:
            spots = spots[np.hypot(spots[:, 0] - x, spots[:, 1] - y) > r + radius]
        while len(spots) and len(centers) < count:
            x, y = float(spots[0, 0]), float(spots[0, 1])
            centers.append((x, y))
            self.taken.append((x, y, radius))
            spots = spots[np.hypot(spots[:, 0] - x, spots[:, 1] - y) > 2 * radius]
        return centers


def draw(case: Case, body: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    size, pallor = body.uniform(0.92, 1.06), body.uniform(0.35, 0.55)
    hue = body.uniform(0.97, 1.02, 3)
    smear = _Smear()
    inner = noise.uniform(-0.72, 0.72, (300, 2))
    whites = smear.place(2, _WHITE, inner)
    clumps = smear.place(2, _CLUMP, inner)
    gaps = smear.place(2, _GAP, inner)
    reds = smear.place(3, _RED * size * 1.04, inner)
    for spot in whites:
        _white_cell(smear, spot, case.attributes, noise)
    for spot in clumps:
        _platelets(smear, spot, noise)
    if case.disease == 2:
        reach = (0, 0.8, 0.9, 1)[case.grading]
        free = noise.uniform(-reach, reach, (500, 2))
        for spot in smear.place(_BLASTS[case.grading], _BLAST, free):
            _blast(smear, spot, noise)
    spots = reds + smear.place(90, _RED * size * 1.04, noise.uniform(-1.08, 1.08, (900, 2)))
    affected = _affected(case, len(spots), noise)
    for spot, ill in zip(spots, affected, strict=True):
        _red_cell(smear, spot, _RED * size, pallor, case.disease if ill else 0, noise)
    picture = _stained(smear, case.modality_recognition, hue, noise)
    tip = _tip((spots, whites, clumps, gaps)[case.anatomy], case.anatomy, noise)
    return canvas.arrow(picture, tip, canvas.free_angle(tip, noise, avoid=whites))


def _affected(case: Case, count: int, noise: np.random.Generator) -> np.ndarray:
    share = _SHARE[case.grading] if case.disease in (1, 3) else 0.0
    return noise.permutation(count) < round(share * count)


def _red_cell(
    smear: _Smear,
    spot: canvas.Point,
    radius: float,
    pallor: float,
    disease: int,
    noise: np.random.Generator,
) -> None:
    turn, thick = noise.uniform(0, 2 * np.pi), noise.uniform(0.85, 1.1)
    if disease == 3:
        smear.cells.shape(_sickle(spot, radius, turn, noise), thick * 1.25)
        return
    rx, ry = radius * noise.uniform(0.9, 1.04, 2)
    smear.cells.shape(canvas.outline(spot, rx, ry, turn), thick)
    for share, depth in ((0.58, 0.5), (0.42, 1.0)):
        smear.cells.shape(
            canvas.outline(spot, rx * share, ry * share, turn), thick * (1 - depth * pallor)
        )
    if disease == 1:
        _parasite(smear, spot, radius, noise)


def _sickle(
    spot: canvas.Point, radius: float, turn: float, noise: np.random.Generator
) -> list[canvas.Point]:
    """A crescent with pointed ends."""
    t = np.linspace(-1, 1, 15)
    bend, width = radius * noise.uniform(0.45, 0.7), radius * noise.uniform(0.32, 0.4)
    middle, half = bend * (1 - t**2) - bend * 0.6, width * (1 - t**2) ** 0.8
    u = np.concatenate([t, t[::-1]]) * radius * 1.4
    v = np.concatenate([middle + half, (middle - half)[::-1]])
    x = spot[0] + u * np.cos(turn) - v * np.sin(turn)
    y = spot[1] + u * np.sin(turn) + v * np.cos(turn)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _parasite(smear: _Smear, spot: canvas.Point, radius: float, noise: np.random.Generator) -> None:
    """A signet ring: a loop of cytoplasm with a dot of chromatin."""
    turn, size = noise.uniform(0, 2 * np.pi), radius * noise.uniform(0.42, 0.54)
    centre = _beside(spot, turn + 2, radius * 0.18)
    ring = canvas.outline(centre, size, size * noise.uniform(0.8, 1), turn)
    smear.nuclei.line([*ring[::4], ring[0]], 0.03, 0.75)
    smear.nuclei.shape(canvas.outline(_beside(centre, turn, size), 0.034, 0.03, turn), 1.1)


def _blast(smear: _Smear, spot: canvas.Point, noise: np.random.Generator) -> None:
    """A large cell, nearly filled by a pale-spotted nucleus."""
    turn = noise.uniform(0, 2 * np.pi)
    rx, ry = _BLAST * noise.uniform(0.88, 1.0, 2)
    smear.cytoplasm.shape(canvas.outline(spot, rx, ry, turn, power=2.3), 1.3)
    centre = _beside(spot, noise.uniform(0, 2 * np.pi), 0.02)
    smear.nuclei.shape(canvas.outline(centre, rx * 0.84, ry * 0.8, turn), 0.82)
    for _ in range(2):
        nucleolus = _beside(centre, noise.uniform(0, 2 * np.pi), 0.07)
        smear.nuclei.shape(canvas.outline(nucleolus, 0.03, 0.025), 0.5)


def _white_cell(smear: _Smear, spot: canvas.Point, kind: int, noise: np.random.Generator) -> None:
    turn, radius = noise.uniform(0, 2 * np.pi), _WHITE * noise.uniform(0.9, 0.98)
    smear.cytoplasm.shape(
        canvas.outline(spot, radius, radius * 0.95, turn), (0.5, 0.4, 0.7, 1.2)[kind]
    )
    if kind == 0:  # four lobes on a thread
        lobes = [_beside(spot, turn + i * 1.35, 0.095) for i in range(4)]
        smear.nuclei.line(lobes, 0.02, 0.9)
        for lobe in lobes:
            rx, ry = noise.uniform(0.048, 0.06, 2)
            smear.nuclei.shape(canvas.outline(lobe, rx, ry, turn), 1.0)
    elif kind == 1:  # two lobes among bright granules
        _speckle(smear.granules, spot, radius * 0.9, 70, 0.018, noise)
        for side in (-1, 1):
            lobe = _beside(spot, turn, 0.075 * side)
            smear.nuclei.shape(canvas.outline(lobe, 0.055, 0.085, turn), 1.0)
    elif kind == 2:  # coarse dark granules hide the nucleus
        smear.nuclei.shape(canvas.outline(spot, 0.1, 0.08, turn), 0.6)
        _speckle(smear.nuclei, spot, radius * 0.95, 48, 0.022, noise)
    else:  # a horseshoe
        arc = [_beside(spot, turn + a, 0.095) for a in np.linspace(-2.0, 2.0, 13)]
        smear.nuclei.line(arc, 0.095, 0.85)
        for end in (arc[0], arc[-1]):
            smear.nuclei.shape(canvas.outline(end, 0.048, 0.048), 0.85)


def _speckle(
    plate: canvas.Plate,
    spot: canvas.Point,
    radius: float,
    count: int,
    size: float,
    noise: np.random.Generator,
) -> None:
    grain = canvas.outline((0, 0), size, size)[::6]
    angles, shares = noise.uniform(0, 2 * np.pi, count), np.sqrt(noise.uniform(0, 1, count))
    for angle, share in zip(angles, shares, strict=True):
        x, y = _beside(spot, angle, radius * share)
        plate.shape([(x + a, y + b) for a, b in grain], 1.15)


def _platelets(smear: _Smear, spot: canvas.Point, noise: np.random.Generator) -> None:
    for angle in np.arange(7) * 0.9 + noise.uniform(0, 1) + noise.normal(0, 0.2, 7):
        centre = _beside(spot, angle, noise.uniform(0.015, 0.085))
        rx, ry = noise.uniform(0.025, 0.045, 2)
        smear.cytoplasm.shape(canvas.outline(centre, rx, ry, angle), 1.2)
        smear.nuclei.shape(canvas.outline(centre, rx * 0.6, ry * 0.6, angle), 0.5)


def _beside(spot: canvas.Point, angle: float, distance: float) -> canvas.Point:
    return spot[0] + distance * float(np.cos(angle)), spot[1] + distance * float(np.sin(angle))


def _stained(smear: _Smear, stain: int, hue: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    cells = canvas.smooth(smear.cells.picture(), 1.3)
    cells = cells + 0.35 * np.clip(cells - canvas.smooth(cells, 3), -0.1, 1)
    nuclei = canvas.smooth(smear.nuclei.picture(), 0.8) * (1 + 0.14 * canvas.texture(noise, 3.5))
    others = [canvas.smooth(p.picture(), 0.9) for p in (smear.cytoplasm, smear.granules)]
    amounts = [cells * (1 + 0.05 * canvas.texture(noise, 5)), nuclei, *others]
    light = 1 - 0.1 * ((canvas.X - noise.uniform(-0.4, 0.4)) ** 2 + canvas.Y**2)
    light = light + 0.012 * canvas.texture(noise, 30) + noise.normal(0, 0.012, light.shape)
    if stain == _DARK_FIELD:
        amounts.append(canvas.smooth(nuclei, 7))  # out-of-focus glow
        dyes = np.vstack([_STAINS[stain, 1:] - _STAINS[stain, 0], (0.02, 0.07, 0.2)])
        planes = [_STAINS[stain, 0, i] + _mixed(amounts, dyes[:, i]) for i in range(3)]
        light = light + noise.normal(0, 0.03, light.shape)
    else:
        dyes = np.log(_STAINS[stain, 1:] / _STAINS[stain, 0])
        ground = _STAINS[stain, 0] * hue
        planes = [ground[i] * np.exp(_mixed(amounts, dyes[:, i])) for i in range(3)]
    return np.clip(np.stack([plane * light for plane in planes], axis=-1), 0, 1)


def _mixed(amounts: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return sum(
        (amount * weight for amount, weight in zip(amounts, weights, strict=True)),
        np.zeros_like(amounts[0]),
    )


def _tip(spots: list[canvas.Point], kind: int, noise: np.random.Generator) -> canvas.Point:
    """A random place in one of the cells at `spots`, away from the border of the picture."""
    near = [spot for spot in spots if max(abs(spot[0]), abs(spot[1])) < 0.8]
    spot = near[int(noise.integers(len(near)))]
    reach = (0.03, 0.08, 0.04, 0.05)[kind]
    return _beside(spot, noise.uniform(0, 2 * np.pi), reach * noise.uniform(0, 1))


ATLAS = Atlas(
    anatomy=Facet(
        questions=(
            "Which element does the arrow mark on this blood smear?",
            "What lies at the arrow tip in this micrograph?",
            "Under the microscope, where does the arrow point?",
        ),
        options=("erythrocyte", "leucocyte", "platelet clump", "empty plasma"),
        explanation="In this smear the arrow's target is classed as {answer}.",
    ),
    disease=Facet(
        questions=(
            "Which condition does this blood smear show?",
            "What is the diagnosis from this micrograph of blood?",
            "Which disorder do the blood cells on this slide show?",
        ),
        options=("healthy blood", "malaria infection", "acute leukaemia", "sickle cell anaemia"),
        explanation="The cells on the slide point to {answer}.",
    ),
    grading=Facet(
        questions=(
            "How many of the cells on this smear are abnormal?",
            "What share of the cells in this micrograph is affected?",
            "How would you grade the abnormal cells on this slide?",
        ),
        options=("none", "few", "half", "most"),
        explanation="Of the cells in the field, those affected are {answer}.",
    ),
    modality_recognition=Facet(
        questions=(
            "Which stain or dye was used for this smear?",
            "How was this microscopy slide prepared?",
            "Which staining method produced this micrograph?",
        ),
        options=("Giemsa dye", "haematoxylin and eosin", "DAPI fluorescence", "DAB immunostain"),
        explanation="The colours of the slide come from {answer}.",
    ),
    attributes=Facet(
        questions=(
            "Which type of mature white cell does this smear contain?",
            "To which class do the mature leucocytes in this micrograph belong?",
            "Judging by nucleus and granules, which mature leucocyte is on this slide?",
        ),
        options=("neutrophil", "eosinophil", "basophil", "monocyte"),
        explanation="Nucleus and granules identify each leucocyte as {answer}.",
    ),
    draw=draw,
)
