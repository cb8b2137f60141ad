"""Texts as words are compared in them: measures in one form, misspellings repaired, prose without its function words.

Shape letters: I texts of a catalogue.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from candidate_gen.spelling import Spelling
from candidate_gen.text import words
from index.measures import measured

FIELDS = ("title", "category", "creator", "description")
"""What every item may have for search to read, in the order in which its text holds them."""
UNKNOWN = "unknown"
"""The category or creator of an item whose own is not known."""
_FUNCTION_WORDS = frozenset(
    """
    a about above across after again against all along also although am among an and another any are around as at be
    because been before being below between both but by can could did do does doing down during each either every few
    for from further give given gives had has have having he her here hers him his how however i if in into is it its
    itself just may me might more most must my near neither no nor not of off on once only onto or other our ours out
    over own per rather same several shall she should since so some such than that the their theirs them then there
    these they this those through thus to too toward towards under until up upon us use used uses using various very
    via was we were what when where whether which while who whom whose why will with within without would yet you your
    """.split()  # noqa: SIM905
)
_PROSE = 0.25


def field_order(names: Iterable[str]) -> tuple[str, ...]:
    """Fields as an item's text holds them: those that every item may have, then the declared ones by name."""
    return (*FIELDS, *sorted(set(names) - set(FIELDS)))


@dataclass(frozen=True, slots=True)
class SearchText:
    """How a catalogue's texts, and what is typed to find them, are prepared. English but for the spelling."""

    spelling: Spelling
    dropped: frozenset[str]
    """Words that are left out: those that prose needs for its grammar, and for which nobody searches it. In short
    titles they say something (a trash can, an under cabinet light) and stay."""

    @classmethod
    def of(cls, text_I: Sequence[str]) -> Self:
        """Texts are prose where a quarter of their words are function words."""
        word_of_I = [words(measured(text)) for text in text_I]
        functional = sum(word in _FUNCTION_WORDS for split in word_of_I for word in split)
        prose = functional >= _PROSE * max(sum(map(len, word_of_I)), 1)
        return cls(Spelling.of(word_of_I, known=_FUNCTION_WORDS), _FUNCTION_WORDS if prose else frozenset())

    def of_item(self, text: str) -> str:
        """An item's text."""
        return self._without(measured(text))

    def of_query(self, text: str) -> str:
        """What is typed, with the words that no item has repaired; see `Spelling.repaired`."""
        return self.spelling.repaired(self._without(measured(text)))

    def _without(self, text: str) -> str:
        if not self.dropped:
            return text
        split = words(text)
        return " ".join([word for word in split if word not in self.dropped] or split)
