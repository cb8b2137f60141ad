"""Reads judged queries with the texts that were judged, from whichever files hold them.

Shape letters: N judgments (rows, those of a query side by side), Q queries, I distinct texts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.evaluation.interactions import numbered, read_columns

RELEVANT = 0.66
"""Share of the scale from which a title counts as one to be found: two thirds, less the rounding of 2.33 on 1..3."""
_WIDEST = 100


@dataclass(frozen=True, slots=True)
class JudgedTexts:
    """Who said how relevant which title is."""

    text_Q: list[str]
    title_I: list[str]
    description_I: list[str] | None
    query_N: NDArray[np.int64]
    """Positions in `text_Q`, rising."""
    item_N: NDArray[np.int64]
    relevance_N: NDArray[np.float64]
    """From 0, which is the lowest grade in the file, or that of what nobody judged."""

    @property
    def start_Q1(self) -> NDArray[np.int64]:
        """Where each query's rows start, and their number at the end."""
        return np.searchsorted(self.query_N, np.arange(len(self.text_Q) + 1))

    @property
    def relevant_N(self) -> NDArray[np.bool_]:
        """Rows that are to be found."""
        relevant_N: NDArray[np.bool_] = self.relevance_N >= RELEVANT * self.relevance_N.max()
        return relevant_N

    @property
    def decided_Q(self) -> NDArray[np.bool_]:
        """Queries for which the order of their judged titles matters."""
        start_Q = self.start_Q1[:-1]
        return np.greater(
            np.maximum.reduceat(self.relevance_N, start_Q), np.minimum.reduceat(self.relevance_N, start_Q)
        )


def read_pairs(path: Path, *, query: str, title: str, relevance: str, description: str, item_id: str) -> JudgedTexts:
    """A file with a row for each judged pair of query and title, texts and all; see `search.evaluate`."""
    columns = dict.fromkeys(name for name in (query, title, relevance, description, item_id) if name)
    frame = read_columns(path, tuple(columns))
    grade_N = _grades(path, frame[relevance])
    if grade_N.min() == grade_N.max():
        raise ValueError(
            f"{path}: column {relevance!r} holds {grade_N[0]:g} in all of {len(frame)} rows; nothing to rank"
        )
    text_Q, (query_N,) = numbered(frame[query])
    _, (item_N,) = numbered(frame[item_id or title])
    _, first_I = np.unique(item_N, return_index=True)
    order_N = np.argsort(query_N, kind="stable")

    def of_items(column: str) -> list[str]:
        return frame[column].cast(pl.Utf8)[first_I].to_list()

    return JudgedTexts(
        list(text_Q),
        of_items(title),
        of_items(description) if description else None,
        query_N[order_N],
        item_N[order_N],
        (grade_N - grade_N.min())[order_N],
    )


def read_collection(documents: Path, queries: Path, qrels: Path) -> JudgedTexts:
    """Documents (`doc_id`, `text`), queries (`query_id`, `text`) and who judged what (`query_id`, `doc_id`, `rel`).

    What is not judged has grade 0, and so has what was judged to be worse. Queries without a judgment are left out.

    Raises:
        DataError: see `interactions.read_columns`.
        ValueError: where an id is not that of a document or a query, or nothing is relevant to anything.
    """
    document, typed = (
        read_columns(path, (name, "text")) for path, name in ((documents, "doc_id"), (queries, "query_id"))
    )
    rows = read_columns(qrels, ("query_id", "doc_id", "rel"))
    for path, frame, name in ((documents, document, "doc_id"), (queries, typed, "query_id")):
        strange = rows.filter(~pl.col(name).cast(pl.Utf8).is_in(frame[name].cast(pl.Utf8).implode()))
        if strange.height:
            raise ValueError(f"{qrels}: {strange.height} of {rows.height} rows have a {name} that {path} does not hold")
    grade_N = np.maximum(_grades(qrels, rows["rel"]), 0)
    if not grade_N.any():
        raise ValueError(f"{qrels}: column 'rel' is above 0 in none of {rows.height} rows; nothing is to be found")
    typed = typed.filter(pl.col("query_id").cast(pl.Utf8).is_in(rows["query_id"].cast(pl.Utf8).implode()))
    row_of_query = {str(each): row for row, each in enumerate(typed["query_id"])}
    row_of_document = {str(each): row for row, each in enumerate(document["doc_id"])}
    query_N = np.array([row_of_query[str(each)] for each in rows["query_id"]], np.int64)
    item_N = np.array([row_of_document[str(each)] for each in rows["doc_id"]], np.int64)
    order_N = np.argsort(query_N, kind="stable")
    return JudgedTexts(
        typed["text"].to_list(), document["text"].to_list(), None, query_N[order_N], item_N[order_N], grade_N[order_N]
    )


def _grades(path: Path, column: pl.Series) -> NDArray[np.float64]:
    name = column.name
    if not column.dtype.is_numeric():
        raise ValueError(f"{path}: column {name!r} is {column.dtype}; relevance must be numbers")
    grade_N = column.cast(pl.Float64).to_numpy()
    wrong = int((~np.isfinite(grade_N)).sum())
    if wrong:
        raise ValueError(f"{path}: column {name!r} holds {wrong} values in {len(column)} rows that are not finite")
    if np.ptp(grade_N) > _WIDEST:
        raise ValueError(
            f"{path}: column {name!r} goes from {grade_N.min():g} to {grade_N.max():g}; for a gain of "
            f"2^relevance a scale may be {_WIDEST} wide at most"
        )
    return grade_N
