"""The words of a catalogue's texts, numbered once, so that matching what is typed touches no text but the query.

Shape letters: I texts, W words of the vocabulary, M words of some texts side by side, G trigrams of a word.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from candidate_gen.text import words
from index.columns import GrownColumn, appended, gathered, growing
from index.strings import IdMap

BUCKETS = 1 << 13
"""Of trigrams; 0 is none."""
_PIECE = re.compile(r"\d+|[^\W\d_]+")
_TEXT_WORDS = 64
_LETTERS = 32
_JOINTS = frozenset(("and", "for", "in", "with"))
_GRAMS = 16
_SAVED = ("idf_W", "gram_WG", "offset_I1", "word", "head_I", "norm_I")
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


def match_words(text: str) -> list[str]:
    """`words` with digits and letters apart, cut to 32 letters: "36in 2x4" has the words 36, in, 2, x, 4."""
    return [piece[:_LETTERS] for piece in _PIECE.findall(" ".join(words(text)))]


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Row i is text i. Texts that follow later are measured by the statistics of the first ones: those of the build."""

    vocabulary: IdMap
    idf_W: GrownColumn
    """ln(1 + (I - n + .5) / (n + .5)) for a word of n texts; of a word that came later, as if no text had it."""
    gram_WG: GrownColumn
    """Buckets of each word's character trigrams (its first 16), with ^ and $ around the word; 0 is padding."""
    offset_I1: GrownColumn
    word: GrownColumn
    """Vocabulary rows of every text in order, text i at `offset_I1[i]` to `offset_I1[i + 1]`."""
    head_I: GrownColumn
    """Position of each text's head, the word before the first "and", "for", "in" or "with": what an English noun
    phrase is about. The last word where there is none of these."""
    norm_I: GrownColumn
    """Length of each text's vector of trigram counts."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "PreparedTexts":
        """Read every text once; what lies behind a text's 64th word is left out."""
        split, row_of = _numbered(_words(texts), {})
        words = list(row_of)
        text_M = np.repeat(np.arange(len(texts)), np.diff(split.offset_I1))
        pair = np.unique(text_M * max(len(words), 1) + split.word)
        frequency_W = np.bincount(pair % max(len(words), 1), minlength=len(words))
        return cls._of(IdMap.of(words), _idf(frequency_W, len(texts)), _grams(words), split)

    @classmethod
    def _of(
        cls, vocabulary: IdMap, idf_W: NDArray[np.float32], gram_WG: NDArray[np.uint16], split: "_Split"
    ) -> "PreparedTexts":
        norm_I = _norms(split.offset_I1, split.word, gram_WG)
        columns = (idf_W, gram_WG, split.offset_I1, split.word, split.head_I, norm_I)
        return cls(vocabulary, *(growing(column) for column in columns))

    @property
    def unseen(self) -> float:
        """Inverse document frequency of a word that no text has."""
        return float(_idf(np.zeros(1), len(self.norm_I.base))[0])

    @property
    def mean_length(self) -> float:
        """Words of a text, at least a little."""
        return max(len(self.word.base), 1) / max(len(self.norm_I.base), 1)

    def __len__(self) -> int:
        return len(self.norm_I)

    def words(self, row_N: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Vocabulary rows of these texts side by side, and where each text begins, (N + 1,)."""
        return gathered(self.word, self.offset_I1[row_N], self.offset_I1[row_N + 1])

    def appended(self, texts: Sequence[str]) -> "PreparedTexts":
        """These and the texts after them, in time that depends on the texts alone; equal however many come at once."""
        words_I = _words(texts)
        distinct = list({word for words in words_I for word in words})
        rows = self.vocabulary.rows_of(distinct).tolist()
        known = {word: row for word, row in zip(distinct, rows, strict=True) if row >= 0}
        split, row_of = _numbered(words_I, known, first=len(self.vocabulary))
        new = list(row_of)[len(known) :]
        vocabulary = self.vocabulary.appended(new) if new else self.vocabulary
        idf_W = self.idf_W.append(np.full(len(new), self.unseen, np.float32))
        gram_WG = self.gram_WG.append(_grams(new))
        used_W, word = np.unique(split.word, return_inverse=True)
        norm_I = _norms(split.offset_I1, word.reshape(-1).astype(np.int32), gram_WG[used_W])
        return PreparedTexts(
            vocabulary,
            idf_W,
            gram_WG,
            appended(self.offset_I1, len(self.word) + split.offset_I1[1:]),
            appended(self.word, split.word),
            appended(self.head_I, split.head_I),
            appended(self.norm_I, norm_I),
        )

    def save(self, folder: Path, name: str) -> None:
        """Write what `load` reads; texts that were appended become texts of the build only in `of`."""
        self.vocabulary.save(folder, f"{name}_words")
        for column in _SAVED:
            np.save(folder / f"{name}_{column}.npy", np.asarray(getattr(self, column)), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, name: str) -> "PreparedTexts":
        """What `save` wrote, memory-mapped."""
        columns = (np.load(folder / f"{name}_{column}.npy", mmap_mode="r", allow_pickle=False) for column in _SAVED)
        return cls(IdMap.load(folder, f"{name}_words"), *(growing(column) for column in columns))


@dataclass(frozen=True, slots=True)
class _Split:
    """Texts as rows of a vocabulary."""

    offset_I1: NDArray[np.int64]
    word: NDArray[np.int32]
    head_I: NDArray[np.int32]


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [match_words(text)[:_TEXT_WORDS] for text in texts]


def _numbered(
    words_I: Sequence[Sequence[str]], known: Mapping[str, int], *, first: int = 0
) -> tuple[_Split, dict[str, int]]:
    """Texts of these words, and the row of each word: those known, then the others in the order in which they appear.

    Args:
        first: row of the first other one.
    """
    row_of, word, offset_I1, head_I = dict(known), list[int](), np.zeros(len(words_I) + 1, np.int64), list[int]()
    base = first - len(known)
    for i, split in enumerate(words_I):
        word += [row_of.setdefault(each, base + len(row_of)) for each in split]
        joint = next((at for at, each in enumerate(split) if at and each in _JOINTS), len(split))
        head_I.append(max(joint - 1, 0))
        offset_I1[i + 1] = len(word)
    return _Split(offset_I1, np.array(word, np.int32), np.array(head_I, np.int32)), row_of


def trigrams(word: str) -> list[int]:
    """Distinct buckets 1..8191 of a word's trigrams, at most 16."""
    marked = f"^{word}$"
    found = dict.fromkeys(1 + zlib.crc32(marked[at : at + 3].encode()) % (BUCKETS - 1) for at in range(len(marked) - 2))
    return list(found)[:_GRAMS]


def _grams(words: Sequence[str]) -> NDArray[np.uint16]:
    gram_WG = np.zeros((len(words), _GRAMS), np.uint16)
    for w, word in enumerate(words):
        grams = trigrams(word)
        gram_WG[w, : len(grams)] = grams
    return gram_WG


def _idf(frequency_W: NDArray[Any], count: int) -> NDArray[np.float32]:
    return np.log1p((count - frequency_W + 0.5) / (frequency_W + 0.5)).astype(np.float32)


@_compiled
def _norms(offset_I1, word, gram_WG):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    norm_I = np.zeros(len(offset_I1) - 1, np.float32)
    times_B = np.zeros(BUCKETS, np.int64)
    for i in range(len(norm_I)):
        total = 0
        for add in (1, 0):  # the second time only to wipe the counts
            for m in range(offset_I1[i], offset_I1[i + 1]):
                for gram in gram_WG[word[m]]:
                    if gram > 0 and add:
                        total += 2 * times_B[gram] + 1  # (n + 1)^2 - n^2
                        times_B[gram] += 1
                    elif gram > 0:
                        times_B[gram] = 0
        norm_I[i] = np.sqrt(total)
    return norm_I
