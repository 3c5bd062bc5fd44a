"""Names of files: different names never share a file."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from medreason.report.names import file_name

NAMES = st.text(alphabet="aB -_.=+/é1", max_size=6)


@given(NAMES, NAMES)
def test_different_names_have_different_files_on_any_file_system(a: str, b: str) -> None:
    assert (file_name(a) == file_name(b)) == (a == b)
    assert re.fullmatch(r"[a-z0-9_.=+-]*", file_name(a))


def test_a_sign_is_not_lost() -> None:
    assert file_name("sft max_steps=-1") != file_name("sft max_steps=1") == "sft-max_steps=1"
