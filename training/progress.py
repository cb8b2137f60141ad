"""Bars for work that takes a while."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn


def progress(*columns: ProgressColumn, transient: bool = False) -> Progress:
    """Bars on standard error, shown on a terminal and nowhere else; without columns the usual ones."""
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=transient)


def counted() -> Progress:
    """Bars of steps that are counted, with how long each has taken."""
    return progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
