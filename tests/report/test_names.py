"""Names of files, of which different ones never share one, and of differences."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medreason.report.names import difference_name, file_name

NAMES = st.text(alphabet="aB -_.=+/é1", max_size=6)


@given(NAMES, NAMES)
def test_different_names_have_different_files_on_any_file_system(a: str, b: str) -> None:
    assert (file_name(a) == file_name(b)) == (a == b)
    assert re.fullmatch(r"[a-z0-9_.=+-]*", file_name(a))


def test_a_sign_is_not_lost() -> None:
    assert file_name("sft max_steps=-1") != file_name("sft max_steps=1") == "sft-max_steps=1"


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        ("sft", "base", "sft minus base"),
        ("sft think", "sft no_think", "sft: think minus no_think"),
        ("sft think", "base think", "think: sft minus base"),
        ("rarl a=1 b=2", "rarl a=1 b=3", "rarl a=1: b=2 minus 3"),
        ("rarl a=1 b=2", "rarl a=2 b=1", "rarl: a=1 b=2 minus 2 1"),
        ("sft lr=0.1", "base", "sft lr=0.1 minus base"),
    ],
)
def test_difference_names_what_both_share_once(a: str, b: str, name: str) -> None:
    assert difference_name(a, b) == name
