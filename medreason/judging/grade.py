"""Many items to a judge at once: each verdict is kept on disk the moment it comes."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from medreason.config.judge import Judge, Scale
from medreason.judging.rubric import FailedError, Item, Verdict
from medreason.runs.files import atomic

Grader = Callable[[Item], Verdict]


@dataclass
class Graded:
    """Verdicts in the order of the items, None where the judge failed, and what they cost."""

    verdicts: list[Verdict | None]
    failures: Counter[str] = field(default_factory=Counter)
    """Why, and how many items; they are left out of every mean, never counted as 0."""
    calls: int = 0
    """Items asked now; the others were answered before."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, judge: Judge) -> float:
        """US dollars of the calls made now."""
        paid = self.prompt_tokens * judge.price_in + self.completion_tokens * judge.price_out
        return paid / 1e6


def grader(judge: Judge) -> Grader:
    """The judge a configuration names. Raises ValueError where it names none."""
    match judge.kind:
        case "openai":
            try:
                from medreason.judging import endpoint  # openai: an extra, and a second to import
            except ImportError as error:
                raise ValueError(
                    "judge.kind='openai' needs the package openai: pip install -e '.[judge]'"
                ) from error
            return endpoint.judge_of(judge)
        case "local":
            from medreason.judging import local  # torch

            return local.judge_of(judge)
        case _:
            raise ValueError("judge=none cannot grade; choose judge=openai or judge=local")


def grader_once(judge: Judge) -> Grader:
    """The same grader for every batch of a training: a client or a loaded model is made once."""
    return _made(json.dumps(asdict(judge)))


def try_out(judge: Judge, scale: Scale, cache: Path) -> None:
    """Ask once, whatever the judge thinks of it. Raises ValueError where no call can succeed."""
    grade(replace(judge, attempts=1), [Item(scale.instructions, scale.question, scale.top)], cache)


@functools.lru_cache(maxsize=2)
def _made(settings: str) -> Grader:
    return grader(Judge(**json.loads(settings)))


def grade(
    judge: Judge,
    items: Sequence[Item],
    cache: Path,
    ask: Grader | None = None,
    on_verdict: Callable[[int, int], None] = lambda done, total: None,
) -> Graded:
    """Grade the items; what lies in `cache` is not asked again, and equal items are asked once.

    The first call is made alone: an unreachable judge, a refused key or an endpoint of another kind
    shows before work is spent.

    Raises:
        ValueError: no call can succeed, or the judge is lost on the way; what was graded is kept.
    """
    keys = [item.key(judge) for item in items]
    known = {key: found for key in set(keys) if (found := _load(cache, key))}
    open_items = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    result = Graded([], calls=len(open_items))
    failed: dict[str, str] = {}
    if open_items:
        cache.mkdir(parents=True, exist_ok=True)
        for key, outcome in _ask(judge, ask or grader(judge), open_items):
            if isinstance(outcome, Verdict):
                _save(cache, key, outcome)
                known[key] = outcome
                result.prompt_tokens += outcome.prompt_tokens
                result.completion_tokens += outcome.completion_tokens
            else:
                failed[key] = str(outcome)
            on_verdict(len(known) + len(failed), len({*keys}))
    result.verdicts = [known.get(key) for key in keys]
    result.failures.update(failed[key] for key in keys if key in failed)
    return result


def _ask(
    judge: Judge, ask: Grader, items: dict[str, Item]
) -> Iterator[tuple[str, Verdict | FailedError]]:
    """(key, verdict or failure) of each item, in the order in which the judge replies."""
    waiting = list(items.items())[::-1]
    running: dict[Future[Verdict], str] = {}
    lost, probed = 0, False
    executor = ThreadPoolExecutor(judge.concurrency)
    try:
        while waiting or running:
            while waiting and len(running) < (judge.concurrency if probed else 1):
                key, item = waiting.pop()
                running[executor.submit(ask, item)] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                try:
                    yield key, future.result()
                    lost = 0
                except FailedError as error:
                    lost = lost + 1 if error.lost else 0
                    if error.lost and (not probed or lost > judge.concurrency):
                        raise ValueError(_unreached(judge, error)) from None
                    yield key, error
                probed = True
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _unreached(judge: Judge, error: FailedError) -> str:
    return (
        f"judge.base_url={judge.base_url} is not reached as a judge ({error}, {judge.attempts} "
        "attempts); start the server or set judge.base_url=.../v1; verdicts so far are kept and "
        "the same command goes on"
    )


def _load(cache: Path, key: str) -> Verdict | None:
    """A verdict file is replaced in one step, so what is there is whole."""
    try:
        return Verdict(**json.loads((cache / f"{key}.json").read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError):  # not written by us: ask again
        return None


def _save(cache: Path, key: str, verdict: Verdict) -> None:
    with atomic(cache / f"{key}.json", sync=False) as unfinished:
        unfinished.write_text(json.dumps(asdict(verdict)))
