"""`action=rehearse`: run a paper's recipe to its end with the tiny model on phantoms, in minutes.

The phantoms lie on disk as the releases do, so that the readers of the real data read them. Each
step is an ordinary command in a process of its own: prepare, audit, the recipe, its report.
"""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from medreason.config import CONF, options
from medreason.console import command, install_command, notice, outputs_word, show
from medreason.data import phantom_releases
from medreason.models.model_folder import EMBEDDED
from medreason.runs.progress import duration

_REHEARSED = ("med_r1/", "rarl/")
"""How the names of recipes begin that are of a paper, and can be rehearsed."""
_FAMILIES = ("med_r1_modality", "med_r1_question_type")
_SMALL = (
    *("model=tiny", "hardware=cpu", "hardware.threads=1", "hydra/launcher=joblib_x2"),
    *("runs.show_table=false", "runs.checkpoint_steps=2"),
    *("method.trl.max_steps=2", "method.prompts_per_step=4", "hardware.per_device_prompts=4"),
    *("evaluation.max_new_tokens=40", "evaluation.controls=[blank_image]"),
    *("validation.max_new_tokens=40", "validation.questions=8", "validation.share=0.3"),
)
"""Overrides that make any recipe small; what the recipe is about stays."""
_OWN = {
    "med_r1/low_data": ("validation.every=1", "method.trl.max_completion_length=40"),
    "med_r1/matrix": ("training_set=ct,xray", "task=disease,grading"),
    "med_r1/released": ("model.path=DATA/Med-R1/${model.name}",),
    "rarl/data_size": ("data.train_rows=8,16,1000",),
    "rarl/search": ("validation.every=1", "hydra.sweeper.n_trials=2"),
}
"""What else a recipe needs, or would take too long by."""


class Step(NamedTuple):
    name: str
    words: list[str]
    """Of the command line."""


def run(overrides: Sequence[str]) -> None:
    """Rehearse the recipes that `experiment=` names, else all of both papers.

    Other overrides are those of the recipe's own command, and win. Exits with 1 where one failed.
    """
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("experiment=")]
    recipes = chosen[-1].split(",") if chosen else every_recipe()
    others = [o for o in overrides if not o.startswith(("experiment=", "outputs="))]
    outputs = next((o.partition("=")[2] for o in overrides if o.startswith("outputs=")), "outputs")
    folder = Path(outputs) / "rehearsal"
    problems = {recipe: reason for recipe in recipes if (reason := obstacle(recipe, outputs))}
    if chosen and problems:
        raise ValueError(next(iter(problems.values())))
    write_data(folder)
    done: set[str] = set()
    started, failed = time.monotonic(), []
    for recipe in recipes:
        if recipe in problems:
            notice(f"{recipe}: not rehearsed: {problems[recipe]}")
        elif not _rehearse(recipe, folder, others, done):
            failed.append(recipe)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    show(
        f"{len(recipes) - len(problems) - len(failed)} of {len(recipes)} recipes rehearsed in "
        f"{duration(time.monotonic() - started)} ({duration(cpu.ru_utime + cpu.ru_stime)} of CPU); "
        f"reports in {folder / 'reports'}"
    )
    if failed:
        sys.exit(f"medreason: failed: {', '.join(failed)}")


def every_recipe() -> list[str]:
    """The recipes of both papers."""
    known = options.options([CONF])["experiment"]
    return [name for name in known if name.startswith(_REHEARSED)]


def obstacle(recipe: str, outputs: str = "outputs") -> str:
    """Why a recipe cannot be rehearsed, and what to do; empty where it can."""
    if not recipe.startswith(_REHEARSED):
        return (
            f"experiment={recipe} is not of a paper, so there is no release to draw for it; recipes"
            f" of smoke/ are small as they are: "
            f"{command([f'experiment={recipe}', *outputs_word(outputs)])}. "
            f"Those that can be rehearsed: {', '.join(every_recipe())}"
        )
    if recipe == "rarl/search" and not find_spec("optuna"):
        return f"experiment={recipe} needs the extra `search`: {install_command('search')}"
    return ""


def write_data(folder: Path, train_images: int = 8, test_images: int = 2) -> None:
    """Draw phantoms, so many images of each modality, and lay them out as the releases; link the
    tiny model as each of the 13 released ones."""
    data = folder / "data"
    if (data / "written").exists():
        return
    samples = phantom_releases.samples(folder / "cache", train_images, test_images)
    phantom_releases.write_omnimedvqa(data / "OmniMedVQA", samples)
    phantom_releases.write_rarl(data / "rarl", samples)
    for option in (CONF / "training_set").glob("*.yaml"):
        if name := OmegaConf.select(OmegaConf.load(option), "training_set"):
            released = data / "Med-R1" / f"VQA_{name}"
            released.parent.mkdir(exist_ok=True)
            released.symlink_to(EMBEDDED, target_is_directory=True)
    (data / "written").touch()


def _rehearse(recipe: str, folder: Path, others: Sequence[str], done: set[str]) -> bool:
    """Whether all steps of a recipe ended well; those in `done` are not repeated."""
    log = folder / "logs" / f"{recipe.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as file:
        for step in steps(recipe, folder, others):
            if step.name in done:
                continue
            typed = [sys.executable, "-m", "medreason", *step.words]
            file.write(f"{shlex.join(typed)}\n")
            file.flush()
            if subprocess.run(typed, stdout=file, stderr=file, check=False).returncode:
                notice(f"{recipe}: failed at {step.name}; see {log}. To try again:")
                notice(f"  {command(step.words)}")
                return False
            done.add(step.name)
    notice(f"{recipe}: rehearsed in {duration(time.monotonic() - started)}")
    return True


def steps(recipe: str, folder: Path, others: Sequence[str] = ()) -> Iterator[Step]:
    """The commands of a rehearsal, in their order; `others` are overrides that win."""
    data, common = folder / "data", (f"outputs={folder}", "tracking=none")
    if recipe.startswith("med_r1/"):
        root = f"data.root={data / 'OmniMedVQA'}"
        for family in _FAMILIES:
            for action in ("audit", "prepare"):
                words = [f"action={action}", f"data={family}", root, *common]
                yield Step(f"{action} {family}", words)
        own: list[str] = []
    else:
        own = [f"data.root={data / 'rarl'}"]
        yield Step("audit rarl", ["action=audit", "data=rarl", *own, *common])
    own += [word.replace("DATA", str(data)) for word in _OWN.get(recipe, ())]
    words = [f"experiment={recipe}", *common, *_SMALL, *own, *others]
    yield Step(recipe, words)
    yield Step(f"report of {recipe}", [*words, "action=report"])
