"""Fifty wrong inputs at the command line: each ends in a message with its remedy, no traceback."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import commands
import pytest
from PIL import Image

OWN = """
import json
from medreason.data import rows

def one(reply): return 1.0
def nothing(reply, sample): return None
def zero(root): yield 1 / 0
def other(root): yield {"image": "a.png"}
def none(root): return None
def lines(root): yield from rows.each("q.jsonl", map(json.loads, ["{}", "{"]), lambda id, row: 1)
def three(completion, answer, extra): return 1.0
value = 3
"""
TABLE = "data=labelled_images data.root=mydata action=audit"
QUESTIONS = "data=hub action=audit"
READER = "--config-dir my action=audit data=mine data._target_=own."
REWARD = "--config-dir my action=plan data=labelled_images data.root=mydata reward=own"
PREDICT = "action=predict predict.image=mydata/0.png"

# What is typed, and a part of the message; of another line the words are split at spaces.
WRONG: list[tuple[str | list[str], str]] = [
    ("methd=grpo", "did you mean method?"),
    ("method=ppo", "known: 'base', 'grpo'"),
    ("method.trl.lr=1", "did you mean method.trl.learning_rate?"),
    ("method.trl.learning_rate=abc", "takes a number"),
    ("method.trl.eval_strategy=steps", "leave it out and set validation=in_domain"),
    ("method.trl.per_device_train_batch_size=4", "set hardware.per_device_prompts"),
    ("method.trl.max_prompt_length=3", "prompts are never cut: leave it out"),
    ("method.trl.kl_coef=1", "did you mean method.trl.beta?"),
    ("method.trl.group_size=4", "did you mean method.trl.num_generations?"),
    (
        "data=hub data.hub=mydata/questions.csv data.validation=published",
        "set validation=in_domain validation.source=published",
    ),
    ("model.precision=bfloat16", "did you mean hardware.precision?"),
    ("adapter=lora", "did you mean 'lora_all' or 'lora_r8'?"),
    ("modality=CT", "did you mean 'ct'?"),
    ("data=my/questions.csv", "a table of questions is data=hub data.hub=my/questions.csv"),
    ("model.path=Qwen/Qwen2-VL-2B-Instruct", "type model=qwen2_vl_2b in its place"),
    ("runs.test=ja", "runs.test=ja; it takes true or false"),
    ("evaluation.controls=blank", "type evaluation.controls=[blank]"),
    ("seed=abc", "seed=abc; it takes a whole number"),
    ("help", "did you mean --help?"),
    ("--config my.yaml", "--config-dir DIR experiment=NAME"),
    ("--lr 1e-5", "did you mean, without dashes, method.trl.learning_rate?"),
    ("seed", "the word 'seed' stands alone: type key=value or group=option, and put quotes"),
    ("plan", "stands alone: type key=value or group=option; did you mean action=plan?"),
    ("model=some/folder", "a folder or hub id is model.path=some/folder, beside the model"),
    ("--hlep", "--hlep: no such flag; did you mean --help?"),
    ("--method=sft", "typed without dashes: method=sft"),
    ("--method.trl.lr=1", "did you mean, without dashes, method.trl.learning_rate?"),
    ("method=sft --colour", "--colour: no such flag; --help shows"),
    ("--cfg everything", "argument --cfg/-c: invalid choice: 'everything'"),
    ("seed=-1", "seed=-1; give a number from 0"),
    ("seed=nan", "medreason: seed=nan; it takes a whole number"),
    ("-m seed=1,1e30", "medreason: seed=1,1e30; it takes a whole number"),
    ("evaluation.controls=null", "medreason: evaluation.controls=null; it takes a list of texts"),
    ("model.max_pixels=1.5", "medreason: model.max_pixels=1.5; it takes a whole number or null"),
    ("outputs=${outputs}/x", "outputs: Recursive interpolation detected; set that key"),
    ("outputs=", "outputs=''; give a folder"),
    ("sweep=/tmp/elsewhere", "one folder of outputs/reports; give a word without /, such as"),
    ("sweep=a/b", "give a word without /, such as sweep=a_b"),
    ("hardware.threads=-1", "hardware.threads=-1; it must be at least 1"),
    ("tracking.experiment=", "tracking.experiment=''; give it a name"),
    ("adapter=lora_r8 adapter.target_modules=[]", "adapter.target_modules is empty"),
    ("seed=1,2", "a sweep with a run for each is -m seed=1,2"),
    ("+colour=1", "colour is unknown"),
    ("data.images=[", "are brackets and quotes closed?"),
    ("reward.correct.weight=-1", "give a number of 0 or more"),
    ("reward.corect.weight=1", "did you mean reward.correct?"),
    ("+reward.mine.weight=1", "DIR/reward/mine.yaml"),
    ("reward=rarl_judge", "needs a judge"),
    ("prompt.train=[What]", "has no {question}"),
    ("method.prompts_per_step=7", "8 would work"),
    ("modality=[ct,petscan]", "known: 'all', 'ct'"),
    ("validation=in_domain validation.share=2", "between 0 and 1"),
    (f"{PREDICT} predict.question=What model.path=/nowhere", "no such folder"),
    (f"{PREDICT} predict.question=What model.path=mydata", "neither config.json"),
    (PREDICT, "predict.question has no value"),
    ("action=predict predict.image=no.png predict.question=What", "no such file"),
    (f"{PREDICT} predict.questions=broken.json", "broken.json"),
    ([*PREDICT.split(), "predict.question=Which? A)CT, B)MRI"], "in quotes alone; type"),
    ([*PREDICT.split(), 'predict.question="Which? A)CT'], "are brackets and quotes closed?"),
    ("action=export", "export.to has no value"),
    ("action=export export.to=mydata", "exists"),
    ("action=report sweep=none", "there are no runs below outputs/runs yet"),
    ("action=rehearse hydra.searchpath=[my]", "leave out hydra.searchpath"),
    ("action=judge judge=openai", "no evaluated runs"),
    ("--config-dir nowhere data=mine", "--config-dir nowhere: no such folder"),
    ("hydra/launcher=nothing", "hydra/launcher/nothing"),
    (
        "action=plan -m method=base,sft,grpo,rarl ~reward.reasoning",
        "medreason: job 1 of 4 (base): reward.reasoning is not in reward=med_r1, which has "
        "correct, format; give the jobs that have it a command of their own",
    ),
    (
        "-m method=rarl,sft ~reward.reasoning",
        "job 2 of 2 (sft): reward.reasoning is not in reward=",
    ),
    (
        "-m method=grpo reward=rarl,med_r1 ~reward.answer",
        "job 2 of 2 (reward=med_r1): reward.answer",
    ),
    (
        "seed=interval(0,3)",
        "is for a search, which tries values between two: type -m hydra/sweeper=",
    ),
    ("-m method=sft seed=interval(0,3)", "medreason: seed=interval(0,3) is for a search"),
    ("hydra.run.dir=${nope}", "medreason: hydra.run.dir: Interpolation key 'nope' not found; set"),
    ("-m hydra.sweep.dir=${nope} seed=0,1", "medreason: hydra.sweep.dir: Interpolation key 'nope'"),
    ("hydra/launcher=ray", "hydra/launcher=ray is not installed; `uv pip install"),
    ("model.path=", "model.path=''; give a hub id, a folder of weights or of a finished run, or"),
    ("method=base report.published=/nope", "report.published='/nope': no such file; name a CSV"),
    ("method=grpo ~adapter.r", "medreason: ~adapter.r: there is no adapter.r to leave out"),
    ("+seed=1", "An item is already at 'seed'. Either remove + prefix: 'seed=1'"),
    ("action=plan hydra.run.dir=own.py/x", "hydra.run.dir=own.py/x: [Errno 20]"),
    ("-m method=base,sft hydra.sweep.dir=own.py/x", "own.py/x"),
    ("outputs=own.py action=audit", "outputs=own.py is a file; set outputs=..."),
    ("outputs=own.py/o method=sft", "outputs=own.py/o: own.py is a file; set outputs=..."),
    ("action=audit data=slake", "data.root has no value"),
    ("action=audit data=slake data.root=mydata", "missing: train.json"),
    ("action=audit data=labelled_images data.root=nowhere", "not a folder"),
    (f"{TABLE} data.table=none.csv", "no such file"),
    (
        "data=labelled_images data.root=mydata/labels.csv",
        "is a file; set data.root=mydata, the folder it lies in, and data.table=labels.csv",
    ),
    (f"{TABLE} data.min_images=-3", "data.min_images=-3; give 1 or more"),
    (f"{QUESTIONS} data.hub=mydata/header.csv", "holds no rows below the names of its columns"),
    (f"{QUESTIONS} data.hub=mydata/bad.jsonl", "bad.jsonl, line 2: is no JSON"),
    (
        f"{QUESTIONS} data.hub=mydata/one.csv data.split=by_image action=plan",
        "leaves train or test",
    ),
    (
        f"{QUESTIONS} data.hub=mydata/mixed.csv action=train",
        "row 3: image mydata/none.png: no such",
    ),
    (f"{QUESTIONS} data.hub=mydata/mixed.csv action=train", "mydata/own.txt: is no format that is"),
    (f"{QUESTIONS} data.hub=mydata/one.csv data.columns.answer=gold", "no column 'gold'; columns"),
    (
        f"{QUESTIONS} data.hub=mydata/one.csv data.names.tsk={{}}",
        "data.names.tsk is unknown; known",
    ),
    (
        [*QUESTIONS.split(), "data.hub=mydata/one.csv", "data.names.task={a: diseas}"],
        "data.names.task: 'a' is 'diseas'; known: anatomy, disease",
    ),
    ("lr=1e-5", "did you mean method.trl.learning_rate?"),
    ("epochs=3", "did you mean method.trl.num_train_epochs?"),
    ("batch_size=8", "did you mean hardware.per_device_prompts?"),
    ("data.path=missing.csv", "data.path is unknown to medreason.phantom.load"),
    (f"{TABLE} data.columns.patient=person", "set data.columns.patient=null"),
    (f"{TABLE} data.table=semicolons.csv", "data.separator=';'"),
    (f"{TABLE} data.separator=;", "type \"data.separator=';'\""),
    (f"{TABLE} data.table=empty.csv", "is empty"),
    (f"{TABLE} data.table=picture.csv", "not utf-8"),
    (f"{TABLE} data.ask.disease=null", "needs a task and a question"),
    ([*TABLE.split(), "data.ask={tumour: {task: disease, question: Q}}"], "correct the names"),
    (f"{TABLE} data.table=questions.csv", "use data=hub data.hub=mydata/questions.csv"),
    (f"{QUESTIONS} data.hub=mydat", "did you mean mydata?"),
    (f"{QUESTIONS} data.hub=mydata/labels.csv", "use data=labelled_images data.root=mydata"),
    (f"{QUESTIONS} data.hub=mydata/picture.csv", "not utf-8"),
    (f"{QUESTIONS} data.hub=mydata/questions.csv data.image_folder=no", "=no is not a folder"),
    (f"{QUESTIONS} data.hub=mydata/questions.csv data.split=by_patient", "data.columns.patient"),
    (f"{QUESTIONS} data.hub=own.py", "a file that ends with '.py' cannot be read"),
    (f"{READER}zero", "own.zero (own.py, line 7) raised ZeroDivisionError"),
    (f"{READER}other", "own.other (own.py, line 8) yields {'image'"),
    (f"{READER}none", "own.none (own.py, line 9) gives None"),
    (f"{READER}value", "is 3, not a function"),
    (f"{READER}gone", "no attribute 'gone'"),
    (f"{READER}lines data.bad_rows=error action=train", "q.jsonl, row 1: is no JSON"),
    (f"{REWARD} reward.mine.score._target_=own.one", "own.one (own.py, line 5) and takes (reply)"),
    (f"{REWARD} reward.mine.score._target_=own.three", "a score takes (reply, sample, *, its"),
    (f"{REWARD} reward.mine.score._target_=own.three", "set reward.mine.score.extra=..."),
    (f"{REWARD} reward.mine.score._target_=own.nothing", "gave None, not a number"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are typed: a table of images, a reader, rewards."""
    path = tmp_path_factory.mktemp("typed")
    for name in ("mydata", "my/data", "my/reward"):
        (path / name).mkdir(parents=True)
    (path / "own.py").write_text(OWN)
    (path / "my/data/mine.yaml").write_text("_target_: own.zero\nroot: mydata\n")
    (path / "my/reward/own.yaml").write_text("mine: {score: {_target_: own.one}}\n")
    (path / "broken.json").write_text("{")
    rows = ["image,modality,label,label_group,patient_or_source_id"]
    for i in range(24):
        Image.effect_noise((40, 40), 20 + i).save(path / f"mydata/{i}.png")
        rows.append(f"{i}.png,CT,{'ab'[i % 2]},disease,p{i // 2}")
    (path / "mydata/labels.csv").write_text("\n".join(rows))
    (path / "mydata/semicolons.csv").write_text("\n".join(rows).replace(",", ";"))
    (path / "mydata/questions.csv").write_text("image,question,answer\n0.png,Is it?,yes\n")
    (path / "mydata/empty.csv").write_text("")
    (path / "mydata/own.txt").write_text("no image")
    (path / "mydata/header.csv").write_text("image,question,answer\n")
    (path / "mydata/one.csv").write_text("image,question,answer\n0.png,Is it?,yes\n")
    mixed = "image,question,answer\n0.png,Is it?,yes\nnone.png,Is it?,no\nown.txt,Is it?,no\n"
    (path / "mydata/mixed.csv").write_text(mixed)
    line = '{"image": "0.png", "question": "Is it?", "answer": "yes"}'
    (path / "mydata/bad.jsonl").write_text(f"{line}\n{{broken\n{line}\n")
    (path / "mydata/picture.csv").write_bytes((path / "mydata/0.png").read_bytes())
    return path


def test_fifty_wrong_inputs_end_in_a_message(folder: Path) -> None:
    assert len(WRONG) >= 50
    paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": paths}
    run = partial(commands.medreason, cwd=folder, env=environment)
    typed = [words.split() if isinstance(words, str) else words for words, _ in WRONG]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda words: run(*words, "tracking=none"), typed))
    wrong = []
    for words, end, (_, message) in zip(typed, ends, WRONG, strict=True):
        told = " ".join(f"{end.stdout} {end.stderr}".split())
        refused = end.returncode == 1 or "refused" in told  # by a plan
        if not refused or message not in told or "Traceback" in told or "FULL_ERROR" in told:
            wrong.append(f"{' '.join(words)} [{end.returncode}]: {told[-600:]}")
    assert not wrong, "\n".join(wrong)
