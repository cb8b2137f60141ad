"""What a typed query matches, exactly and whole: to be counted, broken down and put in order.

A match is an item that may be shown, satisfies the filter and holds every word of the query that any item holds, in
whatever field; where none holds all of them, any of them. The sources of a search name a few of the best matches, and
items that match by meaning alone.

Shape letters: M matches, B bounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.row_sets import among
from candidate_gen.types import HydratedQuery, Order
from index.masks import Mask

PUBLISHED = ("published", "published_ms")
POPULARITY = "popularity"
_SPARE = 64
"""Listed beyond a page, so that what is taken out later leaves no gap."""


class WordMatches(Protocol):
    """What `index.lexical.LexicalIndex` does here."""

    def matches(self, text: str, *, every: bool) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class Matching:
    """The matches among the items of one snapshot."""

    items: Items
    words: WordMatches

    def rows(self, text: str, allowed: Mask | None, *, time_ms: int) -> NDArray[np.int64]:
        """Ascending.

        Args:
            allowed: rows that may be returned.
            time_ms: what was published later is left out.
        """
        row_M = np.empty(0, np.int64)
        for every in (True, False):
            row_M = self.words.matches(text, every=every)
            if allowed is not None:
                row_M = row_M[allowed.allowed_I[row_M]]
            row_M = row_M[self.items.published_ms_I[row_M] <= time_ms]
            if len(row_M):
                break
        return row_M

    def listed(self, hydrated: HydratedQuery) -> NDArray[np.int64]:
        """The first of the matches in the order that the query asks for, somewhat more than a page; without what it
        excludes and what earlier pages showed.

        Raises:
            ValueError: an attribute that is no number.
        """
        query = hydrated.query
        assert query.order is not None
        row_M = self.rows(query.text, hydrated.allowed, time_ms=query.time_ms)
        left_out_X = np.concatenate([query.exclude_row_X, query.before_row_X])
        row_M = in_order(self.items, row_M[~among(row_M, left_out_X)], query.order)
        return row_M[: query.size + _SPARE]


def order_of(text: str) -> Order:
    """
    Raises:
        ValueError: where the text is no attribute with, if anything, asc or desc after it.
    """
    name, *direction = text.split()
    if direction and [each.lower() for each in direction] not in (["asc"], ["desc"]):
        raise ValueError("an attribute and asc or desc, such as 'price asc'")
    return Order(name, bool(direction) and direction[0].lower() == "desc")


def in_order(items: Items, row_M: NDArray[np.int64], order: Order) -> NDArray[np.int64]:
    """Rows by an attribute, those without it last; equal ones by row.

    Raises:
        ValueError: an attribute that is no number.
    """
    value_M = numbers_of(items, order.attribute, row_M)
    return row_M[np.lexsort((row_M, -value_M if order.descending else value_M, np.isnan(value_M)))]


def numbers_of(items: Items, name: str, row_M: NDArray[np.int64]) -> NDArray[np.float64]:
    """An attribute of some rows; NaN where it is missing.

    Raises:
        ValueError: naming the attributes that are numbers, where this is none.
    """
    if name in PUBLISHED:
        return np.asarray(items.published_ms_I[row_M], np.float64)
    if name == POPULARITY:
        return np.asarray(items.popularity_I[row_M], np.float64)
    column = items.attributes.get(name)
    if column is None or column.dtype.kind != "f":
        numbers = [each for each, column in items.attributes.items() if column.dtype.kind == "f"]
        raise ValueError(f"one of {', '.join([*sorted(numbers), PUBLISHED[0], POPULARITY])}")
    return np.asarray(column[row_M], np.float64)


def value_counts(items: Items, name: str, row_M: NDArray[np.int64], *, limit: int) -> list[tuple[str, int]]:
    """The most frequent values of an attribute among some rows, each with how many rows have it; equal ones by value.
    Missing values do not count.

    Raises:
        ValueError: there is no such attribute; the names of those there are.
    """
    column = items.attributes.get(name)
    if column is None or column.dtype.kind == "f":
        try:
            value_M = numbers_of(items, name, row_M)
        except ValueError:
            raise ValueError(f"one of {', '.join([*sorted(items.attributes), PUBLISHED[0], POPULARITY])}") from None
        return _most_frequent(value_M[~np.isnan(value_M)], limit, _written)
    if len(items) and not len(items.texts):
        raise ValueError(f"a number, for this generation does not know the texts of {name!r}; build the next one")
    key_M: NDArray[Any] = np.asarray(column[row_M])
    return _most_frequent(key_M[key_M != 0], limit, items.texts_of)


def range_counts(
    items: Items, name: str, row_M: NDArray[np.int64], *, bounds: Sequence[float]
) -> list[tuple[str, int]]:
    """How many rows have a value below the first bound, between two, and from the last on: ranges in this order, each
    without its end. Missing values do not count.

    Raises:
        ValueError: an attribute that is no number.
    """
    value_M = numbers_of(items, name, row_M)
    part_M = np.searchsorted(np.array(bounds), value_M[~np.isnan(value_M)], side="right")
    count_B1 = np.bincount(part_M, minlength=len(bounds) + 1).tolist()
    ends = ["", *_written(np.array(bounds)), ""]
    return [(f"{low}..{high}", count) for (low, high), count in zip(pairwise(ends), count_B1, strict=True)]


def _written(number_V: NDArray[np.float64]) -> list[str]:
    return [f"{number:.15g}" for number in number_V]


def _most_frequent(
    value_M: NDArray[Any], limit: int, texts_of: Callable[[NDArray[Any]], list[str]]
) -> list[tuple[str, int]]:
    value_V, count_V = np.unique(value_M, return_counts=True)
    least = np.sort(count_V)[::-1][: max(limit, 1)][-1] if len(count_V) else 0
    kept_V = count_V >= least  # ties at the end are settled by what the values are called
    told = list(zip(texts_of(value_V[kept_V]), count_V[kept_V].tolist(), strict=True))
    if value_V.dtype.kind == "u":
        told.sort()
    return sorted(told, key=lambda each: -each[1])[:limit]
