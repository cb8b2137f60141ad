"""Conditions that are said in a query: "towels under 50", "between 10 and 20 dollars", "red".

Rather none than a wrong one. The words for limits and money are English.

Shape letters: I items.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from candidate_gen.items import Items
from candidate_gen.text import words
from index.strings import key64

PRICE = "price"
"""The attribute that limits are about where they do not name one."""
_LIMITS = {
    ("under",): "<",
    ("below",): "<",
    ("less", "than"): "<",
    ("cheaper", "than"): "<",
    ("up", "to"): "<=",
    ("at", "most"): "<=",
    ("no", "more", "than"): "<=",
    ("over",): ">",
    ("above",): ">",
    ("more", "than"): ">",
    ("at", "least"): ">=",
}
_RANGES = {"between": "and", "from": "to"}
_SIGNS = "$\u20ac\u00a3\u00a5"
_MONEY = frozenset(("dollar", "dollars", "usd", "euro", "euros", "eur", "bucks"))
_REFUSED = frozenset(("not", "no", "non", "without", "except", "but"))
_PUNCTUATION = ",.;:!?"
_MOST_WORDS = 3
_PRECISION = 0.9
_RESERVED = frozenset(("AND", "OR", "NOT", "IN", "TRUE", "FALSE"))


class Extracted(NamedTuple):
    rest: str
    """The query without what only says a limit. Values stay: titles have them too."""
    filter: str
    """Empty for none."""


class _Amount(NamedTuple):
    number: float
    is_money: bool
    end: int
    """Piece after it."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What items can be asked for: attributes that are numbers, and the words that name one value of one attribute."""

    numbers: Collection[str]
    value_of: Mapping[str, tuple[str, str]]
    """Attribute and value, by the value's words."""

    @classmethod
    def of(
        cls, items: Items, vocabularies: Mapping[str, Sequence[str]], word_of_I: Iterable[Sequence[str]]
    ) -> "Conditions":
        """
        Args:
            vocabularies: declared values by attribute. A value is only looked for if no other attribute has it and, of
                the items whose text holds its words, nine tenths have the value: where "red" is also the name of a
                drink, it is no colour.
            word_of_I: words of every item's text.
        """
        named: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for attribute, values in vocabularies.items():
            for value in values:
                split = words(value)
                if attribute in items.attributes and _can_be_asked(attribute) and 1 <= len(split) <= _MOST_WORDS:
                    named[" ".join(split)].append((attribute, value))
        row_of: dict[str, list[int]] = defaultdict(list)
        wanted = {word for phrase in named for word in phrase.split()}
        for row, found in enumerate(word_of_I):
            for word in wanted.intersection(found):
                row_of[word].append(row)
        value_of = {}
        for phrase, ((attribute, value), *others) in sorted(named.items()):
            holding = set.intersection(*(set(row_of[word]) for word in phrase.split()))
            key_N = np.asarray(items.attributes[attribute][np.array(sorted(holding), np.int64)])
            has_N = key_N == key64(value)
            if not others and not phrase.isdigit() and len(phrase) > 1 and has_N.sum() >= _PRECISION * len(has_N):
                value_of[phrase] = attribute, value
        numbers = sorted(
            name for name, column in items.attributes.items() if column.dtype.kind == "f" and _can_be_asked(name)
        )
        return cls(tuple(numbers), value_of)

    def extracted(self, text: str) -> Extracted:
        """What a query asks for, and what is left of it.

        A limit is about the attribute that is named before it, else about the price: where money is named, or where
        nothing follows an upper limit, so that "vitamins over 50" and "shelf under 5 feet" stay as they are.
        """
        pieces = text.split()
        plain = [piece.casefold().rstrip(_PUNCTUATION) for piece in pieces]
        found: list[str] = []
        kept: list[str] = []
        at = 0
        while at < len(plain):
            limits, end = self._limits(plain, at)
            if limits:
                named = bool(kept) and kept[-1].casefold() in self.numbers
                attribute = kept.pop().casefold() if named else PRICE
                found += [f"{attribute} {limit}" for limit in limits]
                at = end
            else:
                kept.append(pieces[at])
                at += 1
        rest = " ".join(kept) if found else text
        return Extracted(rest, " AND ".join(dict.fromkeys(found + self._values(words(rest)))))

    def _limits(self, plain: Sequence[str], at: int) -> tuple[list[str], int]:
        """Operators with numbers that are said from a piece on, and the piece after them."""
        named = at > 0 and plain[at - 1] in self.numbers
        if plain[at] in _RANGES and (low := _amount(plain, at + 1)):
            joint = low.end < len(plain) and plain[low.end] == _RANGES[plain[at]]
            high = _amount(plain, low.end + 1) if joint else None
            if high and low.number <= high.number and (named or self._about_money(low.is_money or high.is_money)):
                return [f">= {low.number:.12g}", f"<= {high.number:.12g}"], high.end
        for phrase, limit in _LIMITS.items():
            if tuple(plain[at : at + len(phrase)]) != phrase or not (amount := _amount(plain, at + len(phrase))):
                continue
            last = amount.end == len(plain) and limit[0] == "<"
            if named or self._about_money(amount.is_money or last):
                return [f"{limit} {amount.number:.12g}"], amount.end
        return [], at

    def _about_money(self, said: bool) -> bool:
        return said and PRICE in self.numbers

    def _values(self, split: Sequence[str]) -> list[str]:
        found: dict[str, list[str]] = defaultdict(list)
        at = 0
        while at < len(split):
            longest = range(min(_MOST_WORDS, len(split) - at), 0, -1)
            length = next((n for n in longest if " ".join(split[at : at + n]) in self.value_of), 0)
            if length and not (at and split[at - 1] in _REFUSED):
                attribute, value = self.value_of[" ".join(split[at : at + length])]
                found[attribute].append(_quoted(value))
            at += max(length, 1)
        return [f"{attribute} IN ({', '.join(dict.fromkeys(values))})" for attribute, values in found.items()]


def _amount(plain: Sequence[str], at: int) -> _Amount | None:
    """The number that a piece is, with what names it money."""
    if at >= len(plain):
        return None
    bare = plain[at].strip(_SIGNS)
    digits = bare.replace(",", "")
    is_number = digits.replace(".", "", 1).isdecimal() and digits.isascii() and len(digits) <= 12
    if not is_number:
        return None
    spoken = at + 1 < len(plain) and plain[at + 1] in _MONEY
    return _Amount(float(digits), spoken or bare != plain[at], at + 1 + spoken)


def _can_be_asked(attribute: str) -> bool:
    """Whether a filter can name it."""
    return attribute.isidentifier() and attribute.upper() not in _RESERVED


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
