"""An evaluation that is interrupted, or whose ranks end unevenly, keeps every answer it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from medreason import data
from medreason.config import Config
from medreason.evaluation import parts, predictions, run
from medreason.evaluation.parts import OnPredictions, Parts
from medreason.evaluation.predictions import Prediction
from medreason.generation import prefix_sharing
from medreason.generation.drafts import DraftHistory
from medreason.generation.rows import Completion, EvaluationRow
from medreason.runs import keys
from medreason.runs.run_folder import RunFolder

Compose = Callable[..., Config]
Ask = Callable[[Sequence[EvaluationRow], OnPredictions], None]
KEY = "0123456789ab"
SMALL = ("method=base", "data.train_images=1", "data.test_images=1", "evaluation.modalities=[ct]")


def answer(row: EvaluationRow) -> Prediction:
    """Another one for each row."""
    letter = "ABCD"[len(row.prompt) % len(row.sample.options)]
    text = f"<think> {hash(row.sample.id)} </think><answer> {letter} </answer>"
    completion = Completion(row.prompt, text, 9, len(row.prompt), "stop")
    return predictions.predict(row.sample, row.control, completion)


def rows_of(config: Config) -> list[EvaluationRow]:
    samples = data.tested_on(config, data.load(config.data, config.folder / "cache"))
    return [run.evaluation_row(config, sample) for sample in samples]


@pytest.fixture
def evaluation(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Ask], list[Prediction]]:
    """Evaluates with rows asked by a function; gives what predictions.parquet holds."""
    config = composed(*SMALL, "data.test_images=2")
    samples = data.load(config.data, config.folder / "cache")
    folder = RunFolder(tmp_path / "run")
    folder.evaluation(KEY).mkdir(parents=True)
    for name in ("config.yaml", "data.json"):
        (folder.evaluation(KEY) / name).write_text("")
    monkeypatch.setattr(parts, "_POLL_SECONDS", 0.01)

    def evaluate(ask: Ask) -> list[Prediction]:
        monkeypatch.setattr(
            run, "predict_rows", lambda _, rows, __, hand_on, **___: ask(rows, hand_on)
        )
        run.evaluate(config, samples, folder, KEY, lambda *_: None)
        return predictions.read(folder.evaluation(KEY) / "predictions.parquet")

    return evaluate


def test_interrupted_evaluation_asks_the_missing_rows_alone(
    evaluation: Callable[[Ask], list[Prediction]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[EvaluationRow] = []

    def stop_behind_two_batches(rows: Sequence[EvaluationRow], hand_on: OnPredictions) -> None:
        for start in (0, 4):
            asked.extend(rows[start : start + 4])
            hand_on([answer(row) for row in rows[start : start + 4]])
        raise KeyboardInterrupt

    def ask(rows: Sequence[EvaluationRow], hand_on: OnPredictions) -> None:
        asked.extend(rows)
        hand_on([answer(row) for row in rows])

    with pytest.raises(KeyboardInterrupt):
        evaluation(stop_behind_two_batches)
    resumed = evaluation(ask)
    assert "8 of 20 rows were answered before" in capsys.readouterr().err
    assert len({(row.control, row.sample.id) for row in asked}) == len(asked) == 20
    asked.clear()
    assert evaluation(ask) == resumed
    assert len(asked) == 20  # of the finished evaluation no part is left
    assert not [*tmp_path.rglob("parts")]


def test_ranks_that_end_unevenly_wait_in_no_operation_of_the_process_group(
    evaluation: Callable[[Ask], list[Prediction]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, barrier = threading.local(), threading.Barrier(2)
    asked: dict[int, list[EvaluationRow]] = {}

    def wait() -> None:
        assert ranks.number not in asked, "a slow rank would be waited for"
        barrier.wait()

    def state() -> SimpleNamespace:
        rank = ranks.number
        return SimpleNamespace(
            process_index=rank,
            num_processes=2,
            is_main_process=rank == 0,
            wait_for_everyone=wait,
        )

    def ask(rows: Sequence[EvaluationRow], hand_on: OnPredictions) -> None:
        asked[ranks.number] = [*rows]
        for row in rows:
            time.sleep(0.02 * ranks.number)  # rank 1 is the slow one
            hand_on([answer(row)])

    def rank(number: int) -> list[Prediction]:
        ranks.number = number
        return evaluation(ask)

    monkeypatch.setattr(run, "PartialState", state)
    with ThreadPoolExecutor(2) as executor:
        answers, others = executor.map(rank, range(2), timeout=20)
    assert answers == others
    assert [len(asked[0]), len(asked[1])] == [10, 10]
    images = [{row.sample.image for row in rows} for rows in asked.values()]
    assert not images[0] & images[1]
    assert len(answers) == 20


def test_rows_are_dealt_in_stripes_of_images() -> None:
    """Of six images in order, three of CT and three of MRI, each of two ranks gets some of both."""
    rows = [
        EvaluationRow("original", SimpleNamespace(image=f"{kind}-{i}", id=j), "What?")  # pyright: ignore
        for kind in ("ct", "mri")
        for i in range(3)
        for j in range(1 + i)
    ]
    dealt = [run.rows_of_process(rows, process, 2) for process in range(2)]
    images = [sorted({str(row.sample.image) for row in own}) for own in dealt]
    assert images == [["ct-0", "ct-2", "mri-1"], ["ct-1", "mri-0", "mri-2"]]
    assert [len(own) for own in dealt] == [6, 6]


def test_answers_of_other_weights_and_damaged_parts_are_not_taken(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(*SMALL)
    rows = rows_of(config)
    folder = RunFolder(tmp_path)
    written = Parts(folder, KEY, config)
    with written.writing():
        written.add([answer(row) for row in rows])
    assert Parts(folder, KEY, config).missing(rows) == []
    other = composed("method=base", "model.path=owner/other")
    assert Parts(folder, KEY, other).missing(rows) == rows
    (part,) = (folder.evaluation(KEY) / "parts").glob("*/*.parquet")
    part.write_bytes(part.read_bytes()[:-50])
    assert Parts(folder, KEY, config).missing(rows) == rows
    assert f"{part}: damaged; its rows are asked again" in capsys.readouterr().err


def test_time_of_answers_that_were_all_there_is_that_of_the_process_that_gave_them(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed("method=base")
    earlier, later = (Parts(RunFolder(tmp_path), KEY, config) for _ in range(2))
    assert later.kept_seconds() == 0
    earlier.keep_seconds(29.5)
    assert later.kept_seconds() == 29.5


def test_answers_reach_the_disk_while_the_evaluation_goes_on(
    composed: Compose, tmp_path: Path
) -> None:
    config = composed(*SMALL, "hardware.hang_timeout_minutes=1e-9")
    rows = rows_of(config)[:3]
    writer = Parts(RunFolder(tmp_path), KEY, config)
    for left, row in zip((2, 1, 0), rows, strict=True):
        writer.add([answer(row)])
        assert len(Parts(RunFolder(tmp_path), KEY, config).missing(rows)) == left


@pytest.mark.parametrize("answers", [["generated", "option_likelihood"], ["option_likelihood"]])
@pytest.mark.parametrize("obstacles", [[], ["no sharing"]])
def test_each_answer_of_a_model_is_handed_on_once(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, answers: list[str], obstacles: list[str]
) -> None:
    monkeypatch.setattr(prefix_sharing, "sharing_obstacles", lambda _: obstacles)
    settings = ("evaluation.max_new_tokens=2", "hardware.per_device_evaluation=2")
    config = composed(*SMALL, *settings, f"evaluation.answers={answers}")
    rows = rows_of(config)[:3]
    batches: list[Sequence[Prediction]] = []
    predicted = run.predict_rows(config, rows, lambda *_: None, batches.append)
    assert [row.sample for row in predicted] == [row.sample.id for row in rows]
    assert len(batches) > 1
    handed_on = [row for batch in batches for row in batch]
    assert sorted(handed_on, key=lambda row: row.sample) == sorted(
        predicted, key=lambda row: row.sample
    )
    assert all(row.option_likelihoods for row in predicted)


def test_replies_of_the_start_model_are_drafts_and_change_no_answer(
    composed: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(*SMALL, "evaluation.max_new_tokens=30")
    rows = rows_of(config)[:3]
    runs = config.folder / "runs"
    model = {"name": "tiny"}
    start = RunFolder(runs / f"base-tiny-{keys.digest(keys.start_run_parts(model))}")
    trained = RunFolder(runs / "sft-tiny")
    trained.update(train_parts={"model": model})
    assert run._earlier_predictions(trained) == []
    plain = run.predict_rows(config, rows, lambda *_: None)
    for folder, key in ((start, "older"), (trained, "own")):
        folder.evaluation(key).mkdir(parents=True)
        predictions.write(plain, folder.evaluation(key) / "predictions.parquet")
    earlier = run._earlier_predictions(trained)
    assert [path.parent.name for path in earlier] == ["older", "own"]
    earlier[1].write_bytes(b"torn")
    drafts = DraftHistory()
    drafted = run.predict_rows(config, rows, lambda *_: None, drafts=drafts, earlier=earlier)
    assert drafted == plain
    assert drafts.counts.metrics()["tokens_per_pass"] > 2
    assert "no drafts from" in caplog.text


def test_interrupted_and_resumed_without_the_history_the_replies_are_the_same(
    composed: Compose,
) -> None:
    config = composed(*SMALL, "evaluation.max_new_tokens=30", "hardware.per_device_evaluation=4")
    rows = rows_of(config)[:9]
    plain = run.predict_rows(config, rows, lambda *_: None)
    answered: list[Prediction] = []

    def interrupt(batch: Sequence[Prediction]) -> None:
        answered.extend(batch)
        raise KeyboardInterrupt

    history = DraftHistory()
    with pytest.raises(KeyboardInterrupt):
        run.predict_rows(config, rows, lambda *_: None, interrupt, drafts=history)
    assert 0 < len(answered) < len(rows)
    asked = {(row.control, row.sample) for row in answered}
    missing = [row for row in rows if (row.control, row.sample.id) not in asked]
    answered += run.predict_rows(config, missing, lambda *_: None, drafts=DraftHistory())
    assert {(row.control, row.sample): row for row in answered} == {
        (row.control, row.sample): row for row in plain
    }


def test_evaluation_records_what_drafts_brought(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*SMALL)
    samples = data.load(config.data, config.folder / "cache")
    folder = RunFolder(tmp_path / "run")
    folder.evaluation(KEY).mkdir(parents=True)
    for name in ("config.yaml", "data.json"):
        (folder.evaluation(KEY) / name).write_text("")

    def ask(
        _: Config,
        rows: Sequence[EvaluationRow],
        __: object,
        hand_on: OnPredictions,
        *,
        drafts: DraftHistory,
        earlier: Sequence[Path],
    ) -> None:
        hand_on([answer(row) for row in rows])
        drafts.counts.passes, drafts.counts.tokens = 10, 30

    monkeypatch.setattr(run, "predict_rows", ask)
    run.evaluate(config, samples, folder, KEY, lambda *_: None)
    assert folder.state().evaluate_drafts == {"tokens_per_pass": 3.0}
