"""Conditions on item attributes, as a request's `filter` states them:

    category = "News" AND price < 20 AND NOT creator IN ("a", "b") AND published_ms >= "2026-11-01"

    condition   comparisons joined by NOT, AND, OR (which bind in this order) and parentheses
    comparison  attribute = != < <= > >= value, or attribute IN (value, ...)
    attribute   every one of `Items.attributes`, `published_ms`, `available`
    value       "text" (with \\" and \\\\), a number, true or false; for published_ms a number of milliseconds or an ISO
                8601 date or time, UTC where it names no zone

Keywords may be written in either case, attributes and texts are compared exactly, and texts have no order. An attribute
that an item lacks satisfies no comparison, != included; NOT is the complement, so that `NOT price < 20` holds for items
without a price and `price >= 20` does not.

Shape letters: I items (rows), R rows judged before, S rows of a span, V values.
"""

import operator
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache, reduce
from threading import Lock
from typing import Any, TypeAlias, TypeVar

import numpy as np
from lark import Lark, Token, Tree, UnexpectedInput
from numpy.typing import NDArray

from candidate_gen.items import Items
from index.columns import Column, GrownColumn
from index.masks import Mask
from index.strings import keys64

MAX_CHARACTERS = 1024
MAX_COMPARISONS = 32
MAX_DEPTH = 16
"""Levels of NOT, AND and OR."""
_CACHED_BYTES = 1 << 26
"""Of masks that are kept, without the forms that searches make of them."""
_MOST_CACHED = 256
_FEW = 16
"""Values that are faster compared one by one than looked up."""
_GRAMMAR = r"""
    ?start: every | every (_OR every)+ -> some
    ?every: single | single (_AND single)+
    ?single: comparison | "(" start ")" | _NOT single -> complement
    comparison: NAME OPERATOR value | NAME IN "(" value ("," value)* ")"
    ?value: TEXT | NUMBER | TRUE | FALSE
    _OR.1: /OR\b/i
    _AND.1: /AND\b/i
    _NOT.1: /NOT\b/i
    IN.1: /IN\b/i
    TRUE.1: /TRUE\b/i
    FALSE.1: /FALSE\b/i
    NAME: /[^\W\d]\w*/
    OPERATOR: /[<>]=?|!?=/
    TEXT: /"([^"\\]|\\["\\])*"/
    NUMBER: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(E[+-]?[0-9]+)?/i
    %ignore /\s+/
"""
_SPOKEN = {
    "NAME": "an attribute",
    "OPERATOR": "= != < <= > >=",
    "TEXT": 'a "text"',
    "NUMBER": "a number",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": ",",
    "TRUE": "true",
    "FALSE": "false",
    "$END": "the end",
}
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Value: TypeAlias = str | float | bool


class FilterError(ValueError):
    """A filter that cannot be read or judged: one line that says where, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    attribute: str
    operator: str
    """One of = != < <= > >= IN."""
    values: tuple[Value, ...]
    """Only one, but for IN."""
    at: int
    """Character it begins at, from 1."""


@dataclass(frozen=True, slots=True)
class Not:
    condition: "Condition"


@dataclass(frozen=True, slots=True)
class Every:
    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Some:
    conditions: tuple["Condition", ...]


Condition: TypeAlias = Comparison | Not | Every | Some


@dataclass(frozen=True, slots=True)
class Predicate:
    """A filter as it was read. Whether items have what it names, `Attributes` knows."""

    text: str
    condition: Condition


@lru_cache(maxsize=_MOST_CACHED)
def parse(text: str) -> Predicate:
    """Read a filter.

    Raises:
        FilterError: it is longer, deeper or of more comparisons than is allowed, or does not follow the grammar above.
    """
    if len(text) > MAX_CHARACTERS:
        raise FilterError(f"the filter has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    try:
        text.encode()
        tree = _reader().parse(text)
    except UnicodeEncodeError as error:
        raise FilterError(f"at character {error.start + 1}: half of a surrogate pair is no character") from None
    except UnexpectedInput as error:
        raise FilterError(_unexpected(text, error)) from None
    comparisons = sum(1 for _ in tree.find_data("comparison"))
    if comparisons > MAX_COMPARISONS:
        raise FilterError(f"the filter has {comparisons} comparisons; at most {MAX_COMPARISONS} are allowed")
    return Predicate(text, _condition(tree, 0))


@cache
def _reader() -> Lark:
    return Lark(_GRAMMAR, parser="lalr")


def _condition(tree: Tree[Any], depth: int) -> Condition:
    if tree.data == "comparison":
        name, compared, *values = list[Any](tree.children)
        return Comparison(str(name), compared.upper(), tuple(map(_value, values)), name.start_pos + 1)
    if depth == MAX_DEPTH:
        raise FilterError(f"the filter is more than {MAX_DEPTH} levels deep")
    inner = tuple(_condition(each, depth + 1) for each in tree.children)
    if tree.data == "complement":
        return Not(*inner)
    return Every(inner) if tree.data == "every" else Some(inner)


def _value(token: Token) -> Value:
    if token.type == "TEXT":
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    return float(token) if token.type == "NUMBER" else token.type == "TRUE"


def _unexpected(text: str, error: UnexpectedInput) -> str:
    at, token = error.pos_in_stream or 0, getattr(error, "token", None)
    if token is not None and token.type == "$END":
        at, found = len(text), "the end"
    else:
        found = _shown(text[at] if token is None else str(token))
    allowed = error.interactive_parser.accepts() or {"$END"}  # type: ignore[no-untyped-call]
    return f"at character {at + 1}: found {found}, expected {' or '.join(sorted(map(_spoken, allowed)))}"


def _spoken(terminal: str) -> str:
    return _SPOKEN.get(terminal, terminal.strip("_"))


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")


class Attributes:
    """What the items of one snapshot have, to tell which of them satisfy a predicate. Any threads may ask.

    What was asked lately is kept: up to 64 MiB of masks, at least 4 and at most 256 of them.
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self._kept: OrderedDict[str, tuple[NDArray[np.bool_], Mask | None]] = OrderedDict()
        """By text: which rows satisfy it, whether available or not, of the first so many; and the mask of all."""
        self._most = min(_MOST_CACHED, max(4, _CACHED_BYTES // (2 * max(len(items), 1))))
        self._lock = Lock()

    def on(self, items: Items) -> "Attributes":
        """Of the items that these have become. Rows do not change: only new ones are judged, once they are asked."""
        grown = Attributes(items)
        with self._lock:
            grown._kept.update((text, (satisfied_R, None)) for text, (satisfied_R, _) in self._kept.items())
        return grown

    def mask(self, predicate: Predicate) -> Mask:
        """Available items that satisfy it; the same object while it is kept, so that its forms are made once.

        Raises:
            FilterError: it names no attribute there is, or compares one with what it cannot be.
        """
        with self._lock:
            satisfied_R, mask = self._kept.get(predicate.text, (np.empty(0, np.bool_), None))
            if mask is not None:
                self._kept.move_to_end(predicate.text)
                return mask
        satisfied_I = self._satisfied(predicate.condition, satisfied_R)
        mask = Mask(satisfied_I if self._items.allowed is None else satisfied_I & self._items.available_I)
        with self._lock:
            self._kept[predicate.text] = satisfied_I, mask
            self._kept.move_to_end(predicate.text)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return mask

    def allowed(self, text: str) -> Mask | None:
        """`mask` of a filter as it was written; without one, of what is available: None where that is everything.

        Raises:
            FilterError: as `parse` and `mask`.
        """
        return self.mask(parse(text)) if text else self._items.allowed

    def _satisfied(self, condition: Condition, satisfied_R: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """All rows, of which the first were judged before. No span lies across the end of what a column began with."""
        start, end, column = len(satisfied_R), len(self._items), self._items.published_ms_I
        split = max(start, len(column.base)) if isinstance(column, GrownColumn) else end
        spans = slice(start, split), slice(split, end)
        return np.concatenate([satisfied_R, *(self._judged(condition, span) for span in spans)])

    def _judged(self, condition: Condition, span: slice) -> NDArray[np.bool_]:
        match condition:
            case Not(inner):
                return ~self._judged(inner, span)
            case Every(conditions):
                return reduce(operator.and_, (self._judged(each, span) for each in conditions))
            case Some(conditions):
                return reduce(operator.or_, (self._judged(each, span) for each in conditions))
            case Comparison("available"):
                # Rows that are not available are left out of every mask, so that the others alone need judging.
                truths = _operands(condition, _truth, by="= != IN", with_what="true or false")
                return np.full(span.stop - span.start, (True in truths) == (condition.operator != "!="))
            case Comparison("published_ms"):
                times = _operands(condition, _time_ms, with_what="milliseconds or an ISO 8601 date or time")
                return _compared(condition.operator, _part(self._items.published_ms_I, span), np.unique(times))
            case Comparison(name):
                return self._attribute_compared(name, condition, span)

    def _attribute_compared(self, name: str, comparison: Comparison, span: slice) -> NDArray[np.bool_]:
        column = self._items.attributes.get(name)
        if column is None:
            names = ", ".join(sorted((*self._items.attributes, "available", "published_ms")))
            raise FilterError(f"at character {comparison.at}: no attribute {_shown(name)}; there are {names}")
        if column.dtype.kind == "u":
            texts = _operands(comparison, _text, by="= != IN", with_what='a "text"')
            return _compared(comparison.operator, _part(column, span), np.unique(keys64(texts)))
        numbers = _operands(comparison, _number, with_what="a number")
        return _compared(comparison.operator, _part(column, span), np.unique(numbers))


def _part(column: Column, span: slice) -> NDArray[Any]:
    """Rows that are all of the column's base or all of its tail."""
    if not isinstance(column, GrownColumn):
        return column[span]
    split = len(column.base)
    return column.base[span] if span.stop <= split else column.tail[span.start - split : span.stop - split]


def _compared(by: str, value_S: NDArray[Any], operand_V: NDArray[Any]) -> NDArray[np.bool_]:
    """Operands are ascending, and one but for IN."""
    if by in _ORDERS:
        return np.asarray(_ORDERS[by](value_S, operand_V[0]))
    if len(operand_V) <= _FEW:
        equal_S = reduce(operator.or_, (value_S == operand for operand in operand_V))
    else:
        at_S = np.minimum(np.searchsorted(operand_V, value_S), len(operand_V) - 1)
        equal_S = operand_V[at_S] == value_S
    if by != "!=":
        return np.asarray(equal_S)
    there_S = value_S != 0 if value_S.dtype.kind == "u" else value_S == value_S  # noqa: PLR0124  # NaN is not itself
    return np.asarray(there_S & ~equal_S)


_Operand = TypeVar("_Operand", str, float, bool)


def _operands(
    comparison: Comparison, kind: Callable[[Value], _Operand | None], *, by: str = "= != < <= > >= IN", with_what: str
) -> list[_Operand]:
    """The values as they are compared.

    Args:
        kind: None for a value that is of another kind.
    """
    operands = []
    for value in comparison.values:
        operand = kind(value)
        if operand is None or comparison.operator not in by.split():
            found = f"{comparison.operator} with {_shown(value) if isinstance(value, str) else value}"
            raise FilterError(
                f"at character {comparison.at}: {_shown(comparison.attribute)} is compared by {by} with {with_what}, "
                f"not by {found}"
            )
        operands.append(operand)
    return operands


def _text(value: Value) -> str | None:
    return value if isinstance(value, str) else None


def _truth(value: Value) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Value) -> float | None:
    return value if isinstance(value, float) else None


def _time_ms(value: Value) -> float | None:
    if not isinstance(value, str):
        return _number(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) / timedelta(milliseconds=1)
