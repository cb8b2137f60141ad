"""How well titles answer what was typed: features of (query text, title), the same code offline and online.

Everything is read off one small table: each typed word against each distinct word among the candidates' titles.
Prepared once a catalogue (`TitleStats`), 300 titles cost about a millisecond and no text is touched but the query.

Shape letters: I titles, W words of the vocabulary, N candidates, T words of a title, Q words of the query,
U distinct words among the candidates, G trigrams of a word, F features.
"""

import re
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candidate_gen.text import words

TEXT_MATCH = (
    "bm25",
    "coverage",
    "idf_overlap",
    "title_overlap",
    "phrase",
    "bigrams",
    "prefix",
    "fuzzy",
    "last_word",
    "last_position",
    "head",
    "numbers",
    "trigram_cosine",
    "length_ratio",
)
"""Names of the columns of `text_match`; all but `bm25` lie in 0..1."""

_PIECE = re.compile(r"\d+|[^\W\d_]+")
_QUERY_WORDS = 32
_TITLE_WORDS = 64
_LETTERS = 32
_JOINTS = ("and", "for", "in", "with")
_GRAMS = 16
_BUCKETS = 1 << 13
_PREFIX = 3
_K1, _B = 1.2, 0.75
_PAD, _UNKNOWN = -1, -2


def match_words(text: str) -> list[str]:
    """`words` with digits and letters apart, cut to 32 letters: "36in 2x4" has the words 36, in, 2, x, 4."""
    return [piece[:_LETTERS] for word in words(text) for piece in _PIECE.findall(word)]


@dataclass(frozen=True, slots=True)
class TitleStats:
    """The words of a catalogue's titles, prepared for `text_match`. Row i is title i."""

    vocabulary_W: list[str]
    """Sorted, so that the words with a common prefix are neighbours."""
    idf_W: NDArray[np.float32]
    gram_WG: NDArray[np.uint16]
    """Buckets of each word's character trigrams (its first 16), with ^ and $ around the word; 0 is padding."""
    offset_I1: NDArray[np.int64]
    word: NDArray[np.int32]
    """Vocabulary rows of every title in order, title i at `offset_I1[i]` to `offset_I1[i + 1]`."""
    head_I: NDArray[np.int64]
    """Position of each title's head, the word before the first "and", "for", "in" or "with": what an English noun
    phrase is about. The last word where there is none of these."""
    norm_I: NDArray[np.float32]
    """Length of each title's vector of trigram counts."""

    @classmethod
    def of(cls, titles: Sequence[str]) -> "TitleStats":
        """Read every title once; what lies behind a title's 64th word is left out."""
        split = [match_words(title)[:_TITLE_WORDS] for title in titles]
        frequency = Counter(word for each in split for word in set(each))
        vocabulary = sorted(frequency)
        row_of = {word: row for row, word in enumerate(vocabulary)}
        offset_I1 = np.zeros(len(split) + 1, np.int64)
        np.cumsum([len(each) for each in split], out=offset_I1[1:])
        word = np.array([row_of[each] for title in split for each in title], np.int32)
        gram_WG = np.zeros((len(vocabulary), _GRAMS), np.uint16)
        for row_G, each in zip(gram_WG, vocabulary, strict=True):
            grams = trigrams(each)
            row_G[: len(grams)] = grams
        idf_W = _idf(np.array([frequency[each] for each in vocabulary], np.float64), len(split))
        head_I = np.array([_head(each) for each in split], np.int64)
        return cls(vocabulary, idf_W, gram_WG, offset_I1, word, head_I, _norms(offset_I1, word, gram_WG))

    def __len__(self) -> int:
        return len(self.norm_I)


def text_match(query: str, stats: TitleStats, row_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features of the query's text against some titles, shape (N, F) in the order of `TEXT_MATCH`.

    - bm25: Robertson's BM25 (k1 1.2, b .75) on words as they stand.
    - coverage: share of the typed words that the title has.
    - idf_overlap: the same with each word weighing its inverse document frequency ln(1 + (I - n + .5) / (n + .5)),
      an unknown word counting as seen in no title.
    - title_overlap: share of the title, by inverse document frequency, that was typed.
    - phrase: 1 where the title has all typed words next to each other in order.
    - bigrams: share of neighbouring typed words that are neighbours in the title; 0 for one word.
    - prefix: idf_overlap where a word may also begin with the other (at least 3 letters): plurals, half-typed words.
    - fuzzy: idf_overlap with the best Dice coefficient of character trigrams in place of equality: misspellings.
    - last_word: 1 where the title has the last typed word, or one that shares a prefix as above; in English
      noun phrases it is the thing that is sought.
    - last_position: where the title comes closest to the last typed word, from just above 0 to 1 for its last word;
      0 where they share no trigram.
    - head: similarity of the title's head to the nearest typed word: a Dice coefficient as above, 1 for a prefix.
    - numbers: share of the typed numbers that the title has; 1 where none was typed.
    - trigram_cosine: cosine of the counts of all character trigrams (hashed to 8192).
    - length_ratio: words of the shorter over words of the longer.

    Words are those of `match_words`; those behind the 32nd are left out. A query or a title without a word gets zeros.
    """
    typed = match_words(query)[:_QUERY_WORDS]
    match_NF = np.zeros((len(row_N), len(TEXT_MATCH)), np.float32)
    length_N = (stats.offset_I1[row_N + 1] - stats.offset_I1[row_N]).astype(np.int64)
    if not typed or not length_N.any():
        return match_NF
    at_T1 = np.arange(int(length_N.max()))[:, None]
    in_title_TN = at_T1 < length_N
    at_TN = np.where(in_title_TN, stats.offset_I1[row_N] + at_T1, 0)
    word_TN = np.where(in_title_TN, stats.word[at_TN], _PAD)
    used_U, use_TN = np.unique(word_TN, return_inverse=True)
    # NumPy 2.0 alone gives the inverse flat.
    use_TN = use_TN.reshape(word_TN.shape)

    id_Q, exact_QU, prefix_QU = _same_words(typed, stats.vocabulary_W, used_U)
    shared_QU, dice_QU, query_norm = _shared_trigrams(typed, stats.gram_WG, used_U)
    unseen = _idf(np.zeros(1), len(stats))[0]
    idf_Q = np.where(id_Q >= 0, stats.idf_W[id_Q], unseen)
    weight_Q = idf_Q / idf_Q.sum()
    is_number_Q = np.array([word[0].isdigit() for word in typed])

    exact_QTN = exact_QU[:, use_TN]
    times_QN = exact_QTN.sum(axis=1, dtype=np.float32)
    found_QN = times_QN > 0
    prefix_QN: NDArray[np.bool_] = np.any(prefix_QU[:, use_TN], axis=1)
    idf_TN = np.where(in_title_TN, stats.idf_W[word_TN], 0)
    saturation_N = _K1 * (1 - _B + _B * length_N * (len(stats) / len(stats.word)))
    near_QU = np.maximum(dice_QU, prefix_QU)
    near_TN = near_QU[-1][use_TN]
    columns = {
        "bm25": idf_Q @ (times_QN * (_K1 + 1) / (times_QN + saturation_N)),
        "coverage": found_QN.mean(axis=0),
        "idf_overlap": weight_Q @ found_QN,
        "title_overlap": (idf_TN * exact_QTN.any(axis=0)).sum(axis=0) / np.maximum(idf_TN.sum(axis=0), 1e-9),
        "phrase": _run(exact_QTN).any(axis=0),
        "prefix": weight_Q @ prefix_QN,
        "fuzzy": weight_Q @ dice_QU[:, use_TN].max(axis=1),
        "last_word": prefix_QN[-1],
        "last_position": (near_TN.argmax(axis=0) + 1) * near_TN.any(axis=0) / np.maximum(length_N, 1),
        "head": near_QU.max(axis=0)[use_TN[stats.head_I[row_N], np.arange(len(row_N))]],
        "numbers": found_QN[is_number_Q].mean(axis=0) if is_number_Q.any() else length_N > 0,
        "trigram_cosine": shared_QU.sum(axis=0)[use_TN].sum(axis=0)
        / np.maximum(query_norm * stats.norm_I[row_N], 1e-9),
        "length_ratio": np.minimum(length_N, len(typed)) / np.maximum(length_N, len(typed)),
    }
    if len(typed) > 1:
        adjacent_QTN = np.logical_and(exact_QTN[:-1, :-1], exact_QTN[1:, 1:])
        columns["bigrams"] = adjacent_QTN.any(axis=1).mean(axis=0)
    for column, name in enumerate(TEXT_MATCH):
        match_NF[:, column] = columns.get(name, 0)
    return match_NF


def _same_words(
    typed: Sequence[str], vocabulary_W: list[str], used_U: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Vocabulary row of each typed word (-2 where it has none), equality, and equality up to a prefix."""
    id_Q = np.full(len(typed), _UNKNOWN, np.int64)
    prefix_QU = np.zeros((len(typed), len(used_U)), np.bool_)
    for q, word in enumerate(typed):
        low = bisect_left(vocabulary_W, word)
        if low < len(vocabulary_W) and vocabulary_W[low] == word:
            id_Q[q] = low
        if word[0].isdigit() or len(word) < _PREFIX:
            prefix_QU[q] = used_U == id_Q[q]
            continue
        high = bisect_left(vocabulary_W, word + chr(0x10FFFF), lo=low)
        prefix_QU[q] = (used_U >= low) & (used_U < high)
        for end in range(_PREFIX, len(word)):
            at = bisect_left(vocabulary_W, word[:end])
            if at < len(vocabulary_W) and vocabulary_W[at] == word[:end]:
                prefix_QU[q] |= used_U == at
    return id_Q, np.equal(used_U, id_Q[:, None]), prefix_QU


def _shared_trigrams(
    typed: Sequence[str], gram_WG: NDArray[np.uint16], used_U: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Trigrams shared by each typed word and each used one, their Dice coefficient, and the query's norm."""
    table_QB = np.zeros((len(typed), _BUCKETS), np.float32)
    for row_B, word in zip(table_QB, typed, strict=True):
        row_B[trigrams(word)] = 1
    gram_GU = np.where(used_U >= 0, gram_WG[used_U].T, 0)
    shared_QU = table_QB[:, gram_GU[(gram_GU > 0).any(axis=1)]].sum(axis=1)
    size_QU = table_QB.sum(axis=1)[:, None] + (gram_GU > 0).sum(axis=0)
    return shared_QU, 2 * shared_QU / size_QU, float(np.linalg.norm(table_QB.sum(axis=0)))


def _run(exact_QTN: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where in each title all words follow one another; shape (starts, N), no starts where all are too short."""
    starts = max(exact_QTN.shape[1] - len(exact_QTN) + 1, 0)
    run_SN = np.ones((starts, exact_QTN.shape[2]), np.bool_)
    for q, exact_TN in enumerate(exact_QTN):
        run_SN &= exact_TN[q : q + starts]
    return run_SN


def _head(title: Sequence[str]) -> int:
    """Position of the head of a title's words; 0 where there are none."""
    joint = next((at for at, word in enumerate(title) if at and word in _JOINTS), len(title))
    return max(joint - 1, 0)


def trigrams(word: str) -> list[int]:
    """Distinct buckets 1..8191 of a word's trigrams."""
    marked = f"^{word}$"
    found = dict.fromkeys(
        1 + zlib.crc32(marked[at : at + 3].encode()) % (_BUCKETS - 1) for at in range(len(marked) - 2)
    )
    return list(found)[:_GRAMS]


def _idf(frequency: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    return np.log1p((count - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)


def _norms(
    offset_I1: NDArray[np.int64], word: NDArray[np.int32], gram_WG: NDArray[np.uint16], step: int = 20_000
) -> NDArray[np.float32]:
    """Length of each title's trigram counts; in steps, since all trigrams of a large catalogue do not fit."""
    norm_I = np.zeros(len(offset_I1) - 1, np.float32)
    for start in range(0, len(norm_I), step):
        offset = offset_I1[start : start + step + 1]
        gram_MG = gram_WG[word[offset[0] : offset[-1]]].astype(np.int64)
        title_M = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
        key, times = np.unique((title_M[:, None] * _BUCKETS + gram_MG)[gram_MG > 0], return_counts=True)
        norm_I[start : start + step] = np.sqrt(np.bincount(key // _BUCKETS, times**2.0, minlength=len(offset) - 1))
    return norm_I
