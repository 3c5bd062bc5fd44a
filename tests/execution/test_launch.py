"""What can be known to fail is refused before a worker starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_folders import draw_samples, reply, write_run

from medreason import config as configuration
from medreason import data
from medreason.actions import plan
from medreason.config import Config, machine
from medreason.execution import launch, prompt_notes, request
from medreason.execution.launch import Decision
from medreason.execution.request import RunRequest, run_request
from medreason.models import model_folder
from medreason.runs import integrity
from medreason.runs.outcomes import NoDataError
from medreason.runs.progress import Display
from medreason.runs.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))
from server import serving

Compose = Callable[..., Config]
SMALL = ("data.train_images=4", "data.test_images=1")


def med_r1(folder: Path, rows: int = 12) -> list[str]:
    """Overrides for a small file of our own, which has no explanations."""
    folder.mkdir(exist_ok=True)
    pairs = []
    for i in range(rows):
        Image.new("RGB", (32, 32), (i * 9, 0, 0)).save(folder / f"{i}.png")
        pairs.append(
            {
                "image": f"{i}.png",
                "problem": "What is it? A)CT, B)MRI",
                "solution": "<answer> A </answer>",
                "modality": "CT",
                "task": "Modality Recognition",
            }
        )
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return ["data=med_r1", f"data.root={folder}", "data.files=[pairs.json]"]


def test_same_configuration_plans_the_same_work(composed: Compose) -> None:
    first, second = run_request(composed(*SMALL)), run_request(composed(*SMALL))
    assert (first.train_key, first.evaluation_key) == (second.train_key, second.evaluation_key)
    assert not first.evaluation.finished


def test_more_training_images_are_another_run_and_another_prior(composed: Compose) -> None:
    four, eight = (run_request(composed(f"data.train_images={n}", SMALL[1])) for n in (4, 8))
    assert four.train_key != eight.train_key
    bases = [
        run_request(composed("method=base", f"data.train_images={n}", SMALL[1])) for n in (4, 8)
    ]
    assert bases[0].train_key == bases[1].train_key
    assert bases[0].evaluation_key != bases[1].evaluation_key


def test_a_run_folder_is_the_start_model_of_whatever_begins_from_it(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "trained"
    shutil.copytree(model_folder.EMBEDDED, run / "model")
    for method in ("method=base", "method=sft"):
        keys = {
            (request.train_key, request.evaluation_key)
            for path in (run, run / "model")
            for request in [run_request(composed(method, *SMALL, f"model.path={path}"))]
        }
        assert len(keys) == 1
    plan.run(composed("action=plan", "method=sft", *SMALL, f"model.path={run}"))
    shown = capsys.readouterr().out
    assert "1 job: 1 to do" in shown
    assert "memory of sft, tiny: about" in shown
    RunFolder(tmp_path / "unfinished").update(state="running", attempts=1)
    unfinished = composed("method=sft", *SMALL, f"model.path={tmp_path}/unfinished")
    with pytest.raises(ValueError, match="unfinished': this run is unfinished, "):
        launch.run(unfinished)


def test_a_cell_without_rows_is_told_which_cells_have_some(
    composed: Compose, tmp_path: Path
) -> None:
    words = ("method=sft", *med_r1(tmp_path / "set"), "data.split=by_image")
    with pytest.raises(NoDataError, match=r".") as caught:
        run_request(composed(*words, "modality=oct"))
    cell = "modality=ct task=modality_recognition"
    assert str(caught.value) == (
        "modality=oct task=all: 0 training samples, fewer than method.prompts_per_step=8; choose "
        f"other cells, such as {cell}: the data set has training samples of "
        "ct/modality_recognition (8)"
    )
    assert run_request(composed(*words, *cell.split())).training_samples == 8
    with pytest.raises(NoDataError, match=r".") as caught:
        run_request(composed(*words, "method.prompts_per_step=12"))
    (step,) = re.findall(r"or (method\.prompts_per_step=\d+)", str(caught.value))
    assert step == "method.prompts_per_step=8"
    assert run_request(composed(*words, step)).training_samples == 8


TAGLESS = "prompt.train=['{question} Say a letter.']"
"""No tag in what is trained on, and so in what is evaluated with."""
UNEXPLAINED = (
    "! 0 of 8 training rows have an explanation: SFT imitates the answer alone, and replies lose"
)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=grpo"], []),
        (["method=grpo", "prompt=no_think"], []),
        (["method=rarl"], []),
        (["method=sft", TAGLESS], [UNEXPLAINED]),
        (["method=sft", "prompt=no_think"], []),
        (["method=sft", "method.target=answer"], []),
        (
            ["method=grpo", TAGLESS],
            ["! reward.format asks for <think> and <answer> in a reply, and prompt=think does not"],
        ),
        (["method=grpo", TAGLESS, "reward.format.weight=0"], []),
        (
            ["method=grpo", "prompt=think_parity"],
            ["! prompt=think_parity has no template for questions without options, and asks 8 tra"],
        ),
    ],
)
def test_what_a_prompt_leaves_out_is_said_by_plan_and_training(
    composed: Compose, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    rows = [f"{i}.png,What is it {i}?,a rib" for i in range(12)]
    for i in range(12):
        Image.new("RGB", (32, 32), (i * 9, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "q.csv").write_text("\n".join(["image,question,answer", *rows]))
    own = ("data=hub", f"data.hub={tmp_path}/q.csv", "data.split=by_image")
    notes = prompt_notes.notes(composed(*overrides, *own))
    assert [note[: len(words[0])] for note in notes] == words if words else not notes


def test_training_rows_without_an_explanation_are_counted_before_sft(
    composed: Compose, tmp_path: Path
) -> None:
    rows = [f"{i}.png,What is it {i}?,a rib,train,{'It is long.' * (i == 1)}" for i in range(8)]
    for i in range(10):
        Image.new("RGB", (32, 32), (i * 9, 0, 0)).save(tmp_path / f"{i}.png")
    rows += [f"{i}.png,What is it {i}?,a rib,test," for i in (8, 9)]
    text = "\n".join(["image,question,answer,split,explanation", *rows])
    (tmp_path / "q.csv").write_text(text)
    own = ("method=sft", "data=hub", f"data.hub={tmp_path}/q.csv")
    assert prompt_notes.notes(composed(*own)) == [
        "! 1 of 8 training rows has an explanation: of the others SFT imitates the answer alone, "
        "and replies may lose their reasoning, which prompt=think asks for; add a column "
        "`explanation` to the data, or let all methods answer alike with prompt=no_think"
    ]
    (tmp_path / "all.csv").write_text(text.replace("train,\n", "train,It is.\n"))
    assert prompt_notes.notes(composed(*own, f"data.hub={tmp_path}/all.csv")) == []


@pytest.mark.parametrize("template", ["{question} \\boxed{answer}", '{question} {{"answer": 1}}'])
def test_braces_of_latex_and_json_are_no_fields(composed: Compose, template: str) -> None:
    prompt = composed().prompt
    assert replace(prompt, open=template).open == template
    with pytest.raises(ValueError, match=r"has \{options\}, which nothing replaces; the one field"):
        replace(prompt, open=f"{template} {{options}}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["modality=ct", "task=disease", "data.train_images=1"], "1 training sample, fewer than"),
        (["data.test_images=0"], "none in test; set data.test_images to 1 or more"),
        (["model.path=./nothing"], "no such folder"),
    ],
)
def test_work_that_cannot_be_done_is_refused(
    composed: Compose, overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run_request(composed(*SMALL, *overrides))


def test_reward_without_explanations_is_refused_with_the_remedy(
    composed: Compose, tmp_path: Path
) -> None:
    overrides = [*med_r1(tmp_path / "data"), "modality=ct", "hardware.per_device_prompts=1"]
    with pytest.raises(ValueError, match=r"has no explanation.*drop the score"):
        run_request(composed("method=rarl", *overrides, "method.prompts_per_step=1"))
    run_request(composed("method=grpo", *overrides, "method.prompts_per_step=1"))


def test_judge_of_a_reward_is_tried_before_a_worker_starts(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = ("method=rarl", "reward=rarl_judge", "judge=openai")
    with pytest.raises(ValueError, match=r"judge\.base_url=.* is not reached as a judge"):
        launch.run(composed(*SMALL, *asks, "judge.base_url=http://127.0.0.1:9/v1"))
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with (
        serving(key="right") as server,
        pytest.raises(ValueError, match=r"refuses the key .*OPENAI_API_KEY"),
    ):
        launch.run(composed(*SMALL, *asks, f"judge.base_url={server.url}"))
    assert sum(server.calls.values()) == 1


def test_one_row_of_one_side_is_counted_as_one(composed: Compose) -> None:
    one = next(s for s in data.samples_of(composed(*SMALL)) if s.split == "test")
    told = request._without_side("train", composed("data=hub", "data.hub=set"), [one])
    assert told.startswith("the data set has 1 row and none in train; bring its train files")
    divided = composed("data=hub", "data.hub=set", "data.split=by_image", "data.test_share=1")
    told = request._without_side("train", divided, [one])
    remedy = "data.split=by_image divides them by data.test_share=1; set another"
    assert told == f"the data set has 1 row and none in train; {remedy}"


def test_what_is_said_of_a_run_without_checkpoint_is_what_is_known() -> None:
    assert Decision.START_AGAIN.value == "started again, since it has no checkpoint"


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        ({}, Decision.START),
        ({"attempts": 1}, Decision.EVALUATE_START),
        ({"attempts": 1, "trained": True, "state": "done"}, Decision.EVALUATE_START),
    ],
)
def test_start_model_is_not_called_trained(
    composed: Compose, state: dict[str, Any], decision: Decision
) -> None:
    config = composed("method=base", *SMALL)
    request = run_request(config)
    assert launch.decide(config, request, request.folder.update(**state)) is decision
    assert Decision.EVALUATE_START.value == "start model, nothing to train"


@pytest.mark.parametrize(
    ("state", "damaged", "decision"),
    [
        ({}, False, Decision.START),
        ({"attempts": 1}, False, Decision.START_AGAIN),
        ({"attempts": 1, "checkpoint": True}, False, Decision.RESUME),
        ({"state": "failed", "attempts": 1, "checkpoint": True}, False, Decision.RESUME),
        ({"trained": True}, False, Decision.EVALUATE),
        ({"trained": True, "state": "done", "evaluated": True}, False, Decision.FINISHED),
        ({"trained": True, "evaluated": True}, False, Decision.FINISHED),
        ({"trained": True, "state": "done", "evaluated": True}, True, Decision.EVALUATE_AGAIN),
    ],
)
def test_folder_decides_what_is_left_to_do(
    composed: Compose, state: dict[str, Any], damaged: bool, decision: Decision
) -> None:
    config = composed(*SMALL)
    request = run_request(config)
    if state.pop("checkpoint", False):
        (request.folder.checkpoints / "checkpoint-5").mkdir(parents=True)
    if state.pop("evaluated", False):
        evaluation = request.folder.evaluation(request.evaluation_key)
        evaluation.mkdir(parents=True)
        for name in ("config.yaml", "data.json", "predictions.parquet", "metrics.json"):
            (evaluation / name).write_text("{}")
        integrity.seal(request.folder, request.evaluation_key)
        (evaluation / "metrics.json").write_text("" if damaged else "{}")
        state["evaluations"] = [request.evaluation_key]
    on_disk = request.folder.update(**state)
    assert launch.decide(config, request, on_disk) is decision
    assert request.folder.state() == on_disk


def test_failed_run_is_left_alone_where_that_is_asked_for(composed: Compose) -> None:
    config = composed(*SMALL, "runs.retry_failed=false")
    request = run_request(config)
    state = request.folder.update(state="failed", error="out of memory", attempts=1)
    with pytest.raises(ValueError, match=r"failed before \(out of memory\); runs\.retry_failed"):
        launch.decide(config, request, state)


def test_full_disk_is_refused_before_training(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    config = composed(*SMALL)
    with pytest.raises(ValueError, match=r"GiB free, about .* needed"):
        launch.run(config)
    assert not (config.folder / "runs").exists()


def test_a_command_for_other_hardware_leaves_no_run(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [])
    config = composed("hardware=gpu", *SMALL)
    with pytest.raises(ValueError, match="this machine has 0"):
        launch.run(config)
    assert not config.folder.exists()  # nor any drawn image


@pytest.mark.parametrize("trained", [False, True])
def test_edited_configuration_of_a_folder_is_refused_with_both_values(
    composed: Compose, *, trained: bool
) -> None:
    config = composed("method=sft", "method.trl.learning_rate=5e-5", *SMALL)
    request = run_request(config)
    edited = composed("method=sft", "method.trl.learning_rate=6e-5", *SMALL)
    folder = request.folder
    before = folder.update(attempts=1, trained=trained, sweeps={"first": ["evaluation0"]})
    configuration.write(edited, folder.config)
    with pytest.raises(
        ValueError, match=r"config\.yaml says .*learning_rate=6e-5, this command 5e-5; .*put that"
    ):
        launch.run(config)
    assert folder.state() == before


def test_evaluation_that_another_process_is_at_is_left_to_it(composed: Compose) -> None:
    config = composed(*SMALL)
    request = run_request(config)
    worker = re.escape(f"process {os.getpid()} (sweep=first)")
    with request.folder.locked("sweep=first") as descriptor:
        assert descriptor
        request.folder.update(state="running", evaluating=request.evaluation_key)
        with pytest.raises(ValueError, match=rf"worked on by {worker}; left to it"):
            launch.run(config)


def test_another_evaluation_of_a_run_waits_for_the_one_before(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    request = run_request(composed(*SMALL))
    display = Display("sft")
    with request.folder.locked("sweep=first"):
        request.folder.update(state="running", evaluating="another")
        waiting = threading.Thread(target=lambda: held.append(_held(request, display)))
        held: list[bool] = []
        waiting.start()
        waiting.join(2.5)
        assert waiting.is_alive()
    waiting.join(30)
    assert held == [True]
    awaited = f"process {os.getpid()} (sweep=first), which works on this run"
    assert capsys.readouterr().err == f"sft  waits for {awaited}\n"


def _held(request: RunRequest, display: Display) -> bool:
    with launch._hold_folder(request, display, "second") as descriptor:
        return descriptor is not None


def test_a_start_says_which_rows_of_the_table_are_not_asked_about(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,modality,label,label_group,patient_or_source_id"]
    for i in range(24):
        Image.new("RGB", (32, 32), (i * 9, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,CT,{'cyst' if i < 10 else 'tumor'},disease,")
    lines += ["1.png,CT,left,side,", "2.png,CT,rare,disease,"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = composed(
        *("method=sft", "data=labelled_images", f"data.root={tmp_path}", "data.bad_rows=skip"),
        *("data.split=by_image", "task=disease", "modality=ct", "evaluation.modalities=[ct]"),
    )
    request = run_request(config)
    request.folder.path.mkdir(parents=True)
    launch._record_start(config, request, request.state, Display("sft"))
    counts = json.loads(request.evaluation.data.read_text())["row_counts"]
    assert sum(counts.values()) == 26
    assert counts["of a group not in data.ask"] == counts["of a label too rare"] == 1
    shown = capsys.readouterr().err
    assert (
        f"sft  26 rows: {counts['train']} asked about in train, {counts['test']} in test" in shown
    )
    assert "; 4 surplus for balance; 1 of a label too rare" in shown


def test_large_images_into_the_tiny_model_are_told_of_prepare(
    composed: Compose, tmp_path: Path
) -> None:
    image = tmp_path / "large.png"
    Image.new("L", (1200, 900)).save(image)
    sample = replace(data.samples_of(composed(*SMALL))[0], image=image)
    (line,) = launch._size_note(composed(*SMALL), [sample])
    assert "1200 x 900 pixels" in line
    assert "action=prepare prepare.size=112" in line
    Image.new("L", (300, 300)).save(image)
    assert not launch._size_note(composed(*SMALL), [sample])
    assert not launch._size_note(composed(*SMALL, "model=qwen2_vl_2b"), [sample])


def test_a_finished_run_is_shown_on_a_machine_that_could_not_make_it(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [])
    config = composed("hardware=gpu", *SMALL)
    request = run_request(config)
    samples = draw_samples(tmp_path / "images", per_cell=2)
    train_key, key = request.train_key, request.evaluation_key
    run = write_run(config, samples, lambda i, s: reply("A"), key=train_key, evaluation_key=key).run
    integrity.seal(run, request.evaluation_key)
    run.update(train_key=request.train_key, train_parts=request.parts)
    again, worked = launch.run(config)
    assert (again.train_key, worked) == (request.train_key, False)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "model.safetensors: "),
        (lambda path: path.unlink(), "no weights"),
        (lambda path: shutil.rmtree(path.parent), "no such folder"),
    ],
)
def test_damaged_weights_of_a_finished_training_are_refused_before_a_worker_starts(
    composed: Compose, damage: Callable[[Path], None], words: str
) -> None:
    config = composed(*SMALL, "method=sft", "method.trl.max_steps=1")
    request = run_request(config)
    shutil.copytree(model_folder.EMBEDDED, request.folder.model)
    request.folder.update(state="done", trained=True, attempts=1)
    damage(request.folder.model / "model.safetensors")
    with pytest.raises(ValueError, match=f"{words}.*move .*{request.folder.path.name} away"):
        launch.run(config)
