"""A run of search over judged queries: its figures query by query, its lists, and how it compares with another run.

Shape letters: N judgments, Q queries, I titles, K places.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranking.metrics import ndcg_of_groups
from training.datasets.dataset import DataError
from training.durable import appearing
from training.evaluation.judged_texts import JudgedTexts
from training.evaluation.topk import ItemSets, difference, hits, interval, mean, mrr, recall

FIGURES = ("ndcg@10", "recall@100", "mrr", "map")
"""Columns of the table of queries; NaN where undefined. Those of BM25 have `.bm25` behind them."""
SHOWN = 10
_QUERIES, _RESULTS = "queries.parquet", "results.parquet"


@dataclass(frozen=True, slots=True)
class SearchRun:
    """Of one way to search."""

    queries: pl.DataFrame
    """A row for each query: `query` and its figures."""
    results: pl.DataFrame
    """`query`, `place` from 1, `item`, `title` and `relevance` (null where nobody judged) of the first places."""
    counts: Mapping[str, float]
    """What else is told beside the figures' means."""

    @classmethod
    def of(
        cls,
        judged: JudgedTexts,
        fold_Q: NDArray[np.int64],
        *,
        ranked_QK: NDArray[np.int64],
        score_N: NDArray[np.float32],
        bm25_ranked_QK: NDArray[np.int64],
        bm25_score_N: NDArray[np.float32],
    ) -> Self:
        """
        Args:
            ranked_QK: titles as they were found among all, -1 where there is none.
            score_N: by which the judged titles are ranked.
        """
        columns: dict[str, NDArray[np.float64]] = {}
        relevant, unseen = _relevant(judged), _unseen(judged, fold_Q)
        for suffix, row_QK, ordered_N in (("", ranked_QK, score_N), (".bm25", bm25_ranked_QK, bm25_score_N)):
            columns[f"ndcg@10{suffix}"] = _ndcg(judged, ordered_N)
            for name, figure_Q in retrieval_figures(row_QK, relevant).items():
                columns[name + suffix] = figure_Q
        columns["ndcg@10.random"] = _ndcg(judged, np.zeros(len(score_N), np.float32))
        for suffix, row_QK in (("", ranked_QK), (".bm25", bm25_ranked_QK)):
            columns[f"recall@100.unseen{suffix}"] = recall(hits(row_QK[:, :100], unseen), unseen.size_B)
        order_N = np.lexsort((-score_N, judged.query_N))
        results = pl.DataFrame(
            {
                "query": np.array(judged.text_Q, object)[judged.query_N[order_N]],
                "place": np.arange(len(order_N)) - judged.start_Q1[judged.query_N[order_N]] + 1,
                "item": judged.item_N[order_N].astype(str),
                "title": np.array(judged.title_I, object)[judged.item_N[order_N]],
                "relevance": judged.relevance_N[order_N],
            },
            schema_overrides={"query": pl.Utf8, "title": pl.Utf8},
        )
        decided = int(judged.decided_Q.sum())
        return cls(
            pl.DataFrame({"query": judged.text_Q, **columns}),
            results.filter(pl.col("place") <= SHOWN),
            {
                "queries": float(decided),
                "queries.undecided": float(len(judged.text_Q) - decided),
                "queries.recall": float((~np.isnan(columns["recall@100"])).sum()),
                "titles": float(len(judged.title_I)),
                "rows": float(len(judged.item_N)),
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """
        Raises:
            DataError: where the folder holds no run.
        """
        try:
            return cls(pl.read_parquet(folder / _QUERIES), pl.read_parquet(folder / _RESULTS), {})
        except (OSError, pl.exceptions.PolarsError) as error:
            told = " ".join(str(error).split())
            raise DataError(f"{folder} holds no run of `evaluate search out={folder}`: {told}") from error

    def write(self, folder: Path) -> None:
        """Write the tables, each whole or not at all."""
        for name, frame in ((_QUERIES, self.queries), (_RESULTS, self.results)):
            with appearing(folder / name) as draft:
                frame.write_parquet(draft)

    def metrics(self, before: "SearchRun | None" = None, *, seed: int) -> dict[str, float]:
        """Means over the queries that each figure is defined for, with intervals, beside BM25 and an earlier run."""
        found: dict[str, float] = {}
        for name in self.queries.columns[1:]:
            figure_Q = self.queries[name].to_numpy()
            found[name] = mean(figure_Q)
            if name in FIGURES:
                found[f"{name}.low"], found[f"{name}.high"] = interval(figure_Q, seed=seed)
            if f"{name}.bm25" in self.queries.columns and name in FIGURES:
                found |= _differing(f"{name}.gain", figure_Q, self.queries[f"{name}.bm25"].to_numpy(), seed=seed)
        if before is not None:
            both = self.beside(before)
            for name in FIGURES:
                if name in both.columns and f"{name}.before" in both.columns:
                    found |= _differing(
                        f"{name}.against", both[name].to_numpy(), both[f"{name}.before"].to_numpy(), seed=seed
                    )
            found["queries.against"] = float(both.height)
        return found | dict(self.counts)

    def beside(self, before: "SearchRun") -> pl.DataFrame:
        """The queries that both runs have; the other's figures are called `.before`.

        Raises:
            DataError: where there is none.
        """
        both = self.queries.join(before.queries, "query", suffix=".before", maintain_order="left")
        if not both.height:
            raise DataError(
                f"none of the {self.queries.height} queries is one of the {before.queries.height} to compare with"
            )
        return both

    def worst(self, name: str = "ndcg@10", *, most: int = 20) -> pl.DataFrame:
        """The queries with the least of a figure, of equal ones the first in the alphabet."""
        return self.queries.filter(pl.col(name).is_not_nan()).sort(name, "query").head(most)


def _relevant(judged: JudgedTexts) -> ItemSets:
    kept_N = judged.relevant_N
    return ItemSets.of(judged.query_N[kept_N], judged.item_N[kept_N], queries=len(judged.text_Q))


def retrieval_figures(ranked_QK: NDArray[np.int64], relevant: ItemSets) -> dict[str, NDArray[np.float64]]:
    """`recall@100`, `mrr` and `map` of rankings, by query; NaN where nothing is relevant."""
    hit_QK = hits(ranked_QK, relevant)
    return {
        "recall@100": recall(hit_QK[:, :100], relevant.size_B),
        "mrr": mrr(hit_QK, relevant.size_B),
        "map": average_precision(hit_QK, relevant.size_B),
    }


def average_precision(hit_QK: NDArray[np.bool_], relevant_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the precision at each relevant place, over the number of relevant items, found or not; by query."""
    precision_QK = np.cumsum(hit_QK, axis=1) / np.arange(1, hit_QK.shape[1] + 1)
    figure_Q = np.full(len(hit_QK), math.nan)
    np.divide((precision_QK * hit_QK).sum(axis=1), relevant_Q, out=figure_Q, where=relevant_Q > 0)
    return figure_Q


def _differing(name: str, one_Q: NDArray[np.float64], other_Q: NDArray[np.float64], *, seed: int) -> dict[str, float]:
    found = difference(one_Q, other_Q, seed=seed)
    return {name: found.mean, f"{name}.low": found.low, f"{name}.high": found.high, f"{name}.p": found.p}


def _ndcg(judged: JudgedTexts, score_N: NDArray[np.float32]) -> NDArray[np.float64]:
    """NaN where the judged titles of a query do not differ."""
    ndcg_Q = ndcg_of_groups(10, np.exp2(judged.relevance_N) - 1, score_N, judged.query_N)
    return np.where(judged.decided_Q, ndcg_Q, math.nan)


def _unseen(judged: JudgedTexts, fold_Q: NDArray[np.int64]) -> ItemSets:
    """Relevant titles that no query of another fold is judged with."""
    width = len(judged.title_I)
    pair_U = np.unique(fold_Q[judged.query_N] * width + judged.item_N)
    folds_I = np.bincount(pair_U % width, minlength=width)
    kept_N = judged.relevant_N & (folds_I[judged.item_N] == 1)
    return ItemSets.of(judged.query_N[kept_N], judged.item_N[kept_N], queries=len(judged.text_Q))
