"""Our scores in TRL's batch protocol: a completion is parsed once, a reward keeps its name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medreason import config as configuration
from medreason.config import Config
from medreason.replies import Reply, parse
from medreason.samples import Sample


class Scorer:
    """What all rewards of a run share: the samples and the reading of a completion."""

    def __init__(self, samples: Sequence[Sample], end_tokens: Sequence[int]) -> None:
        self._samples = samples
        self._ends = frozenset(end_tokens)
        self.first: Reward | None = None
        self._read = functools.lru_cache(maxsize=4096)(self._parse)

    def read(self, place: int, text: str, ids: Sequence[int]) -> tuple[Reply, Sample]:
        """The parsed completion of the sample at `place`; cut off if its last token is no end."""
        return self._read(place, text, not ids or ids[-1] not in self._ends)

    def _parse(self, place: int, text: str, truncated: bool) -> tuple[Reply, Sample]:
        sample = self._samples[place]
        return parse(text, sample.options, truncated=truncated), sample


class Reward:
    """One score as TRL calls it, named by its config key: logs show `rewards/<key>/mean`."""

    def __init__(
        self, name: str, score: Callable[[Reply, Sample], float | None], scorer: Scorer
    ) -> None:
        self.__name__ = name
        self._score = score
        self._scorer = scorer

    def __call__(
        self,
        *,
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        sample: list[int],
        log_extra: Callable[[str, list[str]], None],
        **_columns: object,  # TRL hands over every column and more loggers
    ) -> list[float | None]:
        read = [
            self._scorer.read(place, turns[0]["content"], ids)
            for place, turns, ids in zip(sample, completions, completion_ids, strict=True)
        ]
        if self is self._scorer.first:  # once a batch, for the saved rollouts
            log_extra("sample", [found.id for _, found in read])
            log_extra("gold", [found.answer for _, found in read])
            log_extra("answer_read", [reply.answer or reply.reason for reply, _ in read])
        return [self._score(reply, found) for reply, found in read]


def rewards(config: Config, scorer: Scorer) -> tuple[list[Reward], list[float]]:
    """(reward functions, weights) in the order of the configuration."""
    made = []
    for name, reward in config.reward.items():
        settings = {k: v for k, v in reward.score.items() if not k.startswith("_")}
        score = functools.partial(configuration.target(reward.score["_target_"]), **settings)
        made.append(Reward(name, score, scorer))
    scorer.first = made[0]
    return made, [reward.weight for reward in config.reward.values()]


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
    unfinished = path.with_suffix(".tmp")
    pq.write_table(pa.table(table), unfinished)
    unfinished.replace(path)
