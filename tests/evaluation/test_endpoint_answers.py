"""model=endpoint against a real HTTP server: the local evaluation's questions and reading, nothing
asked twice, and what fails is counted and in no number."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_folders import draw_samples, reply

from medreason.config import Config
from medreason.data.images import blank
from medreason.evaluation import endpoint_answers, parts, predictions, run
from medreason.evaluation.predictions import Prediction
from medreason.evaluation.run import evaluation_row, predict_rows
from medreason.execution import launch
from medreason.generation import served_model
from medreason.generation.context_length import prompt_tokens
from medreason.generation.generate import generate, prompt_texts
from medreason.generation.rows import EvaluationRow
from medreason.metrics import Metric
from medreason.models.load import load_model, load_processor
from medreason.report import page, table
from medreason.runs import keys
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.samples import Sample

sys.path.insert(0, str(Path(__file__).parent))
from chat_server import Answer, ChatServer, Given, Places, says, serving

Compose = Callable[..., Config]
KEY = "0123456789ab"
GREY = blank((1, 1)).getpixel((0, 0))
SECRET = "sk-secret-0815"


def asking(composed: Compose, server: ChatServer | str, *overrides: str) -> Config:
    url = server if isinstance(server, str) else server.url
    return composed(
        *("method=base", "model=endpoint", f"model.endpoint.base_url={url}"),
        *("model.endpoint.model=m", "model.endpoint.attempts=2", "model.endpoint.timeout_s=5"),
        *("evaluation.max_new_tokens=24", *overrides),
    )


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Each with a question of its own, so that the server knows what it is asked."""
    drawn = draw_samples(tmp_path / "drawn", per_cell=4)
    return [replace(sample, question=f"What does {sample.id} show?") for sample in drawn]


@pytest.fixture
def evaluated(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], list[Prediction], EvaluationFolder]]:
    """Evaluates on the samples, in a run folder as the launcher leaves it."""
    from medreason import config as configuration
    from medreason import data
    from medreason.data import image_cache

    monkeypatch.setattr(parts, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(data, "tested_on", lambda *_: samples)
    monkeypatch.setattr(data, "read_for_prior", lambda *_: samples)
    monkeypatch.setattr(
        data,
        "image_digests",
        lambda _, cache, of: image_cache.digests({s.image for s in of}, cache),
    )

    def evaluate(config: Config) -> tuple[dict[str, Any], list[Prediction], EvaluationFolder]:
        folder = RunFolder(config.folder / "runs" / f"{config.run_name}-{KEY}")
        evaluation = EvaluationFolder(folder, KEY)
        evaluation.path.mkdir(parents=True, exist_ok=True)
        for path in (folder.config, evaluation.config):
            configuration.write(config, path)
        evaluation.data.write_text('{"test_rows_on_trained_images": 0}')
        run.evaluate(config, samples, folder, KEY, lambda *_: None)
        folder.update(state="done", trained=True, sweeps={config.sweep: [KEY]})
        metrics = predictions.load_metrics(evaluation.path)
        return metrics, predictions.read(evaluation.path / "predictions.parquet"), evaluation

    return evaluate


def rows_of(config: Config, samples: Sequence[Sample]) -> list[EvaluationRow]:
    rows = [evaluation_row(config, sample) for sample in samples]
    rows += [evaluation_row(config, sample, "blank_image") for sample in samples[:3]]
    return rows + [evaluation_row(config, sample, "no_image") for sample in samples[:3]]


def test_a_served_model_answers_as_it_does_when_loaded_here(
    composed: Compose, samples: list[Sample]
) -> None:
    local = composed("method=base", "evaluation.max_new_tokens=24")
    model, processor = load_model(local.model, local.hardware), load_processor(local.model)
    one_at_a_time = threading.Lock()

    def answer(prompt: str, image: Image.Image | None) -> dict[str, Any]:
        with one_at_a_time:
            (completion,) = generate(
                *(model, processor, samples[:1], [prompt]),
                image_of=lambda _: image,
                batch_size=1,
                max_new_tokens=24,
            )
        tokens = completion.prompt_tokens, completion.completion_tokens
        return says(completion.text, tokens=tokens, finish_reason=completion.finish_reason)

    expected = predict_rows(local, rows_of(local, samples), lambda *_: None)
    assert len({prediction.completion for prediction in expected}) >= 3
    heard: list[tuple[str, int, int]] = []
    with serving(answer) as server:
        server.probed = answer
        config = asking(composed, server, "model.path=tiny")  # so token counts are compared, too
        rows = rows_of(config, samples)
        given = predict_rows(config, rows, lambda *told: heard.append(told))
    assert given == expected
    assert heard[-1] == ("evaluating", len(rows), len(rows))
    body = server.bodies[0]
    assert {k: v for k, v in body.items() if k != "messages"} == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 24,
    }


def test_trouble_is_repeated_then_counted_and_left_out_of_every_number(
    composed: Compose,
    samples: list[Sample],
    evaluated: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", f"{SECRET}\n")
    trouble = dict(zip([s.id for s in samples], [429, 500, 400, "cut", "silent"], strict=False))
    passing = Counter[str]()

    def answer(prompt: str, image: Image.Image | None) -> Given:
        (sample,) = (s.id for s in samples if s.question in prompt)
        if image is None or image.getpixel((0, 0)) == GREY:
            return says(reply("A"), tokens=(100, 10))
        passing[sample] += 1
        if passing[sample] == 1 and sample == samples[6].id:
            return 500  # and at the second request no more
        if sample in trouble:
            return trouble[sample]
        return says(reply("A"), tokens=(100, 10))

    with serving(answer) as server:
        server.key = SECRET
        settings = ("price_in=1.0", "price_out=2.0", "api_key_env=MY_KEY", "timeout_s=0.7")
        config = asking(composed, server, *(f"model.endpoint.{s}" for s in settings))
        metrics, rows, evaluation = evaluated(config)
    overall = metrics["overall"]
    original = [row for row in rows if row.control == "original"]
    assert overall[Metric.N] == len(original) == len(samples) - 5
    assert not {row.sample for row in rows} & {*trouble}  # their controls compare with nothing
    assert overall[Metric.UNANSWERED] == pytest.approx(5 / 12)
    right = sum(row.gold == "A" for row in original)
    assert overall[Metric.ACCURACY] == right / len(original)
    assert metrics["cells"]["ct/anatomy"][Metric.UNANSWERED] == 0.25
    assert "ct/disease" not in metrics["cells"]  # all four failed
    failures = metrics["requests"]["failures"]
    reasons = {"status 429", "status 500", "status 400", "connection lost", "no answer in 0.7 s"}
    assert failures == dict.fromkeys(reasons, 1)
    replies = len(samples) * 2 - 5
    assert metrics["requests"]["replies"] == replies
    assert overall[Metric.COST_USD] == pytest.approx(replies * (100 * 1.0 + 10 * 2.0) / 1e6)
    (row,) = table.rows([evaluation])
    table.show([evaluation])
    shown = capsys.readouterr()
    assert "base model=m" in shown.out
    assert "41.7" in shown.out
    assert "41.7 % of its questions got no reply" in " ".join(shown.out.split())
    (note,) = table.unanswered_notes([row])
    assert note in page._notes([row], grouped=False)
    for text in (shown.out, shown.err, caplog.text, json.dumps(metrics)):
        assert SECRET not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


SCORED = "evaluation.answers=[option_likelihood]"


def test_options_of_a_served_model_are_as_likely_as_when_it_is_loaded_here(
    composed: Compose, samples: list[Sample]
) -> None:
    local = composed("method=base", SCORED)
    model, processor = load_model(local.model, local.hardware), load_processor(local.model)
    one_at_a_time = threading.Lock()

    def scored(prompt: str, image: Image.Image | None, beginning: str) -> Places:
        (text,) = prompt_texts(processor, [prompt], [image is not None])
        images = [image] if image else None
        inputs: Any = processor(text=[text + beginning], images=images, return_tensors="pt")  # pyright: ignore[reportCallIssue]
        with one_at_a_time, torch.inference_mode():
            logps = model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0].tolist()
        return [None, *({str(t): {"logprob": logps[i, t].item()}} for i, t in enumerate(ids[1:]))]

    expected = predict_rows(local, rows_of(local, samples), lambda *_: None)
    with serving(lambda *_: says("")) as server:
        server.scored = scored
        config = asking(composed, server, SCORED)
        given = predict_rows(config, rows_of(config, samples), lambda *_: None)
        asked = server.calls.total()
        assert predict_rows(config, rows_of(config, samples), lambda *_: None) == given
        assert server.calls.total() == asked + 2  # of the probe; all others are kept
    assert len({round(p.option_likelihoods[0], 3) for p in expected}) > 3
    for ours, theirs in zip(expected, given, strict=True):
        assert theirs.option_likelihoods == pytest.approx(ours.option_likelihoods, abs=1e-5)
        assert replace(theirs, option_likelihoods=[]) == replace(ours, option_likelihoods=[])


def scored_alike(prompt: str, image: Image.Image | None, beginning: str) -> Places:
    return [None, {"1": {"logprob": -1.0}}, {str(ord(beginning[-1])): {"logprob": -0.5}}]


def test_options_that_got_no_likelihoods_are_counted_and_left_out(
    composed: Compose, samples: list[Sample], evaluated: Callable[..., Any]
) -> None:
    with serving(lambda *_: says(reply("A"))) as server:
        server.scored = lambda prompt, *more: (
            500 if "-3-" in prompt else scored_alike(prompt, *more)
        )
        config = asking(composed, server, "evaluation.answers=[generated,option_likelihood]")
        metrics, rows, _ = evaluated(config)
    overall = metrics["overall"]
    assert overall[Metric.UNANSWERED] == 0.25
    assert overall[Metric.OPTION_LIKELIHOOD_N] == overall[Metric.N] == len(samples) * 3 / 4
    assert not [row for row in rows if "-3-" in row.question]
    assert {row.answer for row in rows} == {"A"}
    assert set(metrics["requests"]["failures"]) == {"status 500"}


@pytest.mark.parametrize("places", [[], 400])
def test_server_that_scores_no_prompts_is_named_before_the_questions(
    composed: Compose, samples: list[Sample], places: Places | int
) -> None:
    with serving(lambda *_: says("")) as server:
        server.scored = lambda *_: places
        config = asking(composed, server, SCORED)
        words = (
            r"'m' gives no log-probabilities of a prompt .*serve`, or set .*answers=\[generated\]"
        )
        with pytest.raises(ValueError, match=words):
            predict_rows(config, rows_of(config, samples), lambda *_: None)
    assert server.calls.total() <= 2


def test_what_was_left_unanswered_is_asked_again_as_the_table_says(
    composed: Compose, samples: list[Sample], evaluated: Callable[..., Any]
) -> None:
    down = [True]

    def answer(prompt: str, image: Image.Image | None) -> Given:
        return 500 if down[0] and "-3-" in prompt else says(reply("A"))

    with serving(answer) as server:
        config = asking(composed, server)
        metrics, _, evaluation = evaluated(config)
        assert metrics["overall"][Metric.UNANSWERED] == 0.25
        down[0] = False
        server.calls.clear()
        for file in evaluation.path.iterdir():
            file.unlink()
        evaluation.path.rmdir()
        metrics, _, _ = evaluated(config)
    assert metrics["overall"][Metric.UNANSWERED] == 0.0
    assert all("-3-" in prompt for prompt in server.calls)


def test_an_interrupted_evaluation_calls_again_for_no_kept_reply(
    composed: Compose, samples: list[Sample], evaluated: Callable[..., Any]
) -> None:
    answered = Counter[str]()

    def answer(prompt: str, image: Image.Image | None) -> Given:
        answered[prompt] += 1
        return 401 if answered.total() > 9 and stop else says(reply("B"))

    stop = [True]
    with serving(answer) as server:
        config = asking(composed, server, "model.endpoint.concurrency=1")
        with pytest.raises(ValueError, match="refuses the key"):
            evaluated(config)
        first = answered.total() - 1
        stop.clear()
        metrics, rows, _ = evaluated(config)
        assert answered.total() == len(rows) + 1  # the one that ended the first
        assert first == 9
        assert metrics["requests"]["replies"] == len(rows)
        answered.clear()
        more = asking(composed, server, "evaluation.controls=[blank_image,no_image]")
        assert len(predict_rows(more, rows_of(more, samples), lambda *_: None)) == 18
        assert answered.total() == 3  # without an image; all others are kept


def test_replies_are_readable_after_sigkill(
    composed: Compose, samples: list[Sample], tmp_path: Path
) -> None:
    """In a process of its own: what a signal leaves on disk no exception shows."""
    seen: list[str] = []

    def answer(prompt: str, image: Image.Image | None) -> Given:
        seen.append(prompt)
        time.sleep(0.1)
        return says(reply("B"))

    with serving(answer) as server:
        config = asking(composed, server, "model.endpoint.concurrency=2")
        rows = [evaluation_row(config, sample) for sample in samples]
        path = endpoint_answers.reply_file(config)
        (tmp_path / "asked").write_bytes(pickle.dumps((config.model, path, rows)))
        process = subprocess.Popen([sys.executable, "-c", ASKING, str(tmp_path / "asked")])
        while process.poll() is None and lines(path) < 5:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = lines(path)
        assert 5 <= kept < len(rows)
        with path.open("ab") as stream:  # as a kill within a write leaves it
            stream.write(b'{"key": "ab')
        seen.clear()
        answers = predict_rows(config, rows, lambda *_: None)
    assert [answer.answer for answer in answers] == ["B"] * len(rows)
    assert len(seen) == len(rows) - kept


ASKING = """
import pickle, sys
from pathlib import Path
from medreason.generation.kept_replies import KeptReplies, reply_to
from medreason.generation.parallel_requests import parallel_requests
from medreason.generation.served_model import ask_of
model, path, rows = pickle.loads(Path(sys.argv[1]).read_bytes())
replies, ask = KeptReplies(path), ask_of(model)
answer = lambda row: reply_to(model, replies, ask, row, 24)
list(parallel_requests(answer, dict(enumerate(rows)), concurrency=2, unreached=str))
assert "torch" not in sys.modules
"""


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_server_that_ends_on_the_way_ends_the_evaluation_and_keeps_its_replies(
    composed: Compose, samples: list[Sample]
) -> None:
    answered = Counter[str]()

    def answer(prompt: str, image: Image.Image | None) -> Given:
        answered[prompt] += 1
        return says(reply("B")) if answered.total() <= 4 else 429

    settings = ("model.endpoint.attempts=1", "model.endpoint.concurrency=2")
    with serving(answer) as server:
        config = asking(composed, server, *settings)
        rows = [evaluation_row(config, sample) for sample in samples]
        with pytest.raises(ValueError, match=r"gives no replies \(status 429.*re-run the same"):
            predict_rows(config, rows, lambda *_: None)
        assert lines(endpoint_answers.reply_file(config)) == 4 + 2  # two of the probe


def test_no_reply_at_all_is_an_error_and_asked_again(
    composed: Compose, evaluated: Callable[..., Any]
) -> None:
    status = [400]
    with serving(lambda *_: status[0] if status else says(reply("A"))) as server:
        config = asking(composed, server)
        with pytest.raises(ValueError, match=r"no question got a reply: status 400 \(24 requests"):
            evaluated(config)
        status.clear()
        assert evaluated(config)[0]["overall"][Metric.UNANSWERED] == 0.0


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (says("<answer>A</answer>"), "<answer>A</answer>"),
        (
            says("\n<answer>A</answer>", reasoning_content="It is."),
            "<think>It is.</think>\n<answer>A</answer>",
        ),
        (says("<answer>A</answer>", reasoning="So."), "<think>So.</think><answer>A</answer>"),
        (says(reply("A"), reasoning="again"), reply("A")),
        (says(None, reasoning_content="It", finish_reason="length"), "<think>It"),
        (
            says(None, reasoning_content="So <answer>A</answer><|im_end|>"),
            "<think>So <answer>A</answer>",
        ),
        (says("", reasoning_content="So."), "<think>So.</think>"),
        (says(None, refusal="I cannot help with that."), "I cannot help with that."),
        (says(None), ""),
    ],
)
def test_a_reply_is_what_the_model_wrote(
    composed: Compose, message: dict[str, Any], text: str
) -> None:
    cut_off = message["finish_reason"] == "length"
    with serving(lambda *_: message) as server:
        model = asking(composed, server).model
        completion = served_model.ask_of(model)("Which?", None, 24)
    assert (completion.text, completion.finish_reason) == (text, "length" if cut_off else "stop")


def refusing_images(_: str, image: Image.Image | None) -> Given:
    return 400 if image else says("Which?")


@pytest.mark.parametrize(
    ("models", "probed", "words"),
    [
        (["a", "b"], None, r"'m' is not among the models .* lists: 'a', 'b'; set .*listed=false"),
        ([], None, r"lists: none"),
        (["m"], lambda *_: 404, r"knows no model 'm'"),
        (["m"], lambda *_: 500, r"refuses a question to 'm' \(status 500: .*request\.FIELD=null"),
        (["m"], refusing_images, r"refuses one with a PNG image of 112 x 112 \(status 400: .*\*\*"),
        (["m"], lambda *_: says("I see.", tokens=(9, 3)), "the server drops images"),
    ],
)
def test_a_server_of_another_kind_is_named_before_the_questions(
    composed: Compose,
    monkeypatch: pytest.MonkeyPatch,
    models: list[str],
    probed: Answer | None,
    words: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(lambda *_: says("")) as server:
        server.models = models
        server.probed = probed or server.probed
        config = asking(composed, server, "model.endpoint.attempts=1")
        with pytest.raises(ValueError, match=words) as caught:
            served_model.probe(config.model)
    assert SECRET not in str(caught.value)
    assert not server.calls


@pytest.mark.parametrize("models", [None, ["models/m"], ["x", "m"]])
def test_a_server_without_a_list_or_with_the_model_in_it_passes(
    composed: Compose, models: list[str] | None
) -> None:
    with serving(lambda *_: says("")) as server:
        server.models = models
        assert served_model.probe(asking(composed, server).model).text.text == "A gradient."
        server.models = ["other"]
        unlisted = asking(composed, server, "model.endpoint.listed=false")
        assert served_model.probe(unlisted.model).counts_tokens


def test_a_refused_key_and_a_server_that_is_not_there_are_named(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(lambda *_: says("")) as server:
        server.key = "right"
        with pytest.raises(ValueError, match=r"refuses the key.*OPENAI_API_KEY") as caught:
            served_model.probe(asking(composed, server).model)
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match=r"base_url=http://127\.0\.0\.1:9/v1 gives no replies"):
        served_model.probe(asking(composed, "http://127.0.0.1:9/v1").model)


@pytest.mark.parametrize(
    ("more_text", "more_image", "words"),
    [
        (0, 0, ""),
        (2, 0, "tokens of a prompt without an image, and model.path=tiny .*: another tokenizer"),
        (0, -7, "another pixel limit; start the server with that limit"),
    ],
)
def test_a_server_with_another_tokenizer_or_pixel_limit_is_named(
    composed: Compose, samples: list[Sample], more_text: int, more_image: int, words: str
) -> None:
    pixels = "model.max_pixels=12544"

    def probed(prompt: str, image: Image.Image | None) -> Given:
        size = image.size if image else None
        more = more_text + (more_image if image else 0)
        return says("?", tokens=(prompt_tokens(processor, prompt, size) + more, 1))

    with serving(lambda *_: says(reply("A"))) as server:
        server.probed = probed
        config = asking(composed, server, "model.path=tiny", pixels)
        processor = load_processor(config.model)
        rows = [evaluation_row(config, samples[0])]
        if not words:
            assert predict_rows(config, rows, lambda *_: None)[0].answer == "A"
            return
        with pytest.raises(ValueError, match=words):
            predict_rows(config, rows, lambda *_: None)
    assert not server.calls


def test_another_model_under_the_name_of_kept_replies_is_named(
    composed: Compose, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda *_: says(reply("A"))) as server:
        config = asking(composed, server)
        rows = [evaluation_row(config, samples[0])]
        predict_rows(config, rows, lambda *_: None)
        server.probed = lambda _, image: says("Other.", tokens=(25 if image else 9, 3))
        predict_rows(config, rows, lambda *_: None)
        assert "says 'Other.' to a prompt to which it said 'A gradient.'" in capsys.readouterr().err
        server.probed = lambda _, image: says("Other.", tokens=(26 if image else 9, 3))
        with pytest.raises(ValueError, match="counts 26 tokens of a prompt of which it counted 25"):
            predict_rows(config, rows, lambda *_: None)


def test_server_name_and_settings_decide_the_key_and_where_the_key_is_does_not(
    composed: Compose,
) -> None:
    def key(*overrides: str) -> str:
        config = asking(composed, "http://127.0.0.1:9/v1", *overrides)
        return keys.digest(keys.train_parts(config, "", ""))

    same = ("api_key_env=OTHER", "concurrency=1", "attempts=9", "timeout_s=9", "price_in=3.0")
    assert {key(*(f"model.endpoint.{setting}" for setting in same)), key("model.path=tiny")} == {
        key()
    }
    others = ("base_url=http://other/v1", "model=n", "+request.seed=1")
    changed = [f"{'+' * o.startswith('+')}model.endpoint.{o.removeprefix('+')}" for o in others]
    assert len({key(), *map(key, changed)}) == 4
    local = composed("method=base")
    assert "endpoint" not in keys.train_parts(local, "", "")["model"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.endpoint.base_url=''"], r"model\.endpoint\.base_url has no value"),
        (["model.endpoint.base_url=server"], r"give an address such as http"),
        (["model.endpoint.base_url=http://u:sk-1@h/v1"], "a user name, a password or a query"),
        (["model.endpoint.base_url='http://h/v1?key=sk-1'"], "a password or a query"),
        (["model.endpoint.model=''"], r"model\.endpoint\.model has no value"),
        (["model.endpoint.api_key_env=sk-1"], "holds no name of an environment variable"),
        (["model.endpoint.price_in=-1"], "0 or more, or null"),
        (["+model.endpoint.request.n=2"], "evaluation sets that field itself"),
        (["evaluation.engine=generate"], "set evaluation.engine=endpoint, or leave"),
        (["method=grpo"], "method=grpo trains, .* choose method=base"),
        (["method=rarl", "action=plan"], "method=rarl trains"),
        (["action=bench"], "action=bench needs weights"),
        (["action=export"], "action=export needs weights"),
        (["action=predict"], "action=predict needs weights"),
        (["model.max_pixels=3136"], r"set that, or model\.max_pixels=null"),
    ],
)
def test_what_a_served_model_cannot_do_is_refused_by_name(
    composed: Compose, overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        asking(composed, "http://127.0.0.1:9/v1", *overrides)
    assert "sk-1" not in str(caught.value)


def test_engine_without_a_server_is_refused_with_a_remedy_that_works(composed: Compose) -> None:
    with pytest.raises(ValueError, match="choose model=endpoint") as caught:
        composed("method=base", "evaluation.engine=endpoint")
    remedy = str(caught.value).partition("choose ")[2].split()
    assert composed("method=base", *remedy).model.label == "NAME"


def test_no_device_is_needed_whatever_the_profile(composed: Compose) -> None:
    config = asking(composed, "http://h/v1", "hardware=gpu_x8", "model.endpoint.timeout_s=1000")
    hardware = launch._without_device(config).hardware
    assert (hardware.accelerator, hardware.processes) == ("cpu", 1)
    assert hardware.hang_timeout_minutes > 60
    local = composed("method=base")
    assert launch._without_device(local) is local


def test_arms_of_served_models_are_named_and_compared_with_local_ones(
    composed: Compose, samples: list[Sample], evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    from run_folders import write_run

    from medreason.report import comparisons, matrices
    from medreason.report.runs import load

    with serving(lambda *_: says(reply("A"))) as server:
        served = evaluated(asking(composed, server))[2]
    base = write_run(
        composed("method=base", "evaluation.max_new_tokens=24"), samples, lambda *_: reply("B")
    )
    runs = load([served, base])
    assert sorted(run.label for run in runs) == ["base", "base model=m"]
    arms = matrices.arms(runs)
    assert len([*comparisons.pairs(arms)]) == 1
