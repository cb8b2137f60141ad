"""The page of the configuration: conf/**/*.yaml, whose comments are the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from docs.reference.markdown import code, prose, table
from training import cli

CONF = Path(__file__).parents[2] / "conf"
HEAD = """\
# Configuration reference

Made from the comments of `conf/` by `make reference`.

Every command with a configuration takes `key=value` words in place of defaults: `cascade serve port=50061
service.running=4`. A group is chosen by its name (`policy=greedy`), and its settings are reached through it
(`policy.temperature=0.2`). `--show` prints every setting as it would be and does nothing. An unknown key is refused,
and the nearest one that exists is named. Lists are written as in YAML, in quotes
(`'data.spans.window_hours=[24, 168]'`);
a name that a map of free names does not hold yet is added to it (`policy.weights.buy=5`).

A default of `???` has to be given; `null` switches off or leaves the choice to what is said beside it.
"""
ROOTS = """\
## Commands

What each command takes beside its groups. Groups are named with the option that is taken by default.
"""
GROUPS = """\
## Groups

A group holds the settings of one part, and its options are named sets of them. What an option does not say it takes
from `default`.
"""
COMMANDS = {name: f"report {name}" for name in cli.REPORTS}


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of a file as it is written there."""

    key: str
    """Whole, with dots."""
    default: str
    """As in the file; empty where the key only holds others."""
    text: str


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What a file of conf/ says."""

    text: str
    """What it is for: the comment that it begins with."""
    defaults: tuple[tuple[str, str], ...]
    """Groups and their options; a name alone is another option of the same group."""
    settings: tuple[Setting, ...]


def page() -> str:
    """The whole page."""
    parts = [HEAD, ROOTS]
    for path in sorted(CONF.glob("*.yaml")):
        parts += _root(path)
    parts.append(GROUPS)
    for folder in sorted({path.parent for path in CONF.glob("*/*.yaml")}):
        parts += _group(folder)
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def read(path: Path) -> SettingsFile:
    """
    Raises:
        ValueError: where the file is no mapping.
    """
    source = path.read_text()
    lines = source.splitlines()
    tree = yaml.compose(source)
    if not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{path} holds no settings")
    first = tree.value[0][0]
    head = [line for line in _above(lines, first.start_mark.line) if not line.startswith("@package")]
    defaults: list[tuple[str, str]] = []
    for each in yaml.safe_load(source).get("defaults", ()):
        if isinstance(each, dict):
            defaults += [(str(group), str(option or "null")) for group, option in each.items()]
        elif each != "_self_":
            defaults.append((str(each), ""))
    at_root = path.parent in (CONF, CONF / "server") or "@package _global_" in source
    settings = tuple(_settings(tree, lines, "" if at_root else f"{path.parent.name}."))
    return SettingsFile(" ".join(head), tuple(defaults), settings)


def _above(lines: Sequence[str], line: int) -> list[str]:
    """The comment right above a line, without its signs."""
    found: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].strip().lstrip("#").strip())
    return found


def _settings(node: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[Setting]:
    for key, value in node.value:
        if key.value == "defaults" or key.value.startswith("_") or key.value == "hydra":
            continue
        first = key is node.value[0][0] and key.start_mark.column == 0  # what stands above is about the file
        text = "" if first else " ".join(_above(lines, key.start_mark.line))
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if text:
                yield Setting(f"{name}.", "", text)
            yield from _settings(value, lines, f"{name}.")
        else:
            yield Setting(name, _written(value, lines), text)


def _written(node: yaml.Node, lines: Sequence[str]) -> str:
    """A value as the file has it."""
    start, end = node.start_mark, node.end_mark
    return lines[start.line][start.column : end.column if end.line == start.line else None].strip()


def _table(settings: Sequence[Setting]) -> str:
    rows = [(code(each.key), code(each.default), prose(each.text)) for each in settings]
    return table(("setting", "default", "meaning"), rows)


def _root(path: Path) -> Iterator[str]:
    found = read(path)
    yield f"### cascade {COMMANDS.get(path.stem, path.stem)}"
    yield _sentence(found.text.partition(": ")[2] or found.text)
    groups = [
        f"[{group.partition('@')[0]}](#{group.partition('@')[0]})={option}"
        for group, option in found.defaults
        if not group.startswith("override")
    ]
    if groups:
        yield f"Groups: {', '.join(groups)}."
    if found.settings:
        yield _table(found.settings)


def _group(folder: Path) -> Iterator[str]:
    yield f"### {folder.name}"
    paths = sorted(folder.glob("*.yaml"), key=lambda path: (path.stem not in ("default", "local"), path.stem))
    for path in paths:
        found = read(path)
        begins = "".join(f" Begins with `{base}`." for base, option in found.defaults if not option)
        others = ", ".join(
            code(f"{group.removeprefix('override /')}={option}") for group, option in found.defaults if option
        )
        yield f"**`{folder.name}={path.stem}`**: {_sentence(found.text)}{begins}{f' Takes {others}.' if others else ''}"
        if found.settings:
            yield _table(found.settings)


def _sentence(text: str) -> str:
    return prose(text[:1].upper() + text[1:])
