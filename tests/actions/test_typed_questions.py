"""Questions as people type them: with options in one line, on lines of their own, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from medreason.actions.predict import _open_note, _questions_of_file, _sample, _split
from medreason.samples import SOFT_TISSUE


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("Which? A)CT, B)MRI", ("CT", "MRI")),
        ("Which?\nA) CT\nB) MRI", ("CT", "MRI")),
        ("Which? (A) CT (B) MRI", ("CT", "MRI")),
        ("Which? A. CT; B. MRI; C. PET", ("CT", "MRI", "PET")),
        ("Which?\n(A) CT\n(B) MRI, (contrast)", ("CT", "MRI, (contrast)")),
        ("Which?", ()),
        ("Which? A. fumigatus or B. cereus", ()),
        ("Which?\nA. CT\nB. MRI", ("CT", "MRI")),
        ("Which? Grade B. and C. or A.", ()),
    ],
)
def test_options_are_read_as_they_are_typed(typed: str, options: tuple[str, ...]) -> None:
    question, read = _split(typed)
    assert read == options
    assert question == ("Which?" if options else typed)


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("a.csv", "image,question\n{0},Broken?", ", or fill its columns 'option_A' and 'option_B'"),
        (
            "a.csv",
            "image,question,Option A,Option B\n{0},Which?,CT,MRI\n{0},Broken?,,",
            ", or fill its columns 'Option A' and 'Option B' with Yes and No",
        ),
        (
            "a.json",
            '[{{"image": "{0}", "question": "Broken?"}}]',
            ', or give it "options": ["Yes", "No"]',
        ),
        ("a.csv", "image,question,option_A,option_B\n{0},Broken?,Yes,No", ""),
    ],
)
def test_an_open_question_comes_with_how_its_file_makes_it_one_of_yes_or_no(
    tmp_path: Path, name: str, text: str, remedy: str
) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "x.png")
    (tmp_path / name).write_text(text.format("x.png"))
    questions = _questions_of_file(tmp_path / name)
    note = _open_note(questions, [_sample(q, tmp_path, SOFT_TISSUE) for q in questions])
    assert bool(note) == bool(remedy)
    assert remedy in note
