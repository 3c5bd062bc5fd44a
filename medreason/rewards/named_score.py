"""A score with the name that the configuration gives it, for errors that say whose they are."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from medreason.config import targets
from medreason.replies import Reply
from medreason.samples import Sample


@dataclass(frozen=True)
class NamedScore:
    """The function at `reward.<name>.score`, with its settings. Can be pickled."""

    name: str
    spec: dict[str, Any]
    """`_target_` and settings."""

    def __call__(self, reply: Reply, sample: Sample) -> float:
        """The score of one reply.

        Raises:
            ValueError: a user's function raised, or gave something else than a finite number; with
                the key, the function's file and line, the sample and the reply.
        """
        function = targets.function(self.spec)
        try:
            value = function(reply, sample)
        except Exception as error:
            if self.spec["_target_"].startswith("medreason."):  # with a remedy of its own
                if type(error) is ValueError:
                    raise ValueError(
                        f"{error} (~reward.{self.name} drops it; beside methods without it, give "
                        "this one a command of its own with the same sweep=...)"
                    ) from error
                raise
            problem = f"raised {targets.described(error, function.func)}"
            raise self._error(problem, reply, sample) from error
        # TRL would take NaN for "no reward" and drop it from the sum without a word.
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise self._error(f"gave {value!r}, not a number", reply, sample)
        return float(value)

    def _error(self, problem: str, reply: Reply, sample: Sample) -> ValueError:
        where = targets.place(targets.target(self.spec["_target_"]))
        return ValueError(
            f"reward.{self.name}: {where} {problem}, for a reply to sample {sample.id}: "
            f"{reply.text[:80]!r}; mend the function, or drop the reward with ~reward.{self.name}"
        )
