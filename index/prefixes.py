"""Texts that begin as something typed, or nearly so: sorted, and walked as the tree of their letters.

Shape letters: N texts, L letters, P letters typed, K results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

LETTERS = 64
"""Of a text that are looked at."""
_END = 0
_LAST_LETTER = 0xFFFF
_FILES = ("prefix_letters.npy", "prefix_rows.npy", "prefix_worth.npy")


@dataclass(frozen=True, slots=True)
class PrefixIndex:
    """Texts in the order of their letters, each with what it is worth."""

    letter_NL: NDArray[np.uint16]
    """Code points, one for all beyond the basic plane; 0 behind the end."""
    row_N: NDArray[np.int64]
    """Position among the texts that it was made of."""
    worth_N: NDArray[np.float32]

    @classmethod
    def of(cls, texts: Sequence[str], worth: NDArray[np.float32]) -> "PrefixIndex":
        """
        Args:
            worth: of each text, above 0.
        """
        letter_NL = np.zeros((len(texts), LETTERS), np.uint16)
        for letter_L, text in zip(letter_NL, texts, strict=True):
            letters = _letters(text)
            letter_L[: len(letters)] = letters
        row_N = np.lexsort(letter_NL.T[::-1]) if len(texts) else np.empty(0, np.int64)
        return cls(letter_NL[row_N], row_N.astype(np.int64), np.asarray(worth, np.float32)[row_N])

    def __len__(self) -> int:
        return len(self.row_N)

    def starting(
        self, prefix: str, k: int, *, edits: int = 0, fade: float = 0.5
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The k best texts that begin with something at most so many edits from the prefix: rows, edits, scores.

        A text scores its worth times `fade` for each edit of the nearest of its beginnings (optimal string alignment:
        an edit inserts, deletes or replaces a letter, or swaps neighbours). Equal scores come in the order of letters.
        """
        typed_P = _letters(prefix)
        at_K, edit_K, score_K = _walk((self.letter_NL, self.worth_N), typed_P, edits, fade, max(k, 0))
        return self.row_N[at_K], edit_K, score_K

    def save(self, folder: Path) -> None:
        columns: tuple[NDArray[Any], ...] = (self.letter_NL, self.row_N, self.worth_N)
        for name, column in zip(_FILES, columns, strict=True):
            np.save(folder / name, column, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "PrefixIndex":
        return cls(*(np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False)) for name in _FILES))


def _letters(text: str) -> NDArray[np.uint16]:
    return np.array([min(ord(letter), _LAST_LETTER) for letter in text[:LETTERS]], np.uint16)


@numba.njit(cache=True, nogil=True)
def _walk(texts, typed_P, edits, fade, k):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Depth first over what the texts begin with; a branch ends where no beginning further down can be nearer.

    Row d of `row_DP` holds the edits between a beginning of d letters and every beginning of what was typed.
    """
    letter_NL, worth_N = texts
    deepest, far = letter_NL.shape[1], edits + 1  # as far as anything farther
    at_K, edit_K, score_K = np.zeros(k, np.int64), np.zeros(k, np.int32), np.zeros(k, np.float32)
    found = 0
    row_DP = np.full((deepest + 1, len(typed_P) + 1), far, np.int64)
    row_DP[0] = np.minimum(np.arange(len(typed_P) + 1), far)
    next_D, end_D = np.zeros(deepest + 1, np.int64), np.zeros(deepest + 1, np.int64)
    best_D, letter_D = np.zeros(deepest + 1, np.int64), np.zeros(deepest + 1, np.int64)
    end_D[0], best_D[0] = len(worth_N), row_DP[0, -1]
    depth = 0
    while depth >= 0 and k:
        start, end, best = next_D[depth], end_D[depth], best_D[depth]
        if start >= end:
            depth -= 1
            continue
        stop = end
        if depth < deepest and best:
            letter = letter_NL[start, depth]
            stop = start + np.searchsorted(letter_NL[start:end, depth], letter, side="right")
            if letter != _END:
                letter_D[depth + 1] = letter
                _add_row(row_DP, letter_D, depth + 1, typed_P, far)
                best = min(best, row_DP[depth + 1, -1])
                if row_DP[depth + 1].min() < best:
                    next_D[depth] = stop
                    depth += 1
                    next_D[depth], end_D[depth], best_D[depth] = start, stop, best
                    continue
        next_D[depth] = stop
        if best <= edits:
            faded = np.float32(fade**best)
            for n in range(start, stop):
                score = worth_N[n] * faded
                if found < k or score > score_K[k - 1]:
                    at = min(found, k - 1)
                    while at > 0 and score_K[at - 1] < score:
                        at_K[at], edit_K[at], score_K[at] = at_K[at - 1], edit_K[at - 1], score_K[at - 1]
                        at -= 1
                    at_K[at], edit_K[at], score_K[at] = n, best, score
                    found = min(found + 1, k)
    return at_K[:found], edit_K[:found], score_K[:found]


@numba.njit(cache=True, nogil=True)
def _add_row(row_DP, letter_D, depth, typed_P, far):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """The row of a beginning from those of the two that are shorter."""
    row_P, above_P, letter = row_DP[depth], row_DP[depth - 1], letter_D[depth]
    row_P[0] = min(depth, far)
    for p in range(1, len(typed_P) + 1):
        least = min(above_P[p] + 1, row_P[p - 1] + 1, above_P[p - 1] + (typed_P[p - 1] != letter))
        if p > 1 and depth > 1 and typed_P[p - 1] == letter_D[depth - 1] and typed_P[p - 2] == letter:
            least = min(least, row_DP[depth - 2, p - 2] + 1)
        row_P[p] = min(least, far)
