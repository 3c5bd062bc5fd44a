"""Drafts: guesses of a completion's next tokens, which `decode` then checks several in one pass.

A guess is the next token of the last reply to the same row (of an earlier model or validation), as
long as the row says the same; else the token that followed the same last tokens before: in that
reply, in others to its question (of earlier epochs, other controls, other completions), else in
other questions' replies. A wrong guess costs time and changes no token, so nothing here decides
what is decoded.
"""

from __future__ import annotations

import functools
import itertools
import struct
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

AUTO_LIMIT = 7
"""Tokens of a draft at most, where `auto` chooses."""
FIRST_LIMIT = 32
"""Of one that is read with the prompt: the pass is there anyway, and may find the whole reply."""

_START = -1
"""Stands before a completion's first token."""

_OF_QUESTION = (6, 3, 2, 1)
_OF_OTHERS = (8, 4, 2)
"""How many last tokens are looked up, the most first."""

_LONGEST = 8
_BYTES = 4
"""Of a token."""
_LEAD_BITS = 2
_MOST_LEAD = (1 << _LEAD_BITS) - 1
_LEAST = 0.2
"""Likelihood of a drafted token where `auto` chooses, however cheap positions may be."""

_LEAST_GAIN = 0.25
"""Accepted tokens a pass of a row, with fewer of which guessing is not worth its time."""
_JUDGED_PASSES = 128
"""Of rows."""
_REST, _LONGEST_REST = 32, 1024
"""Passes of all rows without a guess, before it is tried again: twice as many each time in vain."""

_UNSEEN = 0.75
"""Likelihood of a guess of a kind that was never seen to be right or wrong."""
_TRIALS = 16
"""Guesses of such kinds in a pass: others are not drafted, since what is decoded tells anyway."""

_REMEMBERED = 4
"""Replies of a question, of each of its rows that have a name; the oldest is forgotten."""


class SuffixTable:
    """Last tokens -> the token that followed them most often, with its lead over the others."""

    def __init__(self, lengths: Sequence[int], limit: int) -> None:
        """Of contexts of `lengths` tokens, of which the last `limit` to twice as many are kept."""
        self._sizes = sorted(length * _BYTES for length in lengths)
        self._limit = limit
        # Bytes and integers: a hundred thousand tuples and lists would keep Python's garbage
        # collector busy. A value is a token and its lead.
        self._entries: dict[bytes, int] = {}
        self._older: dict[bytes, int] = {}

    def add(self, tokens: list[int], begin: int) -> None:
        """Take in the tokens from place `begin` on, behind those before them."""
        begin = max(begin, 1)
        first = max(begin - _LONGEST, 0)
        text = as_bytes(tokens[first:])
        entries, sizes = self._entries, self._sizes
        for place in range(begin, len(tokens)):
            token, end = tokens[place], (place - first) * _BYTES
            for size in sizes:
                context = text[end - size : end] if size < end else text[:end]
                entry = entries.get(context, 0)
                # Source: the majority vote of Boyer and Moore, which counts in a single number.
                if entry >> _LEAD_BITS == token and entry:
                    if entry & _MOST_LEAD < _MOST_LEAD:
                        entries[context] = entry + 1
                elif entry & _MOST_LEAD > 1:
                    entries[context] = entry - 1
                else:
                    entries[context] = (token << _LEAD_BITS) + 1
                if size >= end:
                    break
        if len(entries) > self._limit:
            self._older, self._entries = entries, {}

    def lookup(self, context: bytes) -> int:
        """The token behind a context and, in the last `_LEAD_BITS`, its lead; 0 if unknown."""
        return self._entries.get(context) or self._older.get(context) or 0

    def state_dict(self) -> dict[str, Any]:
        """The contents, which `torch.load` reads without running code of the file."""
        return {"entries": _stored(self._entries), "older": _stored(self._older)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._entries, self._older = _read(state["entries"]), _read(state["older"])


def _stored(entries: Mapping[bytes, int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Contexts (contexts, tokens) and their values, by the number of tokens."""
    by_size: defaultdict[int, list[bytes]] = defaultdict(list)
    for context in entries:
        by_size[len(context) // _BYTES].append(context)
    return {
        size: (
            torch.frombuffer(bytearray(b"".join(contexts)), dtype=torch.int32).view(-1, size),
            torch.tensor([entries[context] for context in contexts]),
        )
        for size, contexts in by_size.items()
    }


def _read(stored: Mapping[int, tuple[Tensor, Tensor]]) -> dict[bytes, int]:
    return {
        context.tobytes(): value
        for contexts, values in stored.values()
        for context, value in zip(contexts.numpy(), values.tolist(), strict=True)
    }


def as_bytes(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


@dataclass
class DraftCounts:
    """What drafts brought."""

    passes: int = 0
    """Each row of each pass through the model."""
    tokens: int = 0
    """Decoded in these passes."""
    drafted: int = 0
    accepted: int = 0

    def metrics(self) -> dict[str, float]:
        """tokens_per_pass (1 without drafts) and draft_acceptance, of those there are."""
        metrics = {}
        if self.passes:
            metrics["tokens_per_pass"] = self.tokens / self.passes
        if self.drafted:
            metrics["draft_acceptance"] = self.accepted / self.drafted
        return metrics


def draft_history(draft_tokens: str, accelerator: str) -> DraftHistory | None:
    """The history of a setting `draft_tokens`; None where nothing is to be drafted."""
    # On CUDA a plain step is one CUDA graph, which a step with drafts is not yet: experimental.
    if draft_tokens == "0" or (draft_tokens == "auto" and accelerator == "cuda"):
        return None
    return DraftHistory(None if draft_tokens == "auto" else int(draft_tokens))


class DraftHistory:
    """Earlier replies, in memory alone, and how often guesses from them were right."""

    def __init__(
        self,
        most: int | None = None,
        *,
        contexts: int = 200_000,
        reply_tokens: int = 10_000_000,
    ) -> None:
        """Drafts have `most` tokens wherever there is a guess; None lets the expected gain decide.
        A table keeps at most twice as many `contexts`, of 100 bytes each; a token takes four."""
        self.most = most
        self.counts = DraftCounts()
        self.table = SuffixTable(_OF_OTHERS, contexts)
        self._contexts, self._most_tokens = contexts, reply_tokens
        self._replies: OrderedDict[str, list[tuple[str, array[int]]]] = OrderedDict()
        """Of each question (name of the row, reply), the newest last."""
        self._tokens = 0
        self.rates: dict[tuple[int, int, int], list[float]] = {}
        """By kind of guess [right, made], both fading."""
        self.gained = [0, 0]
        """[accepted tokens, passes of a row] since it was last asked whether drafts help."""
        self.rest = 0
        """Passes that are still to go without a guess, since drafts did not help."""
        self._next_rest = _REST

    def take_counts(self) -> dict[str, float]:
        """The metrics since the last call."""
        metrics, self.counts = self.counts.metrics(), DraftCounts()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that decides what is drafted next, but `most`; see `SuffixTable.state_dict`."""
        replies = [
            (question, row, reply)
            for question, named in self._replies.items()
            for row, reply in named
        ]
        texts = array("i", itertools.chain.from_iterable(reply for _, _, reply in replies))
        return {
            "table": self.table.state_dict(),
            "replies": [(question, row, len(reply)) for question, row, reply in replies],
            "texts": torch.tensor(texts, dtype=torch.int32),
            "rates": dict(self.rates),
            "rest": (self.gained, self.rest, self._next_rest),
            "counts": asdict(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the history that wrote the state.

        Raises:
            LookupError, TypeError, ValueError: the state is of another version; this history is
                then as it was.
        """
        texts, begin = array("i", state["texts"].tolist()), 0
        replies: OrderedDict[str, list[tuple[str, array[int]]]] = OrderedDict()
        for question, row, length in state["replies"]:
            replies.setdefault(question, []).append((row, texts[begin : begin + length]))
            begin += length
        (gained, rest, next_rest), counts = state["rest"], DraftCounts(**state["counts"])
        self.table.load_state_dict(state["table"])
        self._replies, self._tokens = replies, len(texts)
        self.rates, self.counts = {**state["rates"]}, counts
        self.gained, self.rest, self._next_rest = [*gained], rest, next_rest

    def add(self, question: str, replies: Iterable[Sequence[int]], *, row: str = "") -> None:
        """Remember replies (token ids) to a question; `row`: see `of_rows`."""
        remembered = self._replies.setdefault(question, [])
        self._replies.move_to_end(question)
        for reply in replies:
            named = row, array("i", reply)
            if named in remembered:  # the newest are kept
                remembered.remove(named)
                self._tokens -= len(named[1])
            remembered.append(named)
            self._tokens += len(named[1])
        of_row = [named for named in remembered if named[0] == row]
        for named in of_row[:-_REMEMBERED]:
            remembered.remove(named)
            self._tokens -= len(named[1])
        while self._tokens > self._most_tokens and len(self._replies) > 1:
            _, oldest = self._replies.popitem(last=False)
            self._tokens -= sum(len(reply) for _, reply in oldest)

    def add_texts(self, texts: Iterable[Sequence[int]]) -> None:
        """Remember texts (token ids) that replies to any question may resemble."""
        for text in texts:
            self.table.add([_START, *text], 1)

    def of_rows(self, questions: Sequence[str], names: Sequence[str] | None = None) -> RowDrafts:
        """The drafts of rows that answer `questions`; rows of one question help each other.

        A row that is asked again and again, as by each validation, is known by question and name:
        its reply before is the first that is looked at.
        """
        if not self._replies.keys().isdisjoint(questions):  # these may help where others did not
            self.rest = 0
        return RowDrafts(self, questions, names)

    def rests(self) -> bool:
        """Whether the next pass goes without a guess."""
        accepted, passes = self.gained
        if passes >= _JUDGED_PASSES:
            self.gained = [0, 0]
            if accepted < _LEAST_GAIN * passes:
                self.rest = self._next_rest
                self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
            else:
                self._next_rest = _REST
        self.rest -= self.rest > 0
        return self.rest > 0

    def of_question(self, question: str) -> SuffixTable:
        """A table of the remembered replies to a question."""
        return self.table_of(reply for _, reply in self._replies.get(question, ()))

    def of_row(self, question: str, name: str | None) -> array[int]:
        """The last reply to a row; empty where it has no name."""
        replies = (reply for row, reply in reversed(self._replies.get(question, [])) if row == name)
        return next(replies, array("i"))

    def table_of(self, replies: Iterable[Sequence[int]]) -> SuffixTable:
        table = SuffixTable(_OF_QUESTION, self._contexts)
        for reply in replies:
            table.add([_START, *reply], 0)
        return table


class RowDrafts:
    """Drafts of rows that answer questions, from the first that begins to the last that ends."""

    def __init__(
        self, history: DraftHistory, questions: Sequence[str], names: Sequence[str] | None
    ) -> None:
        self._history = history
        self._questions, self._names = questions, names
        self._replies: dict[int, array[int]] = {}
        """Of rows that are being decoded: their last reply."""
        self._before: dict[int, SuffixTable] = {}
        """Of these replies, where the row says something else."""
        self._unfinished = Counter(questions)
        self._own: dict[str, SuffixTable] = {}
        """Of the questions that some row is answering, once it is asked for."""
        self._texts: defaultdict[int, list[int]] = defaultdict(lambda: [_START])
        """What each row has said."""
        self._added: dict[int, int] = {}
        """How many tokens of a row's text are in its question's table."""
        self._guesses: dict[int, list[tuple[int, tuple[int, int, int]]]] = {}
        """Of each row that is being decoded (token, kind) of its next tokens."""
        self._trials = 0
        """Guesses of unseen kinds that may still be drafted in this pass."""

    def propose(
        self,
        room: Mapping[int, int],
        positions_of_pass: float,
        ends: frozenset[int],
        *,
        longest: int = AUTO_LIMIT,
    ) -> dict[int, list[int]]:
        """A draft of each row in `room`, of at most so many tokens; it may be empty.

        `longest`: tokens of a draft at most, where `auto` chooses.
        `positions_of_pass`: a pass costs as much as so many further positions of one.
        """
        history = self._history
        most, least = history.most, 0.0
        if most is None:
            if history.rests():  # guessing costs time even where nothing is drafted
                return {row: [] for row in room}
            # No draft token that is less likely raises the tokens a second of this pass.
            least = max(len(room) / (len(room) + positions_of_pass), _LEAST)
        self._trials = _TRIALS if most is None else (1 + most) * len(room)
        likelihoods = [
            (likelihood, row)
            for row, tokens in room.items()
            for likelihood in self._guess(row, min(tokens, most or longest), least, ends)
        ]
        lengths = dict.fromkeys(room, 0)
        if most is None:
            likelihoods.sort(key=lambda pair: -pair[0])
        expected, cost = float(len(room)), len(room) + positions_of_pass
        for likelihood, row in likelihoods:
            # Tokens a cost grow only by a position that brings more than the mean.
            if most is None and likelihood * cost <= expected:
                break
            lengths[row] += 1
            expected, cost = expected + likelihood, cost + 1
        return {
            row: [token for token, _ in self._guesses[row][:length]]
            for row, length in lengths.items()
        }

    def _guess(self, row: int, most: int, least: float, ends: frozenset[int]) -> list[float]:
        """The likelihoods that all of the first 1, 2, ... guesses are right, while above `least`.

        One guess more is made, so that its kind is seen to be right or wrong without a position of
        its own.
        """
        guesses: list[tuple[int, tuple[int, int, int]]] = []
        self._guesses[row] = guesses
        likelihoods: list[float] = []
        likelihood = 1.0
        for token, kind in self._next_tokens(row):
            likelihood *= self._rate(kind)
            guesses.append((token, kind))
            if likelihood <= least or len(guesses) > most:
                break
            likelihoods.append(likelihood)
            if token in ends:
                break
        return likelihoods

    def _next_tokens(self, row: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """Guesses of the row's next tokens, each with its kind, as long as there are any."""
        text, reply = self._texts[row], self._last_reply(row)
        said = len(text) - 1
        if said < len(reply) and reply[:said] == array("i", text[1:]):
            # As it was, without a look into tables: most rows of a validation say the same again.
            for token in reply[said:]:
                yield token, _REPEATED
            return
        tables, named = self._tables_of(row), self._names is not None
        tail = as_bytes(text[-_LONGEST:])
        while True:
            entry, source, size = 0, 0, 0
            for source, size in _order(len(tail) // _BYTES, named=named):
                entry = tables[source].lookup(tail[-size:])
                if entry:
                    break
            if not entry:
                return
            token = entry >> _LEAD_BITS
            yield token, (source, size, entry & _MOST_LEAD)
            tail = tail[(1 - _LONGEST) * _BYTES :] + as_bytes([token])

    def _rate(self, kind: tuple[int, int, int]) -> float:
        """How often guesses of a kind are right."""
        if rate := self._history.rates.get(kind):
            return rate[0] / rate[1]
        # Few, since with random weights nearly all guesses of a new kind are wrong.
        self._trials -= 1
        return _UNSEEN if self._trials >= 0 else 0.0

    def observe(self, row: int, tokens: Sequence[int], drafted: int) -> None:
        """A pass over a draft of so many tokens decoded these tokens of the row."""
        counts = self._history.counts
        counts.passes += 1
        counts.tokens += len(tokens)
        counts.drafted += drafted
        counts.accepted += len(tokens) - 1
        text = self._texts[row]
        text += tokens
        guesses = self._guesses.pop(row, None)
        if guesses is None and len(text) > 1 + len(tokens):
            return  # at rest
        if guesses is not None:
            self._history.gained[0] += len(tokens) - 1
            self._history.gained[1] += 1
        for (guess, kind), token in zip(guesses or (), tokens, strict=False):
            rate = self._history.rates.setdefault(kind, [0.5, 1.0])
            if rate[1] > _FADES_AFTER:
                rate[0], rate[1] = rate[0] / 2, rate[1] / 2
            rate[1] += 1.0
            if guess != token:
                break
            rate[0] += 1.0
        if table := self._own.get(self._questions[row]):
            table.add(text, self._added.get(row, 0))
            self._added[row] = len(text)

    def _table_of(self, row: int) -> SuffixTable:
        """Of the row's question."""
        question = self._questions[row]
        if question not in self._own:
            table = self._own[question] = self._history.of_question(question)
            for other, text in self._texts.items():
                if self._questions[other] == question:
                    table.add(text, 0)
                    self._added[other] = len(text)
        return self._own[question]

    def _tables_of(self, row: int) -> tuple[SuffixTable, SuffixTable, SuffixTable]:
        """By source."""
        if row not in self._before:
            self._before[row] = self._history.table_of([self._last_reply(row)])
        return self._before[row], self._table_of(row), self._history.table

    def _last_reply(self, row: int) -> array[int]:
        if row not in self._replies:
            name = self._names[row] if self._names else None
            self._replies[row] = self._history.of_row(self._questions[row], name)
        return self._replies[row]

    def finish(self, row: int) -> None:
        """Remember the completion of a row, which has ended."""
        question, text = self._questions[row], self._texts.pop(row)
        self._added.pop(row, None)
        self._before.pop(row, None)
        if self._replies.pop(row, None) != array("i", text[1:]):  # else the table has it
            self._history.table.add(text, 1)
        self._history.add(question, [text[1:]], row=self._names[row] if self._names else "")
        self._unfinished[question] -= 1
        if not self._unfinished[question]:
            self._own.pop(question, None)


_FADES_AFTER = 400.0

_REPEATED = (-1, 0, 0)
"""The kind of a guess that the last reply to the row is said again."""

_SURE = 3
"""Tokens of a context of the row's last reply that other sources are not asked after."""


@functools.cache
def _order(tokens: int, *, named: bool) -> list[tuple[int, int]]:
    """(source, bytes) in which guesses are looked up behind so many tokens: the last reply to the
    row, where it has a name, is often gone on with behind a token that differs; then the longest
    context, of the question before those of others."""
    lengths = {0: _OF_QUESTION if named else (), 1: _OF_QUESTION, 2: _OF_OTHERS}
    contexts = {(source, min(n, tokens)) for source, of in lengths.items() for n in of}
    first = sorted(contexts, key=lambda kind: (kind[0] > 0 or kind[1] < _SURE, -kind[1], kind[0]))
    return [(source, length * _BYTES) for source, length in first]
