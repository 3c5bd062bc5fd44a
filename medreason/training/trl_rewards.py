"""Our scores in TRL's batch protocol: a completion is parsed once, a reward keeps its name."""

from __future__ import annotations

import functools
import itertools
import math
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
from medreason.rewards.variance import within_groups
from medreason.runs.files import atomic
from medreason.samples import Sample

Score = Callable[[Reply, Sample], float]
Read = tuple[Reply, Sample]
Grade = Callable[[Sequence[Read]], list[float | None]]
"""Scores of several replies, None where one could not be graded."""


class Scorer:
    """What all rewards of a run share: the samples and the reading of a completion."""

    def __init__(
        self,
        samples: Sequence[Sample],
        end_tokens: Sequence[int],
        asked: Callable[[Sample, int], Sample] = lambda sample, epoch: sample,
    ) -> None:
        self._samples = samples
        self._asked = asked
        self._ends = frozenset(end_tokens)
        self.first: Reward | None = None
        self._read = functools.lru_cache(maxsize=4096)(self._parse)

    def read(self, place: int, epoch: int, text: str, ids: Sequence[int]) -> tuple[Reply, Sample]:
        """The parsed completion of the sample at `place`, with the sample as it was asked then.

        Cut off if its last token is no end.
        """
        return self._read(place, epoch, text, not ids or ids[-1] not in self._ends)

    def _parse(self, place: int, epoch: int, text: str, truncated: bool) -> tuple[Reply, Sample]:
        sample = self._asked(self._samples[place], epoch)
        return parse(text, sample.options, truncated=truncated), sample


class Gate(NamedTuple):
    """A reward counts only where another score of the same reply reaches a height."""

    score: Score
    at_least: float

    def opens(self, reply: Reply, sample: Sample) -> bool:
        return self.score(reply, sample) >= self.at_least


class Reward:
    """One score as TRL calls it, named by its config key: logs show `rewards/<key>/mean`.

    Also logs `rewards/<key>/within_group_variance` and `rewards/<key>/constant_groups`: advantages
    come from differences between the completions of a question alone.
    """

    def __init__(self, name: str, grade: Grade, scorer: Scorer, gate: Gate | None = None) -> None:
        self.__name__ = name
        self._grade = grade
        self._scorer = scorer
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
        **_columns: object,  # TRL hands over every column and more
    ) -> list[float | None]:
        read = [
            self._scorer.read(place, when, turns[0]["content"], ids)
            for place, when, turns, ids in zip(
                sample, epoch or [0] * len(sample), completions, completion_ids, strict=True
            )
        ]
        if self is self._scorer.first:  # once a batch, for the saved rollouts
            log_extra("sample", [found.id for _, found in read])
            log_extra("gold", [found.answer for _, found in read])
            log_extra("answer_read", [reply.answer or reply.reason for reply, _ in read])
            if family:
                log_extra("family", family)
        return self._logged(self._scores(read), sample, log_metric)

    def _scores(self, read: Sequence[Read]) -> list[float | None]:
        """Behind a closed gate 0, without asking the score: a judge would cost a call."""
        opened = [i for i, pair in enumerate(read) if self._gate is None or self._gate.opens(*pair)]
        values: list[float | None] = [0.0] * len(read)
        for i, value in zip(opened, self._grade([read[i] for i in opened]), strict=True):
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"reward.{self.__name__} gave {value} for a reply to sample {read[i][1].id}; "
                    "a score is a number: mend the function it names, or drop the reward"
                )
            values[i] = value
        return values

    def _logged(
        self,
        values: list[float | None],
        sample: Sequence[int],
        log_metric: Callable[[str, float], None],
    ) -> list[float | None]:
        """What could not be graded is counted and takes the mean of its group.

        TRL would add up the other rewards alone, so a failed call would look like a score of 0.
        """
        groups = [
            [i for i, _ in members]
            for _, members in itertools.groupby(enumerate(sample), key=lambda pair: pair[1])
        ]
        graded = [[v for i in group if (v := values[i]) is not None] for group in groups]
        if found := within_groups(graded):
            log_metric(f"rewards/{self.__name__}/within_group_variance", found[0])
            log_metric(f"rewards/{self.__name__}/constant_groups", found[1])
        if None in values:
            log_metric(f"rewards/{self.__name__}/ungraded", values.count(None) / len(values))
        for group, known in zip(groups, graded, strict=True):
            for i in group:
                if values[i] is None and known:
                    values[i] = statistics.fmean(known)
        return values


def rewards(config: Config, scorer: Scorer) -> tuple[list[Reward], list[float]]:
    """(reward functions, weights) in the order of the configuration."""
    made = [
        Reward(name, _grade(config, reward), scorer, _gate(config, reward))
        for name, reward in config.reward.items()
    ]
    scorer.first = made[0]
    return made, [reward.weight for reward in config.reward.values()]


def _grade(config: Config, reward: configuration.Reward) -> Grade:
    if reward.judge:
        scale = config.rubric.check(reward.judge)
        cache = config.folder / "cache" / "verdicts"
        return functools.partial(grade_replies, config.judge, scale, reward.judge, cache)
    return functools.partial(_each, configuration.function(reward.score))


def _each(score: Score, read: Sequence[Read]) -> list[float | None]:
    return [score(reply, sample) for reply, sample in read]


def _gate(config: Config, reward: configuration.Reward) -> Gate | None:
    if reward.only_when is None:
        return None
    return Gate(configuration.function(config.reward[reward.only_when].score), reward.at_least)


def grade_replies(
    judge: Judge, scale: Scale, aspect: str, cache: Path, read: Sequence[Read]
) -> list[float | None]:
    """The judge's scores over the top of the scale; without anything to be graded 0, unasked."""
    given = [reply.reasoning if aspect == "reasoning" else reply.answer for reply, _ in read]
    asked = [
        (i, item(scale, sample, text))
        for i, (text, (_, sample)) in enumerate(zip(given, read, strict=True))
        if text
    ]
    values: list[float | None] = [0.0] * len(read)
    if asked:
        graded = grade(judge, [one for _, one in asked], cache, cached_grader(judge))
        for (i, _), verdict in zip(asked, graded.verdicts, strict=True):
            values[i] = verdict.score / scale.top if verdict else None
    return values


def save_rollouts(logs: dict[str, Any], path: Path) -> None:
    """The completions of the last step with their rewards and advantages, as TRL kept them."""
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
