"""Typed words that a catalogue does not have, written as it writes them.

Shape letters: W words of the vocabulary, G trigrams of a word, K candidates.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candidate_gen.prepared_texts import trigrams
from candidate_gen.text import words

_SHORTEST = 4
_LONG = 8
_NEAREST = 24
_GRAMS = 16
_RARE = 2
_BUCKETS = 1 << 13


@dataclass(frozen=True, slots=True)
class Spelling:
    """The words of a catalogue and how many of its texts have each."""

    count_of: dict[str, int]
    common_W: list[str]
    gram_WG: NDArray[np.uint16]

    @classmethod
    def of(cls, word_of_I: Iterable[Sequence[str]], *, known: Set[str] = frozenset()) -> "Spelling":
        """From the words of each text.

        Args:
            known: are written right whoever has them, but nothing is corrected to them, as to words that fewer than
                `_RARE` texts have.
        """
        count_of = Counter(word for split in word_of_I for word in set(split))
        common = sorted(
            word
            for word, count in count_of.items()
            if count >= _RARE and len(word) >= _SHORTEST - 1 and word.isalpha() and word not in known
        )
        gram_WG = np.zeros((len(common), _GRAMS), np.uint16)
        for row_G, word in zip(gram_WG, common, strict=True):
            grams = trigrams(word)
            row_G[: len(grams)] = grams
        return cls(dict.fromkeys(known, 1) | count_of, common, gram_WG)

    def repaired(self, text: str) -> str:
        """The text's words; each that no title has is replaced.

        By the nearest word of the catalogue, where one with the same first letter is one edit away (from eight letters
        on with any, and two edits; an edit inserts, deletes or replaces a letter, or swaps neighbours), of equally near
        ones by that of most texts; else by the two words that it is made of, where the catalogue has both. Neighbours
        that the catalogue writes as one word are joined where it does not have them both. Numbers and short words stand
        as they are.
        """
        typed = words(text)
        joined: list[str] = []
        for word in typed:
            both = f"{joined[-1]}{word}" if joined else ""
            known = bool(joined) and joined[-1] in self.count_of and word in self.count_of
            if both in self.count_of and not known and both.isalpha():
                joined[-1] = both
            else:
                joined.append(word)
        return " ".join(each for word in joined for each in self._repair(word))

    def _repair(self, word: str) -> Sequence[str]:
        if word in self.count_of or len(word) < _SHORTEST or not word.isalpha():
            return (word,)
        most = 1 if len(word) < _LONG else 2
        alike = (other for other in self._alike(word) if len(word) >= _LONG or other[0] == word[0])
        near = [(edits(word, other), -self.count_of[other], other) for other in alike]
        near = [each for each in near if each[0] <= most]
        parts = self._parts(word)
        if near and (min(near)[0] == 1 or not parts):
            return (min(near)[2],)
        return parts or (word,)

    def _alike(self, word: str) -> list[str]:
        """Common words that share most trigrams with it."""
        if not self.common_W:
            return []
        has_B = np.zeros(_BUCKETS, np.bool_)
        grams = trigrams(word)
        has_B[grams] = True
        shared_W = has_B[self.gram_WG].sum(axis=1)
        dice_W = 2 * shared_W / (len(grams) + (self.gram_WG > 0).sum(axis=1))
        best_K = np.argpartition(-dice_W, min(_NEAREST, len(dice_W) - 1))[:_NEAREST]
        return [self.common_W[row] for row in best_K]

    def _parts(self, word: str) -> Sequence[str]:
        cuts = [(word[:at], word[at:]) for at in range(3, len(word) - 2)]
        known = [cut for cut in cuts if all(self.count_of.get(part, 0) >= _RARE for part in cut)]
        return max(known, key=lambda cut: min(self.count_of[part] for part in cut), default=())


def edits(one: str, other: str) -> int:
    """Letters to insert, delete or replace, and neighbours to swap, to make one word of the other, no part of it
    edited twice (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            least = min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, before[j - 2] + 1)
            row.append(least)
        before, last = last, row
    return last[-1]
