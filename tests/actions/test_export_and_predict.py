"""An exported model needs nothing of ours; predict answers as evaluation does."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from run_folders import draw_samples, reply, write_run
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from medreason import config as configuration
from medreason import phantom
from medreason.actions import export, predict
from medreason.config import Config
from medreason.data import hub, image_cache, question_digest
from medreason.data.images import open_rgb
from medreason.evaluation import predictions
from medreason.evaluation import run as evaluation
from medreason.evaluation.run import evaluate
from medreason.models import adapters
from medreason.models.load import load_model, load_processor
from medreason.models.model_folder import EMBEDDED
from medreason.report import model_card
from medreason.runs.files import write_json
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.samples import Sample

Compose = Callable[..., Config]

IN_THE_MANNER_OF_MED_R1S_README = """
import sys
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

folder, images = sys.argv[1], sys.argv[2:]
model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype="auto", device_map="cpu")
processor = AutoProcessor.from_pretrained(folder)
question = "Which? A)CT, B)MRI"
asks = (
    "First output the thinking process in <think> </think> and final choice (A, B, C, D ...) in "
    "<answer> </answer> tags."
)
messages = [
    [{"role": "user", "content": [
        {"type": "image", "image": f"file://{image}"},
        {"type": "text", "text": f"{question} {asks}"},
    ]}]
    for image in images
]
text = [
    processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages
]
image_inputs, video_inputs = process_vision_info(messages)
inputs = processor(
    text=text, images=image_inputs, videos=video_inputs, padding=True, return_tensors="pt"
)
ids = model.generate(**inputs, use_cache=True, max_new_tokens=24, do_sample=False)
trimmed = [out[len(given):] for given, out in zip(inputs.input_ids, ids)]
replies = processor.batch_decode(
    trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
)
assert len(replies) == 2 and all(replies), replies
assert not any(name.split(".")[0] in ("medreason", "trl", "peft") for name in sys.modules)
print("answered")
"""


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for i, path in enumerate(paths):
        Image.new("RGB", (150, 120), (200, 90 * i, 40)).save(path)
    return paths


def test_exported_model_answers_by_transformers_and_qwen_vl_utils_alone(
    composed: Compose, tmp_path: Path, images: list[Path]
) -> None:
    target = tmp_path / "exported"
    export.run(composed("action=export", f"export.to={target}"))
    assert "Not for diagnosis" in (target / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_MANNER_OF_MED_R1S_README, target, *images],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "answered" in done.stdout, done.stderr
    with pytest.raises(ValueError, match=r"export\.to=.* exists"):
        export.run(composed("action=export", f"export.to={target}"))


def example(exported: Path) -> str:
    """The code that a model card shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    return code


def test_example_of_the_card_runs_for_every_form_of_image(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "exported"
    export.run(composed("action=export", f"export.to={target}", "evaluation.max_new_tokens=24"))
    code = example(target)
    Image.linear_gradient("L").convert("RGB").save(target / "image.png")
    data = base64.b64encode((target / "image.png").read_bytes()).decode()
    monkeypatch.chdir(target)
    capsys.readouterr()
    replies = []
    for image in (
        "image.png",
        f"file://{target}/image.png",
        f"data:image/png;base64,{data}",
        Image.open("image.png"),
    ):
        exec(code.replace('"image.png"', "given"), {"given": image})
        replies.append(capsys.readouterr().out)
    assert replies[0].strip()
    assert len(set(replies)) == 1


def test_example_of_the_card_shows_the_model_the_picture_of_an_evaluation(
    composed: Compose, tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    export.run(composed("action=export", f"export.to={target}", "data.window=lung"))
    assert (
        "CT in the window -600/1500 HU where the file names none."
        in (target / "README.md").read_text()
    )
    namespace: dict[str, Any] = {}
    exec(example(target).partition("\nmodel =")[0], namespace)
    noise = np.random.default_rng(0).integers(0, 256, (84, 112, 4), np.uint8)
    exif = Image.Exif()
    for orientation, mode in itertools.product((1, 6, 7), ("L", "LA", "P", "RGB", "RGBA")):
        exif[0x0112] = orientation
        path = tmp_path / f"{mode}{orientation}.png"
        more = {"transparency": 7} if mode == "P" else {}
        image = Image.fromarray(noise).convert("RGB" if mode == "P" else mode).convert(mode)
        image.save(path, exif=exif, **more)
        expected = np.asarray(open_rgb(path))
        data = base64.b64encode(path.read_bytes()).decode()
        for form in (
            str(path),
            f"file://{path}",
            f"data:image/png;base64,{data}",
            Image.open(path),
        ):
            assert np.array_equal(np.asarray(namespace["upright_on_white"](form)), expected)


@pytest.fixture
def adapted(composed: Compose, tmp_path: Path) -> EvaluationFolder:
    """A finished run with an adapter that changes the model."""
    config = composed("method=sft", "adapter=lora_r8", "modality=ct")
    chosen = {"chosen_step": 10, "chosen_because": "best of 2 validations"}
    samples = draw_samples(tmp_path / "images")
    folder = write_run(config, samples, lambda _, s: reply(s.answer), **chosen)
    base = load_model(config.model, config.hardware)
    model = get_peft_model(base, LoraConfig(**config.adapter))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.5)
    model.save_pretrained(folder.run.model)
    load_processor(config.model).save_pretrained(folder.run.model)
    return folder


def test_adapter_is_merged_or_exported_alone_with_the_metrics_of_its_run(
    composed: Compose,
    tmp_path: Path,
    adapted: EvaluationFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = ("action=export", f"model.path={adapted.run.path}", "export.precision=float32")
    merged, alone = tmp_path / "merged", tmp_path / "alone"
    export.run(composed(*overrides, f"export.to={merged}"))
    export.run(composed(*overrides, f"export.to={alone}", "export.adapter_only=true"))
    card = (merged / "README.md").read_text()
    assert "| optimizer step | 10, best of 2 validations; no test question was asked" in card
    assert "| trained on | 36 questions; ct: anatomy, disease; mri: disease |" in card
    accuracy = "accuracy over 36 questions in 24 images, 95 % interval"
    for words in (f"| {accuracy} | 100.0 [89.2, 100.0] |", "LoRA rank 8"):
        assert words in card
    assert "| accuracy with a blank image | 25.0 |" in card
    assert (alone / "adapter_config.json").exists()
    assert not (alone / "model.safetensors").exists()
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = Qwen2VLForConditionalGeneration.from_pretrained(merged)(input_ids=ids).logits
    for path, equal in ((str(alone), True), ("tiny", False)):
        model = load_model(replace(composed().model, path=path), composed().hardware)
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4) == equal
    monkeypatch.chdir(alone)
    Image.new("RGB", (112, 84)).save("image.png")
    assert "torchvision transformers accelerate peft`" in Path("README.md").read_text()
    capsys.readouterr()
    exec(example(alone), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("base", "is_local"), [(str(EMBEDDED), True), ("Qwen/Qwen2-VL-2B-Instruct", False)]
)
def test_base_of_an_exported_adapter_is_a_hub_id_or_said_to_be_set_elsewhere(
    composed: Compose,
    tmp_path: Path,
    adapted: EvaluationFolder,
    capsys: pytest.CaptureFixture[str],
    base: str,
    is_local: bool,
) -> None:
    file = adapted.run.model / "adapter_config.json"
    settings = json.loads(file.read_text())
    assert settings["base_model_name_or_path"] == str(EMBEDDED)  # as it was loaded
    file.write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    target = tmp_path / "alone"
    overrides = ("action=export", f"model.path={adapted.run.path}", f"export.to={target}")
    export.run(composed(*overrides, "export.adapter_only=true"))
    written = json.loads((target / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == base
    said = "base_model_name_or_path in" in capsys.readouterr().err
    card = (target / "README.md").read_text()
    assert said == ("Its base model `tiny` was a folder" in card) == is_local
    assert base not in card


@pytest.mark.parametrize(
    ("patients", "override", "words"),
    [
        (36, "statistics.clusters=patient", "questions in 4 patients, 95 %"),
        (12, "statistics.clusters=patient", "in 28 patients and, where none is known, images, 95"),
        (36, "statistics.clusters=question", "over 36 questions, 95 %"),
    ],
)
def test_card_says_what_the_clusters_are(
    composed: Compose, tmp_path: Path, patients: int, override: str, words: str
) -> None:
    samples = [
        replace(sample, question=f"{i}", patient=f"p{i % 4}" if i < patients else None)
        for i, sample in enumerate(draw_samples(tmp_path / "images"))
    ]
    config = composed("method=sft", override)
    run = write_run(config, samples, lambda _, s: reply(s.answer)).run
    assert words in model_card.card(config, run.model, "transformers")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [],
            "tiny: the test model that medreason ships, 1.6 million parameters in Qwen2-VL's "
            "architecture, trained on drawn images; it has seen none of a patient",
        ),
        (["model=qwen2_vl_2b"], "qwen2_vl_2b (`Qwen/Qwen2-VL-2B-Instruct`)"),
        (["model.name=ours", "model.path=/data/models/ours"], "ours"),
    ],
)
def test_card_says_what_the_base_model_is(
    composed: Compose, tmp_path: Path, words: list[str], told: str
) -> None:
    config = composed("method=sft", *words)
    samples = draw_samples(tmp_path / "images")
    run = write_run(config, samples, lambda _, s: reply(s.answer)).run
    assert f"| base model | {told} |" in model_card.card(config, run.model, "transformers")


def test_card_has_guessing_beside_the_options_only_baseline(
    composed: Compose, tmp_path: Path
) -> None:
    drawn = draw_samples(tmp_path / "images")
    samples = [replace(s, options=("Yes", "No"), answer="B") for s in drawn[:24]] + drawn[24:]
    run = write_run(composed("method=sft"), samples, lambda _, s: reply(s.answer)).run
    card = model_card.card(composed("method=sft"), run.model, "transformers")
    assert (
        "| options-only baseline: a frequency table of option texts | 25.0 |\n"
        "| guessing between the options: the mean of 1 / their number, 0 of open questions | 41.7 |"
    ) in card


@pytest.mark.parametrize(("end", "is_told"), [("", False), (".dcm", True)])
def test_card_names_the_window_of_ct_only_where_dicom_may_have_been_read(
    composed: Compose, tmp_path: Path, end: str, is_told: bool
) -> None:
    drawn = draw_samples(tmp_path / "images")
    samples = [replace(s, image=s.image.with_name(f"{s.image.name}{end}")) for s in drawn]
    for old, new in zip(drawn, samples, strict=True):
        new.image.write_bytes(old.image.read_bytes())
    run = write_run(composed("method=sft"), samples, lambda _, s: reply(s.answer)).run
    card = model_card.card(composed("method=sft"), run.model, "transformers")
    assert ("CT in the window 40/400 HU where the file names none." in card) == is_told
    assert "`action=prepare` of medreason makes such of DICOM and of deeper ones." in card


def test_export_says_what_its_precision_keeps_of_an_adapter(
    composed: Compose, tmp_path: Path, adapted: EvaluationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = adapted.run.model.glob("*.safetensors")
    small = {n: 1e-3 * t if "lora_B" in n else t for n, t in load_file(file).items()}
    save_file(small, file, metadata={"format": "pt"})
    overrides = ("action=export", f"model.path={adapted.run.path}")
    for precision in ("bfloat16", "float32"):
        target = tmp_path / precision
        export.run(composed(*overrides, f"export.to={target}", f"export.precision={precision}"))
        said = re.search(r"keeps (\d+) % of the adapter's change", capsys.readouterr().err)
        assert bool(said) == (precision == "bfloat16")
        if said:
            assert 10 < int(said[1]) < 98
            card = (target / "README.md").read_text()
            assert f"weights of bfloat16, which keep {said[1]} % of its change" in card


@pytest.mark.parametrize("measured", ["float32", "bfloat16"])
def test_exported_weights_are_in_the_precision_in_which_the_run_was_measured(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: str
) -> None:
    config = composed("method=sft", f"hardware.precision={measured}")
    run = write_run(config, draw_samples(tmp_path / "images"), lambda _, s: reply(s.answer)).run
    load_model(config.model, config.hardware).save_pretrained(run.model)
    load_processor(config.model).save_pretrained(run.model)
    other = "bfloat16" if measured == "float32" else "float32"
    differs = f"weights are in {other} and the numbers were measured in {measured}"
    for overrides, precision in (((), measured), ((f"export.precision={other}",), other)):
        target = tmp_path / precision
        command = ("action=export", f"model.path={run.path}", f"export.to={target}", *overrides)
        export.run(composed(*command))
        dtypes = {str(weight.dtype) for weight in load_file(target / "model.safetensors").values()}
        assert dtypes == {f"torch.{precision}"}
        texts = (capsys.readouterr().err, (target / "README.md").read_text())
        for text in texts:
            assert (differs in text) == bool(overrides)
            assert (f"export.precision={measured} gives" in text) == bool(overrides)


def test_a_whole_model_has_no_adapter_to_export(composed: Compose, tmp_path: Path) -> None:
    target = f"export.to={tmp_path / 'exported'}"
    with pytest.raises(ValueError, match=r"export\.adapter_only=true: .* is no adapter"):
        export.run(composed("action=export", target, "export.adapter_only=true"))


def predicted(composed: Compose, folder: Path, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What predict writes for the rows of a questions file."""
    questions, output = folder / "questions.json", folder / "answers.json"
    questions.write_text(json.dumps(rows))
    predict.run(
        composed(
            "action=predict",
            f"predict.image={folder}",
            f"predict.questions={questions}",
            f"predict.output={output}",
            "evaluation.max_new_tokens=32",
        )
    )
    return json.loads(output.read_text())


def test_predict_gives_what_an_evaluation_of_the_model_gives(
    composed: Compose, tmp_path: Path
) -> None:
    phantoms = phantom.load(tmp_path / "cache", train_images=0, test_images=1, seed=0)
    closed = [sample for sample in phantoms if sample.modality in ("ct", "oct")]
    samples = [*closed, replace(closed[0], id="open", options=(), answer="left lung")]
    config = composed(
        "method=base",
        "evaluation.answers=[generated,option_likelihood]",
        "evaluation.max_new_tokens=32",
    )
    folder = RunFolder(tmp_path / "run")
    path = folder.evaluation("evaluation0")
    path.mkdir(parents=True)
    configuration.write(config, path / "config.yaml")
    write_json(path / "data.json", {})
    evaluate(config, samples, folder, "evaluation0", lambda *_: None)
    rows = predictions.read(path / "predictions.parquet")
    evaluated = {row.sample: row for row in rows if row.control == "original"}
    answers = predicted(
        composed, tmp_path, [{"image": str(s.image), "question": s.problem} for s in samples]
    )
    assert len(evaluated) == len(answers) == 11
    images = image_cache.digests({sample.image for sample in samples}, tmp_path)
    for sample in samples:
        digest = question_digest(sample, images[sample.image])
        assert {row.question_digest for row in rows if row.sample == sample.id} == {digest}
    for sample, answer in zip(samples, answers, strict=True):
        expected = evaluated[sample.id]
        assert answer["completion"] == expected.completion
        assert answer["answer"] == expected.answer
        assert answer["reasoning"] == expected.reasoning
        likelihoods = list(answer["option_likelihoods"].values())
        assert likelihoods == pytest.approx(expected.option_likelihoods, abs=1e-5)
    assert len({answer["completion"] for answer in answers}) > 3


def test_predict_gives_the_same_for_a_path_a_file_url_and_a_data_url(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    Image.linear_gradient("L").resize((150, 97)).convert("RGB").save(path)
    data = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    question = "Which imaging technique is this? A)CT, B)MRI, C)X-ray"
    rows = [{"image": image, "question": question} for image in ("a.png", f"file://{path}", data)]
    first, *others = predicted(composed, tmp_path, rows)
    assert [answer["image"] for answer in (first, *others)] == [row["image"] for row in rows]
    for other in others:
        assert other["completion"] == first["completion"]
        assert other["option_likelihoods"] == pytest.approx(first["option_likelihoods"], abs=1e-5)
    captured = capsys.readouterr()
    place = f"model.path={tmp_path}/outputs/runs/NAME"
    assert captured.err.count(f"answered by the start model tiny; {place}") == 1
    shown = captured.out
    assert shown.count(f"  reply: {' '.join(first['completion'].split())}\n") == 3
    assert shown.count("option likelihood right behind the prompt, without reasoning: ") == 3
    assert max(map(len, shown.splitlines())) < 200


@pytest.mark.parametrize(
    ("answer", "status", "options", "words"),
    [
        ("A", "parsed", {"A": "Yes", "B": "No"}, "answer: A (Yes)"),
        (None, "no answer", {"A": "Yes", "B": "No"}, "answer: none, no answer"),
        ("left lung", "parsed", {}, "answer: left lung (a text: the question has no options)"),
    ],
)
def test_answer_comes_with_the_text_of_its_option_and_the_whole_reply(
    answer: str | None, status: str, options: dict[str, str], words: str
) -> None:
    completion = "<think>It is\nbright.</think>\n<answer>A</answer>"
    shown = predict._text(
        predict._Answer("a.png", "Is it?", "", answer, status, options, {}, completion)
    )
    assert shown.splitlines() == [
        "a.png: Is it?",
        "  reply: <think>It is bright.</think> <answer>A</answer>",
        f"  {words}",
    ]


def test_questions_may_be_json_lines(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "question": "Which? A)CT, B)MRI"} for i in range(2)]
    for name in ("questions.jsonl", "questions.json"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        questions = predict._questions_of_file(tmp_path / name)
        assert [question.image for question in questions] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], r"predict\.image has no value"),
        (["predict.image=a.png"], r"predict\.question has no value"),
        (
            ["predict.image=gone.png", "predict.question=What?"],
            r"^predict\.image=gone\.png: no such file; .*copy the image there",
        ),
        (
            ["predict.image='data:image/png;base64,xyz'", "predict.question=What?"],
            r"^predict\.image=data:image/png;base64,xyz: cannot be fetched .*give a file",
        ),
        (
            ["predict.image='http://127.0.0.1:1/a.png'", "predict.question=What?"],
            r"^predict\.image=http://127\.0\.0\.1:1/a\.png: cannot be fetched .*give a file",
        ),
        (["predict.questions=gone.json"], r"gone\.json: no such file; .*a table \(\.csv"),
        (
            ["predict.questions=FOLDER/a.png"],
            r"a\.png: a file that ends with '\.png' cannot be read",
        ),
        (
            ["predict.questions=FOLDER/broken.json"],
            r"broken JSON.*it takes a table \(\.csv, .*json",
        ),
        (
            ["predict.questions=FOLDER/t.csv"],
            r"no columns 'image', 'question'.* data=hub data\.col",
        ),
        (
            ["predict.questions=FOLDER/near.json"],
            r'near\.json, question 1: "quesiton" is unknown; .*did you mean \'question\'',
        ),
        (
            ["predict.questions=FOLDER/late.json"],
            r'late\.json, question 0: "option_B" is not used: give all options as one list',
        ),
        (
            ["predict.questions=FOLDER/text.json"],
            r"""text\.json, question 0: "options" is 'CT; MRI'; needs a list of texts""",
        ),
        (
            ["predict.questions=FOLDER/rows.json"],
            r"question 1: image=.*gone\.png: no such file.*predict\.image=FOLDER says where",
        ),
        (
            ["predict.image=FOLDER/a.png", "predict.questions=FOLDER/rows.json"],
            r"a\.png is no folder, and .*question 0 names an image .*leave predict\.image out",
        ),
        (
            ["predict.image=FOLDER/none", "predict.question=What?"],
            r"none is a folder without images; .*such as predict\.image=.*none/below",
        ),
        (
            ["predict.image=FOLDER/a.png", "predict.question=What?", "predict.output=a.xlsx"],
            r"output=a\.xlsx: no answers are written to .*'\.xlsx'; give .*\.csv, \.tsv, \.json, ",
        ),
        (
            ["predict.image=.", "predict.questions=FOLDER/rows.json"],
            r"rows\.json, question 1: image=gone\.png: no such file",
        ),
        (
            ["predict.image=.", "predict.questions=FOLDER/empty.json"],
            r'empty\.json, question 0: needs "image" and "question" as texts; found {}',
        ),
        (["model.path=./gone", "predict.image=FOLDER/a.png", "predict.question=What?"], "no such"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    composed: Compose,
    tmp_path: Path,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    words: str,
) -> None:
    row = {"image": str(images[0]), "question": "What?"}
    (tmp_path / "rows.json").write_text(json.dumps([row, {**row, "image": "gone.png"}]))
    (tmp_path / "empty.json").write_text("[{}]")
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "t.csv").write_text("Bild,Frage\na.png,Was?\n")
    (tmp_path / "near.json").write_text(json.dumps([row, row | {"quesiton": "What?"}]))
    (tmp_path / "late.json").write_text(json.dumps([row | {"option_B": "MRI", "option_C": "US"}]))
    (tmp_path / "text.json").write_text(json.dumps([row | {"options": "CT; MRI"}]))
    (tmp_path / "none/below").mkdir(parents=True)
    shutil.copy(images[0], tmp_path / "none/below")
    monkeypatch.delattr(evaluation, "load_model")
    given = [text.replace("FOLDER", str(tmp_path)) for text in overrides]
    with pytest.raises(ValueError, match=words):
        predict.run(composed("action=predict", *given))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"state": "running", "attempts": 1},
            "run: this run is unfinished, interrupted at step 36 of 60; .*same command",
        ),
        ({"state": "done", "trained": True}, "run: the run of a start model, which leaves no wei"),
    ],
)
@pytest.mark.parametrize("action", ["predict", "export"])
def test_run_without_weights_is_refused_with_what_it_is(
    composed: Compose,
    tmp_path: Path,
    images: list[Path],
    action: str,
    state: dict[str, Any],
    words: str,
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.update(evaluating="one", **state)
    progress = {"phase": "training", "done": 36, "total": 60, "left_seconds": None, "note": ""}
    write_json(folder.progress, progress)
    asked = (f"predict.image={images[0]}", "predict.question=What?", f"export.to={tmp_path}/to")
    run = {"predict": predict.run, "export": export.run}[action]
    with pytest.raises(ValueError, match=words.replace("run:", "run':", 1)):
        run(composed(f"action={action}", f"model.path={folder.path}", *asked))


def asked_by(composed: Compose, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Sample]:
    """The questions of a command, without a model to answer them."""
    kept: list[Sample] = []
    monkeypatch.setattr(predict, "_answers", lambda _, __, samples: kept.extend(samples) or [])
    predict.run(composed("action=predict", *words))
    return kept


def test_a_table_of_a_training_is_asked_as_an_evaluation_asks_it(
    composed: Compose, tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        "Image;question;Option_A;option_B;answer;patient",
        "a.png;Which?;CT;MRI;B;p1",
        f"{images[1]};Normal?;;;yes;p1",
        "b.png;How many?;;;3;p2",
    ]
    (tmp_path / "q.csv").write_text("\n".join(rows))
    asked = asked_by(composed, monkeypatch, f"predict.questions={tmp_path}/q.csv")
    evaluated = hub.read(f"{tmp_path}/q.csv", tmp_path / "cache", images="none")
    evaluated = [row for row in evaluated if isinstance(row, Sample)]
    assert [(s.image, s.problem) for s in asked] == [(s.image, s.problem) for s in evaluated]
    assert [s.options for s in asked] == [("CT", "MRI"), ("Yes", "No"), ()]
    columns = ["data=hub", "data.columns.options=[Wahl 1,Wahl 2]"]
    (tmp_path / "q.csv").write_text("\n".join(rows).replace("Option_A;option_B", "Wahl 1;Wahl 2"))
    asked = asked_by(composed, monkeypatch, f"predict.questions={tmp_path}/q.csv", *columns)
    assert asked[0].options == ("CT", "MRI")


@pytest.fixture
def trained_run(composed: Compose, tmp_path: Path) -> Path:
    """The folder of a run that was trained on columns of other names and on a question of yes or
    no; its weights are the tiny model's."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(EMBEDDED, folder.model)
    columns = ("data.columns.question=Frage", "data.columns.image=Bild", "data.columns.answer=Wert")
    config = composed("method=sft", "data=hub", "data.hub=q.csv", *columns)
    configuration.write(config, folder.config)
    evaluation = EvaluationFolder(folder, "evaluation0")
    evaluation.path.mkdir(parents=True)
    write_json(evaluation.data, {"yes_no_questions": {"Is it large?": ["Yes", "No"]}})
    folder.update(state="done", trained=True)
    return folder.path


@pytest.mark.parametrize(
    ("head", "words", "taken"),
    [
        ("Bild,Frage", [], "data.columns.image=Bild data.columns.question=Frage; typed"),
        ("image,Frage", ["data=hub"], "data.columns.question=Frage; typed"),
        ("Bild,ask", ["data=hub", "data.columns.question=ask"], "data.columns.image=Bild; typed"),
        ("image,question", [], ""),
    ],
)
def test_predict_takes_the_columns_and_yes_no_options_of_the_training(
    head: str,
    words: list[str],
    taken: str,
    trained_run: Path,
    composed: Compose,
    tmp_path: Path,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ("is it  large?", "Where is it?")
    lines = [head, *(f"{image},{text}" for image, text in zip(images, texts, strict=False))]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    words = [f"predict.questions={tmp_path}/new.csv", f"model.path={trained_run}", *words]
    asked = asked_by(composed, monkeypatch, *words)
    assert [(s.question, s.options) for s in asked] == [(texts[0], ("Yes", "No")), (texts[1], ())]
    said = capsys.readouterr().err
    assert (f"columns as in the training of the model: {taken}" in said) == bool(taken)
    assert ("columns as in the training" in said) == bool(taken)
    as_trained = "asked with the options A)Yes, B)No, as in the training of the model (1 of 2 here)"
    assert as_trained in said.splitlines()
    assert "answer is a text (1 of 2 here)" in said


def test_columns_of_the_training_that_are_not_there_give_the_usual_message(
    trained_run: Path, composed: Compose, tmp_path: Path, images: list[Path]
) -> None:
    (tmp_path / "new.csv").write_text(f"Bild,text\n{images[0]},Which?\n")
    words = [f"predict.questions={tmp_path}/new.csv", f"model.path={trained_run}"]
    with pytest.raises(ValueError, match=r"no column 'question'; columns are \['Bild', 'text'\]"):
        predict.run(composed("action=predict", *words))


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_questions_need_no_column_that_answers_alone_need(
    suffix: str,
    composed: Compose,
    tmp_path: Path,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = ["answer", "explanation", "patient", "split", "modality", "task", "source"]
    others += ["alternatives", "answer_type"]
    columns = ["data=hub", *(f"data.columns.{our}=of_training_{our}" for our in others)]
    columns.append("data.columns.question=ask")
    path = tmp_path / f"new.{suffix}"
    row = {"image": str(images[0]), "ask": "Which?", "option_A": "CT", "option_B": "MRI"}
    table = {
        "csv": "\n".join([",".join(row), ",".join(row.values())]),
        "json": json.dumps([row]),
        "jsonl": json.dumps(row),
    }
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(table[suffix])
    asked = asked_by(composed, monkeypatch, f"predict.questions={path}", *columns)
    assert [(s.image, s.question, s.options) for s in asked] == [
        (images[0], "Which?", ("CT", "MRI"))
    ]


def test_options_that_are_named_must_be_in_a_table_of_questions(
    composed: Compose, tmp_path: Path, images: list[Path]
) -> None:
    (tmp_path / "new.csv").write_text(f"image,question\n{images[0]},Which?\n")
    words = ["data=hub", "data.columns.options=choice", f"predict.questions={tmp_path}/new.csv"]
    with pytest.raises(ValueError, match=r"new\.csv: no column 'choice'; columns are"):
        predict.run(composed("action=predict", *words))


def test_an_image_given_for_all_questions_needs_no_column(
    composed: Compose, tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.csv").write_text("question\nWhich?\n")
    words = ["data=hub", "data.columns.image=Bild", f"predict.questions={tmp_path}/new.csv"]
    asked = asked_by(composed, monkeypatch, *words, f"predict.image={images[0]}")
    assert [(s.image, s.question) for s in asked] == [(images[0], "Which?")]


@pytest.mark.parametrize(
    "given",
    [
        {"options": ["CT", "MRI"]},
        {"options": {"B": "MRI", "A": "CT"}},
        {"option_A": "CT", "option_B": "MRI"},
        {"Option a": "CT", "Option b": "MRI", "option_C": None},
        {"choices": ["CT", "MRI"], "modality": "CT"},
    ],
)
def test_options_of_a_json_row_are_asked(
    composed: Compose,
    tmp_path: Path,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    rows = [{"image": "a.png", "question": "Which?"}, {"image": "b.png", "question": "Why?"}]
    (tmp_path / "q.json").write_text(json.dumps([rows[0] | given, rows[1]]))
    asked = asked_by(composed, monkeypatch, f"predict.questions={tmp_path}/q.json")
    assert [s.problem for s in asked] == ["Which? A)CT, B)MRI", "Why?"]


def test_all_images_of_a_folder_are_asked_about_wherever_one_types(
    composed: Compose, tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("none")
    monkeypatch.chdir(tmp_path.parent)
    for folder in (tmp_path, Path(tmp_path.name), f"file://{tmp_path}"):
        words = (f"predict.image={folder}", 'predict.question="Which? A)CT, B)MRI"')
        asked = asked_by(composed, monkeypatch, *words)
        assert [s.image.resolve() for s in asked] == images
        assert {s.problem for s in asked} == {"Which? A)CT, B)MRI"}
    (tmp_path / "q.csv").write_text("question\nWhat?\nWhere?\n")
    words = (f"predict.image={images[0]}", f"predict.questions={tmp_path}/q.csv")
    asked = asked_by(composed, monkeypatch, *words)
    assert [(s.image, s.question) for s in asked] == [(images[0], "What?"), (images[0], "Where?")]


README = (Path(__file__).parents[2] / "medreason/report/README.md").read_text()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_questions_of_the_readme_are_answered_into_each_kind_of_file(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    section = README.partition("## Predict")[2].partition("\n## ")[0]
    (table,) = re.findall(r"```\n(image,.*?)```", section, re.DOTALL)
    (listed,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    (tmp_path / "mydata/images").mkdir(parents=True)
    for i in (1, 2):
        Image.new("RGB", (56, 56), (90 * i, 10, 10)).save(tmp_path / f"mydata/images/{i}.png")
    (tmp_path / "mydata/questions.csv").write_text(table)
    (tmp_path / "mydata/questions.json").write_text(listed)
    (command,) = re.findall(r"medreason (action=predict .*predict.questions=\S+\.csv.*)", section)
    monkeypatch.chdir(tmp_path)
    words = [word for word in command.split() if not word.startswith(("model.path", "predict.out"))]
    output = tmp_path / f"new/answers.{suffix}"
    words += [f"predict.output={output}", "evaluation.max_new_tokens=4"]
    capsys.readouterr()
    predict.run(composed(*words))
    assert f"3 answers written to {output}" in capsys.readouterr().err.splitlines()
    answers = read_answers(output)
    assert [answer["image"] for answer in answers] == [f"images/{i}.png" for i in (1, 2, 2)]
    assert answers[1]["question"] == "Which organ is shown? A)Lung, B)Heart"
    keys = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    if "json" in suffix:
        assert [*answers[0]] == keys
        assert answers[1]["options"] == {"A": "Lung", "B": "Heart"}
        assert sum(answers[1]["option_likelihoods"].values()) == pytest.approx(1, abs=1e-3)
        return
    assert [a["answer_type"] for a in answers] == ["closed", "closed", "open"]
    of_letters = ["option_A", "option_B", "likelihood_A", "likelihood_B"]
    flat = [key for key in keys if key not in ("options", "option_likelihoods")]
    assert [*answers[0]] == [*flat, *of_letters]
    assert (answers[1]["option_B"], answers[2]["option_B"] or None) == ("Heart", None)
    assert 0 < float(answers[1]["likelihood_A"]) < 1
    same = asked_by(composed, monkeypatch, "predict.questions=mydata/questions.json")
    assert [s.problem for s in same] == [answer["question"] for answer in answers]


def read_answers(file: Path) -> list[dict[str, Any]]:
    match file.suffix:
        case ".json":
            return json.loads(file.read_text())
        case ".jsonl":
            return [json.loads(line) for line in file.read_text().splitlines()]
        case ".parquet":
            return pq.read_table(file).to_pylist()
        case suffix:
            with file.open(newline="") as stream:
                return [*csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",")]


def test_image_that_cannot_be_read_is_named(composed: Compose, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png: cannot be decoded"):
        predict.run(composed("action=predict", f"predict.image={broken}", "predict.question=What?"))


def test_predict_shows_dicom_in_the_window_of_the_training(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(EMBEDDED, run / "model")
    configuration.write(composed("data.window=lung"), run / "config.yaml")
    (tmp_path / "slice.dcm").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setattr(predict, "image_file", lambda image, *_: Path(image))
    monkeypatch.setattr(predict, "_answers", lambda *_: [])
    overrides = [
        *("action=predict", f"model.path={run / 'model'}", "predict.question=What?"),
        f"predict.image={tmp_path / 'slice.dcm'}",
    ]
    with pytest.raises(ValueError, match=r"data\.window=soft_tissue: .*set data\.window=lung"):
        predict.run(composed(*overrides))
    predict.run(composed(*overrides, "data.window=lung"))


def test_adapter_for_another_base_model_is_named(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(EMBEDDED, base)
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    header = {name: {"dtype": "F32", "shape": [8, 1536], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"adapter for another base model .* 1536 inputs"):
        adapters.check(str(adapter))
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"adapter for .*base', which is not there"):
        adapters.check(str(adapter))
