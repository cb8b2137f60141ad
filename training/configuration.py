"""From `conf/` and the words of a command line to settings: frozen dataclasses, whole and checked.

A file in the root of `conf/` is an entry point, a folder is a group of options. Hydra composes them; the `_target_` of
every part names the dataclass that holds it. Nothing behind this module sees a DictConfig.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from hydra.utils import get_class, get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import conf
from serving.security import masked

FOLDER = Path(next(iter(conf.__path__))).absolute()
CYCLE = ("towers", "ranker", "policy", "retrieval", "index", "gates")
"""Groups that are fields of `CycleSettings`. In a root that has them all, the fields of `CycleSettings` stand side by
side with the rest: short on the command line, together in the code."""


class ConfigurationError(ValueError):
    """An unknown key, an unknown option, a value that a setting refuses."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What settings were made of: in the field `origin` of those that have one."""

    words: tuple[str, ...]
    """The overrides, without the ranges that a sweep searches."""
    config: Mapping[str, Any]
    """Every value as it was resolved."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Values without an order, as overrides spell them."""

    texts: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """What is refused if anything is: all of them."""
        return self.texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers between two, which are of it."""

    low: float
    high: float
    step: float | None
    """None: every number between."""
    log: bool

    @property
    def whole(self) -> bool:
        """Whether all are whole numbers."""
        return isinstance(self.low, int)

    @property
    def ends(self) -> tuple[float, float]:
        """What is refused if anything is."""
        return self.low, self.high


def roots() -> list[str]:
    """Names of the entry points that have a configuration."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def groups() -> dict[str, list[str]]:
    """The options of every group."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(FOLDER.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def settings(root: str, overrides: Sequence[str]) -> Any:
    """The settings of an entry point, as its root file's `_target_`.

    A part whose `_target_` is no dataclass (an adapter of a data set) becomes a `functools.partial` of it: to be
    called when the job runs, with what only the job knows.

    Raises:
        ConfigurationError: naming the key or value, and for an unknown one the nearest that exists.
    """
    config = _composed(root, overrides)
    return _instantiated(config, tuple(text for text in overrides if not _is_range(config, text)))


def as_yaml(root: str, overrides: Sequence[str]) -> str:
    """What `settings` would be made of, for a person to read; passwords in addresses are left out."""
    return masked(OmegaConf.to_yaml(OmegaConf.create(_plain(_composed(root, overrides)))))


def sweep(root: str, overrides: Sequence[str], job: Callable[[Any], Any]) -> dict[str, Any]:
    """Run a job for every combination of the overrides' values, with Hydra's sweeper and launcher.

    Each has a folder of its own as its `output`, unless that is given.

    Args:
        job: called with the settings of one combination; what it returns is what the sweeper sees.

    Returns:
        What the job returned, by the values that were swept over.
    """
    spelt = _checked(root, overrides)
    swept = [override.key_or_group for override in map(_parsed, spelt) if override.is_sweep_override()]
    if not any(text.startswith("output=") for text in spelt):
        spelt.append("output=${hydra:runtime.output_dir}")
    results: dict[str, Any] = {}

    def run(config: DictConfig) -> object:
        given = (text for text in HydraConfig.get().overrides.task if text.partition("=")[0].lstrip("+") in swept)
        results[" ".join(given)] = job(_instantiated(_whole(config), tuple(HydraConfig.get().overrides.task)))
        return results

    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors and exits by itself
    arguments = sys.argv
    sys.argv = [f"cascade-{root}", "--multirun", *spelt]
    try:
        hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=root)(run)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_one_line(error)) from error
    finally:
        sys.argv = arguments
    return results


def _composed(root: str, overrides: Sequence[str]) -> DictConfig:
    """Where a sweep is named, ranges among the overrides join its space, and a key that is given a value leaves it."""
    spelt = _checked(root, overrides)
    parsed = [_parsed(text) for text in spelt]
    if not any(each.key_or_group == "sweep" and isinstance(each.value(), str) for each in parsed):
        return _whole(_compose(root, spelt))
    ranges = {each.key_or_group: text for each, text in zip(parsed, spelt, strict=True) if each.is_sweep_override()}
    config = _compose(root, [text for text in spelt if text not in ranges.values()])
    given = {each.key_or_group for each in parsed}
    with open_dict(config):
        kept = {key: text for key, text in config.sweep.space.items() if key not in given}
        config.sweep.space = kept | {key: text.partition("=")[2] for key, text in ranges.items()}
    return _whole(config)


def _is_range(config: DictConfig, text: str) -> bool:
    return bool(config.get("sweep")) and _parsed(_quoted(text)).is_sweep_override()


def held(key: str, text: str) -> Choices | Range:
    """What a range holds.

    Args:
        text: in Hydra's words: `a,b`, `range(1, 9)`, `interval(0, 1)`, `tag(log, interval(0.001, 0.1))`,
            `int(interval(8, 64))`.

    Raises:
        ConfigurationError: where it is empty or no range.
    """
    override = _parsed(_quoted(f"{key}={text}"))
    match override.value():
        case ChoiceSweep():
            return Choices(tuple(override.sweep_string_iterator()))
        case RangeSweep() as given if given.step and (values := sorted(given.range())):
            if "log" in given.tags:
                raise ConfigurationError(f"{key}={text}: a range has steps and goes without log; interval() has none")
            return Range(low=values[0], high=values[-1], step=abs(given.step), log=False)
        case IntervalSweep(start=start, end=end, tags=tags) if start is not None and end is not None and start <= end:
            if "log" in tags and start <= 0:
                raise ConfigurationError(f"{key}={text}: with log, the low end must be above 0")
            return Range(low=start, high=end, step=None, log="log" in tags)
        case RangeSweep() | IntervalSweep():
            raise ConfigurationError(f"{key}={text}: the range is empty")
    raise ConfigurationError(f"{key}={text} is one value; a range is a,b or range(1, 9) or interval(0, 1)")


def _whole(config: DictConfig) -> DictConfig:
    missing = [key for key, value in _values(_raw(config)) if value == "???"]
    if missing:
        raise ConfigurationError(f"{missing[0]} must be given: {missing[0]}=...")
    return config


def _compose(root: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(FOLDER)):
            return compose(root, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_one_line(error)) from error


def _instantiated(config: DictConfig, words: tuple[str, ...]) -> Any:
    plain = _plain(config)
    origin = Origin(words, dict(plain))
    if all(group in plain for group in CYCLE):
        cycle = get_class("training.cycle.CycleSettings")
        gathered = {each.name: plain.pop(each.name) for each in fields(cycle) if each.name in plain}
        plain["cycle"] = _made({"_target_": "training.cycle.CycleSettings", **gathered}, "")
    made = _made(plain, "")
    declared = is_dataclass(made) and any(each.name == "origin" for each in fields(made))
    return replace(made, origin=origin) if declared else made


def _plain(config: DictConfig) -> dict[str, Any]:
    """Resolved, without what Hydra says of itself, which may be referred to, as in `${hydra.runtime.choices.data}`."""
    plain: dict[str, Any] = {}
    try:
        for name in config:
            if name != "hydra":
                value = config[name]
                plain[str(name)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigurationError(_one_line(error)) from error
    return plain


def _made(node: object, path: str) -> Any:
    """A tree of plain values with its dataclasses made, innermost first."""
    if not isinstance(node, dict):
        return node
    made = {name: _made(value, f"{path}.{name}".lstrip(".")) for name, value in node.items() if name[0] != "_"}
    if "_target_" not in node:
        return made
    target = get_object(node["_target_"])
    whole = is_dataclass(target)
    arguments = signature(target).parameters.values()
    types = {each.name: each.type for each in fields(target)} if whole else {a.name: a.annotation for a in arguments}
    for name, value in made.items():
        key = f"{path}.{name}".lstrip(".")
        if name not in types:
            raise ConfigurationError(_unknown(key, name, list(types)))
        made[name] = _typed(key, value, str(getattr(types[name], "__name__", types[name])))
    if not whole:
        return partial(target, **made)
    try:
        return target(**made)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}".removeprefix(": ")) from error


def _typed(key: str, value: object, declared: str) -> object:
    """The value as a field of this type holds it; YAML knows no path and no tuple, and takes 1 for a number."""
    if value is None and declared.endswith("None"):
        return None
    match declared.removesuffix(" | None").removeprefix("pathlib."):
        case "Path" | "Path | str" if isinstance(value, str):
            return Path(value).expanduser()
        case "float" if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        case "int" | "float" | "bool" | "str" as plain if type(value).__name__ != plain:
            needed = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}[plain]
            raise ConfigurationError(f"{key} is {value!r}; {needed} is needed")
        case other if other.startswith("tuple") and isinstance(value, list):
            return tuple(value)
    return value


def _checked(root: str, overrides: Sequence[str]) -> list[str]:
    """The overrides in Hydra's spelling.

    Refused is what Hydra would refuse less helpfully: a key, a group or an option that does not exist. Added to are
    mappings of free names, such as the weights by action, without Hydra's `+`.
    """
    if not overrides:
        return []
    choices = groups()
    config = _compose(root, [])
    at_root = {str(name).partition("@")[0]: str(name) for name in config.hydra.runtime.choices}
    spread = [f"{group}." for group, at in at_root.items() if at.endswith("@_global_")]
    spelt = [_quoted(text) for text in overrides]
    chosen = []
    for at, given in enumerate(spelt):
        # A group whose keys stand at the root may be named before them: server.port is port.
        text = spelt[at] = next((given.removeprefix(group) for group in spread if given.startswith(group)), given)
        override = _parsed(text)
        group = override.key_or_group
        if group in choices:
            if group not in at_root:
                used = [name for name in choices if name in at_root]
                raise ConfigurationError(f"{text!r}: {root} has no {group}; it has {', '.join(used) or 'no groups'}")
            spelt[at] = text.replace(group, at_root[group], 1)
            option = override.value()
            if isinstance(option, str) and option not in choices[group]:
                raise ConfigurationError(f"{_unknown(text, option, choices[group])} of {', '.join(choices[group])}")
            chosen.append(f"{at_root[group]}={choices[group][0]}" if override.is_sweep_override() else spelt[at])
    parsed = [_parsed(text) for text in spelt]
    config = _compose(root, chosen) if chosen else config
    known = {key for key, _ in _values(_raw(config))}
    for at, override in enumerate(parsed):
        key = override.key_or_group
        if key.partition("@")[0] in choices or key.startswith("hydra") or key in known:
            continue
        if not _is_free(config, key):
            raise ConfigurationError(_unknown(overrides[at], key, [*sorted(known), *choices]))
        if not override.is_add() and not override.is_force_add() and not override.is_delete():
            spelt[at] = f"++{spelt[at]}"
    return spelt


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigurationError(f"{text!r} is not key=value") from error


def _quoted(text: str) -> str:
    """The override as Hydra's grammar wants it: a value that it cannot read as it is, such as a path, is quoted."""
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        key, equals, value = text.partition("=")
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}{equals}'{escaped}'" if equals else text
    return text


def _is_free(config: DictConfig, key: str) -> bool:
    """Whether a key is below a mapping of free names, or below one that is null."""
    while "." in key:
        key = key.rpartition(".")[0]
        parent = OmegaConf.select(config, key, default="absent")
        if parent != "absent":
            return parent is None or (isinstance(parent, DictConfig) and "_target_" not in parent)
    return False


def _unknown(text: str, name: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(name, known, 1, 0.0)
    return f"{text!r}: there is no {name!r}; the nearest is {nearest[0]!r}" if nearest else f"{text!r}: no {name!r}"


def _raw(config: DictConfig) -> object:
    """As written, interpolations and all, without what Hydra says of itself."""
    own = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
    return OmegaConf.to_container(own, resolve=False)


def _values(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key by its dotted path, inner nodes too."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name[0] != "_":
                yield f"{prefix}{name}", value
                yield from _values(value, f"{prefix}{name}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
