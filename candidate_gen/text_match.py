"""How well texts answer what was typed: features of (query text, item text), the same code offline and online.

Each distinct word among the candidates is compared with each typed word once; then every text is walked once. Compiled:
500 titles take 0.4 ms.

Shape letters: N candidates, M words of their texts side by side, Q words of the query, U distinct words among the
candidates, G trigrams of a word, B buckets of trigrams, F features.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from candidate_gen.prepared_texts import BUCKETS, PreparedTexts, match_words, trigrams
from index.columns import taken
from index.strings import side_by_side

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
Field = Literal["title", "text"]
"""Texts of an item: its title, and all that search reads of it."""

_QUERY_WORDS = 32
_PREFIX = 3
_K1, _B = 1.2, 0.75
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a number in the pair row says of the typed text and a text of the item."""

    field: Field
    measure: str
    """One of `TEXT_MATCH`."""

    @property
    def column(self) -> int:
        """Of `text_match`."""
        return TEXT_MATCH.index(self.measure)


def matches() -> list[tuple[str, Match]]:
    """Names and matches of a table, in the order of its bytes: all of the title, and of the whole text those that do
    not ask for a noun phrase."""
    whole = ("bm25", "coverage", "idf_overlap", "prefix", "fuzzy")
    measures: dict[Field, Sequence[str]] = {"title": TEXT_MATCH, "text": whole}
    return [
        (f"{field}_{measure}" if field not in measure else measure, Match(field=field, measure=measure))
        for field in get_args(Field)
        for measure in measures[field]
    ]


def field_matches(
    query: str, prepared: Mapping[Field, PreparedTexts], row_N: NDArray[np.int64]
) -> dict[Field, NDArray[np.float32]] | None:
    """`text_match` of each text of some items; None where nothing was typed, so that a recommendation pays nothing."""
    if not query or query.isspace():
        return None
    typed = _Typed.of(query)
    return {field: _text_match(typed, texts, row_N) for field, texts in prepared.items()}


def text_match(query: str, texts: PreparedTexts, row_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features of the query's text against some texts, shape (N, F) in the order of `TEXT_MATCH`.

    - bm25: Robertson's BM25 (k1 1.2, b .75) on words as they stand.
    - coverage: share of the typed words that the text has.
    - idf_overlap: the same with each word weighing its inverse document frequency ln(1 + (I - n + .5) / (n + .5)),
      an unknown word counting as seen in no text.
    - title_overlap: share of the text, by inverse document frequency, that was typed.
    - phrase: 1 where the text has all typed words next to each other in order.
    - bigrams: share of neighbouring typed words that are neighbours in the text; 0 for one word.
    - prefix: idf_overlap where a word may also begin with the other (at least 3 letters): plurals, half-typed words.
    - fuzzy: idf_overlap with the best Dice coefficient of character trigrams in place of equality: misspellings.
    - last_word: 1 where the text has the last typed word, or one that shares a prefix as above; in English
      noun phrases it is the thing that is sought.
    - last_position: where the text comes closest to the last typed word, from just above 0 to 1 for its last word;
      0 where they share no trigram.
    - head: similarity of the text's head to the nearest typed word: a Dice coefficient as above, 1 for a prefix.
    - numbers: share of the typed numbers that the text has; 1 where none was typed.
    - trigram_cosine: cosine of the counts of all character trigrams (hashed to 8192).
    - length_ratio: words of the shorter over words of the longer.

    Words are those of `match_words`; those behind the 32nd are left out. A query or a text without a word gets zeros.
    """
    return _text_match(_Typed.of(query), texts, row_N)


@dataclass(frozen=True, slots=True)
class _Typed:
    """A query's words, as all texts are matched with them."""

    words: tuple[str, ...]
    utf8: NDArray[np.uint8]
    """Bytes of the words side by side."""
    offset_Q1: NDArray[np.int64]
    least_Q: NDArray[np.int64]
    """See `_least_bytes`."""
    table_B: NDArray[np.uint32]
    size_Q: NDArray[np.int64]
    norm: float
    """See `_gram_table`."""
    number_Q: NDArray[np.bool_]

    @classmethod
    def of(cls, query: str) -> "_Typed":
        words = tuple(match_words(query)[:_QUERY_WORDS])
        utf8, offset_Q1 = side_by_side(words)
        table_B, size_Q, norm = _gram_table(words)
        number_Q = np.array([word[0].isdigit() for word in words], np.bool_)
        return cls(words, utf8, offset_Q1, _least_bytes(words), table_B, size_Q, norm, number_Q)


def _text_match(typed: _Typed, texts: PreparedTexts, row_N: NDArray[np.int64]) -> NDArray[np.float32]:
    match_NF = np.zeros((len(row_N), len(TEXT_MATCH)), np.float32)
    word_M, offset_N1 = texts.words(row_N)
    if not typed.words or not len(word_M):
        return match_NF
    used_U, use_M = _distinct(word_M)
    used_utf8, used_offset_U1 = texts.vocabulary.ids.utf8(used_U)
    exact_U, prefix_U = _same_words(typed.utf8, typed.offset_Q1, typed.least_Q, used_utf8, used_offset_U1)
    dice_UQ, shared_U = _shared_trigrams(typed.table_B, typed.size_Q, taken(texts.gram_WG, used_U))
    id_Q = texts.vocabulary.rows_of(typed.words)
    idf_Q = np.where(id_Q >= 0, texts.idf_W[id_Q], texts.unseen).astype(np.float64)
    _matched(
        (offset_N1, use_M, texts.head_I[row_N], texts.norm_I[row_N]),
        (exact_U, prefix_U, dice_UQ, shared_U, texts.idf_W[used_U]),
        (idf_Q, typed.number_Q, typed.norm),
        texts.mean_length,
        match_NF,
    )
    return match_NF


def _least_bytes(typed: Sequence[str]) -> NDArray[np.int64]:
    """Bytes that a prefix of each word has at least; more than any word has where only the whole word will do."""
    whole = np.iinfo(np.int64).max
    return np.array(
        [whole if word[0].isdigit() or len(word) < _PREFIX else len(word[:_PREFIX].encode()) for word in typed],
        np.int64,
    )


def _gram_table(typed: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64], float]:
    """The words that have each trigram as bits, how many trigrams each word has, and the norm of all their counts."""
    table_B = np.zeros(BUCKETS, np.uint32)
    grams_Q = [trigrams(word) for word in typed]
    for q, grams in enumerate(grams_Q):
        table_B[grams] |= np.uint32(1 << q)
    times = Counter(gram for grams in grams_Q for gram in grams)
    return table_B, np.array([len(grams) for grams in grams_Q]), math.sqrt(sum(n * n for n in times.values()))


@_compiled
def _distinct(word_M):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Distinct words in the order in which they appear, (U,), and which of them each is, (M,)."""
    size = 1
    while size < 2 * len(word_M):
        size *= 2
    place = np.full(size, -1, np.int32)
    used_U, use_M, count = np.empty(len(word_M), np.int64), np.empty(len(word_M), np.int32), 0
    for m in range(len(word_M)):
        at = (np.int64(word_M[m]) * 2654435761) & (size - 1)
        while place[at] >= 0 and used_U[place[at]] != word_M[m]:
            at = (at + 1) & (size - 1)
        if place[at] < 0:
            place[at], used_U[count] = count, word_M[m]
            count += 1
        use_M[m] = place[at]
    return used_U[:count], use_M


@_compiled
def _same_words(  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    typed_utf8, typed_offset_Q1, least_Q, used_utf8, used_offset_U1
):
    """Typed words as bits that each word equals, (U,), and that it equals up to a prefix, (U,)."""
    exact_U = np.zeros(len(used_offset_U1) - 1, np.int64)
    prefix_U = np.zeros(len(used_offset_U1) - 1, np.int64)
    for u in range(len(exact_U)):
        length_u = used_offset_U1[u + 1] - used_offset_U1[u]
        for q in range(len(least_Q)):
            length_q = typed_offset_Q1[q + 1] - typed_offset_Q1[q]
            short = min(length_u, length_q)
            if length_u != length_q and short < least_Q[q]:
                continue
            at = 0
            while at < short and used_utf8[used_offset_U1[u] + at] == typed_utf8[typed_offset_Q1[q] + at]:
                at += 1
            if at == short:
                prefix_U[u] |= 1 << q
                if length_u == length_q:
                    exact_U[u] |= 1 << q
    return exact_U, prefix_U


@_compiled
def _shared_trigrams(table_B, size_Q, gram_UG):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Dice coefficient of the trigrams of each word and each typed one, (U, Q), and how many all of these share."""
    dice_UQ = np.zeros((len(gram_UG), len(size_Q)), np.float32)
    shared_U = np.zeros(len(gram_UG), np.int64)
    for u in range(len(gram_UG)):
        size = 0
        for gram in gram_UG[u]:
            if gram == 0:
                break
            size += 1
            bits = table_B[gram]
            q = 0
            while bits:
                if bits & 1:
                    dice_UQ[u, q] += 1
                    shared_U[u] += 1
                bits >>= 1
                q += 1
        for q in range(len(size_Q)):
            dice_UQ[u, q] = 2 * dice_UQ[u, q] / (size + size_Q[q])
    return dice_UQ, shared_U


@_compiled
def _matched(texts, words, typed, mean_length, match_NF):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Fill `match_NF`, whose columns are `TEXT_MATCH`."""
    offset_N1, use_M, head_N, norm_N = texts
    exact_U, prefix_U, dice_UQ, shared_U, idf_U = words
    idf_Q, number_Q, query_norm = typed
    count, numbers = len(idf_Q), number_Q.sum()
    times_Q, near_Q = np.empty(count, np.int64), np.empty(count)
    idf_total = idf_Q.sum()
    for n in range(len(match_NF)):
        length = offset_N1[n + 1] - offset_N1[n]
        if length == 0:
            continue
        times_Q[:], near_Q[:] = 0, 0
        prefixed = run = neighbours = before = shared = phrase = 0
        idf_text = idf_typed = nearest = last_position = 0.0
        for at in range(length):
            u = use_M[offset_N1[n] + at]
            exact = exact_U[u]
            prefixed |= prefix_U[u]
            run = ((run << 1) | 1) & exact
            phrase |= (run >> (count - 1)) & 1
            neighbours |= (before << 1) & exact
            before = exact
            shared += shared_U[u]
            idf_text += idf_U[u]
            if exact:
                idf_typed += idf_U[u]
            for q in range(count):
                times_Q[q] += (exact >> q) & 1
                near_Q[q] = max(near_Q[q], dice_UQ[u, q])
            near = _near(prefix_U, dice_UQ, u, count - 1)
            if near > nearest:
                nearest, last_position = near, (at + 1) / length
        bm25 = overlap = prefix = fuzzy = head = 0.0
        found = numbers_found = adjacent = 0
        saturation = _K1 * (1 - _B + _B * length / mean_length)
        for q in range(count):
            has = times_Q[q] > 0
            found += has
            numbers_found += has and number_Q[q]
            adjacent += (neighbours >> q) & 1
            bm25 += idf_Q[q] * times_Q[q] * (_K1 + 1) / (times_Q[q] + saturation)
            overlap += idf_Q[q] * has
            prefix += idf_Q[q] * ((prefixed >> q) & 1)
            fuzzy += idf_Q[q] * near_Q[q]
            head = max(head, _near(prefix_U, dice_UQ, use_M[offset_N1[n] + head_N[n]], q))
        columns = (
            bm25,
            found / count,
            overlap / idf_total,
            idf_typed / max(idf_text, 1e-9),
            float(phrase),
            adjacent / max(count - 1, 1),
            prefix / idf_total,
            fuzzy / idf_total,
            float((prefixed >> (count - 1)) & 1),
            last_position,
            head,
            numbers_found / numbers if numbers > 0 else 1.0,
            shared / max(query_norm * norm_N[n], 1e-9),
            min(length, count) / max(length, count),
        )
        for column in range(len(columns)):
            match_NF[n, column] = columns[column]


@_compiled
def _near(prefix_U, dice_UQ, u, q):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    return 1.0 if (prefix_U[u] >> q) & 1 else dice_UQ[u, q]
