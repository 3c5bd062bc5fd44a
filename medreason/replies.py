"""Parses what a model wrote into reasoning and answer: the only module that knows the tags."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from medreason.samples import LETTERS, YES_NO, lettered, letters_of

STYLES = ("think", "no_think", "think_after")
"""Reasoning then answer, answer alone, answer then reasoning."""

EMPTY = "empty"
EMPTY_ANSWER = "empty answer tag"
NO_ANSWER_TAG = "no answer tag"
TRUNCATED = "truncated"
TWO_ANSWERS = "two different answers"
BEYOND_OPTIONS = "letter beyond the options"
SEVERAL_LETTERS = "several letters"
NOT_AN_OPTION = "text is none of the options"
SAME_OPTIONS = "text of several options"
CONTRADICTION = "letter and text of different options"
REASONS = (
    EMPTY,
    EMPTY_ANSWER,
    NO_ANSWER_TAG,
    TRUNCATED,
    TWO_ANSWERS,
    BEYOND_OPTIONS,
    SEVERAL_LETTERS,
    NOT_AN_OPTION,
    SAME_OPTIONS,
    CONTRADICTION,
)
"""Every reason for which a reply has no answer."""


@dataclass(frozen=True)
class Reply:
    """A parsed reply: what both rewards and evaluation see."""

    text: str
    reasoning: str | None
    """The text of the think block, None where that is missing or blank."""
    answer: str | None
    """The letter for a closed question, the answer's text for an open one, None if not readable."""
    reason: str
    """One of REASONS where there is no answer, else empty."""
    truncated: bool
    """Generation hit its token limit. A truncated reply can still have an answer."""


_Reading = tuple[str | None, str]
"""(answer, "") or (None, reason)."""

_TAG = re.compile(r"<(/?) ?(think|answer)(?: ?| \w+=[^<>]*)>", re.IGNORECASE)
_FORMS = {
    "think": re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL),
    "no_think": re.compile(r"\s*<answer>.*?</answer>", re.DOTALL),
    "think_after": re.compile(r"\s*<answer>.*?</answer>\s*<think>.*?</think>\s*", re.DOTALL),
}
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence)\b,? )?"
    r"(?:(?:my|the|final|correct|right|best|most|likely) )*"
    r"(?:answer|option|choice)\b(?: (?:is|would be|must be|should be)\b)?"
    r"\s?[-:=]?\s?(?:(?:option|choice)\b ?)?"
    r"|(?:正确)?(?:答案|选项)(?:是|为)?\s?:?\s?|(?:die )?(?:richtige )?antwort(?: ist)?\s?:?\s"
    r"|(?:la )?(?:bonne )?r[ée]ponse(?: est)?\s?:?\s"
    r"|(?:la )?respuesta(?: correcta)?(?: es)?\s?:?\s",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:i|we)(?: would| will|'d|'ll)? (?:choose|select|pick|say|go with|answer)(?: that)? "
    r"|(?:i think |i believe )?(?:it|this|that|the image|the picture)(?: is|'s| shows)"
    r"(?: an?| the)? ",
    re.IGNORECASE,
)
"""Words before an answer that name none; read in an answer tag only, where all else is it."""
_LETTER = re.compile(
    r"[(\[{]?\s?([A-Za-z])\s?"
    r"(?:$|\n|[)\]}.:,;=。、]+|[-\u2013\u2014](?= )|(?= (?:because|since|due to)\b))\s*(.*)",
    re.DOTALL,
)
_VERDICT = re.compile(
    r"\(?([A-Za-z])\)? is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice))?",
    re.IGNORECASE,
)
_TEXT_AND_LETTER = re.compile(
    r"(.+?)(?: ?[,:;] ?| [-\u2013\u2014] | ?(?=[(\[]))"
    r"[(\[]?(?:(?:option|choice|answer) )?([A-Za-z])[)\]]?\.?",
    re.DOTALL | re.IGNORECASE,
)
_ANOTHER_LETTER = re.compile(
    r"(?<!\w)(?:(?:and |or |/ ?|& ?)\(?([A-H])(?!\w)|([A-H])(?=[):/]|[.,;]?$))"
)
_REASON = re.compile(r" ?[,;:.]| (?:because|since|due to)\b", re.IGNORECASE)
"""What may follow the text of an option that an explanation follows."""
_FIRST_WORD = re.compile(
    r"(yes|no)(?=[,.;:!\n]| ?[-\u2013\u2014] | (?:it|there|this|the|because|since|they)\b)",
    re.IGNORECASE,
)
_WRAPPER = re.compile(
    r"\$+([^$]+)\$+|\\\((.+)\\\)|\\\[(.+)\\\]"
    r"|\\(?:boxed|fbox|text\w*|math\w+) ?\{(.*)\}"
    r"|<\|begin_of_box\|>(.*)<\|end_of_box\|>|<final_answer>(.*)</final_answer>"
    r"|\{ ?[\"']?(?:final_)?(?:answer|option|choice)[\"']? ?: ?(.*)\}",
    re.DOTALL | re.IGNORECASE,
)
"""LaTeX, the box of GLM, JSON, and a tag beside ours, around a whole answer."""
_BOX_AT_END = re.compile(
    r"(?:\$|\\\(|\\\[)? ?(\\boxed ?\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}"
    r"|<\|begin_of_box\|>[^<]*<\|end_of_box\|>)(?: ?(?:\$|\\\)|\\\]))?\.?$"
)
_DEEPEST = 6  # wrappers around one answer
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
_LONGEST_BARE_ANSWER = 100  # characters; an untagged reply to an open question beyond it is prose


def parse(text: str, options: Sequence[str] = (), *, truncated: bool = False) -> Reply:
    """Read a reply to a question with these options; without options the question is open.

    Reads letters, option texts and the usual wording around them, and refuses to guess: what is
    ambiguous or cut off has no answer, with the reason. Never raises. An answer tag inside a think
    block counts only when there is no answer outside it.
    """
    thoughts, outside, thinking = _split(text, "think")
    answers, rest, answering = _split(outside, "answer")
    inner, reasoning, inner_open = _split("\n".join(thoughts), "answer")
    if answers:
        answer, reason = _tagged(answers, options, is_open=answering, truncated=truncated)
    else:
        answer, reason = _bare(rest, options, cut=truncated or thinking)
        if answer is None and inner and not truncated:
            answer, reason = _tagged(inner, options, is_open=inner_open, truncated=False)
    if not text.strip():
        reason = EMPTY
    return Reply(text, reasoning.strip() or None, answer, reason, truncated)


def published_answer(text: str) -> str:
    """The answer by Med-R1's rule: the first tag without a line break, else the whole text.

    For Med-R1's files and the rewards that keep its rules to the letter; all else uses `parse`.
    Source: experiments/med_r1/README.md, "Rewards".
    """
    tag = re.search(r"<answer>(.*?)</answer>", text)
    return (tag[1] if tag else text).strip()


def follows(text: str, style: str, strict: bool = False) -> bool:
    """Whether a reply has the form of a style.

    Whitespace around it is allowed, but every tag occurs once and none is empty. `strict` is the
    rule of Med-R1 to the letter, which allows empty and repeated tags and refuses a leading space
    (experiments/med_r1/README.md, "Rewards").
    """
    form = _FORMS[check_style(style)]
    if strict:
        return form.fullmatch(text) is not None
    tags = [tag[0] for tag in _TAG.finditer(text)]
    blocks = 1 if style == "no_think" else 2
    bodies = [body.strip() for name in ("think", "answer") for body in _split(text, name)[0]]
    whole = form.fullmatch(text.strip()) is not None
    return whole and len(tags) == 2 * blocks and len(bodies) == blocks and all(bodies)


def layout(text: str) -> tuple[list[str], str]:
    """Names of the blocks (`think`, `answer`) in the order they open, and the text outside them."""
    order = [tag[2].lower() for tag in _TAG.finditer(text) if not tag[1]]
    return order, _split(_split(text, "think")[1], "answer")[1].strip()


def format_reply(reasoning: str | None, answer: str, style: str) -> str:
    """A reply that `parse` reads back: the target of supervised fine-tuning.

    `no_think` leaves the reasoning out. Raises ValueError where the style needs reasoning and there
    is none, and where a text contains a tag.
    """
    check_style(style)
    for name, value in (("reasoning", reasoning or ""), ("answer", answer)):
        if tag := _TAG.search(value):
            raise ValueError(f"{name} contains the tag {tag[0]!r}; remove it from the data")
    conclusion = f"<answer>{answer}</answer>"
    if style == "no_think":
        return conclusion
    if not (reasoning or "").strip():
        raise ValueError(f"style={style!r} needs reasoning; use 'no_think' for answers without it")
    thought = f"<think>{reasoning}</think>"
    return f"{thought}\n{conclusion}" if style == "think" else f"{conclusion}\n{thought}"


def check_style(style: str) -> str:
    """Return the style. Raises ValueError where it is unknown."""
    if style not in STYLES:
        raise ValueError(f"style={style!r}; known: {', '.join(map(repr, STYLES))}")
    return style


def _split(text: str, name: str) -> tuple[list[str], str, bool]:
    """Texts within the tags of this name, the text outside them, and whether the last stays open.

    A second opening tag closes the first (`<answer>C<answer>`). A closing think tag without an
    opening one closes everything before it: some chat templates open the think block themselves.
    """
    inside, outside, start, is_open = [], [], 0, False
    for tag in _TAG.finditer(text):
        if tag[2].lower() != name:
            continue
        closing = tag[1] == "/"
        stray = closing and not is_open and name == "think"
        (inside if is_open or stray else outside).append(text[start : tag.start()])
        is_open, start = not closing, tag.end()
    (inside if is_open else outside).append(text[start:])
    return inside, "\n".join(outside), is_open


def _tagged(
    bodies: list[str], options: Sequence[str], *, is_open: bool, truncated: bool
) -> _Reading:
    """The one answer of all answer tags; an open last tag counts if generation ended by itself."""
    readings = [_read(body, options, loose=True) for body in bodies]
    if is_open and len(bodies) == 1 and (truncated or readings[0][0] is None):
        return None, TRUNCATED
    if is_open and len(bodies) > 1 and readings[-1][0] is None:
        readings.pop()
    readings = [r for r in readings if r[1] != EMPTY_ANSWER] or readings[:1]
    distinct = {_normalised(answer or "") for answer, _ in readings}
    if len(distinct) > 1:
        return None, TWO_ANSWERS
    return readings[0]


def _bare(text: str, options: Sequence[str], *, cut: bool) -> _Reading:
    """An answer without a tag: all of the text, or its last line or sentence when that states it:
    by `Answer:`, `The answer is` or a box."""
    if cut:
        return None, TRUNCATED
    lines = [line.lstrip("#>-\u2022 ") for line in _tidy(text).split("\n")]
    whole, reason = _read(text, options, loose=False)
    if whole is not None and (options or (len(lines) == 1 and len(text) <= _LONGEST_BARE_ANSWER)):
        return whole, ""
    stated = [_stated(line, options) for line in lines]
    if stated[-1] is None and options:  # not for open questions, whose answers can hold sentences
        sentences = re.split(r"(?<=[.!?]) ", lines[-1])
        stated += [_stated(sentence, options) for sentence in sentences]
    if (last := stated[-1]) is not None and last[0] is not None:
        return last if len({*stated} - {None}) == 1 else (None, TWO_ANSWERS)
    return None, NO_ANSWER_TAG if reason in ("", EMPTY_ANSWER, NOT_AN_OPTION) else reason


def _stated(line: str, options: Sequence[str]) -> _Reading | None:
    """What a line or sentence states as the answer; None where it states none."""
    if _behind_lead(line, options):
        return _read(line, options, loose=False)
    box = _BOX_AT_END.search(line) if options else None
    if box is None:
        return None
    boxes = len(re.findall(r"\\boxed|<\|begin_of_box", line))
    return _read(box[1], options, loose=False) if boxes == 1 else (None, TWO_ANSWERS)


def _read(text: str, options: Sequence[str], *, loose: bool) -> _Reading:
    """Read the text of one answer. `loose` allows an explanation behind a letter or yes and no."""
    tidy = _tidy(text)
    if not tidy:
        return None, EMPTY_ANSWER
    rest = _unwrapped(_behind_lead(tidy, options))
    if not options:
        return (rest or tidy), ""
    reading = _closed(tidy, options, loose)
    if reading[1] == NOT_AN_OPTION and rest:
        return _closed(rest, options, loose)
    if reading[1] == NOT_AN_OPTION and loose and (opening := _OPENING.match(tidy)):
        return _closed(tidy[opening.end() :], options, loose=False)
    return reading


def _behind_lead(text: str, options: Sequence[str]) -> str:
    """What follows `Answer:`, `The answer is`, and, where it can only be a letter, `Option`."""
    lead = _LEAD.match(text)
    if lead is None or not (options or re.search(r"[-:=]|\b(?:is|be) ?$", lead[0])):
        return ""
    return text[lead.end() :].strip()


def _closed(text: str, options: Sequence[str], loose: bool) -> _Reading:
    letters = letters_of(options)
    bare = text.strip("()[]{}.:;,*。、 ").upper()
    if len(bare) == 1 and bare in letters:
        return bare, ""
    if named := _options_with_text(text, options):
        return _one_of(named, options)
    if len(bare) == 1 and bare in LETTERS:
        return None, BEYOND_OPTIONS
    tokens = {t.upper() for t in re.findall(r"\w+", text)} - {"AND", "OR", "BOTH"}
    if len(tokens) > 1 and all(len(token) == 1 and token in LETTERS for token in tokens):
        return None, SEVERAL_LETTERS
    if pair := _TEXT_AND_LETTER.fullmatch(text):
        letter, named = pair[2].upper(), _options_with_text(pair[1], options)
        if named and letter in letters:
            return (letter, "") if letter in named else (None, CONTRADICTION)
    reading = _letter_and_tail(text, options, loose)
    return _text_and_reason(text, options) if loose and reading[1] == NOT_AN_OPTION else reading


def _core(tail: str) -> str:
    """What follows a letter without a conjunction and brackets: `or (CT)`."""
    return re.sub(r"^[ (]*(?:(?:and|or)\b|[/&])", "", tail, flags=re.IGNORECASE).strip(" ()[]")


def _one_of(named: str, options: Sequence[str]) -> _Reading:
    """The option named; the first of several with one text, which are one answer."""
    texts = {text.strip() for letter, text in lettered(options) if letter in named}
    return (named[0], "") if len(texts) == 1 else (None, SAME_OPTIONS)


def _text_and_reason(text: str, options: Sequence[str]) -> _Reading:
    """Read `CT, because it is bright` where no other option is named."""
    written = _normalised(text)
    starts = {
        letter: name
        for letter, option in lettered(options)
        if (name := _normalised(option))
        and written.startswith(name)
        and _REASON.match(written, len(name))
    }
    longest = max(starts.values(), key=len, default="")
    named = "".join(letter for letter, name in starts.items() if name == longest)
    if not named:
        return None, NOT_AN_OPTION
    tail = written[len(longest) :]
    others = [name for _, o in lettered(options) if (name := _normalised(o)) and name != longest]
    letters = {first or second for first, second in _ANOTHER_LETTER.findall(text)} - {*named}
    if letters or any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", tail) for name in others):
        return None, SEVERAL_LETTERS
    return _one_of(named, options)


def _letter_and_tail(text: str, options: Sequence[str], loose: bool) -> _Reading:
    """Read `C) CT`, `C: CT`, `C CT`, `C is right`; when loose, also `C, because` and `Yes, it`."""
    letters = letters_of(options)
    if verdict := _VERDICT.fullmatch(text.strip(". ")):
        letter, tail, marked = verdict[1].upper(), "", True
    elif match := _LETTER.fullmatch(text):
        letter, tail, marked = match[1].upper(), match[2], True
    else:
        letter, _, tail = text.partition(" ")
        letter, marked = letter.upper(), False
    if len(letter) == 1 and letter in LETTERS:
        if marked and letter not in letters:
            return None, BEYOND_OPTIONS
        named = _options_with_text(tail, options) or _options_with_text(_core(tail), options)
        if letter in letters and (letter in named or (marked and not tail)):
            return letter, ""
        if named:
            return None, CONTRADICTION
        if marked and any((a or b) != letter for a, b in _ANOTHER_LETTER.findall(tail)):
            return None, SEVERAL_LETTERS
        if marked and loose:
            return letter, ""
    first = _FIRST_WORD.match(text)
    if loose and first and sorted(map(_normalised, options)) == ["no", "yes"]:
        return _options_with_text(first[1], options), ""
    return None, NOT_AN_OPTION


def _options_with_text(text: str, options: Sequence[str]) -> str:
    """The letters of the options that read like this; one that is exactly it stands alone."""
    exact = [letter for letter, option in lettered(options) if option.strip() == text.strip() != ""]
    wanted = _normalised(text)
    alike = [letter for letter, option in lettered(options) if _normalised(option) == wanted != ""]
    if not alike:  # another word for yes or no
        words = YES_NO.get(tuple(options), ())
        alike = [LETTERS[i] for i, meaning in enumerate(words) if wanted.rstrip("。") in meaning]
    return "".join(exact if len(exact) == 1 else alike)


def _tidy(text: str) -> str:
    """Without markdown, quotes and boxes around it, invisible signs, and runs of spaces."""
    text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    text = text.replace("**", "").replace("`", "")
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return _unwrapped(text.strip(_AROUND))


_AROUND = " \n*_\"'\u201c\u201d\u2018\u2019"


def _unwrapped(text: str) -> str:
    """The text within boxes and the like that are around all of it."""
    for _ in range(_DEEPEST):
        wrapper = _WRAPPER.fullmatch(text.removesuffix(".").strip(_AROUND))
        inner = wrapper and wrapper[wrapper.lastindex or 0].strip(_AROUND)
        if inner is None or not _is_balanced(inner):
            break
        text = inner
    return text


def _is_balanced(text: str) -> bool:
    """Whether no brace closes before it opens: `A} or \\boxed{B` are two boxes."""
    depth = 0
    for brace in re.findall(r"[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _normalised(text: str) -> str:
    """The form in which option texts are compared: no case, no end, hyphens in words as spaces."""
    plain = re.sub(r"(?<=\w)[-\u2010-\u2015](?=\w)", " ", _tidy(text).casefold())
    return " ".join(plain.split()).rstrip(". ")
