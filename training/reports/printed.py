"""Tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from index.generations import GenerationStore
from training.reports.findings import flat, utc


def tabulated(result: Mapping[str, Any]) -> Table:
    """Names and values; where every value is a mapping with the same keys, those keys are columns."""
    keys = {tuple(each) if isinstance(each, Mapping) else None for each in result.values()}
    columns = next(iter(keys)) if len(keys) == 1 else None
    table = Table(box=None, pad_edge=False, show_header=columns is not None, header_style="dim")
    table.add_column()
    if columns is not None:
        for name in columns:
            table.add_column(name, justify="right", overflow="fold")
        for name, row in result.items():
            table.add_row(name, *[_shown(row[column]) for column in columns])
        return table
    table.add_column(overflow="fold")
    for name, value in flat(result).items():
        table.add_row(name, _shown(value))
    return table


def listed(store: GenerationStore) -> Table:
    """The generations of a store, newest first."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("generation", "", "made", "trained until", "from", "MB"):
        table.add_column(name, justify="right" if name == "MB" else "left")
    current, before = store.current(), store.before()
    for generation in reversed(store.ids()):
        manifest = store.manifest(generation)
        table.add_row(
            generation,
            {current: "current", before: "before"}.get(generation, ""),
            utc(manifest.created_ms),
            utc(manifest.data_window[1]),
            manifest.parent or "",
            f"{manifest.bytes / 1e6:.1f}",
        )
    return table


def audited(store: GenerationStore) -> Table:
    """What was put in force, newest first."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("when", "from", "to", "why", "who"):
        table.add_column(name)
    for each in reversed(store.history()):
        table.add_row(utc(each.time_ms), each.previous or "", each.id, each.reason, each.by)
    return table


def differences(difference: Mapping[str, Mapping[str, tuple[Any, Any]]], old: str, new: str) -> Table:
    """What differs between two manifests, part by part."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", old, new):
        table.add_column(name, overflow="fold")
    for part, differing in difference.items():
        for name, (first, second) in differing.items():
            short = [str(each)[:12] if part == "files" and each else _shown(each) for each in (first, second)]
            table.add_row(f"{part} {name}", *short)
    return table


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(each) for each in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value < 10**9 else str(value)
