"""The options of each group, and a check of the command line against them.

Hydra silently leaves out a misspelt option of an optional group, and it knows no earlier names.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from medreason import console, moved
from medreason.config import key_names
from medreason.config.files import CONF
from medreason.config.rules import one_of
from medreason.config.upstream import UPSTREAM
from medreason.config.value_types import refuse_other_type
from medreason.samples import MODALITIES, TASKS

_MERGED = ("modality", "task")
"""Groups whose options can be combined: each option is a key of one mapping."""
_NESTED = ("model/steps",)
"""Groups in the folder of another group; other folders below a group hold options of it."""
_TABLES = (".csv", ".tsv", ".json", ".jsonl")
"""Ends of files that are not options, but what data=hub reads."""
_SWEEP = "hydra.sweeper.params."
_HYDRA = ("hydra.", "hydra/")
_OF_COMMAND = {
    "sweep": "one command has one name of a sweep, without a comma",
    "outputs": "one command writes to one folder of outputs",
    "action": "one command does one action",
    "tracking": "one command is tracked in one place",
    "report": "a report shows all jobs of a command",
    "statistics": "it changes no run, and all jobs of a command are shown by the same",
    "runs": "it says how the jobs of a command are run",
}
"""Keys, and groups with their keys, that are not swept: the start and the end of a sweep read one
value."""
_TEXT = (str, str | None)
_OR_TRUTH = ("hardware.gradient_checkpointing",)
"""Texts among whose words are true and false, which may be read as such."""
_PACKAGE = re.compile(r"# @package (\S+)")


class _Choice(NamedTuple):
    group: str
    package: str
    """Where the values go; empty for the group's own place."""
    option: object


def options(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Group -> its options, over all configuration folders; Hydra's own groups are left out."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            group, option = _split(file.relative_to(folder).with_suffix("").as_posix())
            if group != "hydra":
                groups.setdefault(group, set()).add(option)
    return {group: sorted(groups[group]) for group in sorted(groups)}


def check(overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse options without a file and keys of earlier versions, on the command line and in the
    files that its options choose.

    Raises:
        ValueError: with the known options, or the new name of the key.
    """
    known, read = options(folders), set()
    _refuse_unquoted(overrides, known)
    choices = list(_of_overrides(overrides, known))
    _check(choices, known, folders, read)
    refuse_two_cells(overrides)
    _refuse_path_of_another_model(overrides, read)
    _refuse_other_rewards(overrides, {str(c.option) for c in choices if c.group == "reward"}, read)


def _refuse_path_of_another_model(overrides: Iterable[str], read: Iterable[Path]) -> None:
    """Refuse the hub id of one of our models where none is chosen: steps and lengths would be those
    of the tiny model. `read` are all files that the command line chooses."""
    if any(file.parent.name == "model" for file in read):
        return
    typed = {p.key_or_group: _values(p) for _, p in _parsed(overrides) if not p.is_delete()}
    for path in typed.get("model.path", []):
        for file in sorted((CONF / "model").glob("*.yaml")):
            if "/" in str(path) and _content(file).get("path") == path:
                raise ValueError(
                    f"model.path={path} beside model={_default('model')}, whose steps and lengths "
                    f"fit no other; type model={file.stem} in its place"
                )


def _refuse_other_rewards(
    overrides: Iterable[str], chosen: Collection[str], read: Iterable[Path]
) -> None:
    """Refuse values of rewards that are not there, where Hydra's own error has no remedy.

    `chosen` are options of the command line, `read` all files that it chooses.
    """
    keys = {parsed.key_or_group: parsed.is_add() for _, parsed in _parsed(overrides)}
    keys = {key: is_added for key, is_added in keys.items() if key.startswith("reward.")}
    if not keys:
        return
    files = [f for f in read if f.parent.name == "reward" and (not chosen or f.stem in chosen)]
    files = files or [CONF / f"reward/{_default('reward')}.yaml"]
    names = {name for file in files for name in _content(file)} - {"defaults"}
    names |= {name for file in read for name in _content(file).get("reward") or {}}
    for key, is_added in keys.items():
        if (name := key.split(".")[1]) not in names:
            if is_added:  # OmegaConf takes no new one
                raise ValueError(
                    f"reward.{name}: a reward is added by a file: DIR/reward/{name}.yaml with "
                    f"`defaults: [med_r1]` and `{name}: {{score: {{_target_: module.function}}}}`, "
                    f"and type --config-dir DIR reward={name}"
                )
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean reward.{near[0]}?" if near else ""
            raise ValueError(
                f"reward.{name} is not in reward={', '.join(sorted(f.stem for f in files))}, which "
                f"has {', '.join(sorted(names))}{hint}"
            )


def _refuse_unquoted(overrides: Sequence[str], known: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for what Hydra's grammar does not read, such as a text with signs that it
    takes in quotes alone: `~`, `;`, parentheses and letters with accents."""
    parser = OverridesParser.create()
    for position, override in enumerate(overrides):
        key, equals, value = override.partition("=")
        try:
            parser.parse_override(override)
        except HydraException:
            _refuse_cut_at_comma(override)
            if not equals:
                _refuse_lone_word(overrides, position, known)
            quoted = f"{key}='{value}'"
            if not re.search(r"^[\[{]|['\"]", value) and next(_parsed([quoted]), None):
                home = ", with $HOME in place of ~" if value.startswith("~") else ""
                raise ValueError(
                    f'{override}: Hydra takes such signs in quotes alone; type "{quoted}"{home}'
                ) from None
            raise ValueError(f"{override}: Hydra does not read this; {_QUOTES}") from None


def _refuse_lone_word(
    overrides: Sequence[str], position: int, known: Mapping[str, Sequence[str]]
) -> NoReturn:
    """Refuse a word without `=`: an option without its group, or a part of a value that a shell
    has cut at its spaces."""
    word = overrides[position]
    groups = [group for group, names in known.items() if word in names]
    words = [f"{groups[0]}={word}"] if len(groups) == 1 else []
    words += ["--help"] * (word == "help")
    lone = f"the word {word!r} stands alone: type key=value or group=option"
    if words:
        raise ValueError(f"{lone}; did you mean {words[0]}?") from None
    of_value = list(takewhile(lambda other: "=" not in other, overrides[position:]))
    before = overrides[position - 1] if position else ""
    typed = " ".join([before if "=" in before else "key=first", *of_value])
    raise ValueError(
        f"{lone}, and put quotes around a value with a space ({shlex.quote(typed)})"
    ) from None


def _refuse_cut_at_comma(override: str) -> None:
    """Refuse the parts into which a shell cuts several values with a space between them."""
    typed = override.strip(",")
    if typed != override:
        around = f"{typed},..." if override.endswith(",") else f"...,{typed}"
        raise ValueError(f"{override}: no space before or behind a comma; type {around}")


_QUOTES = (
    "are brackets and quotes closed? A text with signs takes two pairs of quotes, a key in braces "
    """none: 'predict.question="Which? A)CT, B)MRI"', """
    """'data.ask={tumour type: {task: disease, question: "Which?"}}'"""
)


def for_hydra(override: str) -> str:
    """With `++` where the key goes on to TRL or PEFT, which have more keys than our files set."""
    groups = (f"{group}." for group in UPSTREAM)
    return f"++{override}" if override.startswith((*groups,)) and "=" in override else override


def as_typed(override: str) -> str:
    """Without the `++` of `for_hydra`."""
    bare = override.removeprefix("++")
    return bare if for_hydra(bare) == override else override


def started_command() -> str:
    """`console.started_command`, without the `++` of `for_hydra`."""
    return console.started_command(map(as_typed, sys.argv[1:]))


_SEVERAL_SWEEPS = re.compile(r"sweep=\[?([^\s,'\"()\[\]]+(?:,[^\s,'\"()\[\]]+)+)\]?")


def joined_sweeps(words: Sequence[str]) -> list[str]:
    """The words of a command line, with several sweeps of one report as one text: `sweep=a,b` and
    `sweep=[a,b]` as `sweep='a,b'`."""
    if "action=report" not in words:
        return [*words]
    found = [(word, _SEVERAL_SWEEPS.fullmatch(word)) for word in words]
    return [f"sweep='{match[1]}'" if match else word for word, match in found]


def refuse_sweep(overrides: Iterable[str]) -> None:
    """Refuse several values of one key where there is one run.

    Raises:
        ValueError: with what to type for each thing that may be meant.
    """
    for override, parsed in _parsed(overrides):
        if not parsed.is_sweep_override():
            continue
        key, _, values = override.partition("=")
        refuse_interval([override])
        meanings = [f"a sweep with a run for each is -m {shlex.quote(override)}"]
        if parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP:
            if key in _MERGED:
                meanings.append(f"one run trained on all of them is {key}=[{values}]")
            elif "." in key:
                meanings.append(f"one list is {key}=[{values}]")
                meanings.append(f"""one text is "{key}='{values}'\"""")
        raise ValueError(f"{override} has several values: {'; '.join(meanings)}")


def refuse_interval(overrides: Iterable[str]) -> None:
    """Refuse an interval, of which a search alone chooses values.

    Raises:
        ValueError: with what to type for a search.
    """
    for override, parsed in _parsed(overrides):
        if parsed.is_interval_sweep():
            typed = override.lstrip("+")
            raise ValueError(
                f"{typed} is for a search, which tries values between two: type -m "
                f"hydra/sweeper=search {shlex.quote(typed)}"
            )


def refuse_two_cells(overrides: Iterable[str]) -> None:
    """Refuse a modality or task beside a training set that chooses another.

    Raises:
        ValueError: with what to type for each thing that may be meant.
    """
    chosen = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    training_set = chosen.get("training_set")
    for group, names in (("modality", MODALITIES), ("task", TASKS)):
        typed = chosen.get(group, training_set)
        if training_set in names and typed != training_set:
            meant = f"say training_set={typed} alone" if typed in names else f"leave {group} out"
            raise ValueError(
                f"{group}={typed}: training_set={training_set} trains on {group}={training_set}, "
                f"and a model has one of them; {meant}"
            )


def _check(
    choices: Iterable[_Choice],
    known: dict[str, list[str]],
    folders: Sequence[Path],
    read: set[Path],
) -> None:
    for choice in choices:
        if choice.group not in known or "${" in str(choice.option):
            continue
        if isinstance(choice.option, list):
            _refuse_list(choice, choice.option)
            _check((choice._replace(option=o) for o in choice.option), known, folders, read)
            continue
        option = _known_option(choice, known[choice.group], has_own=len(folders) > 1)
        for file in (folder / choice.group / f"{option}.yaml" for folder in folders):
            if file in read or not file.is_file():
                continue
            read.add(file)
            try:
                _check(_of_file(file, choice, known), known, folders, read)
            except (ValueError, yaml.YAMLError) as error:
                raise ValueError(f"{file}: {error}") from error


def _refuse_list(choice: _Choice, options: Sequence[object]) -> None:
    """Refuse a list of options in a group where the second would replace values of the first."""
    if choice.group in _MERGED:
        return
    name, values = _name(choice), ",".join(map(str, options))
    remedy = f"a sweep with a run for each is -m {name}={values}"
    if choice.group == "experiment":
        remedy += "; a recipe can name another in its defaults list"
    raise ValueError(
        f"{name}=[{values}]: only {' and '.join(_MERGED)} take a list, since options of other "
        f"groups replace each other's values; {remedy}"
    )


def _known_option(choice: _Choice, known: Sequence[str], *, has_own: bool) -> str:
    name = _name(choice)
    if choice.option is None:
        raise ValueError(
            f"{name}=null chooses no option; leave {name}=... out, or choose one of: "
            f"{', '.join(known)}"
        )
    option = str(choice.option).removesuffix(".yaml")
    if name == "model" and "/" in option:
        raise ValueError(
            f"model={option}: a folder or hub id is model.path={option}, beside the model of its "
            f"family: model={'|'.join(known)}"
        )
    if name == "data" and Path(str(choice.option)).suffix in _TABLES:
        raise ValueError(
            f"data={choice.option}: a table of questions is data=hub data.hub={choice.option}; a "
            "table of labelled images is data=labelled_images data.root=FOLDER data.table=FILE"
        )
    one_of(name, option, known, "" if has_own else ", or --config-dir DIR for one of your own")
    return option


def _name(choice: _Choice) -> str:
    return f"{choice.group}@{choice.package}" if choice.package else choice.group


def _parsed(overrides: Iterable[str]) -> Iterator[tuple[str, Override]]:
    """Each override as typed and as Hydra reads it; without those that Hydra will refuse."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            yield override, parser.parse_override(override)
        except HydraException:
            continue


def _of_overrides(overrides: Iterable[str], known: Mapping[str, object]) -> Iterator[_Choice]:
    """The options that overrides choose; keys and texts among them are checked here."""
    for override, parsed in _parsed(overrides):
        key = parsed.key_or_group
        moved.refuse_old_key(key)
        if key not in known and not key.startswith(_HYDRA):
            key_names.refuse_unknown(key)
            _refuse_changed_text(override, parsed)
            if not parsed.is_delete() and key not in _MERGED:
                for value in _values(parsed):
                    refuse_other_type(key, value, override.partition("=")[2])
        _refuse_sweep_of_command(override, parsed)
        for option in () if parsed.is_delete() else _values(parsed):
            yield _Choice(key, parsed.package or "", option)


def _refuse_sweep_of_command(override: str, parsed: Override) -> None:
    """Refuse several values of what one command has one of, in a sweep too."""
    key = parsed.key_or_group
    reason = _OF_COMMAND.get(key.partition(".")[0])
    if reason and parsed.is_sweep_override():
        text = f"; give {key} one value"
        if parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP and key == "outputs":
            text += f""", or quote a comma: "{key}='{override.partition("=")[2]}'\""""
        raise ValueError(f"{override} has several values: {reason}{text}")


def _refuse_changed_text(override: str, parsed: Override) -> None:
    """Refuse a text that Hydra reads as a number, or as true or false, and so changes."""
    if parsed.is_delete() or key_names.type_of(parsed.key_or_group) not in _TEXT:
        return
    key, _, typed = override.partition("=")
    values, words = _values(parsed), [typed]
    if len(values) > 1 and len(typed.split(",")) == len(values):
        words = typed.split(",")
    for value, word in zip(values, words, strict=False):
        if _is_changed(parsed.key_or_group, value, word.strip()):
            raise ValueError(
                f"{key}={word} is read as the {type(value).__name__} {value}; for the text, type "
                f"both pairs of quotes: \"{key}='{word}'\""
            )


def _is_changed(key: str, value: object, word: str) -> bool:
    """Whether a text would be another one, since it is read as a number, true or false."""
    if isinstance(value, bool) and key in _OR_TRUTH:
        return False
    return isinstance(value, int | float) and str(value) != word


def _values(parsed: Override) -> list[object]:
    """What an override chooses: an option, a list of options, or the values of a sweep."""
    value = parsed.value()
    if isinstance(value, Glob):
        return []
    return [_text(v) for v in (value.list if isinstance(value, ChoiceSweep) else [value])]


def _text(value: object) -> object:
    if isinstance(value, list):
        return [_text(v) for v in value]
    return value.text if isinstance(value, QuotedString) else value


def _default(group: str) -> str:
    """The option of a group that no command line changes."""
    entries = _content(CONF / "config.yaml")["defaults"]
    return next(entry[group] for entry in entries if isinstance(entry, dict) and group in entry)


def _content(file: Path) -> dict[str, Any]:
    """Of a file of options; empty where it is no mapping."""
    content = OmegaConf.to_container(OmegaConf.load(file))  # numbers as Hydra reads them
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}


def _of_file(file: Path, choice: _Choice, known: Mapping[str, object]) -> Iterator[_Choice]:
    """What the defaults list and the sweep of a chosen file choose; its keys are checked here."""
    text, content = file.read_text(), _content(file)
    header = _PACKAGE.match(text)
    package = choice.package or (header[1] if header else choice.group)
    above = {"_global_": "", "_group_": choice.group}.get(package, package)
    for entry in content.pop("defaults", None) or []:
        yield from _of_defaults(entry, choice.group, above)
    values = dict(key_names.leaves(content, above))
    words = dict(key_names.leaves(yaml.load(text, yaml.BaseLoader), above)) if content else {}
    for key, value in values.items():
        moved.refuse_old_key(key)
        if key.startswith(_HYDRA):
            continue
        key_names.refuse_unknown(key)
        _refuse_option(key, value, known)
        refuse_other_type(key, value)
        if key_names.type_of(key) in _TEXT and _is_changed(key, value, str(words[key])):
            raise ValueError(
                f"{key}: {words[key]} is read as the {type(value).__name__} {value}; for the text, "
                f"put it in quotes: {key.rpartition('.')[2]}: '{words[key]}'"
            )
    swept = {key.removeprefix(_SWEEP): values[key] for key in values if key.startswith(_SWEEP)}
    yield from _of_overrides((f"{key}={value}" for key, value in swept.items()), known)


def _refuse_option(key: str, value: object, known: Mapping[str, object]) -> None:
    """Refuse an option of a group where a file of options has values."""
    if key in known and isinstance(value, str) and key_names.type_of(key) is not str:
        raise ValueError(
            f"{key}: {value} is an option; a file chooses it in its defaults list: "
            f"`- override /{key}: {value}`"
        )


def _of_defaults(entry: object, group: str, above: str) -> Iterator[_Choice]:
    """What an entry of a defaults list chooses; relative names start at the group of the file, and
    relative packages at its own, `above`."""
    for key, option in entry.items() if isinstance(entry, dict) else [(None, entry)]:
        *words, name = str(key or option).split()
        path, _, package = name.partition("@")
        package = f"{above}.{package}" if package[:1].isalpha() and above else package
        path = path[1:] if path.startswith("/") else f"{group}/{path}"
        moved.refuse_old_key(path)
        if "optional" in words or path.endswith("_self_"):
            continue
        if key is None:
            path, option = _split(path)
        yield _Choice(path, package, option)


def _split(path: str) -> tuple[str, str]:
    """Group and option of a path below a configuration folder."""
    group = next((g for g in _NESTED if path.startswith(f"{g}/")), path.partition("/")[0])
    return group, path.removeprefix(f"{group}/")
