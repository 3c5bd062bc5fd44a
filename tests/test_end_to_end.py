"""The main job by the real entry point: tiny model, phantoms, CPU, a worker process, MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
import torch
from mlflow import MlflowClient
from peft import PeftModel
from PIL import Image
from processes import wait_until_gone
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from medreason.evaluation import predictions
from medreason.models.model_folder import EMBEDDED
from medreason.runs.run_folder import RunFolder, run_folders

SMALL = (
    "data.train_images=4",
    "data.test_images=1",
    "evaluation.max_new_tokens=32",
    "evaluation.modalities=[ct,oct]",
    "modality=ct",
    "hardware.per_device_prompts=4",
    "method.prompts_per_step=4",
    "hardware.threads=1",  # tests use all cores already
)
TRAINED = (*SMALL, "method.trl.max_steps=2", "method.trl.learning_rate=1e-4")
SAMPLED = (
    *("method.trl.num_generations=4", "method.trl.max_completion_length=32"),
    "method.trl.scale_rewards=none",
)


def medreason(folder: Path, *arguments: str, status: int = 0) -> str:
    """What the command prints, run in `folder`."""
    done = commands.medreason(*arguments, cwd=folder)
    assert done.returncode == status, done.stdout + done.stderr + logs(folder)
    return done.stdout + done.stderr


def logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in folder.rglob("train.log"))


def only_run(folder: Path, method: str) -> RunFolder:
    (found,) = (f for f in run_folders(folder / "outputs/runs") if f.path.name.startswith(method))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which base, SFT, GRPO and RARL were run for two steps, as one sweep."""
    folder = tmp_path_factory.mktemp("runs")
    typed = [sys.executable, "-m", "medreason", "-m", "method=base,sft", *TRAINED]
    subprocess.run(typed, cwd=folder, check=True, capture_output=True)
    medreason(folder, "-m", "method=grpo,rarl", *TRAINED, *SAMPLED)
    return folder


@pytest.mark.parametrize("method", ["base", "sft", "grpo", "rarl"])
def test_run_leaves_predictions_and_figures_of_every_cell(place: Path, method: str) -> None:
    run = only_run(place, method)
    state = run.state()
    assert state.state == "done"
    (key,) = state.evaluations
    figures = predictions.load_metrics(run.evaluation(key))
    assert set(figures["cells"]) == {
        f"{m}/{t}"
        for m in ("ct", "oct")
        for t in ("anatomy", "disease", "grading", "modality_recognition", "attributes")
    }
    rows = predictions.read(run.evaluation(key) / "predictions.parquet")
    assert len(rows) == 2 * figures["overall"]["n"] == 20
    assert {row.control for row in rows} == {"original", "blank_image"}
    assert figures["overall"]["parsed"] > 0.5
    assert figures["overall"]["prior"] is not None
    environment = json.loads(run.environment.read_text())
    assert environment["packages"]["trl"] == "1.16.0"


def test_an_audit_with_the_options_of_a_run_shows_the_digests_that_the_run_records(
    place: Path, tmp_path: Path
) -> None:
    shown = medreason(tmp_path, "action=audit", "method=sft", *TRAINED, "tracking=none")
    run = only_run(place, "sft")
    (key,) = run.state().evaluations
    recorded = {
        "data.json": json.loads((run.evaluation(key) / "data.json").read_text())["digest"],
        "state.json": run.state().train_parts["data"],
    }
    (written,) = tmp_path.glob("outputs/runs/audit-phantom-*/audit.json")
    audited = json.loads(written.read_text())
    assert audited["run_digests"] == recorded
    assert f"{recorded['data.json']} in data.json (its training and test rows)" in shown
    assert f"{recorded['state.json']} in state.json and the model card" in shown
    assert audited["digest"] not in recorded.values()


def test_a_worker_does_not_log_which_kernels_bitsandbytes_lacks(place: Path) -> None:
    # That of the first run holds what the server of the worker has written at its imports.
    log = only_run(place, "base").log.read_text()
    assert "gemm_4bit" not in log


@pytest.mark.parametrize("method", ["sft", "grpo", "rarl"])
def test_training_logs_each_step_and_moves_the_weights(place: Path, method: str) -> None:
    run = only_run(place, method)
    rows = run.logged()
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] is not None for row in rows)
    assert run.state().first_update["trained"] > 0
    if method != "sft":
        names = {"grpo": ("correct", "format"), "rarl": ("format", "answer", "reasoning")}[method]
        assert all(f"rewards/{name}/mean" in rows[0] for name in names)
        assert list(run.rollouts.glob("*.parquet"))


def test_saved_models_answer_with_nothing_of_ours(place: Path) -> None:
    program = """
import sys
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
content = [{"type": "image"}, {"type": "text", "text": "Which? A)x, B)y"}]
turns = [{"role": "user", "content": content}]
for saved in sys.argv[1:]:
    model = Qwen2VLForConditionalGeneration.from_pretrained(saved)
    processor = AutoProcessor.from_pretrained(saved)
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (200, 150))], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    reply = output[:, inputs["input_ids"].shape[1]:]
    print(processor.batch_decode(reply, skip_special_tokens=True))
assert not any(name.split(".")[0] == "medreason" for name in sys.modules)
"""
    saved = [only_run(place, method).model for method in ("sft", "grpo")]
    subprocess.run([sys.executable, "-c", program, *saved], check=True, capture_output=True)


def test_every_weight_of_full_training_moved(place: Path) -> None:
    start = load_file(EMBEDDED / "model.safetensors")
    trained = load_file(only_run(place, "sft").model / "model.safetensors")
    still = [n for n, value in start.items() if torch.equal(value.float(), trained[n].float())]
    assert still == []


def test_adapter_loads_with_peft_and_changes_the_model(place: Path) -> None:
    saved = only_run(place, "rarl").model
    assert not (saved / "model.safetensors").exists()
    base = Qwen2VLForConditionalGeneration.from_pretrained(EMBEDDED, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(saved)
    model = PeftModel.from_pretrained(base, saved).eval()
    turns = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "Which? A)x, B)y"}],
        }
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (112, 112))], return_tensors="pt")
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            plain = model(**inputs).logits
    assert not torch.equal(adapted, plain)


def test_same_command_again_is_skipped_and_shows_the_result(place: Path) -> None:
    before = only_run(place, "sft").path.joinpath("state.json").stat().st_mtime_ns
    printed = medreason(place, "method=sft", *TRAINED)
    assert "already finished, using stored results" in printed
    assert only_run(place, "sft").path.joinpath("state.json").stat().st_mtime_ns == before


def test_other_evaluation_uses_the_trained_weights(place: Path) -> None:
    run = only_run(place, "sft")
    weights = (run.model / "model.safetensors").stat().st_mtime_ns
    medreason(place, "method=sft", *TRAINED, "evaluation.tasks=[disease]", "evaluation.controls=[]")
    assert len(only_run(place, "sft").state().evaluations) == 2
    assert (run.model / "model.safetensors").stat().st_mtime_ns == weights


def test_folder_edited_after_it_was_finished_is_refused_with_both_values(place: Path) -> None:
    run = only_run(place, "grpo")
    original = (run.path / "state.json").read_text()
    edited = json.loads(original)
    edited["train_parts"]["method"]["trl"]["beta"] = 0.5
    (run.path / "state.json").write_text(json.dumps(edited))
    printed = medreason(place, "method=grpo", *TRAINED, *SAMPLED, status=1)
    (run.path / "state.json").write_text(original)
    assert "method.trl.beta=0.5" in printed
    assert "0.04" in printed


def test_mlflow_shows_parent_and_children_with_params_metrics_and_tables(place: Path) -> None:
    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("medreason")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags.get("medreason.kind") == "sweep")
    children = {run.data.tags["medreason.method"]: run for run in runs if run is not parent}
    assert set(children) == {"base", "sft", "grpo", "rarl"}
    for method, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.params["medreason.modality.ct"] == "True"
        assert run.data.tags["medreason.modality"] == ("none" if method == "base" else "ct")
        assert "test/accuracy/ct-disease" in run.data.metrics
        update = only_run(place, method).state().first_update
        assert run.data.metrics.get("first_update/trained") == update.get("trained")
        assert run.inputs.dataset_inputs
        names = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"accuracy.png", "config.yaml", "environment.json"} <= names
        assert any(name.startswith("predictions-") for name in names)
    history = client.get_metric_history(children["grpo"].info.run_id, "curves/reward")
    assert [point.step for point in history] == [1, 2]


def test_lost_tracking_database_is_rebuilt_from_the_folders(place: Path) -> None:
    (place / "outputs/mlflow.db").unlink()
    medreason(place, "action=report", "tracking.resync=true")
    # A copy: in this process MLflow still holds the file that was deleted.
    shutil.copy(place / "outputs/mlflow.db", place / "rebuilt.db")
    client = MlflowClient(f"sqlite:///{place}/rebuilt.db")
    experiment = client.get_experiment_by_name("medreason")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    pairs = [
        run for f in run_folders(place / "outputs/runs") for run in f.state().mlflow_runs.values()
    ]
    assert {names[run] for run in pairs} == {
        *("base", "grpo", "rarl", "sft tasks=all controls=['blank_image']"),
        "sft tasks=['disease'] controls=[]",
    }
    assert sorted(names.values()) == sorted(["runs", *(names[run] for run in pairs)])
    assert len(pairs) == 5  # SFT was evaluated twice
    assert all(run.info.status == "FINISHED" for run in runs)
    (grpo,) = (run for run in runs if run.data.tags.get("medreason.method") == "grpo")
    assert grpo.data.metrics["curves/step"] == 2


def test_unreachable_tracking_server_costs_nothing_but_the_view(tmp_path: Path) -> None:
    medreason(tmp_path, "method=base", *SMALL, "tracking=server", "tracking.uri=http://127.0.0.1:9")
    run = only_run(tmp_path, "base")
    assert run.state().state == "done"
    assert not run.state().synced
    assert "not reached" in run.log.read_text()
    medreason(tmp_path, "action=report", "tracking.resync=true", "tracking=local")
    assert run.state().synced


def test_killed_training_resumes_from_its_checkpoint_in_the_same_mlflow_run(tmp_path: Path) -> None:
    arguments = [
        *("method=sft", *SMALL, "method.trl.max_steps=16", "runs.checkpoint_steps=2"),
        "evaluation.controls=[]",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "medreason", *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    runs = tmp_path / "outputs/runs"
    deadline = time.monotonic() + 300  # a busy machine is slow to its first step
    while not list(runs.glob("*/checkpoints/checkpoint-4")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = only_run(tmp_path, "sft")
    first = run.state().mlflow_runs
    assert run.state().state == "running"
    wait_until_gone(tmp_path)
    printed = medreason(tmp_path, *arguments)
    assert "resumed" in printed
    state = run.state()
    assert (state.state, state.attempts, state.mlflow_runs) == ("done", 2, first)
    assert [row["step"] for row in run.logged()] == list(range(1, 17))
    (mlflow_run,) = first.values()
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    assert client.get_run(mlflow_run).info.run_name == "sft"  # as its table has it


def test_single_runs_are_named_in_mlflow_as_the_rows_of_their_sweeps_tables(
    place: Path, tmp_path: Path
) -> None:
    medreason(place, "method=sft", *TRAINED, "evaluation.tasks=[anatomy]", "evaluation.controls=[]")
    # A copy: in this process MLflow may still hold a file of this name that was deleted.
    copied = shutil.copy(place / "outputs/mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{copied}")
    pairs = only_run(place, "sft").state().mlflow_runs
    names = sorted(str(client.get_run(run_id).info.run_name) for run_id in pairs.values())
    assert len(names) == 3
    assert "sft tasks=['anatomy'] controls=[]" in names
