"""Values far outside of what is used are said, and allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medreason.config import Config
from medreason.execution import setting_notes

Compose = Callable[..., Config]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("method=sft method.trl.learning_rate=10", "! method.trl.learning_rate=10 moves every wei"),
        ("method=grpo method.trl.learning_rate=0.02", "! method.trl.learning_rate=0.02 moves"),
        ("method=rarl method.trl.learning_rate=1e-3", ""),
        ("method=base", ""),
        ("method=sft method.trl.learning_rate=10 +hardware.trl.optim=sgd", ""),
        ("method=sft validation=in_domain validation.share=0.9", "! validation.share=0.9 holds"),
        ("method=sft validation=in_domain validation.share=0.5", ""),
        ("method=base validation=in_domain validation.share=0.9", ""),
        ("method=sft hardware.threads=99", "! hardware.threads=99 on a machine with 2 cores: "),
        ("method=sft hardware.threads=2", ""),
        ("method=sft hardware=gpu hardware.threads=99", ""),
    ],
)
def test_a_value_far_outside_of_what_is_used_is_said(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.setattr(setting_notes.os, "cpu_count", lambda: 2)
    notes = setting_notes.notes(composed(*words.split()))
    assert len(notes) == bool(said)
    assert all(note.startswith(said) for note in notes)
