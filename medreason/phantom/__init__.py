"""The data set that ships with the package: images of 8 modalities drawn from known facts.

Every facet of an image takes its four values equally often, and so does the letter of the right
answer. So the options-only baseline is at chance, and accuracy above chance comes from the image.
`README.md` says more.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from threadpoolctl import threadpool_limits

from medreason.phantom.atlas import Atlas, Case, Facet
from medreason.runs import parent_watch, process_pool
from medreason.runs.files import atomic
from medreason.samples import MODALITIES, TASKS, Sample, letter_at

VERSION = 2
"""Raised whenever the same settings would give other images or questions."""

IMAGES_PER_PATIENT = 2
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Picture:
    """All that is needed to draw one image."""

    modality: str
    split: str
    index: int
    seed: int
    case: Case

    @property
    def patient(self) -> str:
        return f"phantom-{self.modality}-{self.split}-{self.index // IMAGES_PER_PATIENT:05d}"

    @property
    def name(self) -> str:
        return f"{self.modality}/{self.split}-{self.index:05d}.png"

    def generators(self) -> tuple[np.random.Generator, np.random.Generator]:
        """(body, noise): `body` is the same for all images of a patient, `noise` of one image."""
        key = (VERSION, self.seed, list(MODALITIES).index(self.modality), _SPLITS.index(self.split))
        return (
            np.random.default_rng([*key, 0, self.index // IMAGES_PER_PATIENT]),
            np.random.default_rng([*key, 1, self.index]),
        )


def load(
    cache: Path, *, train_images: int, test_images: int, seed: int, draw: bool = True
) -> list[Sample]:
    """Samples of all tasks; images missing from `cache` are drawn, on all cores, unless `draw` is
    false, which `action=plan` sets.

    `train_images` and `test_images` are per modality; every image has one question of each task.
    """
    for key, images in (("train_images", train_images), ("test_images", test_images)):
        if images < 0:
            raise ValueError(f"data.{key}={images}; give 0 or more images of each modality")
    folder = cache / f"phantom-v{VERSION}-seed{seed}"
    pictures = {
        (modality, split): plan(modality, split, images, seed)
        for modality in MODALITIES
        for split, images in (("train", train_images), ("test", test_images))
    }
    if draw:
        draw_missing([picture for group in pictures.values() for picture in group], folder)
    return [sample for group in pictures.values() for sample in _samples(group, folder)]


def atlas(modality: str) -> Atlas:
    """The drawing and the questions of one modality."""
    return importlib.import_module(f"medreason.phantom.{modality}").ATLAS


def plan(modality: str, split: str, images: int, seed: int) -> list[Picture]:
    """The facts of every image: each facet takes its values equally often, in independent orders.

    A finding is absent (grade 0) in a quarter of the images; where it is present, disease and
    grade are independent. Images come in blocks of 48, so a larger data set contains the smaller.
    """
    rng = np.random.default_rng(
        [VERSION, seed, list(MODALITIES).index(modality), _SPLITS.index(split), 2]
    )
    pictures: list[Picture] = []
    while len(pictures) < images:
        pictures += [
            Picture(modality, split, len(pictures) + i, seed, case)
            for i, case in enumerate(_block(rng))
        ]
    return pictures[:images]


def _block(rng: np.random.Generator, size: int = 48) -> list[Case]:
    """Cases in which every facet is balanced, and the pair (disease, grade) too."""
    findings = [(0, 0)] * (size // 4) + [
        (disease, grade) for disease in (1, 2, 3) for grade in (1, 2, 3)
    ] * (size // 12)
    findings = [findings[i] for i in rng.permutation(size)]
    free = {
        facet: rng.permutation(np.arange(size) % 4)
        for facet in ("anatomy", "modality_recognition", "attributes")
    }
    return [
        Case(disease=d, grading=g, **{facet: int(values[i]) for facet, values in free.items()})
        for i, (d, g) in enumerate(findings)
    ]


def _samples(pictures: Sequence[Picture], folder: Path) -> list[Sample]:
    samples = []
    for task in TASKS:
        for picture in pictures:
            samples.append(_sample(picture, task, folder))
    return samples


def _sample(picture: Picture, task: str, folder: Path) -> Sample:
    facet: Facet = getattr(atlas(picture.modality), task)
    truth: int = getattr(picture.case, task)
    rng = np.random.default_rng(
        [VERSION, picture.seed, list(TASKS).index(task), *picture.name.encode()]
    )
    # The right letter cycles within each value, so letter and value are both balanced.
    place = (picture.index + picture.index // 4) % 4
    others = [facet.options[i] for i in rng.permutation(4) if i != truth]
    options = (*others[:place], facet.options[truth], *others[place:])
    letter = letter_at(place)
    return Sample(
        id=f"{picture.patient}-{picture.index % IMAGES_PER_PATIENT}-{task}",
        image=folder / picture.name,
        question=str(rng.choice(facet.questions)),
        options=options,
        answer=letter,
        explanation=facet.explanation.format(answer=f"{facet.options[truth]} ({letter})"),
        modality=picture.modality,
        task=task,
        source="phantom",
        patient=picture.patient,
        split=picture.split,
    )


def render(picture: Picture) -> np.ndarray:
    """(SIZE, SIZE, 3) bytes."""
    image = atlas(picture.modality).draw(picture.case, *picture.generators())
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def draw_missing(pictures: Sequence[Picture], folder: Path) -> None:
    """Draw the images that are not in the folder yet; each file is written atomically."""
    missing = [picture for picture in pictures if not (folder / picture.name).exists()]
    for modality in {picture.modality for picture in missing}:
        (folder / modality).mkdir(parents=True, exist_ok=True)
    if len(missing) < 64:
        for picture in missing:
            _draw(picture, folder)
        return
    draw = functools.partial(_draw, folder=folder)
    list(process_pool.results(draw, missing, chunk=16, initializer=_start_worker))


def _start_worker(parent: int) -> None:
    parent_watch.start_in_pool(parent)  # a killed parent cannot stop its workers
    threadpool_limits(1)


def _draw(picture: Picture, folder: Path) -> None:
    facts = PngInfo()
    facts.add_text("case", json.dumps(asdict(picture.case)))
    with atomic(folder / picture.name, sync=False) as unfinished:
        Image.fromarray(render(picture)).save(unfinished, "PNG", pnginfo=facts)
