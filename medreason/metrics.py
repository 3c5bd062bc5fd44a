"""Every metric of an evaluation: its key, meaning, heading and unit, and where it is shown."""

from __future__ import annotations

from enum import Flag, StrEnum, auto
from typing import Self


class Shown(Flag):
    """Where a metric is shown, besides MLflow, which gets all of them as `test/<key>`."""

    TERMINAL = auto()
    """A column of the tables on the screen."""
    NARROW = auto()
    """A column there even where the screen is narrow."""
    PAGE = auto()
    """A column of the page's tables, and in the tooltips of its matrix."""
    CSV = auto()
    CARD = auto()
    """The model card of an export."""


_MLFLOW = Shown(0)
_CSV = Shown.CSV
_TABLES = _CSV | Shown.PAGE | Shown.TERMINAL
_CARD = _TABLES | Shown.CARD
_NARROW = _TABLES | Shown.NARROW
_ALL = _CARD | _NARROW


class Metric(StrEnum):
    """A key of `metrics.json`. Shares are of 1 there and percent wherever they are shown."""

    shown: Shown
    explanation: str
    heading: str
    """Of a column, in two lines at most."""
    unit: str
    """share, count, factor, words, tokens or dollars"""

    def __new__(
        cls, key: str, shown: Shown, explanation: str, heading: str = "", unit: str = "share"
    ) -> Self:
        metric = str.__new__(cls, key)
        metric._value_ = key
        metric.shown, metric.explanation = shown, explanation
        metric.heading, metric.unit = heading or key.replace("_", "\n"), unit
        return metric

    N = "n", _NARROW, "test questions", "n", "count"
    CLUSTERS = "clusters", _NARROW, "independent clusters of them: statistics.clusters", "", "count"
    DESIGN_EFFECT = (
        "design_effect",
        _CSV,
        "variance by clusters, of independent questions 1",
        "",
        "factor",
    )
    CORRECT = "correct", _MLFLOW, "questions answered right", "correct", "count"
    ACCURACY = "accuracy", _ALL, "questions answered right"
    CI_LOW = "ci_low", _ALL, "lower end of the accuracy's 95 % interval"
    CI_HIGH = "ci_high", _ALL, "upper end of the accuracy's 95 % interval"
    PRIOR = (
        "prior",
        _ALL,
        "options-only baseline: a frequency table of option texts",
        "options\nonly",
    )
    ABOVE_PRIOR = (
        "above_prior",
        _NARROW,
        "accuracy minus the options-only baseline",
        "above\nbaseline",
    )
    GUESSING = (
        "guessing",
        _CSV | Shown.CARD,
        "guessing between the options: the mean of 1 / their number, 0 of open questions",
    )
    BLANK_IMAGE = "blank_image", _ALL, "accuracy with a blank image"
    SHUFFLED_IMAGE = "shuffled_image", _CARD, "accuracy with another patient's image"
    NO_IMAGE = "no_image", _CARD, "accuracy without an image"
    PERMUTED_OPTIONS = "permuted_options", _CARD, "accuracy over all rotations", "options\nturned"
    OPTION_INVARIANCE = "option_invariance", _CARD, "same option in all rotations", "same\noption"
    OPTION_LIKELIHOOD = "option_likelihood", _TABLES, "accuracy of the likeliest option letter"
    EXACT_MATCH = "exact_match", _TABLES, "open questions answered word for word"
    OPEN_TOKEN_F1 = "open_token_f1", _TABLES, "words of answer and reference, open", "token\nF1"
    JUDGED_REASONING = "judged_reasoning", _TABLES, "mean grade of reasoning", "judge:\nreasoning"
    JUDGED_ANSWER = "judged_answer", _TABLES, "mean grade of open answers", "judge:\nanswer"
    PARSED = "parsed", _ALL, "replies with an answer that could be read"
    CUT_OFF = "cut_off", _CSV, "replies cut off at evaluation.max_new_tokens"
    UNANSWERED = (
        "unanswered",
        _NARROW,
        "questions that a server gave no reply to, left out of n",
        "no\nreply",
    )
    COST_USD = "cost_usd", _CSV, "price of all replies of a server", "", "dollars"
    OPTION_LIKELIHOOD_N = "option_likelihood_n", _CSV, "questions with likelihoods", "", "count"
    OPTION_LIKELIHOOD_CI_LOW = "option_likelihood_ci_low", _CSV, "lower end of its 95 % interval"
    OPTION_LIKELIHOOD_CI_HIGH = "option_likelihood_ci_high", _CSV, "upper end of its 95 % interval"
    OPTION_LIKELIHOOD_BLANK_IMAGE = "option_likelihood_blank_image", _CSV, "with a blank image"
    WITH_REASONING = "with_reasoning", _CSV, "replies that hold reasoning"
    REASONING_WORDS = "reasoning_words", _CSV, "mean length of the reasoning", "", "words"
    CONSISTENCY = "consistency", _CSV, "reasoning that agrees with the answer"
    REASONING_SIMILARITY = "reasoning_similarity", _CSV, "word overlap with the explanation"
    REASONING_EMBEDDING = "reasoning_embedding", _CSV, "cosine similarity to the explanation"
    OPEN_BERTSCORE = "open_bertscore", _CSV, "BERTScore of answers to open questions"
    CLOSED_N = "closed_n", _CSV, "closed questions, where there are open ones", "closed\nn", "count"
    CLOSED_ACCURACY = "closed_accuracy", _TABLES, "closed questions answered right", "closed"
    OPEN_N = "open_n", _CSV, "open questions", "", "count"
    COMPLETION_TOKENS = "completion_tokens", _MLFLOW, "mean length of completions", "", "tokens"
    JUDGE_FAILED_REASONING = "judge_failed_reasoning", _MLFLOW, "reasoning left without a grade"
    JUDGE_FAILED_ANSWER = "judge_failed_answer", _MLFLOW, "open answers left without a grade"

    @property
    def label(self) -> str:
        """The heading in one line."""
        return self.heading.replace("\n", " ")

    @property
    def column_title(self) -> str:
        return self.label[0].upper() + self.label[1:]

    @classmethod
    def shown_in(cls, place: Shown) -> list[Metric]:
        """In the order of the tables."""
        return [metric for metric in cls if place in metric.shown]


def rounded(points: float, *, signed: bool = False) -> str:
    """With one digit, a half to the even one; so do the page's script and every picture."""
    # Noise of the last digits first, which would else decide: 100 * 0.2875 is below 28.75.
    return f"{round(points, 9) + 0.0:{'+' if signed else ''}.1f}"


ACCURACY = (Metric.ACCURACY, Metric.CI_LOW, Metric.CI_HIGH)
HEADLINE = (Metric.N, Metric.CLUSTERS, *ACCURACY)
"""Tables write these as `n`, `clusters` and `accuracy [low, high]`; every other metric has its own
column."""
