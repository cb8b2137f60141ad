"""What the business wants shown, and where: rules that change while a server runs, and act inside the draw.

Shape letters: N candidates, I items.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.predicates import Attributes, parse
from candidate_gen.types import NO_ROWS, Query

RuleKind = Literal["pin", "boost", "bury", "block", "quota"]
MAX_QUOTAS = 24
"""Rules of that kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One wish.

    Raises:
        ValueError: naming the rule, the field, its value and what is allowed.
    """

    id: str
    kind: RuleKind
    surfaces: tuple[str, ...] = ()
    """Where it applies; empty: everywhere."""
    queries: tuple[str, ...] = ()
    """To which typed queries, whatever their case and blanks; empty: to all, and to recommendations."""
    item_ids: tuple[str, ...] = ()
    """To which items: these, or those that satisfy the condition. A pin has one id."""
    condition: str = ""
    """See `candidate_gen.predicates`."""
    position: int = 0
    """The slot of a pin, from 0."""
    strength: float = 0.0
    """What a boost adds to the utility and a bury takes from it."""
    at_least: int = 0
    """Slots of a slate that hold such items."""
    at_most: int = 0
    """0: any number."""
    from_ms: int = 0
    """When it begins, UTC epoch milliseconds; 0: it always has."""
    until_ms: int = 0
    """When it has ended; 0: never."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a rule has the id ''; every rule needs one of its own")
        for name in ("position", "at_least", "at_most", "from_ms", "until_ms"):
            if getattr(self, name) < 0:
                raise self._wrong(name, "at least 0")
        if bool(self.item_ids) == bool(self.condition):
            raise ValueError(
                f"rule {self.id!r}: item_ids are {list(self.item_ids)} and condition is {self.condition!r}; "
                "one of the two says which items are meant"
            )
        if self.kind == "pin" and len(self.item_ids) != 1:
            raise self._wrong("item_ids", "the one item that is pinned")
        if self.kind in ("boost", "bury") and not 0 < self.strength < math.inf:
            raise self._wrong("strength", "a finite number above 0")
        if self.kind == "quota" and not self.at_least and not self.at_most:
            raise ValueError(f"rule {self.id!r}: at_least and at_most are 0; a quota needs one of them")
        if self.at_most and self.at_least > self.at_most:
            raise ValueError(f"rule {self.id!r}: at_least is {self.at_least}, more than at_most, {self.at_most}")
        if self.until_ms and self.until_ms <= self.from_ms:
            raise ValueError(f"rule {self.id!r}: until_ms is {self.until_ms}, not after from_ms, {self.from_ms}")

    def _wrong(self, name: str, allowed: str) -> ValueError:
        return ValueError(f"rule {self.id!r}: {name} is {getattr(self, name)!r}; allowed: {allowed}")

    def applies(self, query: Query) -> bool:
        return (
            (not self.surfaces or query.surface in self.surfaces)
            and (not self.queries or _spelt(query.text) in map(_spelt, self.queries))
            and self.from_ms <= query.time_ms
            and (not self.until_ms or query.time_ms < self.until_ms)
        )

    def meets(self, other: "Rule") -> bool:
        """Whether both may apply to one query."""
        return (
            _overlap(self.surfaces, other.surfaces)
            and _overlap([_spelt(each) for each in self.queries], [_spelt(each) for each in other.queries])
            and (not self.until_ms or other.from_ms < self.until_ms)
            and (not other.until_ms or self.from_ms < other.until_ms)
        )


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Rules that do not contradict each other.

    Raises:
        ValueError: naming the two that do: one id, one slot or one item pinned twice, an item pinned and blocked.
    """

    rules: tuple[Rule, ...] = ()
    etag: str = ""
    """Which version of the rules it is; empty where there have never been any."""

    def __post_init__(self) -> None:
        ids = [rule.id for rule in self.rules]
        repeated = next((each for n, each in enumerate(ids) if each in ids[:n]), None)
        if repeated is not None:
            raise ValueError(f"two rules have the id {repeated!r}; every rule needs one of its own")
        quotas = sum(rule.kind == "quota" for rule in self.rules)
        if quotas > MAX_QUOTAS:
            raise ValueError(f"{quotas} rules are quotas; at most {MAX_QUOTAS} are allowed")
        pins = [rule for rule in self.rules if rule.kind == "pin"]
        for one, other in combinations(pins, 2):
            if one.position == other.position and one.meets(other):
                raise _contradiction(one, other, f"both fill slot {one.position}")
            if one.item_ids == other.item_ids and one.meets(other):
                raise _contradiction(one, other, f"both pin {one.item_ids[0]!r}, and a slate holds an item once")
        for pin in pins:
            for rule in self.rules:
                if rule.kind == "block" and pin.item_ids[0] in rule.item_ids and pin.meets(rule):
                    raise _contradiction(pin, rule, f"{pin.item_ids[0]!r} is pinned by one and blocked by the other")


@dataclass(frozen=True, slots=True)
class Ruled:
    """What the rules say about one query's candidates."""

    boost_N: NDArray[np.float64]
    """To be added to the utilities."""
    barred_N: NDArray[np.bool_]
    pins: tuple[tuple[int, int], ...]
    """Slot and row."""
    quotas: tuple[tuple[Rule, NDArray[np.bool_]], ...]
    """Each with the candidates that it counts."""

    @classmethod
    def nothing(cls, count: int) -> "Ruled":
        return cls(np.zeros(count), np.zeros(count, np.bool_), (), ())


@dataclass(frozen=True)
class RulesInForce:
    """A rule book applied to one snapshot of the items."""

    book: RuleBook
    items: Items
    attributes: Attributes
    _rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def check(self) -> None:
        """
        Raises:
            ValueError: naming the rule whose condition cannot be read, or not be judged of these items.
        """
        for rule in self.book.rules:
            if rule.condition:
                try:
                    self.attributes.mask(parse(rule.condition))
                except ValueError as error:
                    raise ValueError(f"rule {rule.id!r}: condition: {error}") from None

    def pinned(self, query: Query) -> NDArray[np.int64]:
        """Rows that must be among the candidates, whatever retrieval finds."""
        return np.array([row for _, row in self._pins(query)], np.int64) if self.book.rules else NO_ROWS

    def judged(self, query: Query, row_N: NDArray[np.int64]) -> Ruled:
        """What holds for the candidates of these rows."""
        boost_N, barred_N = np.zeros(len(row_N)), np.zeros(len(row_N), np.bool_)
        quotas = []
        for rule in self.book.rules:
            if rule.kind == "pin" or not rule.applies(query):
                continue
            member_N = self._members(rule, row_N)
            match rule.kind:
                case "boost":
                    boost_N[member_N] += rule.strength
                case "bury":
                    boost_N[member_N] -= rule.strength
                case "block":
                    barred_N |= member_N
                case "quota":
                    quotas.append((rule, member_N))
        return Ruled(boost_N, barred_N, tuple(self._pins(query)), tuple(quotas))

    def _pins(self, query: Query) -> Iterator[tuple[int, int]]:
        if query.page:  # slots are those of the first page
            return
        for rule in self.book.rules:
            if rule.kind == "pin" and rule.position < query.size and rule.applies(query):
                row = int(self._rows_of(rule)[0])
                if row >= 0 and not self.items.gone_I[row]:
                    yield rule.position, row

    def _members(self, rule: Rule, row_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        if rule.condition:
            return self.attributes.mask(parse(rule.condition)).allowed_I[row_N]
        return np.isin(row_N, self._rows_of(rule))

    def _rows_of(self, rule: Rule) -> NDArray[np.int64]:
        if rule.id not in self._rows:
            self._rows[rule.id] = self.items.ids.rows_of(rule.item_ids)
        return self._rows[rule.id]


def _spelt(text: str) -> str:
    return " ".join(text.casefold().split())


def _overlap(some: "tuple[str, ...] | list[str]", others: "tuple[str, ...] | list[str]") -> bool:
    """Empty means all."""
    return not some or not others or not set(some).isdisjoint(others)


def _contradiction(one: Rule, other: Rule, why: str) -> ValueError:
    return ValueError(f"rules {one.id!r} and {other.id!r} contradict each other: {why}")
