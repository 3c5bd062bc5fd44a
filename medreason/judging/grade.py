"""Grades many items at once; each verdict is written to the cache as soon as it arrives."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from medreason.config.judge import Judge, Scale
from medreason.console import install_command
from medreason.generation.parallel_requests import FailedError, parallel_requests
from medreason.judging.rubric import Item, Verdict
from medreason.runs.files import atomic

Grader = Callable[[Item], Verdict]


@dataclass
class Graded:
    """Verdicts in the order of the items, None where the judge failed, and what they cost."""

    verdicts: list[Verdict | None]
    failures: Counter[str] = field(default_factory=Counter)
    """Reason -> items that failed; they are left out of every mean, never counted as 0."""
    calls: int = 0
    """Items sent to the judge; the verdicts of the others were in the cache."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, judge: Judge) -> float | None:
        """US dollars for these calls; None where no price is known."""
        return judge.cost(self.prompt_tokens, self.completion_tokens)


def grader(judge: Judge) -> Grader:
    """A function that grades one item. Raises ValueError where the configuration has no judge."""
    match judge.kind:
        case "openai":
            try:
                from medreason.judging import endpoint  # openai: an extra, and a second to import
            except ImportError as error:
                raise ValueError(
                    f"judge.kind='openai' needs the package openai: {install_command('judge')}"
                ) from error
            return endpoint.judge_of(judge)
        case "local":
            from medreason.judging import local  # torch

            return local.judge_of(judge)
        case _:
            raise ValueError("judge=none cannot grade; choose judge=openai or judge=local")


def cached_grader(judge: Judge) -> Grader:
    """`grader`, one for all batches of a training: its client or model is made once."""
    return _grader_of(json.dumps(asdict(judge)))


@functools.lru_cache(maxsize=2)
def _grader_of(settings: str) -> Grader:
    return grader(Judge(**json.loads(settings)))


def check_reachable(judge: Judge, scale: Scale, cache: Path) -> None:
    """Make one call, whatever its verdict. Raises ValueError where no call can succeed."""
    grade(replace(judge, attempts=1), [Item(scale.instructions, scale.question, scale.top)], cache)


def grade(
    judge: Judge,
    items: Sequence[Item],
    cache: Path,
    ask: Grader | None = None,
    on_verdict: Callable[[int, int], None] = lambda done, total: None,
) -> Graded:
    """Grade the items. Verdicts in `cache` are used again, equal items are sent once.

    The first call is made alone, so that an unreachable judge, a refused key or an endpoint of
    another kind is found before others are made. `on_verdict` gets done and total.

    Raises:
        ValueError: no call can succeed, or the judge is lost on the way; verdicts stay in `cache`.
    """
    keys = [item.key(judge) for item in items]
    verdicts = {key: verdict for key in set(keys) if (verdict := _load(cache, key))}
    ungraded = {key: item for key, item in zip(keys, items, strict=True) if key not in verdicts}
    graded = Graded([], calls=len(ungraded))
    failures: dict[str, str] = {}
    if ungraded:
        cache.mkdir(parents=True, exist_ok=True)
        outcomes = parallel_requests(
            ask or grader(judge),
            ungraded,
            concurrency=judge.concurrency,
            unreached=lambda error: _unreached(judge, error),
        )
        for key, outcome in outcomes:
            if isinstance(outcome, Verdict):
                _save(cache, key, outcome)
                verdicts[key] = outcome
                graded.prompt_tokens += outcome.prompt_tokens
                graded.completion_tokens += outcome.completion_tokens
            else:
                failures[key] = str(outcome)
            on_verdict(len(verdicts) + len(failures), len({*keys}))
    graded.verdicts = [verdicts.get(key) for key in keys]
    graded.failures.update(failures[key] for key in keys if key in failures)
    return graded


def _unreached(judge: Judge, error: FailedError) -> str:
    return (
        f"judge.base_url={judge.base_url} is not reached as a judge ({error}, {judge.attempts} "
        "attempts); start the server or set judge.base_url=.../v1; verdicts so far are kept; "
        "re-run the same command to resume"
    )


def _load(cache: Path, key: str) -> Verdict | None:
    """The cached verdict; writes are atomic, so a file is never cut off."""
    try:
        return Verdict(**json.loads((cache / f"{key}.json").read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError):  # another program's file: grade again
        return None


def _save(cache: Path, key: str, verdict: Verdict) -> None:
    with atomic(cache / f"{key}.json", sync=False) as unfinished:
        unfinished.write_text(json.dumps(asdict(verdict)))
