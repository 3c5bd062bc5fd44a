"""Every command that a README shows is run, small: `pytest -m slow tests/test_readme_runs.py`.

What a command reads lies where it looks for it: phantoms laid out as the releases, tables as the
READMEs show them, a trained run. Of what is not run here `ELSEWHERE` says why, and what runs it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import commands
import pytest
from PIL import Image
from test_readme import ROOT, SHOWN

from medreason.actions import rehearse
from medreason.data import phantom_releases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TRAINING = (
    *("model=tiny", "hardware=cpu", "hardware.threads=1", "tracking=none", "seed=0"),
    *("++method.trl.max_steps=1", "method.prompts_per_step=2", "hardware.per_device_prompts=2"),
    *("evaluation.samples_per_cell=1", "evaluation.max_new_tokens=4"),
    *(
        "validation.questions=4",
        "validation.max_new_tokens=4",
        "validation.share=0.3",
        "validation.every=1",
    ),
)
GRPO = ("method.trl.max_completion_length=8", "method.trl.num_generations=2")
PHANTOMS = ("data.train_images=8", "data.test_images=1")
ELSEWHERE = {
    r"launcher=submitit_slurm": ("needs Slurm", "experiments/clusters/slurm.sh"),
    r"endpoint\.base_url": ("asks a server", "tests/evaluation/test_endpoint_answers.py"),
    r"judge=openai": ("asks a server", "tests/actions/test_judge.py"),
    r"experiment=(med_r1|rarl)/": ("a recipe of a paper", "tests/actions/test_rehearse.py"),
    r"action=rehearse": ("hours of all recipes", "tests/actions/test_rehearse.py"),
    r"data.hub=owner/name": ("needs the hub", "tests/data/test_hub.py"),
    r"bench\.what=drafts": ("reads a run's replies", "tests/benchmark/test_decoding_speed.py"),
    r"bench\.what=memory": ("minutes alone", "tests/benchmark/test_memory.py"),
    r"model\.weights=random": ("needs a GPU", "experiments/benchmarks/gpu.sh"),
    r"medvqa_mini": ("a set that is not public", "tests/data/test_labelled_images.py"),
    r"sweep=validation ": ("hours of 36 trainings", "experiments/validation/choose.py"),
    r"seed=range\(0,1000\)": ("a thousand cells", "tests/finished_cells.py"),
    r"export.to=ADAPTER": ("needs an adapter", "tests/actions/test_export_and_predict.py"),
    r"adapter=qlora|hardware\.memory_limit_gb": ("needs a GPU", "tests/config/test_machine.py"),
}
"""What is not run here: why, and what runs it."""
PLACES = {
    "outputs/runs/NAME": "outputs/runs/shown",
    **dict.fromkeys(("sweep=NAME", "sweep=med_r1_cross_modality", "sweep=rarl_methods"), "sweep=s"),
}


def elsewhere(command: Sequence[str]) -> str | None:
    return next((shape for shape in ELSEWHERE if re.search(shape, " ".join(command))), None)


def small(command: Sequence[str]) -> list[str]:
    """The command with the place of a run in it, few updates and few questions."""
    words = [re.sub("|".join(PLACES), lambda m: PLACES[m[0]], word) for word in command]
    actions = [word for word in words if word.startswith("action=")]
    if "action=prepare" in actions:
        words.append("prepare.save_to_disk=true")  # a command after it reads that
    if "data.columns.question=text" in words:  # where the table and its images have other names
        words = ["data.hub=mydata/asked.csv" if w.startswith("data.hub=") else w for w in words]
    if actions and actions != ["action=train"]:
        return [*words, *(["tracking=none"] if "tracking" not in " ".join(words) else [])]
    others = ("method=base", "method=sft", "-m", "experiment=")
    extra = [*TRAINING, *(GRPO if not any(w.startswith(others) for w in words) else ())]
    extra += [] if any(word.startswith("data=") for word in words) else PHANTOMS
    if "experiment=smoke/transfer" in words:  # of eight
        extra.append("modality=ct,mri")
    if "validation" not in " ".join(words):
        extra = [word for word in extra if not word.startswith("validation.")]
    replaced = {word.lstrip("+").partition("=")[0] for word in extra}
    if "method.trl.learning_rate" in " ".join(words) or "prompt=think,no_think" in words:
        extra += ["hydra/launcher=joblib_x2"]
    return [*(w for w in words if w.lstrip("+").partition("=")[0] not in replaced), *extra]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are typed."""
    path = tmp_path_factory.mktemp("typed")
    samples = phantom_releases.samples(path / "cache", 8, 2)
    phantom_releases.write_omnimedvqa(path / "OmniMedVQA", samples)
    radiology = [sample for sample in samples if sample.modality in ("ct", "mri", "xray")]
    phantom_releases.write_slake(path / "SLAKE", radiology)
    phantom_releases.write_silvar_med(path / "Silvar-Med", radiology)
    phantom_releases.write_silvar_med(path / "silvar", radiology)
    (path / "silvar/train.json").rename(path / "silvar/all.json")
    text = (path / "silvar/all.json").read_text().replace('"image"', '"img_name"')
    (path / "silvar/all.json").write_text(text)
    write_tables(path / "mydata")
    shutil.copy(path / "mydata/images/1.png", path / "a.png")
    return path


def write_tables(mydata: Path) -> None:
    """The tables of medreason/data/README.md, longer."""
    (mydata / "images").mkdir(parents=True)
    questions = ["image,question,option_A,option_B,answer,modality,task,patient"]
    asked = ["image,text,answer"]
    labels = ["image,modality,label,label_group,patient_or_source_id"]
    for i in range(1, 49):
        Image.effect_noise((40, 40), 20 + i).save(mydata / f"images/{i}.png")
        questions.append(f"images/{i}.png,Which is shown?,Lung,Heart,Lung,X-ray,anatomy,p{i // 2}")
        asked.append(f"{i}.png,Is there a fracture?,{'yes' if i % 2 else 'no'}")
        label = ("pneumonia", "normal", "glioma", "meningioma")[i % 2 + 2 * (i > 24)]
        group = "disease" if i <= 24 else "tumour type"
        labels.append(f"images/{i}.png,X-ray,{label},{group},p{i // 2}")
    (mydata / "questions.csv").write_text("\n".join(questions))
    (mydata / "asked.csv").write_text("\n".join(asked))
    (mydata / "labels.csv").write_text("\n".join(labels))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run that stands for the NAME of the READMEs."""
    cell = ("method=grpo", "modality=ct", "task=disease", "sweep=s")
    small_run = (*TRAINING, *GRPO, *PHANTOMS, *cell)
    small_run = [word for word in small_run if not word.startswith("validation.")]
    done = commands.medreason(*small_run, cwd=folder)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "outputs/runs").glob("grpo-*")
    (folder / "outputs/runs/shown").symlink_to(run.name)
    return folder


def pages() -> Iterator[tuple[str, list[list[str]]]]:
    for page in dict.fromkeys(page for page, _ in SHOWN):
        shown = [command for other, command in SHOWN if other == page and not elsewhere(command)]
        if shown:
            yield page, shown


@pytest.mark.parametrize(("page", "shown"), pages(), ids=lambda value: str(value)[:40])
def test_commands_of_a_page_run_to_their_end(
    page: str, shown: list[list[str]], trained: Path
) -> None:
    failed = []
    for command in shown:
        searches = any(w in ("experiment=smoke/search", "hydra/sweeper=search") for w in command)
        if (searches or "sweep=rates" in command) and not find_spec("optuna"):
            continue  # tests/sweeps/test_search.py runs it where the extra `search` is installed
        done = commands.medreason(*small(command), cwd=trained)
        if done.returncode or "Traceback" in done.stderr:
            failed.append(f"{' '.join(small(command))}: {done.stderr[-1500:]}")
    assert not failed, "\n".join(failed)


def test_what_runs_elsewhere_is_shown_and_there() -> None:
    for shape, (_, place) in ELSEWHERE.items():
        assert (ROOT / place).exists(), place
        assert any(re.search(shape, " ".join(command)) for _, command in SHOWN), shape
    assert "med_r1/zero_shot" in rehearse.every_recipe()
