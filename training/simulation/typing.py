"""What people of the simulated world type, and what they mean by it."""

from collections.abc import Set

import numpy as np

from candidate_gen.text import words
from training.simulation.words import SYNONYMS

_SYNONYM_SHARE = 0.2
_MISSPELT_SHARE = 0.1
_LONG = 5
"""Letters of the shortest word that somebody misspells."""


class Typing:
    """Another word for a word, or a word misspelt: no text of the world holds either, and everybody knows what it is.

    Args:
        known: words of the world's texts.
    """

    def __init__(self, known: Set[str]) -> None:
        misspellings = _misspellings(known)
        self._meant = misspellings | {typed: word for word, typed in SYNONYMS.items()}
        self._slips: dict[str, list[str]] = {}
        for typed, word in misspellings.items():
            self._slips.setdefault(word, []).append(typed)

    def meant(self, word: str) -> str:
        """What somebody means who types the word: the word itself, but for synonyms and misspellings."""
        return self._meant.get(word, word)

    def typed(self, text: str, rng: np.random.Generator) -> str:
        """What somebody types who means the text: a fifth say what they can in other words, a tenth misspell a word."""
        in_other_words, misspelt, which, slip = rng.random(4)
        split = words(text)
        if in_other_words < _SYNONYM_SHARE:
            return " ".join(SYNONYMS.get(word, word) for word in split)
        known = [at for at, word in enumerate(split) if word in self._slips]
        if misspelt >= _MISSPELT_SHARE or not known:
            return text
        at = known[int(which * len(known))]
        slips = self._slips[split[at]]
        return " ".join([*split[:at], slips[int(slip * len(slips))], *split[at + 1 :]])


def _misspellings(known: Set[str]) -> dict[str, str]:
    """What comes of a long word with a letter left out or twice, or two neighbours swapped, the first letter in its
    place, to the word; nothing that is a word itself or comes of two."""
    meant: dict[str, str] = {}
    twice: set[str] = set()
    taken = {*known, *SYNONYMS.values()}
    for word in sorted(known):
        if len(word) < _LONG:
            continue
        for at in range(2, len(word)):
            before, rest = word[:at], word[at:]
            swapped = before[:-1] + rest[0] + before[-1] + rest[1:]
            for typed in sorted({before + rest[1:], before + rest[0] + rest, swapped} - taken):
                if meant.setdefault(typed, word) != word:
                    twice.add(typed)
    return {typed: word for typed, word in meant.items() if typed not in twice}
