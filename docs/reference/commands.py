"""The page of the command line: what `--help` says, of every command at once."""

from argparse import Action, ArgumentParser, _HelpAction, _SubParsersAction, _VersionAction
from collections.abc import Iterator

from docs.reference.markdown import code, prose, table
from training import cli

HEAD = """\
# Command-line reference

Made from the commands' own help by `make reference`; `cascade COMMAND --help` says the same. Words of the form
`key=value` are settings, listed in the [configuration reference](configuration.md).

Exit codes: 0; 2 for misuse and for what is refused (one line on standard error); 3 for an estimate that the log cannot
carry, skew over its budget, a red gate of a night and alarms; 4 where it is time to train again; 1 for a defect; 130
for Ctrl-C.
"""


def page() -> str:
    """The whole page."""
    parser = cli._parser()
    listed = _listed(parser)
    rows = [(f"[{code(f'cascade {name}')}](#cascade-{name})", prose(text)) for name, text in listed.items()]
    told = [text for name, each in _children(parser).items() for text in _command(f"cascade {name}", each, "##")]
    options = _arguments(parser)
    return "\n\n".join([HEAD.rstrip(), table(("command", "what it does"), rows), *options, *told]) + "\n"


def _listed(parser: ArgumentParser) -> dict[str, str]:
    """Subcommands with their summaries."""
    return {
        choice.dest: choice.help or ""
        for action in parser._actions
        if isinstance(action, _SubParsersAction)
        for choice in action._choices_actions
    }


def _children(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    return {
        name: child
        for action in parser._actions
        if isinstance(action, _SubParsersAction)
        for name, child in action.choices.items()
    }


def _command(name: str, parser: ArgumentParser, level: str, summary: str = "") -> Iterator[str]:
    yield f"{level} {name}"
    if text := prose(parser.description or _sentence(summary)):
        yield text
    yield from _arguments(parser)
    examples = (parser.epilog or "").partition("examples:\n")[2]
    if examples:
        yield "\n".join(("```sh", *(line.removeprefix("  ") for line in examples.splitlines()), "```"))
    listed = _listed(parser)
    for child, each in _children(parser).items():
        yield from _command(f"{name} {child}", each, "###", listed.get(child, ""))


def _arguments(parser: ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    rows = [
        (_usage(action), prose(formatter._expand_help(action)) if action.help else _choices(action))
        for action in parser._actions
        if not isinstance(action, _HelpAction | _VersionAction | _SubParsersAction)
    ]
    if rows:
        yield table(("argument", "meaning"), rows)


def _usage(action: Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else (action.dest.upper() if action.nargs != 0 else "")
    if action.option_strings:
        return code(f"{', '.join(action.option_strings)} {metavar}".strip())
    return code(f"{action.metavar or action.dest}{' ...' if action.nargs in ('*', '+') else ''}")


def _choices(action: Action) -> str:
    return f"one of {', '.join(code(str(each)) for each in action.choices)}" if action.choices else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
