"""What models write, and what is read from it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medreason import replies
from medreason.data import med_r1
from medreason.replies import follows, format_reply, parse, published_answer
from medreason.samples import Sample, letters_of

OPTIONS = ("MRI", "PET, with contrast", "CT", "A normal scan, left side.")
SHARED = Path(__file__).parents[1].parent / "shared/data"


@pytest.mark.parametrize(
    ("written", "letter"),
    [
        ("C", "C"),
        (" C ", "C"),
        ("c", "C"),
        ("C.", "C"),
        ("(C)", "C"),
        ("[c]", "C"),
        ("**C**", "C"),
        ("C)", "C"),
        ("C) CT", "C"),
        ("C)CT", "C"),
        ("C. CT.", "C"),
        ("C: CT", "C"),
        ("C - CT", "C"),
        ("C CT", "C"),
        ("**C)** CT", "C"),
        ("\nC\n", "C"),
        ("C\nCT", "C"),
        ("Option C", "C"),
        ("option (c)", "C"),
        ("The answer is C", "C"),
        ("The correct answer is: (C) CT.", "C"),
        ("So, the answer is CT", "C"),
        ("**Answer:** C", "C"),
        ("C is the correct answer.", "C"),
        ("\\boxed{C}", "C"),
        ("CT", "C"),
        ("ct.", "C"),
        (' "**ct**" ', "C"),
        ("pet, with\ncontrast", "B"),
        ("A", "A"),
        ("A normal scan, left side", "D"),
        ("D) a normal scan, left side.", "D"),
    ],
)
def test_short_forms_of_an_answer_are_read_with_and_without_a_tag(
    written: str, letter: str
) -> None:
    for text in (
        f"<answer>{written}</answer>",
        f"<think>It is bright.</think>\n<ANSWER>{written}</ANSWER>",
        written,
        f"<think>It is bright.</think>\n{written}",
    ):
        reply = parse(text, OPTIONS)
        assert (reply.answer, reply.reason) == (letter, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", replies.EMPTY),
        (" \n", replies.EMPTY),
        ("<answer></answer>", replies.EMPTY_ANSWER),
        ("<think>CT</think><answer> \n </answer>", replies.EMPTY_ANSWER),
        ("It shows a liver.", replies.NO_ANSWER_TAG),
        ("The image is a CT. I choose C.", replies.NO_ANSWER_TAG),
        ("<think>C</think>", replies.NO_ANSWER_TAG),
        ("<think>It is C", replies.TRUNCATED),
        ("<think>a</think><answer>", replies.TRUNCATED),
        ("<answer>the bright structure is", replies.TRUNCATED),
        ("<answer>B</answer> no, <answer>C</answer>", replies.TWO_ANSWERS),
        ("<answer>...</answer><answer>C</answer>", replies.TWO_ANSWERS),
        ("Answer: B\nAnswer: C", replies.TWO_ANSWERS),
        ("<answer>E</answer>", replies.BEYOND_OPTIONS),
        ("<answer>(F) SPECT</answer>", replies.BEYOND_OPTIONS),
        ("<answer>B, C</answer>", replies.SEVERAL_LETTERS),
        ("<answer>B and C</answer>", replies.SEVERAL_LETTERS),
        ("<answer>Option B or C</answer>", replies.SEVERAL_LETTERS),
        ("<answer>A) MRI, B) PET, with contrast</answer>", replies.SEVERAL_LETTERS),
        ("<answer>SPECT</answer>", replies.NOT_AN_OPTION),
        ("<answer>not C</answer>", replies.NOT_AN_OPTION),
        ("<answer>A mass</answer>", replies.NOT_AN_OPTION),
        ("<answer>B) CT</answer>", replies.CONTRADICTION),
    ],
)
def test_a_reply_without_an_answer_says_why(text: str, reason: str) -> None:
    reply = parse(text, OPTIONS)
    assert (reply.answer, reply.reason) == (None, reason)
    assert reason in replies.REASONS


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>C</answer> so <answer>C) CT</answer>", "C"),
        ("<answer>C<answer>", "C"),
        ("<answer>C", "C"),
        ("<answer>C) because it is bright", "C"),
        ("<answer>C</answer><answer></answer>", "C"),
        ("<answer>C</answer>\n<think>It is bright.</think>", "C"),
        ("<answer>C</answer>\n<think>It is bri", "C"),
        ("<think>B? <answer>B</answer> No.</think><answer>C</answer>", "C"),
        ("<think>It is bright. <answer>C</answer></think>", "C"),
        ("<think>It is bright. <answer>C</answer>", "C"),
        ("It is bright.</think><answer>C</answer>", "C"),
        ("It is bright.</think>C", "C"),
        ("It is bright.\n### Answer: C", "C"),
        ("It is bright.\nThe answer is **CT**.", "C"),
        ("Answer: C\nIt is bright.\nAnswer: C", "C"),
    ],
)
def test_replies_with_displaced_tags_are_read_where_they_are_clear(text: str, letter: str) -> None:
    assert parse(text, OPTIONS).answer == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<think>It is C", None),
        ("<think>a</think><answer>C", None),
        ("<think>a <answer>B</answer> is what", None),
        ("C", None),
        ("<think>a</think>\nC", None),
        ("<think>a</think><answer>C</answer> and", "C"),
        ("<answer>C</answer><think>It is bri", "C"),
        ("<answer>C</answer><answer>C</answer><answer>", "C"),
    ],
)
def test_a_truncated_reply_has_only_answers_in_closed_tags(text: str, letter: str | None) -> None:
    reply = parse(text, OPTIONS, truncated=True)
    assert reply.truncated
    assert (reply.answer, reply.reason) == (letter, "" if letter else replies.TRUNCATED)


@pytest.mark.parametrize(
    ("options", "text", "answer", "reason"),
    [
        (("B", "A"), "A", "A", ""),
        (("I", "II", "III"), "I", "A", ""),
        (("CT", "ct."), "ct.", "B", ""),
        (("CT", "ct."), "Ct", None, replies.SAME_OPTIONS),
        (("CT", "CT"), "CT", "A", ""),  # options of one text are one answer
        (("MRI", "CT", "CT"), "ct.", "B", ""),
        (("Malignant", "Benign"), "Benign (A)", None, replies.CONTRADICTION),
        (("CT", "MRI"), "CT, or MRI", None, replies.SEVERAL_LETTERS),
        (("CT", "MRI"), "CT, or B", None, replies.SEVERAL_LETTERS),
        (("CT", "MRI"), "CT, since MRI is darker", None, replies.SEVERAL_LETTERS),
        (("CT", "MRI"), "\\boxed{A} or \\boxed{B}", None, replies.NOT_AN_OPTION),
        (("是", "否"), "不是。", "B", ""),
        (("是", "否"), "是的", "A", ""),
        (("CT", "CT"), "B) CT", "B", ""),
        (("Yes", "No"), "yes", "A", ""),
        (("Yes", "No"), "No.", "B", ""),
        (("Yes", "No"), "No, it is normal", "B", ""),
        (("Yes", "No"), "C", None, replies.BEYOND_OPTIONS),
        (("Yes", "No"), "Yes and no", None, replies.NOT_AN_OPTION),
        (("Hepatitis B", "Hepatitis C"), "A) Hepatitis B", "A", ""),
    ],
)
def test_options_that_look_like_letters_or_like_each_other(
    options: tuple[str, ...], text: str, answer: str | None, reason: str
) -> None:
    reply = parse(f"<answer>{text}</answer>", options)
    assert (reply.answer, reply.reason) == (answer, reason)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>left lung</answer>", "left lung"),
        ("<think>a</think><answer>\nThe answer is: left lung\n</answer>", "left lung"),
        ("<answer>Choice of treatment</answer>", "Choice of treatment"),
        ("left lung", "left lung"),
        ("It is dark there.\nAnswer: left lung", "left lung"),
        ("<answer>lung</answer><answer>Lung.</answer>", "lung"),
        ("<answer>lung</answer><answer>liver</answer>", None),
        ("The image shows much.\nThere is more to say.", None),
        ("<answer></answer>", None),
    ],
)
def test_an_open_question_is_answered_by_text(text: str, answer: str | None) -> None:
    assert parse(text).answer == answer


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think> It is bright.\n</think><answer>C</answer>", "It is bright."),
        ("<answer>C</answer><THINK>It is bright.</THINK>", "It is bright."),
        ("It is bright.</think><answer>C</answer>", "It is bright."),
        ("<think>It is bri", "It is bri"),
        ("<think> </think><answer>C</answer>", None),
        ("It is bright. <answer>C</answer>", None),
    ],
)
def test_reasoning_is_what_the_think_block_holds(text: str, reasoning: str | None) -> None:
    assert parse(text, OPTIONS).reasoning == reasoning


@pytest.mark.parametrize(
    ("style", "text", "ours", "published"),
    [
        ("think", "<think>a</think>\n<answer>C</answer>", True, True),
        ("think", "<think>a\nb</think><answer>\nC</answer>", True, True),
        ("think", " <think>a</think><answer>C</answer>\n", True, False),
        ("think", "<think></think><answer>C</answer>", False, True),
        ("think", "<think> \n</think><answer>C</answer>", False, True),
        ("think", "<think>a</think><answer></answer>", False, True),
        ("think", "<think>a</think><answer>C</answer><answer>C</answer>", False, True),
        ("think", "<think>a<think>b</think><answer>C</answer>", False, True),
        ("think", "<think>a</think> so <answer>C</answer>", False, False),
        ("think", "<answer>C</answer>", False, False),
        ("think", "<answer>C</answer><think>a</think>", False, False),
        ("think", "<THINK>a</THINK><answer>C</answer>", False, False),
        ("no_think", "<answer>C</answer>", True, True),
        ("no_think", "\n<answer>C</answer>", True, True),
        ("no_think", "<answer>C</answer>\n", True, False),
        ("no_think", "<answer>B</answer><answer>C</answer>", False, True),
        ("no_think", "<think>a</think><answer>C</answer>", False, False),
        ("no_think", "C", False, False),
        ("think_after", "<answer>C</answer><think>a</think>", True, True),
        ("think_after", " <answer>C</answer>\n<think>a</think> ", True, True),
        ("think_after", "<answer>C</answer><think></think>", False, True),
        ("think_after", "<think>a</think><answer>C</answer>", False, False),
    ],
)
def test_the_form_of_each_style(style: str, text: str, ours: bool, published: bool) -> None:
    assert (follows(text, style), follows(text, style, strict=True)) == (ours, published)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> C </answer>", "C"),
        ("<answer>B</answer><answer>C</answer>", "B"),
        ("<answer>\nB</answer><answer>C</answer>", "C"),
        ("<answer>C\n</answer>", "<answer>C\n</answer>"),
        (" C\n", "C"),
    ],
)
def test_the_published_extractor_takes_the_first_tag_on_one_line(text: str, answer: str) -> None:
    assert published_answer(text) == answer


@pytest.mark.parametrize("style", replies.STYLES)
def test_written_replies_follow_their_style_and_read_back(style: str) -> None:
    text = format_reply("It is bright.", "C", style)
    reply = parse(text, OPTIONS)
    assert reply.answer == "C"
    assert reply.reasoning == (None if style == "no_think" else "It is bright.")
    assert follows(text, style)
    assert follows(text, style, strict=True)


@pytest.mark.parametrize(
    ("reasoning", "answer", "style", "message"),
    [
        (None, "C", "think", "needs reasoning"),
        (" ", "C", "think_after", "needs reasoning"),
        ("a </think> b", "C", "think", "contains the tag '</think>'"),
        (None, "<answer>C", "no_think", "contains the tag '<answer>'"),
        ("a", "C", "cot", "style='cot'; known: 'think', 'no_think', 'think_after'"),
    ],
)
def test_replies_that_would_not_read_back_are_refused(
    reasoning: str | None, answer: str, style: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        format_reply(reasoning, answer, style)


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<ANSWER>", "\\boxed{", "}", "<", "/", "**"]
WORDS = [
    "C",
    "A) MRI",
    "ct",
    "Yes,",
    "E",
    "The answer is ",
    "Option ",
    "or",
    " ",
    "\n",
    "(",
    ")",
    ".",
]
PIECES = st.sampled_from(TAGS) | st.sampled_from(WORDS)


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join) | st.text(),
    options=st.lists(st.text(max_size=5), max_size=10) | st.sampled_from([OPTIONS, ("Yes", "No")]),
    truncated=st.booleans(),
)
def test_no_string_makes_parse_raise_or_leaves_the_options(
    text: str, options: list[str], truncated: bool
) -> None:
    reply = parse(text, options, truncated=truncated)
    assert (reply.answer is None) == (reply.reason in replies.REASONS)
    assert not (options and reply.answer) or reply.answer in letters_of(options)
    for style in replies.STYLES:
        follows(text, style)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 200), letter=st.sampled_from("ABCD"))
def test_no_cut_of_a_reply_gives_another_answer(cut: int, letter: str) -> None:
    text = format_reply("Between A) MRI and B) I take the first.", letter, "think")
    assert parse(text[:cut], OPTIONS, truncated=cut < len(text)).answer in (None, letter)


FORMS = Path(__file__).parent / "replies/forms.csv"
"""Forms of replies that models write and users report, with the right reading; none where a reply
names no option or several. The last columns are what three other parsers read, of what stands in
the answer tag where there is one: VLMEvalKit's `can_infer` (commit 18fc37a), lmms-eval's
`parse_multi_choice_response` of MMMU (02bc1c0; `guess` where it takes a random letter), and
Med-R1's, which is exactly one letter in the tag. 2026-11-28."""


def _forms() -> list[dict[str, str]]:
    with FORMS.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("form", _forms(), ids=lambda form: form["reply"][:40])
def test_every_form_that_names_one_option_is_read(form: dict[str, str]) -> None:
    reply = parse(form["reply"], form["options"].split("|"))
    assert (reply.answer or "") == form["reading"]


def test_other_parsers_read_fewer_of_the_forms() -> None:
    forms = _forms()
    assert len(forms) > 250
    assert sum(not form["reading"] for form in forms) > 40
    right = {
        parser: round(100 * sum(form[parser] == form["reading"] for form in forms) / len(forms))
        for parser in ("vlmevalkit", "lmms_eval", "med_r1")
    }
    assert right == {"vlmevalkit": 79, "lmms_eval": 34, "med_r1": 19}


@settings(max_examples=300, deadline=None)
@given(
    pair=st.permutations(["CT", "MRI", "PET", "X-ray"]),
    form=st.sampled_from(
        ["{0}, {1}", "{0} or {1}", "{0}/{1}", "({0}) ({1})", "{0}; {1}", "{0}, or {1}",
         "\\boxed{{{0}}}\\boxed{{{1}}}",
         "Answer: {0}, {1}", "I choose {0} and {1}", "It is {0} or {1}", "{0}. {1}", "{0} ({1})"]
    ),
    letters=st.tuples(st.booleans(), st.booleans()),
    tagged=st.booleans(),
)  # fmt: skip
def test_a_reply_that_names_two_options_earns_nothing(
    pair: list[str], form: str, letters: tuple[bool, bool], tagged: bool
) -> None:
    options = ("CT", "MRI", "PET", "X-ray")
    names = [
        "ABCD"[options.index(text)] if letter else text
        for text, letter in zip(pair, letters, strict=False)
    ]
    text = form.format(*names)
    assert parse(f"<answer>{text}</answer>" if tagged else text, options).answer is None


def test_long_hostile_replies_are_read_in_linear_time() -> None:
    for piece in ("<think>", "<answer>", "</think>", "A ", "A or ", " ", "\n", "<", "**", "the "):
        parse(piece * 50_000, OPTIONS)


def test_every_option_text_of_the_published_files_reads_back() -> None:
    root = SHARED / "med_r1_splits"
    if not root.is_dir():
        pytest.skip(f"no published files at {root}")
    samples = [row for row in med_r1.read(root) if isinstance(row, Sample)]
    assert len(samples) > 90_000
    seen: set[str] = set()
    for options in (sample.options for sample in samples):
        if seen.issuperset(options):
            continue
        seen.update(options)
        for letter, option in zip("ABCD", options, strict=False):
            for style in replies.STYLES if options.count(option) == 1 else ():
                assert parse(format_reply("a", option, style), options).answer == letter
            assert parse(format_reply(None, f"{letter}) {option}", "no_think"), options).answer == (
                letter
            )
    assert len(seen) > 1000
