"""Typed words that nobody knows, written as a catalogue and those who search it write them.

Neighbours are found by what two words have in common once a few letters of each are deleted (the symmetric deletes of
SymSpell), of the first letters alone.

Shape letters: W words that others are corrected to, E entries: a word under one of its keys.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from candidate_gen.text import words

_SHORTEST = 4
_LONG = 8
_RARE = 2
_FIRST_LETTERS = 7
_LAST_SPELT = "\u0dff"
"""Of the scripts after it words are short, and most strings of letters are one."""
SPELLING_FILES = ("spelling.json", "spelling_key_E.npy", "spelling_word_E.npy")


@dataclass(frozen=True, slots=True)
class Spelling:
    """The words that are known, and how many texts have each."""

    count_of: Mapping[str, int]
    common_W: Sequence[str]
    key_E: NDArray[np.uint32] = field(repr=False)
    """Ascending: CRC-32 of the first letters of a word without one, two or none of them."""
    word_E: NDArray[np.int32] = field(repr=False)
    """Position in `common_W`."""

    @classmethod
    def of(
        cls,
        word_of_I: Iterable[Sequence[str]],
        *,
        known: Set[str] = frozenset(),
        typed: Mapping[str, int] | None = None,
    ) -> "Spelling":
        """From the words of each text.

        Args:
            known: are written right whoever has them, but nothing is corrected to them, as to words that fewer than
                `_RARE` texts have.
            typed: words that people search with, and how many did; they count as texts.
        """
        count_of = Counter(word for split in word_of_I for word in set(split))
        count_of.update(typed or {})
        common = sorted(
            word
            for word, count in count_of.items()
            if count >= _RARE and len(word) >= _SHORTEST - 1 and word.isalpha() and word not in known
        )
        entries = [
            (key, at) for at, word in enumerate(common) for key in _keys(word, 1 if len(word) < _LONG - 2 else 2)
        ]
        key_E, word_E = np.array(entries, np.int64).reshape(-1, 2).T
        by_key = np.argsort(key_E, kind="stable")
        return cls(
            dict.fromkeys(known, 1) | count_of, common, key_E[by_key].astype(np.uint32), word_E[by_key].astype(np.int32)
        )

    def repaired(self, text: str) -> str:
        """The text's words; each that is not known is replaced.

        By the nearest common word, where one with the same first letter is one edit away (from eight letters on with
        any, and two edits; an edit inserts, deletes or replaces a letter, or swaps neighbours), of equally near ones by
        that of most texts; else by the two words that it is made of, where both are known. Neighbours that are known as
        one word are joined where they are not both known. Numbers and short words stand as they are.
        """
        return " ".join(self._repaired([(word, word) for word in words(text)]))

    def corrected(self, text: str) -> str:
        """The text with its words repaired, and all else as it was typed; the text itself where all are known."""
        pieces = text.split()
        right = self._repaired([(piece, *(each if len(each := words(piece)) == 1 else ())) for piece in pieces])
        return text if right == pieces else " ".join(right)

    def is_right(self, text: str) -> bool:
        """Whether nothing is to be corrected."""
        return self.corrected(text) == text

    def _repaired(self, typed: Iterable[tuple[str, ...]]) -> list[str]:
        """
        Args:
            typed: pieces of a text, each with the word that it is, if it is one.
        """
        joined: list[tuple[str, ...]] = []
        for piece in typed:
            before, word = (joined[-1][1:] if joined else ()), piece[1:]
            both = f"{before[0]}{word[0]}" if before and word else ""
            if both in self.count_of and both.isalpha() and not {*before, *word} <= self.count_of.keys():
                joined[-1] = both, both
            else:
                joined.append(piece)
        return [right for piece, *word in joined for right in (self._repair(word[0], piece) if word else (piece,))]

    def _repair(self, word: str, piece: str) -> Sequence[str]:
        if word in self.count_of or len(word) < _SHORTEST or not word.isalpha() or max(word) > _LAST_SPELT:
            return (piece,)
        nearest = self._nearest(word)
        parts = self._parts(word)
        if nearest is not None and (nearest[0] == 1 or not parts):
            return (nearest[1],)
        return parts or (piece,)

    def _nearest(self, word: str) -> tuple[int, str] | None:
        """How far it is and which it is."""
        for far in (1,) if len(word) < _LONG else (1, 2):
            near = [
                (-self.count_of[other], other)
                for other in self._alike(word, far)
                if len(word) >= _LONG or other[0] == word[0]
            ]
            if near:
                return far, min(near)[1]
        return None

    def _alike(self, word: str, far: int) -> list[str]:
        """Common words that are so many edits away."""
        key_K = np.array(sorted(_keys(word, far)), np.uint32)
        start_K, end_K = np.searchsorted(self.key_E, key_K), np.searchsorted(self.key_E, key_K, side="right")
        places = np.unique(np.concatenate([self.word_E[start:end] for start, end in zip(start_K, end_K, strict=True)]))
        others = [other for at in places.tolist() if abs(len(other := self.common_W[at]) - len(word)) <= far]
        far_N = cdist([word], others, scorer=OSA.distance, score_cutoff=far)[0] if others else ()
        return [other for other, each in zip(others, far_N, strict=True) if each == far]

    def _parts(self, word: str) -> Sequence[str]:
        cuts = [(word[:at], word[at:]) for at in range(3, len(word) - 2)]
        known = [cut for cut in cuts if all(self.count_of.get(part, 0) >= _RARE for part in cut)]
        return max(known, key=lambda cut: min(self.count_of[part] for part in cut), default=())

    def save(self, folder: Path) -> None:
        told, keys, places = (folder / name for name in SPELLING_FILES)
        told.write_text(json.dumps({"count_of": self.count_of, "common": list(self.common_W)}, sort_keys=True))
        np.save(keys, self.key_E, allow_pickle=False)
        np.save(places, self.word_E, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Spelling":
        told, keys, places = (folder / name for name in SPELLING_FILES)
        stored = json.loads(told.read_text())
        key_E, word_E = (np.asarray(np.load(each, mmap_mode="r", allow_pickle=False)) for each in (keys, places))
        return cls(stored["count_of"], stored["common"], key_E, word_E)


def _keys(word: str, deleted: int) -> set[int]:
    """Of the first letters of a word without up to so many of them."""
    first = word[:_FIRST_LETTERS]
    kept = {first}
    for count in range(1, min(deleted, len(first) - 1) + 1):
        kept |= {"".join(letters) for letters in combinations(first, len(first) - count)}
    return {zlib.crc32(each.encode("utf-8", "replace")) for each in kept}
