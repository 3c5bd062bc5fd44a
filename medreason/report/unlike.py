"""Settings in which compared arms differ and which neither their method nor their options say."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import yaml

from medreason.config import Config
from medreason.config.files import CONF

_OWN_OPTIONS = ("prompt", "reward", "adapter")
"""Groups of which a method may choose the option, as RARL its adapter."""
_OF_START = ("model", "data")
"""Groups that no method chooses, and start models have, too."""
_OF_NO_METHOD = ("validation.", "rollout.", "rubric.")
"""Groups whose values no method and no option in a name chooses."""
_STEPS = "method.trl.max_steps"
"""No file of a method sets another number of steps than the epochs'."""


def beside_names(
    configs: Sequence[Config],
    methods: Sequence[str],
    options: Sequence[Mapping[str, str]],
    values: Sequence[Mapping[str, str]],
) -> list[set[str]]:
    """Of each arm the keys of its `options` and `values` that its name has to say, although another
    word tells it from the others: a comparison has else two causes and names one."""
    trained = [i for i, config in enumerate(configs) if config.method.algorithm != "none"]
    of_all = _named_options(configs, options, _OF_START)
    own = [configs[i] for i in trained], [options[i] for i in trained]
    of_trained = _named_options(*own, _OWN_OPTIONS)
    of_trained |= _set_by_someone(*own, [values[i] for i in trained])
    return [
        of_all | (of_trained | _within(method, methods, values) if i in trained else set())
        for i, method in enumerate(methods)
    ]


def _named_options(
    configs: Sequence[Config], options: Sequence[Mapping[str, str]], groups: Collection[str]
) -> set[str]:
    """The groups in whose option arms of any method differ, where it is not their methods' own."""
    named = set()
    for group in groups:
        known = [(c.method.name, o[group]) for c, o in zip(configs, options, strict=True)]
        known = [(method, option) for method, option in known if option]
        by_method = all(option == _own_option(method, group) for method, option in known)
        if len({option for _, option in known}) > 1 and not by_method:
            named.add(group)
    return named


def _set_by_someone(
    configs: Sequence[Config],
    options: Sequence[Mapping[str, str]],
    values: Sequence[Mapping[str, str]],
) -> set[str]:
    """The values in which trained arms of any method differ, and that no file of a method or of an
    option in their names sets."""
    typed = {key for config in configs for key in _typed(config)}
    rewarded = [v for v in values if any(key.startswith("reward.") for key in v)]
    of_rewards = {k for k in _varying(rewarded, absent=True) if k.startswith("reward.")}
    within = set()
    for group in _OF_START:
        for option in {of_arm[group] for of_arm in options}:
            same = [v for o, v in zip(options, values, strict=True) if o[group] == option]
            within |= {key for key in _varying(same) if key.startswith(f"{group}.")}
    free = {k for k in _varying(values) if k == _STEPS or k.startswith(_OF_NO_METHOD)}
    others = {k for k in _varying(values) if not k.startswith(("model.", "data."))}
    return free | within | (typed & (others | of_rewards))


def _within(method: str, methods: Sequence[str], values: Sequence[Mapping[str, str]]) -> set[str]:
    """The values of the method in which its arms differ, whatever their options."""
    same = [v for other, v in zip(methods, values, strict=True) if other == method]
    return {key for key in _varying(same, absent=True) if key.startswith("method.")}


def _varying(values: Sequence[Mapping[str, str]], *, absent: bool = False) -> set[str]:
    """The keys with several values; `absent` counts as one that a key is not there."""
    every = {key for of_arm in values for key in of_arm}
    return {key for key in every if len({v.get(key) for v in values if absent or key in v}) > 1}


def _typed(config: Config) -> list[str]:
    """The keys that were set on the command line."""
    return [word.lstrip("+~").partition("=")[0] for word in config.typed]


@functools.cache
def _own_option(method: str, group: str) -> str:
    """The option of a group that `method=NAME` alone gives."""
    chosen = ""
    for file in (CONF / "config.yaml", CONF / "method" / f"{method}.yaml"):
        entries = (
            yaml.safe_load(file.read_text("utf-8")).get("defaults", []) if file.exists() else []
        )
        for entry in entries:
            for key, option in entry.items() if isinstance(entry, dict) else ():
                if key.removeprefix("override ").lstrip("/") == group:
                    chosen = option
    return chosen
