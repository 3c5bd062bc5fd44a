"""What a paired test can show, said before any GPU hour is spent."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from medreason import config as configuration
from medreason import data, phantom, stats
from medreason.actions import plan
from medreason.benchmark import gpu_time
from medreason.config import Config
from medreason.data import audit, image_cache, prepared
from medreason.execution import launch
from medreason.execution.request import run_request
from medreason.execution.throughput import Throughput
from medreason.training import memory_limits

Compose = Callable[..., Config]
SMALL = ("action=plan", "method=base", "data.train_images=8", "data.test_images=12")


def power_rows(text: str) -> dict[str, list[str]]:
    """n, clusters, what can be shown and n for the wanted difference, by the first column."""
    rows = re.findall(
        r"^(all|\S+/\S+(?: and \d+ more cells?, each)?) +(\S+) +(\d+) +(\S+) +(\S+)$", text, re.M
    )
    return {name: values for name, *values in rows}


def test_plan_says_what_a_paired_test_can_show_in_each_cell(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("evaluation.modalities=[ct,mri]", "evaluation.tasks=[disease,grading]")
    plan.run(composed(*SMALL, *cells))
    shown = capsys.readouterr().out
    rows = power_rows(shown)
    assert list(rows) == ["ct/disease and 3 more cells, each", "all"]
    n, clusters, smallest, needed = rows["ct/disease and 3 more cells, each"]
    assert (n, clusters) == ("12", "6")  # two images of each drawn patient
    able = stats.power(12, 6, discordance=0.3, wanted=5, design_effect=1.2)
    assert able.smallest_difference
    assert smallest == f"{able.smallest_difference:.1f}"
    assert needed == f"{able.questions_needed:,}"
    assert rows["all"][:2] == ["48", "12"]
    assert "n for 5 points" in shown
    assumed = "on 30 % of the questions one model is right and the other wrong"
    assert f"{assumed} (statistics.discordance)" in " ".join(shown.split())


def test_plan_takes_what_is_assumed_from_the_configuration(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = ("evaluation.modalities=[ct]", "evaluation.tasks=[disease]")
    settings = (
        "statistics.discordance=0.1",
        "statistics.correlation=0",
        "statistics.difference=10",
    )
    plan.run(composed(*SMALL, *cell, *settings))
    shown = capsys.readouterr().out
    assert "n for 10 points" in shown
    needed = stats.power(12, 6, discordance=0.1, wanted=10).questions_needed
    assert power_rows(shown)["ct/disease and 1 more cell, each"][3] == f"{needed:,}"


def test_plan_says_where_clusters_are_too_few_to_show_anything(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run(composed(*SMALL[:-1], "data.test_images=2"))
    assert power_rows(capsys.readouterr().out)["ct/anatomy and 39 more cells, each"][2] == "nothing"


def test_same_test_questions_are_counted_once(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [composed(*SMALL, f"method={method}") for method in ("base", "sft")]
    plan.run_all(configs, ["base", "sft"])
    assert capsys.readouterr().out.count("can show: percent points") == 1


def test_plan_counts_every_question_of_the_controls(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 questions of four options: as they are, on a blank image, and turned three times."""
    one_cell = ("evaluation.modalities=[ct]", "evaluation.tasks=[disease]")
    controls = "evaluation.controls=[blank_image,permuted_options]"
    plan.run(composed(*SMALL, *one_cell, controls))
    assert "0 updates, 60 generations" in capsys.readouterr().out


def test_plan_prices_validations(composed: Compose) -> None:
    words = (*SMALL, "method=sft", "modality=ct", "task=disease", "method.trl.max_steps=10")
    words += ("evaluation.modalities=[ct]", "evaluation.tasks=[disease]", "data.test_images=1")
    words += ("method.prompts_per_step=1", "hardware.per_device_prompts=1")
    more = (
        "validation=transfer",
        "validation.share=0.4",
        "validation.every=4",
        "validation.questions=3",
    )

    def job(*overrides: str) -> plan.Job:
        config = composed(*words, *overrides)
        throughput = Throughput(config.folder / "runs")
        return plan._job(config, "sft", throughput, plan._Questions(), {}, 0)

    without, with_validation = job(), job(*more)
    # Three of the cell, three of others, each about a blank image too; after steps 4, 8 and 10.
    assert with_validation.generations == without.generations + 3 * 12
    assert with_validation.reason == "3 validations of 12 answers, one every 4 updates"
    by_length = job(*more, "validation.every=auto")
    assert by_length.reason == "5 validations of 12 answers, one every 2 updates"
    untested = job(*more, "runs.test=false")
    assert untested.generations == 3 * 12


def test_plan_of_a_search_is_that_of_all_its_trials(
    composed: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Throughput, "training", lambda self, config: 30.0)
    trial = composed(*SMALL, "method=sft", "method.trl.max_steps=10", "runs.test=false")
    shown = []
    for trials in (plan.Trials(1, 1), plan.Trials(7, 2)):
        plan.run_all([trial], [""], trials)
        shown.append(capsys.readouterr().out)
    kept = [float(re.findall(r"disk (\S+) MiB kept", text)[0]) for text in shown]
    assert kept[1] == pytest.approx(7 * kept[0], rel=0.02)
    assert "7 trials: 7 to do" in shown[1]
    # Four rounds of 10 updates, 30 s each.
    assert "70 updates, 0 generations, time 20 min 0 s on this machine (2 at a time" in shown[1]
    assert "with the checkpoints of 2 trainings at a time" in shown[1]


MED_R1 = ("method=grpo", "model=qwen2_vl_2b", "hardware=a100_40gb", "prompt=think")


def test_plan_of_a_release_that_is_not_here_says_what_to_buy(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    """12,567 questions of CT, 4 a step; 17,662 of all modalities, and as many on blank images."""
    configs = [
        composed(*MED_R1, "data=med_r1_modality_384", f"modality={name}") for name in ("ct", "oct")
    ]
    plan.run_all(configs, ["ct", "oct"])
    shown = capsys.readouterr().out
    assert re.search(r"ct +to do +3,141 +85,580 +est\. \S+ to \S+ h +4.2 GiB\n", shown)
    each = re.findall(r"est\. (\S+) to (\S+) h", shown)
    (both,) = re.findall(r"of 2 jobs of grpo.* A100 40 GB (\S+) to (\S+) h", shown)
    for one, all_of_it in zip(zip(*each, strict=True), both, strict=True):
        assert sum(map(float, one)) == pytest.approx(float(all_of_it), abs=0.6)
    assert shown.count("as published, since data.root is not there") == 1
    assert "jobs 0, 1: numbers" in shown
    assert "and the 4.1 GiB of weights that come from the hub; " in shown
    assert "RTX 4090 too small; A100 40 GB" in shown
    assert shown.count("is not there; to download, packed: omnimedvqa 10.0 GiB\n") == 1


def test_many_jobs_are_a_row_a_kind_on_a_terminal_alone(
    composed: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_needs_of_all", lambda kinds: [])
    words = ("data=vqa_rad", "data.root=nowhere", "model=tiny")
    configs = [
        composed(*words, f"method={method}", f"seed={seed}")
        for method in ("sft", "grpo")
        for seed in (0, 1)
    ]
    monkeypatch.setattr(plan, "_MOST_ROWS", 3)
    names = ["sft 0", "sft 1", "grpo 0", "grpo 1"]
    plan.run_all(configs, names)
    piped = capsys.readouterr().out
    assert all(name in piped for name in names)
    monkeypatch.setattr(Console, "is_terminal", True)
    plan.run_all(configs, names)
    shown = capsys.readouterr().out
    one, two = (
        int(re.findall(rf"{name} +to do +([\d,]+) ", text)[0].replace(",", ""))
        for name, text in (("grpo 1", piped), ("2 jobs of grpo, tiny", shown))
    )
    assert two == 2 * one
    assert "sft 0" not in shown
    assert "`| cat` behind the command" in shown
    total = re.compile(
        r"total: \d+ updates, .*known on this machine after a first run of each method"
    )
    assert total.findall(piped) == total.findall(shown) != []


def test_start_model_of_several_seeds_is_one_job_of_a_release_that_is_not_here(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=rarl/methods", "data.root=nowhere", "hardware=a100_40gb")
    jobs = [(method, f"seed={seed}") for method in ("base", "sft") for seed in (0, 1)]
    configs = [composed(*words, f"method={method}", seed) for method, seed in jobs]
    plan.run_all(configs, [" ".join(job) for job in jobs])
    shown = capsys.readouterr().out
    assert "4 jobs: 3 to do, 1 same run" in shown
    assert "job 1: the same run as job 0" in shown
    packed = (
        "data.root=nowhere is not there; to download, packed: slake 206.0 MiB; size unknown for "
    )
    assert f"{packed}silvar_med, vqa_rad, vqa_med_2019, path_vqa\n" in shown
    times = {
        what: [*map(float, re.findall(r"A100 40 GB (\S+) to (\S+) h", rest)[0])]
        for what, _, rest in (
            line.removeprefix("estimated time of ").partition(":")
            for line in shown.splitlines()
            if line.startswith("estimated time of ")
        )
    }
    base, sft, all_of_it = (
        times[what] for what in ("base, qwen2_vl_2b", "2 jobs of sft, qwen2_vl_2b", "all")
    )
    assert "memory of base, qwen2_vl_2b: not estimated, since nothing is trained\n" in shown
    assert "est.: estimated for A100 40 GB (hardware=a100_40gb); nothing was measured" in shown
    rows = re.findall(r"^\d +(base|sft) \S+ .*  est\. (\S+) to (\S+) h ", shown, re.M)
    assert [row[0] for row in rows] == ["base", "sft", "sft"]
    of_base, of_sft, same = ([float(low), float(high)] for _, low, high in rows)
    assert of_base == base
    assert of_sft == same
    assert [2 * hours for hours in of_sft] == pytest.approx(sft, abs=0.6)
    assert all_of_it == pytest.approx([a + b for a, b in zip(base, sft, strict=True)], abs=0.6)


@pytest.mark.parametrize(
    ("words", "releases"),
    [
        ("data=silvar_med data.root=nowhere method=rarl", "size unknown for silvar_med"),
        ("data=omnimedvqa data.root=nowhere", "omnimedvqa 10.0 GiB"),
        ("data=prepared data.root=no/omnimedvqa-384-stretch", "omnimedvqa 10.0 GiB"),
    ],
)
def test_single_set_that_is_not_here_is_planned(
    composed: Compose, capsys: pytest.CaptureFixture[str], words: str, releases: str
) -> None:
    plan.run(composed("model=tiny", *words.split()))
    shown = capsys.readouterr().out
    assert "1 job: 1 to do" in shown
    assert f"to download, packed: {releases}\n" in shown


def test_plan_without_the_place_of_the_data_says_that_none_is_needed(composed: Compose) -> None:
    with pytest.raises(
        ValueError, match=r"data.root has no value; .*plan takes one that is not there"
    ):
        composed("experiment=rarl/methods", "action=plan")


def test_time_on_gpus_falls_with_faster_and_with_more_of_them(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = []
    for hardware in ("gpu", "gpu_x2"):
        config = composed(*MED_R1[:2], "data=med_r1_modality_384", f"hardware={hardware}")
        plan.run_all([config], [""])
        line = next(x for x in capsys.readouterr().out.splitlines() if "estimated time" in x)
        for gpu in ("A100 80 GB", "H100", "H200"):
            found = re.search(rf"{gpu} (\S+) to (\S+) h", line)
            assert found
            hours.append(tuple(map(float, found.groups())))
    for first, second in ((0, 1), (1, 2), (0, 3), (1, 4)):
        assert hours[first] > hours[second]
    assert all(least < most for least, most in hours)


def test_data_that_is_unknown_or_damaged_is_refused_with_its_reason(
    composed: Compose, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in (
        "data=prepared data.root=no/mine-384-stretch",
        f"data=vqa_rad data.root={tmp_path}",
    ):
        with pytest.raises(SystemExit, match="1"):
            plan.run(composed(*words.split()))
        shown = capsys.readouterr().out
        assert "1 job: 1 refused" in shown
        assert "job 0: data.root=no/mine" in shown or f"job 0: {tmp_path}" in shown
        for empty in ("0 updates", "time", "disk 0.0"):
            assert empty not in shown.partition("job 0: ")[2]


def test_plan_names_the_command_that_makes_a_prepared_folder() -> None:
    made = prepared.to_prepare("outputs/prepared/omnimedvqa-384-stretch")
    assert made == "python -m medreason action=prepare data=omnimedvqa data.root=FOLDER"
    made = prepared.to_prepare("outputs/prepared/nodules-384-stretch")
    words = "--config-dir DIR action=prepare data=nodules data.root=FOLDER"
    assert made == f"python -m medreason {words}"
    made = prepared.to_prepare("/big/prepared/nodules-384-stretch")
    words = "--config-dir DIR action=prepare data=nodules outputs=/big data.root=FOLDER"
    assert made == f"python -m medreason {words}"
    made = prepared.to_prepare("p/slake-224-pad")
    words = "action=prepare data=slake prepare.size=224 prepare.resize=pad data.root=FOLDER"
    assert made == f"python -m medreason {words}"


@pytest.mark.parametrize(
    ("adapter", "remedy"),
    [("none", ", or choose hardware.optimizer_states=8bit or adapter=lora_r8"), ("lora_r8", "")],
)
def test_a_full_disk_is_not_advised_an_adapter_that_is_set(
    composed: Compose,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(plan, "free_bytes", lambda _: 0)
    config = composed("method=sft", f"adapter={adapter}", "data.images=none", "modality=ct")
    assert not plan.run_all([config], [""])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("does not fit: outputs=")
    assert last.endswith(f"set outputs=... to another disk{remedy}")


def test_a_gpu_that_the_printed_memory_does_not_fit_is_told_what_to_set(composed: Compose) -> None:
    words = (*MED_R1, "data=med_r1_modality_384", "adapter=lora_r8", "hardware.device_gb=80")
    words += ("method.prompts_per_step=16",)
    auto = composed(*words, "hardware.per_device_prompts=auto")
    need = gpu_time.smaller_cut(auto, [])
    (first, *_) = memory_limits.memory_lines(auto, [])
    printed = re.findall(r"about (\S+) GiB", first)[0]
    assert float(printed) * 2**30 > 24e9
    keys = "hardware.per_device_prompts=1 hardware.gradient_checkpointing=true"
    said = f"with {keys}, since {printed} GiB do not fit"
    assert need["RTX 4090"] == said
    assert "H200" not in need
    line = gpu_time.time_line("sft", {"RTX 4090": (1.6, 6.4), "H200": (1.0, 2.0)}, need)
    assert line.endswith(f": RTX 4090 1.6 to 6.4 h ({said}); H200 1.0 to 2.0 h")
    given = ("hardware.per_device_prompts=1", "hardware.gradient_checkpointing=true")
    assert gpu_time.smaller_cut(composed(*words, *given), []) == {}


def test_hours_below_one_are_minutes() -> None:
    assert gpu_time.shown((0.1, 0.7)) == "6 to 42 min"
    assert gpu_time.shown((0.09, 1.2)) == "0.09 to 1.2 h"
    hours = {"A": (0.0001, 0.004), "B": (0.001, 0.02), "C": (1.6, 6.4)}
    line = gpu_time.time_line("sft", hours)
    assert line.endswith("A under 1 min; B up to 1 min; C 1.6 to 6.4 h")


def test_images_none_opens_no_image(
    composed: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_limits, "size_of", None)
    plan.run(composed("method=sft", "model.max_pixels=12544", *SMALL[2:], "modality=ct"))
    assert "memory of sft, tiny: about" in capsys.readouterr().out


def test_no_phantom_is_drawn_where_no_run_is(
    composed: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(phantom, "draw_missing", lambda pictures, _: drawn.append(len(pictures)))
    words = ("method=sft", "validation=in_domain", "modality=ct", "data.test_images=12")
    config = composed(*words)
    plan.run(config)
    shown = capsys.readouterr().out
    assert not drawn
    assert "1 job: 1 to do" in shown
    assert "memory of sft, tiny: about" in shown
    assert power_rows(shown)["all"][:2] == ["480", "48"]  # 12 images of 6 patients, 8 modalities
    folder = config.folder / "runs/sft"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    with suppress(OSError):  # those that the double did not draw
        plan.run(config)
    assert drawn == [1248]


@pytest.mark.parametrize(
    ("state", "edit", "planned"),
    [
        ({"attempts": 1, "checkpoint": True}, "", "to resume"),
        ({"attempts": 1, "checkpoint": True}, "learning_rate", "refused"),
        ({"attempts": 1, "checkpoint": True, "state": "failed"}, "retry_failed", "refused"),
        ({"attempts": 1, "state": "failed", "error": "out of memory"}, "", "failed before"),
        ({"attempts": 1}, "", "to do"),
        ({"trained": True}, "", "to evaluate"),
        ({"trained": True, "evaluated": True}, "", "to evaluate"),  # its files are not there
    ],
)
def test_plan_says_of_a_folder_what_the_command_does_with_it(
    composed: Compose, state: dict[str, Any], edit: str, planned: str
) -> None:
    config = composed(*SMALL, "method=sft", f"runs.retry_failed={edit != 'retry_failed'}")
    request = run_request(config)
    if state.pop("checkpoint", False):
        (request.folder.checkpoints / "checkpoint-5").mkdir(parents=True)
    if state.pop("evaluated", False):
        state["evaluations"] = [request.evaluation_key]
    on_disk = request.folder.update(**state)
    typed = ["method.trl.learning_rate=0.5"] if edit == "learning_rate" else []
    written = composed(*SMALL, "method=sft", *typed)
    configuration.write(written, request.folder.config)
    throughput = Throughput(config.folder / "runs")
    job = plan._job(config, "sft", throughput, plan._Questions(), {}, 0)
    assert job.state == planned
    if planned == "refused":
        with pytest.raises(ValueError, match=re.escape(job.reason)):
            launch.decide(config, request, on_disk)


def test_models_whose_hours_are_unknown_are_named_with_the_reason(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        composed(*SMALL, "hardware=gpu", "model.path=owner/not-here", f"model.name={name}")
        for name in ("one", "two")
    ]
    plan.run_all(jobs, ["one", "two"])
    (line,) = re.findall(r"hours on GPUs of .*", capsys.readouterr().out)
    assert re.match(r"hours on GPUs of one, two unknown: \S+", line)


def test_totals_stand_last_with_the_estimate_of_all(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=rarl/methods", "data.root=nowhere", "hardware=a100_40gb")
    plan.run_all([composed(*words, f"method={m}") for m in ("sft", "grpo")], ["sft", "grpo"])
    shown = capsys.readouterr().out
    *_, jobs, work, disk = shown.splitlines()
    assert jobs == "total: 2 jobs: 2 to do"
    assert re.fullmatch(
        r"total: 400 updates, 100,530 generations, time estimated \S+ to \S+ h on A100 40 GB .*",
        work,
    )
    assert disk.startswith("total: disk ")
    (all_of_it,) = re.findall(r"estimated time of all: .* A100 40 GB (\S+ to \S+ h)", shown)
    assert f"time estimated {all_of_it} on" in work
    assert "unknown on this machine" not in shown


def test_generations_and_unlike_updates_are_explained(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, "evaluation.controls=[blank_image]", "method.trl.num_train_epochs=1")
    words += ("modality=ct", "method.trl.max_steps=-1")
    sizes = (("sft", "8"), ("grpo", "4"))
    configs = [composed(*words, f"method={m}", f"method.prompts_per_step={n}") for m, n in sizes]
    sft, grpo = (config.method.prompts_per_step for config in configs)
    plan.run_all(configs, ["sft", "grpo"])
    shown = capsys.readouterr().out
    assert (
        "960 generations of an evaluation: 480 questions x 2, as they are and under blank_image\n"
        in shown
    )
    completions = configs[1].method.num_generations
    updates = 40 // grpo
    assert (
        f"{updates * grpo * completions:,} generations of a training with grpo: {updates} updates "
        f"x {grpo} questions x {completions} completions\n"
    ) in shown
    assert (
        "updates differ, since an update takes other numbers of questions "
        f"(method.prompts_per_step): sft {sft}, grpo {grpo}\n"
    ) in shown


def test_profile_without_a_gpu_says_which_key_gives_an_estimate(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*MED_R1[:2], "data=med_r1_modality_384", "hardware=gpu")
    plan.run_all([composed(*words)], [""])
    told = (
        "hardware=gpu names no GPU; hardware.device_gb=... gives an estimate: 24 for RTX 4090; 40 "
    )
    assert told in capsys.readouterr().out
    plan.run_all([composed(*words, "hardware.device_gb=80")], [""])
    shown = capsys.readouterr().out
    assert "est.: estimated for A100 80 GB or H100 (hardware=gpu); nothing was measured" in shown
    (low, high), *_ = re.findall(r"est\. (\S+) to (\S+) h", shown)
    (slow,) = re.findall(r"A100 80 GB \S+ to (\S+) h", shown)
    (fast,) = re.findall(r"H100 (\S+) to \S+ h;", shown)
    assert (low, high) == (fast, slow)


def test_time_is_split_into_training_and_evaluation(
    composed: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Throughput, "training", lambda self, config: 30.0)
    monkeypatch.setattr(Throughput, "evaluation", lambda self, config: 2.0)
    words = (*SMALL, "method=sft", "method.trl.max_steps=10", "evaluation.modalities=[ct]")
    config = composed(*words, "evaluation.tasks=[disease]", "evaluation.controls=[]")
    plan.run_all([config], [""])
    measured = "time 5 min 24 s on this machine (training 5 min 0 s, evaluation 24 s)\n"
    assert measured in capsys.readouterr().out
    plan.run_all([config, composed(*words[:2], *words[3:], "method=base")], ["sft", "base"])
    assert ", evaluation " in capsys.readouterr().out


def test_estimated_time_is_split_and_says_how_long_replies_are_taken_to_be(
    composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*MED_R1[1:], "data=med_r1_modality_384", "modality=ct")
    config = composed(*words, "method=grpo")
    plan.run_all([config], [""])
    shown = capsys.readouterr().out
    (times,) = re.findall(
        r"time estimated (\S+) to (\S+) h on A100 40 GB \(training (\S+) to (\S+) h, "
        r"evaluation (\S+) to (\S+) h\)\n",
        shown,
    )
    low, high, *parts = map(float, times)
    assert parts[0] + parts[2] == pytest.approx(low, abs=0.16)
    assert parts[1] + parts[3] == pytest.approx(high, abs=0.16)
    length = config.method.trl["max_completion_length"]
    assert (
        f"assume: {config.evaluation.max_new_tokens} in evaluation (evaluation.max_new_tokens), "
        f"{length // 2} to {length} in a GRPO training (method.trl.max_completion_length)\n"
    ) in shown
    plan.run_all([composed(*words, "method=base")], [""])
    shown = capsys.readouterr().out
    assert "in evaluation (evaluation.max_new_tokens)\n" in shown
    assert not re.search("time .*training", shown)


def own_questions(root: Path) -> Path:
    """A table of nine questions; the last one, of the test, is about a patient of train and about
    a copy of an image of train."""
    rows = ["image,question,option_A,option_B,answer,modality,task,patient,split"]
    for i in range(9):
        Image.new("L", (16, 16), 20 * (i % 8)).save(root / f"{i}.png")
        side = "test" if i == 8 else "train"
        row = f"{i}.png,Which is {i}?,normal,fracture,A,X-ray,disease,p{min(i, 7)},{side}"
        rows.append(row)
    (root / "questions.csv").write_text("\n".join(rows))
    return root / "questions.csv"


def test_plan_prints_the_lines_about_leaks_of_the_training_once_a_data_set(
    composed: Compose, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("data=hub", f"data.hub={own_questions(tmp_path)}", "method.prompts_per_step=4")
    configs = [composed(*words, f"method={method}") for method in ("sft", "grpo")]
    plan.run_all(configs, ["sft", "grpo"])
    shown = capsys.readouterr().out.splitlines()
    remedy = "correct the column 'split', whose split this is"
    of_images = f"! 1 test question about 1 image of train, by content; {remedy}"
    of_patients = f"! 1 patient in both train and test; {remedy}"
    assert [line for line in shown if line.startswith("! 1 ")] == [of_images, of_patients]
    samples = data.samples_of(configs[0])
    train, test = data.trained_on(configs[0], samples), data.tested_on(configs[0], samples)
    digests = data.image_digests(configs[0].data, tmp_path / "outputs/cache", samples)
    columns = data.split_columns(configs[0])
    facts = audit.audit_run(train, test, "", digests, {}, split_columns=columns)
    assert [f"! {leak}" for leak in facts["leaks"]] == [of_images, of_patients]


def test_plan_reads_no_image_to_find_leaks(
    composed: Compose,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = own_questions(tmp_path)
    file.write_text(file.read_text().replace("8.png", "0.png"))
    words = ("data=hub", f"data.hub={file}", "method=sft", "method.prompts_per_step=4")
    monkeypatch.setattr(image_cache, "_keep", lambda *_: None)
    plan.run(composed(*words))
    assert "! 1 test question about 1 image of train, by path; " in capsys.readouterr().out
