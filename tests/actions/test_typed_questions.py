"""Questions as people type them: with options in one line, on lines of their own, or none."""

from __future__ import annotations

import pytest

from medreason.actions.predict import _split


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
