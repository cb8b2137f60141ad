"""Judgement lists as a ranker learns from them: queries that nobody in particular typed, each with its judged items.

Shape letters: N judged pairs, Q queries, I items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, query_rows
from index.lexical import LexicalIndex
from index.strings import keys64
from ranking.metrics import ndcg_at
from training.datasets.dataset import DataError, searchable
from training.datasets.judgments import read_judgments, relevance
from training.examples.events import numbered
from training.examples.exposures import Examples, bm25_of, matches_of, pairs_not_retrieved

CUTOFF = 10
_SURFACE = "search"
_HELD_OUT = 10
"""Of so many queries one is kept to measure by."""


@dataclass(frozen=True, slots=True)
class JudgedSettings:
    """Which judgement list the ranker learns from beside the log."""

    judgments: str | None = None
    """Path of a judgement list, see `training.datasets.judgments`; null: it learns from the log alone."""
    weight: float = 1.0
    """Of the lists' loss beside that of the log; 0 only measures."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must not be negative")


@dataclass(frozen=True, slots=True)
class JudgedLists:
    """Judged items by query. Lists in which all are alike are not among them, for they say nothing of an order."""

    rows: Examples
    """Features as of the moment of training, and as label of the first action the share of its list's gain
    2^relevance - 1 that an item has."""
    relevance_N: NDArray[np.float64]
    """From 0, the lowest grade of all."""
    held_out_R: NDArray[np.bool_]
    """Queries that are not learned from, wherever they appear."""

    def __len__(self) -> int:
        return len(self.held_out_R)

    def part(self, *, held_out: bool) -> "JudgedLists":
        """The queries that are held out, or the others."""
        kept_N = self.held_out_R[self.rows.request_N] == held_out
        kept_R = self.held_out_R[self.held_out_R == held_out]
        return JudgedLists(self.rows.take(kept_N), self.relevance_N[kept_N], kept_R)

    def figures(self, score_N: NDArray[np.floating]) -> dict[str, float]:
        """How well scores order the lists, by name."""
        ndcg = ndcg_at(CUTOFF, np.exp2(self.relevance_N) - 1, score_N, self.rows.request_N)
        return {f"judged.ndcg@{CUTOFF}": ndcg.mean, "judged.queries": float(len(self))}


def judged_lists(
    table: FeatureTable,
    *,
    path: Path,
    items: pl.DataFrame,
    item_row_I: np.ndarray,
    time_ms: int,
    boosts: Mapping[str, int],
) -> JudgedLists:
    """Lists of a file, of the items that the catalogue holds.

    As in a log without retrieval, sources gave no ranks and the towers no product: a list says nothing of those.

    Args:
        item_row_I: records of the items.
        time_ms: when the queries are taken to be asked.
        boosts: of every field that search reads.

    Raises:
        DataError: see `read_judgments`; and where no query has two judged items that the catalogue holds, one better
            than the other.
    """
    pairs = relevance(read_judgments(path)).join(numbered(items["item_id"], "item", "row"), on="item")
    decided = (pl.col("relevance").max() > pl.col("relevance").min()).over("query")
    pairs = pairs.filter(decided).sort("query", "item")
    if pairs.is_empty():
        raise DataError(f"{path}: no query has two judged items of the catalogue, one of them better than the other")
    texts = pairs["query"].unique(maintain_order=True).to_list()
    query_N = pairs["query"].rle_id().to_numpy().astype(np.int64)
    item_N, relevance_N = pairs["row"].to_numpy(), pairs["relevance"].to_numpy()
    query_row_Q = query_rows(
        table,
        item_row_I,
        user_ids=[""] * len(texts),
        profile_B=table.stranger.repeat(len(texts)),
        surfaces=[_SURFACE] * len(texts),
        texts=texts,
        time_ms_B=np.full(len(texts), time_ms),
        history_row_BL=np.empty((len(texts), 0), np.int64),
        history_action_BL=np.empty((len(texts), 0), np.int32),
        history_time_ms_BL=np.empty((len(texts), 0), np.int64),
    )
    with TemporaryDirectory(prefix="cascade-lexical-") as folder:
        lexical = LexicalIndex.build(Path(folder) / "lexical", searchable(items, boosts), boosts=boosts)
    pair_row_N = pairs_not_retrieved(
        table,
        query_row_Q,
        query_N,
        item_row_I[item_N],
        time_ms - items["published_ms"].to_numpy()[item_N],
        match_NF=matches_of(items, texts, query_N, item_N, built_ms=time_ms),
        bm25_N=bm25_of(lexical, texts, query_N, item_N, items=items.height),
    )
    gain_N = np.exp2(relevance_N) - 1
    label_NA = np.zeros((len(query_N), len(table.actions)), np.float32)
    label_NA[:, 0] = gain_N / np.bincount(query_N, gain_N)[query_N]
    rows = Examples(
        query_row_Q,
        np.full(len(texts), time_ms),
        query_N,
        item_row_I[item_N],
        pair_row_N,
        np.zeros(len(query_N), np.int32),
        np.ones(len(query_N)),
        label_NA,
    )
    return JudgedLists(rows, relevance_N, keys64(texts) % np.uint64(_HELD_OUT) == 0)
