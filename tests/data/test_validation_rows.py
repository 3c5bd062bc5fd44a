"""Validation rows: held back by patient and image content, or published; and refusals."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medreason import data
from medreason.config import Config, Validation
from medreason.data import audit, rows, splits, validation
from medreason.data.rows import Loaded
from medreason.runs import keys
from medreason.samples import Sample

HELD_BACK = Validation(name="in_domain", share=0.3)
PUBLISHED = Validation(name="in_domain", source="published")


def sample(
    number: int, image: int, patient: int | None = None, task: str = "disease", side: str = "train"
) -> Sample:
    owner = None if patient is None else f"p{patient}"
    return Sample(
        f"f:{number}", Path(f"/d/{image:03}.png"), f"{number}?", ("a", "b"), "A", None, "ct", task,
        "s", owner, side,
    )  # fmt: skip


def by_name(samples: list[Sample]) -> dict[Path, str]:
    return {s.image: s.image.name for s in samples}


def hold_back(samples: list[Sample], share: float = 0.3, seed: int = 0) -> list[Sample]:
    return splits.hold_back(samples, share=share, seed=seed, image_digests=by_name(samples))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.none() | st.integers(0, 20), st.sampled_from(("x", "y"))),
        max_size=60,
    ),
    seed=st.integers(0, 3),
)
def test_no_patient_and_no_image_is_in_train_and_validation(
    rows: list[tuple[int, int | None, str]], seed: int
) -> None:
    divided = hold_back([sample(i, *row) for i, row in enumerate(rows)], seed=seed)
    for facet in ("image", "patient"):
        values = [{getattr(s, facet) for s in divided if s.split == side} - {None}
                  for side in ("train", "validation")]  # fmt: skip
        assert not values[0] & values[1]


def test_share_is_met_in_each_cell_whatever_order_and_paths_and_test_rows_stay() -> None:
    tasks = {i: "disease" if i < 150 else "grading" for i in range(400)}
    samples = [sample(i, i // 2, i // 5, task) for i, task in tasks.items()]
    samples += [sample(400 + i, i, i, side="test") for i in range(20)]  # of train's patients
    divided = hold_back(samples, share=0.2)
    assert [s.id for s in divided] == [s.id for s in samples]
    counts = Counter((s.task, s.split) for s in divided)
    for task, n in (("disease", 150), ("grading", 250)):
        assert counts[task, "validation"] / n == pytest.approx(0.2, abs=0.04)
    assert counts["disease", "test"] == 20
    shuffled = random.Random(0).sample(samples, len(samples))
    moved = [replace(s, image=Path("/z") / s.image.name) for s in shuffled]
    assert {s.id: s.split for s in hold_back(moved, 0.2)} == {s.id: s.split for s in divided}
    assert hold_back(samples, share=0.2, seed=1) != divided


def test_two_files_of_one_content_are_one_image() -> None:
    samples = [sample(i, i) for i in range(40)]
    digests = {s.image: str(i // 2) for i, s in enumerate(samples)}
    for seed in range(5):
        divided = splits.hold_back(samples, share=0.4, seed=seed, image_digests=digests)
        assert all(a.split == b.split for a, b in zip(divided[::2], divided[1::2], strict=True))


def slake(root: Path, *files: str, images: int = 12) -> dict[str, Any]:
    """Files of SLAKE of `images` questions each; no image is in two of them."""
    for place, file in enumerate(files):
        numbers = range(place * images, (place + 1) * images)
        rows = [
            {
                "img_name": f"xmlab{i}/source.jpg", "q_lang": "en", "question": "Is it CT?",
                "answer": "Yes", "modality": "CT", "content_type": "Modality",
                "answer_type": "CLOSED",
            }
            for i in numbers
        ]  # fmt: skip
        (root / file).write_text(json.dumps(rows))
        for i in numbers:
            (root / f"imgs/xmlab{i}").mkdir(parents=True)
            Image.new("L", (32, 32), i).save(root / f"imgs/xmlab{i}/source.jpg", "PNG")
    return {"_target_": "medreason.data.slake.read", "root": str(root)}


def test_validation_rows_of_a_data_set_are_held_back_from_train_alone(tmp_path: Path) -> None:
    spec = slake(tmp_path, "train.json", "test.json") | {"options": "shuffled"}
    without = data.load(spec, tmp_path / "cache")
    divided = data.load(spec, tmp_path / "cache", HELD_BACK)
    assert Counter(s.split for s in without) == {"train": 12, "test": 12}
    assert Counter(s.split for s in divided) == {"train": 8, "validation": 4, "test": 12}
    assert [s for s in divided if s.split == "test"] == [s for s in without if s.split == "test"]
    # As those of the test: the order of their options is that of the release.
    assert all(s.options == ("Yes", "No") for s in divided if s.split == "validation")
    counts = data.row_counts(spec, tmp_path / "cache", HELD_BACK)
    assert counts == {"train": 8, "test": 12, "validation": 4}


def test_published_validation_rows_are_the_files_of_the_release(tmp_path: Path) -> None:
    spec = slake(tmp_path, "train.json", "test.json", "validate.json")
    unread = {"train": 12, "test": 12, rows.OF_VALIDATION: 12}
    assert data.read(spec, tmp_path).counts == unread
    loaded = data.read(spec, tmp_path, PUBLISHED)
    assert {s.id.partition(":")[0] for s in loaded.samples if s.split == "validation"} == {
        "validate.json"
    }
    assert loaded.counts == {"train": 12, "test": 12, "validation": 12}
    low = data.read(spec | {"split": "low_data"}, tmp_path, PUBLISHED)
    assert low.counts["validation"] == 12


def test_a_set_without_published_validation_is_refused(tmp_path: Path) -> None:
    spec = slake(tmp_path, "train.json", "test.json")
    with pytest.raises(ValueError, match=r"missing: validation\.json"):
        data.read(spec, tmp_path, PUBLISHED)
    rows = [{"image": f"{i}.png", "problem": "? A)x, B)y", "solution": "A"} for i in range(4)]
    root = tmp_path / "other"
    root.mkdir()
    (root / "CT_train.json").write_text(json.dumps(rows))
    other = {"_target_": "medreason.data.med_r1.read", "root": str(root), "images": "none"}
    with pytest.raises(ValueError, match=r"source='published'.* set validation\.source=train"):
        data.read(other, tmp_path, PUBLISHED)


def test_bad_rows_stand_before_the_lack_of_published_validation(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    lines = [f"{i}.png,{i}?,yes,whole body,{'val' if i else 'train'}" for i in range(4)]
    lines.append("5.png,5?,yes,CT,train")
    table.write_text("\n".join(["image,question,answer,modality,fold", *lines]))
    spec = {"_target_": "medreason.data.hub.read", "hub": str(table), "images": "none"}
    with pytest.raises(ValueError, match="no usable row") as error:
        data.read(spec, tmp_path, PUBLISHED)
    first, bad, last = str(error.value).splitlines()
    assert first == f"4 bad rows in {table}, the first:"
    assert "rows 2, 3, 4 and 1 more" in bad
    assert "'whole body'; known:" in bad
    assert last == (
        f"validation.source='published': no usable row of data.hub={table} is for validation; "
        "repair those, or set validation.source=train, which holds rows back from train"
    )


def run_of(composed: Callable[..., Config], *words: str) -> Config:
    return composed("validation=in_domain", "method.trl.max_steps=100", *words)


def with_sides(config: Config, samples: list[Sample]) -> list[Sample]:
    """The samples as loading them under this configuration divides them."""
    settings = config.validation
    images = data.image_digests(config.data, config.folder / "cache", samples)
    return splits.hold_back(samples, share=settings.share, seed=settings.seed, image_digests=images)


@pytest.mark.parametrize(
    ("share", "side", "works"), [(0.05, "validation", 0.13), (0.9, "train", 0.87)]
)
def test_a_share_that_leaves_a_cell_without_a_side_is_refused(
    composed: Callable[..., Config], share: float, side: str, works: float
) -> None:
    rows = [sample(i, i, task="grading" if i < 4 else "disease") for i in range(40)]
    config = run_of(composed, f"validation.share={share}")
    with pytest.raises(
        ValueError, match=f"leaves modality=ct task=grading without {side}"
    ) as error:
        validation.refuse_unusable(config, with_sides(config, rows))
    assert f"validation.share={works} is the nearest" in str(error.value)
    followed = run_of(composed, f"validation.share={works}")
    validation.refuse_unusable(followed, with_sides(followed, rows))
    elsewhere = run_of(composed, f"validation.share={share}", "task=disease")
    validation.refuse_unusable(elsewhere, with_sides(elsewhere, rows))


def test_a_cell_of_one_patient_stays_in_train_and_is_named(
    composed: Callable[..., Config],
) -> None:
    rows = [sample(i, i, patient=0, task="grading") for i in range(4)]
    rows += [sample(i, i) for i in range(4, 40)]
    config = run_of(composed, "validation.share=0.2")
    divided = with_sides(config, rows)
    validation.refuse_unusable(config, divided)
    assert list(validation.notes(config, divided)) == [
        "ct/grading is trained on and has no validation row"
    ]
    most = with_sides(run_of(composed, "validation.share=0.9"), rows)
    assert all(s.split == "train" for s in most if s.task == "grading")
    alone = run_of(composed, "task=grading")
    with pytest.raises(ValueError, match=r"no validation row is in modality=all task=grading; all"):
        validation.refuse_unusable(alone, with_sides(alone, rows))


def test_patience_without_in_domain_rows_is_refused(composed: Callable[..., Config]) -> None:
    rows = [sample(i, i) for i in range(8)]
    rows += [sample(8 + i, 8 + i, task="grading", side="validation") for i in range(8)]
    words = ("validation.source=published", "validation.patience=2", "validation=transfer")
    with pytest.raises(
        ValueError, match=r"no validation row is in .*task=disease; set validation\.source=train"
    ):
        validation.refuse_unusable(run_of(composed, *words, "task=disease"), rows)
    held_back = run_of(composed, "validation.patience=2", "validation=transfer", "task=disease")
    validation.refuse_unusable(held_back, with_sides(held_back, rows))


def test_every_beyond_an_epochs_updates_is_refused(composed: Callable[..., Config]) -> None:
    words = ("method.trl.max_steps=-1", "method.trl.num_train_epochs=1")
    rows = [sample(i, i) for i in range(200)]
    config = composed("validation=in_domain", *words, "validation.every=400")
    divided = with_sides(config, rows)
    updates = config.updates(len(data.trained_on(config, divided)))
    with pytest.raises(ValueError, match=f"every=400 is beyond the {updates} updates") as error:
        validation.refuse_unusable(config, divided)
    remedy = str(error.value).partition("; set ")[2].partition(",")[0]
    validation.refuse_unusable(composed("validation=in_domain", *words, remedy), divided)


def test_questions_are_in_domain_or_of_other_cells_and_capped_by_content(
    composed: Callable[..., Config],
) -> None:
    rows = [sample(i, i, task=("disease", "grading")[i % 2], side="validation") for i in range(60)]
    rows += [sample(60 + i, i, side=side) for i, side in enumerate(("train", "test"))]
    more = ("validation=transfer", "validation.questions=20", "task=disease")
    config = run_of(composed, *more)
    asked = validation.questions(config, rows)
    assert {side: {s.task for s in members} for side, members in asked.items()} == {
        "validation": {"disease"}, "transfer": {"grading"},
    }  # fmt: skip
    assert {side: len(members) for side, members in asked.items()} == {
        "validation": 20, "transfer": 20,
    }  # fmt: skip
    assert {s.split for members in asked.values() for s in members} == {"validation"}
    reordered = [replace(s, id=f"g:{i}") for i, s in enumerate(rows[::-1])]
    again = validation.questions(config, reordered)
    assert {s.question for s in again["transfer"]} == {s.question for s in asked["transfer"]}
    assert validation.questions(run_of(composed, *more, "validation.seed=1"), rows) != asked
    assert validation.questions(run_of(composed, "validation.every=null"), rows) == {}
    assert validation.questions(composed("method=base", "validation=in_domain"), rows) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("validation=in_domain validation.share=1.0", r"validation.share=1.0; needs a number betw"),
        (
            "validation=in_domain validation.source=test",
            r"validation.source='test'; known: 'train'",
        ),
        ("validation.select=best", r"select='best' needs in-domain .*choose validation=in_domain"),
        ("validation.patience=2", r"patience=2 needs in-domain .*set validation.patience=null"),
        (
            "experiment=smoke/demo validation=none",
            r"select='best' needs .*choose validation=in_domain, or set validation.select=last",
        ),
        ("validation.every=5", r"every=5: validation=none has no questions to ask"),
        (
            "validation=in_domain validation.every=null validation.select=best",
            r"validation.select='best' needs validations while it trains; set validation.every",
        ),
        (
            "validation=transfer validation.every=25 method.trl.max_steps=8",
            r"every=25 is beyond .*max_steps=8.*set validation.every=auto",
        ),
        ("validation=in_domain validation.every=0", r"every=0; give a number of updates, 1 or"),
        ("validation=in_domain validation.every=often", r"every=often; give a number .* auto, or"),
        (
            "validation=in_domain validation.source=published data.split=by_image",
            r"source='published' keeps .*data.split='by_image'.*set data.split=published",
        ),
        (
            "validation=in_domain validation.source=published data=slake data.validation=train",
            r"data.validation='train' puts .*set data.validation=null",
        ),
        ("data=slake data.validation=tets", r"data.validation='tets'; known: 'train', 'test'; did"),
        (
            "data=path_vqa data.validation=validation",
            r"data.validation='validation' leaves .*data.validation=null.*source=published",
        ),
        (
            "validation=in_domain validation.every=3 validation.select=best "
            "method.trl.num_iterations=2",
            r"validation.every=3 is not a multiple of 2.*set validation.every=4",
        ),
    ],
)
def test_settings_that_choose_nothing_are_refused(
    composed: Callable[..., Config], words: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        composed(*words.split())


@pytest.mark.parametrize(
    ("words", "every"),
    [
        ("method.trl.max_steps=500", 25),
        ("method.trl.max_steps=120", 24),
        ("method.trl.max_steps=6", 2),
        ("method.trl.max_steps=1", 1),
        ("method.trl.max_steps=120 validation.every=7", 7),
        # 40 rows, 4 an update.
        ("method.trl.max_steps=-1 method.trl.num_train_epochs=3 method.prompts_per_step=4", 6),
        # Between the three updates on the same completions none could be resumed.
        ("method=grpo method.trl.max_steps=120 method.trl.num_iterations=3", 24),
        ("method=grpo method.trl.max_steps=35 method.trl.num_iterations=3", 9),
    ],
)
def test_validations_fit_the_length_of_a_run(
    composed: Callable[..., Config], words: str, every: int
) -> None:
    base = (
        "method=sft",
        "validation=in_domain",
        "validation.select=best",
        "runs.checkpoint_steps=3",
    )
    config = composed(*base, *words.split(), "hardware.per_device_prompts=1")
    assert config.validated_every(40) == every


def test_a_typed_number_of_updates_leaves_the_key_as_it_was(
    composed: Callable[..., Config],
) -> None:
    assert (
        composed("validation=in_domain", "validation.every=25").validation.identity["every"] == 25
    )


def test_the_remedy_for_validation_rows_on_no_side_works(composed: Callable[..., Config]) -> None:
    words = ("data.validation=null", "validation=in_domain", "validation.source=published")
    assert composed("data=path_vqa", "data.root=.", *words, "method.trl.max_steps=100")


def test_audit_counts_three_sides_and_the_leaks_of_validation() -> None:
    samples = [
        sample(0, 0, 0), sample(1, 1, 1, side="validation"), sample(2, 1, 2, side="validation"),
        sample(3, 1, 3, side="test"), sample(4, 4, 1, side="train"),
    ]  # fmt: skip
    report = audit.audit(Loaded(samples, []), "digest", by_name(samples))
    assert report["cells"] == {"ct": {"disease": {"train": 2, "validation": 2, "test": 1}}}
    assert report["letters"]["validation"] == {"A": 2}
    assert report["answer_types"]["validation closed"] == 2
    assert report["validation_leakage"] == {
        "train": {"shared_images": 0, "validation_rows": 0, "shared_patients": 1},
        "test": {"shared_images": 1, "validation_rows": 2, "shared_patients": 0},
    }
    said = audit.warnings(report)
    assert "2 validation questions about 1 image of test, by content" in said
    assert "1 patient in both validation and train" in said
    train, held_back, test = ([s for s in samples if s.split == side] for side in audit.SIDES)
    known = by_name(samples)
    facts = audit.audit_run(train, test, "digest", known, {}, validation=held_back)
    assert (facts["validation_rows"], facts["test_rows"]) == (2, 1)
    assert "1 patient in both validation and train" in facts["warnings"]


def test_train_key_has_validation_where_it_asks_questions(composed: Callable[..., Config]) -> None:
    def key(*words: str, asked: str = "") -> str:
        return keys.digest(keys.train_parts(composed(*words), "rows", "", asked))

    off, silent = key(), key("validation=in_domain", "validation.every=null")
    assert off == silent
    asking = key("validation=in_domain", asked="questions")
    assert len({off, asking, key("validation=in_domain", asked="others")}) == 3
    other_wording = key("validation=in_domain", "prompt=no_think_parity", asked="questions")
    assert key("prompt=no_think_parity") != other_wording != asking
    assert key("validation=in_domain", "evaluation=quick", asked="questions") == asking
    assert "validation" not in keys.train_parts(
        composed("method=base", "validation=in_domain"), "", ""
    )
