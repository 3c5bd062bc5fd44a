"""Our scores as TRL's reward functions: each completion is parsed once, each reward keeps its name.

TRL calls every reward with all completions of a batch, (questions * completions), their token ids
and every column of the data set, and takes a list of numbers, None where there is no reward.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medreason import config as configuration
from medreason.config import Config
from medreason.config.judge import Judge, Scale
from medreason.judging.grade import cached_grader, grade
from medreason.judging.rubric import item
from medreason.replies import Reply, parse
from medreason.rewards.named_score import NamedScore
from medreason.rewards.variance import within_groups
from medreason.runs.files import atomic
from medreason.samples import Sample

Score = Callable[[Reply, Sample], float]
ReplyAndSample = tuple[Reply, Sample]
Grade = Callable[[Sequence[ReplyAndSample]], list[float | None]]
"""Scores of several replies, None where one could not be graded."""


class CompletionReader:
    """What the rewards of a run share: its samples, and completions parsed once for all of them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        end_tokens: Sequence[int],
        in_epoch: Callable[[Sample, int], Sample] = lambda sample, epoch: sample,
    ) -> None:
        """`in_epoch` gives the sample as an epoch showed it, with its options in another order."""
        self._samples = samples
        self._in_epoch = in_epoch
        self._ends = frozenset(end_tokens)
        self.logging_reward: Reward | None = None
        """The one that logs the columns of the saved rollouts, so that they are logged once."""
        # Rewards come one after the other, each with the whole batch: without a cache each would
        # parse every completion again.
        self._read = functools.lru_cache(maxsize=4096)(self._parse)

    def read(self, place: int, epoch: int, text: str, ids: Sequence[int]) -> ReplyAndSample:
        """The parsed completion of the sample at `place`, with the sample as shown in `epoch`."""
        # Truncated if the last token does not end a reply. TRL's text cannot tell: it is decoded
        # without the end tokens.
        return self._read(place, epoch, text, not ids or ids[-1] not in self._ends)

    def _parse(self, place: int, epoch: int, text: str, truncated: bool) -> ReplyAndSample:
        sample = self._in_epoch(self._samples[place], epoch)
        return parse(text, sample.options, truncated=truncated), sample


class Gate(NamedTuple):
    """A reward counts only where another score of the same reply is at least `at_least`."""

    score: Score
    at_least: float

    def is_open(self, reply: Reply, sample: Sample) -> bool:
        return self.score(reply, sample) >= self.at_least


class Reward:
    """One score as TRL calls it; TRL logs `rewards/<key>/mean` by its `__name__`, the config key.

    Also logs `rewards/<key>/within_group_variance` and `rewards/<key>/constant_groups`: GRPO's
    advantages are differences between the completions of one question.
    """

    def __init__(
        self, name: str, grade: Grade, reader: CompletionReader, gate: Gate | None = None
    ) -> None:
        self.__name__ = name
        self._grade = grade
        self._reader = reader
        self._gate = gate

    def __call__(
        self,
        *,
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        sample: list[int],
        log_extra: Callable[[str, list[str]], None],
        log_metric: Callable[[str, float], None],
        family: list[str] | None = None,
        epoch: list[int] | None = None,
        **_columns: object,  # TRL passes every column and more
    ) -> list[float | None]:
        replies = [
            self._reader.read(place, number, turns[0]["content"], ids)
            for place, number, turns, ids in zip(
                sample, epoch or [0] * len(sample), completions, completion_ids, strict=True
            )
        ]
        if self is self._reader.logging_reward:
            _log_columns(replies, family, log_extra)
        values = self._scores(replies)
        groups = [
            [i for i, _ in members]
            for _, members in itertools.groupby(enumerate(sample), key=lambda pair: pair[1])
        ]
        self._log(values, groups, log_metric)
        return _with_group_means(values, groups)

    def _scores(self, replies: Sequence[ReplyAndSample]) -> list[float | None]:
        # Behind a closed gate the score is not computed at all: a judge's would cost a call.
        places = [
            i for i, pair in enumerate(replies) if self._gate is None or self._gate.is_open(*pair)
        ]
        values: list[float | None] = [0.0] * len(replies)
        for i, value in zip(places, self._grade([replies[i] for i in places]), strict=True):
            values[i] = value
        return values

    def _log(
        self,
        values: Sequence[float | None],
        groups: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None],
    ) -> None:
        graded = [[v for i in group if (v := values[i]) is not None] for group in groups]
        if variance := within_groups(graded):
            log_metric(f"rewards/{self.__name__}/within_group_variance", variance[0])
            log_metric(f"rewards/{self.__name__}/constant_groups", variance[1])
        if None in values:
            log_metric(f"rewards/{self.__name__}/ungraded", values.count(None) / len(values))


def _log_columns(
    replies: Sequence[ReplyAndSample],
    family: list[str] | None,
    log_extra: Callable[[str, list[str]], None],
) -> None:
    log_extra("sample", [shown.id for _, shown in replies])
    log_extra("gold", [shown.answer for _, shown in replies])
    log_extra("answer_read", [reply.answer or reply.reason for reply, _ in replies])
    if family:
        log_extra("family", family)


def _with_group_means(
    values: Sequence[float | None], groups: Sequence[Sequence[int]]
) -> list[float | None]:
    """Each value that could not be graded becomes the mean of its group's other values."""
    # TRL sums the rewards that are there: a completion whose judge failed would be scored by the
    # other rewards alone, as if the judge had given 0. At the group's mean it has no advantage
    # through this reward, in either direction.
    filled = list(values)
    for group in groups:
        graded = [value for i in group if (value := values[i]) is not None]
        for i in group:
            if values[i] is None and graded:
                filled[i] = statistics.fmean(graded)
    return filled


def rewards(config: Config, reader: CompletionReader) -> tuple[list[Reward], list[float]]:
    """(reward functions, weights) in the order of the configuration."""
    functions = [
        Reward(name, _grade(config, name, reward), reader, _gate(config, reward))
        for name, reward in config.reward.items()
    ]
    reader.logging_reward = functions[0]
    return functions, [reward.weight for reward in config.reward.values()]


def _grade(config: Config, name: str, reward: configuration.Reward) -> Grade:
    if reward.judge:
        scale = config.rubric.check(reward.judge)
        cache = config.folder / "cache" / "verdicts"
        return functools.partial(grade_replies, config.judge, scale, reward.judge, cache)
    return functools.partial(_score_each, NamedScore(name, reward.score))


# Partials of module functions, not closures: a reward must be picklable.
def _score_each(score: Score, replies: Sequence[ReplyAndSample]) -> list[float | None]:
    return [score(reply, sample) for reply, sample in replies]


def _gate(config: Config, reward: configuration.Reward) -> Gate | None:
    if reward.only_when is None:
        return None
    score = NamedScore(reward.only_when, config.reward[reward.only_when].score)
    return Gate(score, reward.at_least)


def grade_replies(
    judge: Judge, scale: Scale, aspect: str, cache: Path, replies: Sequence[ReplyAndSample]
) -> list[float | None]:
    """The judge's scores divided by the top of the scale; 0, without a call, where a reply has no
    reasoning or answer to grade."""
    texts = [reply.reasoning if aspect == "reasoning" else reply.answer for reply, _ in replies]
    items = {
        i: item(scale, sample, text)
        for i, (text, (_, sample)) in enumerate(zip(texts, replies, strict=True))
        if text
    }
    values: list[float | None] = [0.0] * len(replies)
    if items:
        graded = grade(judge, list(items.values()), cache, cached_grader(judge))
        for i, verdict in zip(items, graded.verdicts, strict=True):
            values[i] = verdict.score / scale.top if verdict else None
    return values


def save_rollouts(logs: dict[str, Any], path: Path) -> None:
    """Write the last step's completions with rewards and advantages; `logs` is TRL's record."""
    table = {
        **{name: list(values) for name, values in logs["extra"].items()},
        "prompt": [turns[-1]["content"][-1]["text"] for turns in logs["prompt"]],
        "completion": [turns[0]["content"] for turns in logs["completion"]],
        **{f"reward/{name}": list(values) for name, values in logs["rewards"].items()},
        "advantage": list(logs["advantages"]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, sync=False) as unfinished:
        pq.write_table(pa.table(table), unfinished)
