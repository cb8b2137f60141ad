"""What `cascade call` changes of a server's catalogue: from words and files to calls that the server takes."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from serving.client import CascadeClient, CatalogAnswer, ItemChange, ItemEntry, UserEntry

_PART = 1000
"""Entries of one change of the catalogue."""
_Entry = TypeVar("_Entry")


def changed(given: Namespace, client: CascadeClient) -> list[CatalogAnswer]:
    """What the server says of every entry of a change of its catalogue, which is sent in parts that it takes."""
    if given.method == "delete":
        return _in_parts(client.delete_items, given.items)
    if given.method in ("hide", "show"):
        return _in_parts(
            client.patch_items, [ItemChange(item, available=given.method == "show") for item in given.items]
        )
    try:
        if given.method == "users":
            return _in_parts(client.upsert_users, _entries_of(given.file, UserEntry))
        return _in_parts(client.upsert_items, _entries_of(given.file, ItemEntry))
    except TypeError as error:  # a number where a text belongs
        raise ValueError(f"{given.file}: {error}") from None


def _in_parts(
    send: Callable[[Sequence[_Entry]], list[CatalogAnswer]], entries: Sequence[_Entry]
) -> list[CatalogAnswer]:
    return [answer for first in range(0, len(entries), _PART) for answer in send(entries[first : first + _PART])]


def _entries_of(file: str, entry: type[_Entry]) -> list[_Entry]:
    """
    Raises:
        ValueError: naming what is wrong with which of them.
    """
    where, read = _place(file), json_of(file)
    listed = read if isinstance(read, list) else [read]
    made = []
    kind = entry.__name__.removesuffix("Entry").lower()
    for number, each in enumerate(listed, start=1):
        try:
            made.append(entry(**each))
        except TypeError as error:
            raise ValueError(
                f"{where}, {kind} {number}: {error}".replace(f"{entry.__name__}.__init__() ", "")
            ) from None
    if not made:
        raise ValueError(f"{where} holds no {kind}s")
    return made


def json_of(file: str) -> Any:
    """
    Raises:
        ValueError: where it is not JSON.
    """
    try:
        return json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{_place(file)} is not JSON: {error}") from None


def _place(file: str) -> str:
    return "the standard input" if file == "-" else file
