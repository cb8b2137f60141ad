"""Search on judged pairs of query and title: how well the judged titles of a query are re-ranked, and found.

Shape letters: N judgments (rows, those of a query side by side), Q queries, I distinct titles, F features, K results.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from candidate_gen.text_match import TitleStats, text_match
from index.lexical import LexicalIndex
from ranking.losses import listwise_loss
from ranking.metrics import ndcg_at
from training.evaluation.interactions import numbered, read_columns

RELEVANT = 0.66
"""Share of the scale from which a title counts as one to be found: two thirds, less the rounding of 2.33 on 1..3."""

_WIDEST = 100
_DEPTH = 5000
_EPOCHS = 12
_QUERIES = 256
_HIDDEN = 64
_LEARNING_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class Judgments:
    """Who said how relevant which title is."""

    text_Q: list[str]
    title_I: list[str]
    description_I: list[str] | None
    query_N: NDArray[np.int64]
    """Positions in `text_Q`, rising."""
    item_N: NDArray[np.int64]
    relevance_N: NDArray[np.float64]
    """From 0, the lowest grade in the file."""

    @property
    def start_Q1(self) -> NDArray[np.int64]:
        """Where each query's rows start, and their number at the end."""
        return np.searchsorted(self.query_N, np.arange(len(self.text_Q) + 1))


def evaluate(
    judgments: Path,
    *,
    query: str,
    title: str,
    relevance: str,
    description: str = "",
    id: str = "",  # noqa: A002
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Cross-validate a re-ranker over queries, and measure what lexical retrieval finds among all titles.

    The re-ranker reads features of the texts alone (`text_match` and the lexical index's score) and is trained with a
    listwise loss on the queries of the other folds, so no judgment of a query helps to rank it. Document frequencies
    are of all titles.

    NDCG has the gain 2^relevance - 1, with relevance counted from the lowest grade in the file, and is the mean over
    the queries whose judged titles differ in relevance. For the others every order is equally good (an ideal gain of
    0 is among these cases), so they would only pull all rows of the table together. Titles with equal scores count
    as in random order, which for constant scores is the expectation of the random row.

    Recall is the share, averaged over queries, of a query's judged titles of at least `RELEVANT` of the scale that
    are among the first 100 of all distinct titles; queries without such a title are left out.

    Args:
        judgments: Parquet, a row for each judged pair of query and title.
        query: name of the column of what was typed.
        title: of the titles.
        relevance: of the grades, numbers of which more is better.
        description: of a longer text of the same item, which then has features of its own.
        id: of what tells items apart, whose first title and description count; without it, the title.

    Returns:
        `ndcg@10`, `ndcg@10.bm25`, `ndcg@10.random`, `recall@100`; `queries` in the mean of the NDCG,
        `queries.undecided` left out of it, `queries.recall` in the mean of the recall, `titles` and `rows`.

    Raises:
        ValueError: where the file lacks a column, holds nulls or is empty, where grades are not finite numbers, are
            all the same or span more than 100, and where there are fewer decided queries than folds.
    """
    judged = read_judgments(
        judgments, query=query, title=title, relevance=relevance, description=description, item_id=id
    )
    decided_Q = _decided(judged)
    decided = int(decided_Q.sum())
    if not 2 <= folds <= decided:
        raise ValueError(
            f"folds is {folds}; it must be at least 2 and at most the {decided} queries of {judgments} whose titles "
            "differ in relevance"
        )
    with TemporaryDirectory(prefix="cascade-search-") as folder:
        lexical = LexicalIndex.build(Path(folder) / "lexical", judged.title_I)
        bm25_N, recall_Q = _retrieved(judged, lexical, k=100)
    counted_N = decided_Q[judged.query_N]
    gain_N = np.exp2(judged.relevance_N) - 1

    def ndcg(score_N: NDArray[np.floating]) -> float:
        return ndcg_at(10, gain_N[counted_N], score_N[counted_N], judged.query_N[counted_N]).mean

    found_Q = ~np.isnan(recall_Q)
    score_N = _out_of_fold(judged, _features(judged, bm25_N), decided_Q, folds=folds, seed=seed)
    return {
        "ndcg@10": ndcg(score_N),
        "ndcg@10.bm25": ndcg(bm25_N),
        "ndcg@10.random": ndcg(np.zeros(len(gain_N))),
        "recall@100": float(recall_Q[found_Q].mean()) if found_Q.any() else math.nan,
        "queries": float(decided),
        "queries.undecided": float(len(decided_Q) - decided),
        "queries.recall": float(found_Q.sum()),
        "titles": float(len(judged.title_I)),
        "rows": float(len(gain_N)),
    }


def read_judgments(path: Path, *, query: str, title: str, relevance: str, description: str, item_id: str) -> Judgments:
    """The judgments of a file, rows of a query side by side; see `evaluate`."""
    columns = dict.fromkeys(name for name in (query, title, relevance, description, item_id) if name)
    frame = read_columns(path, tuple(columns))
    if not frame[relevance].dtype.is_numeric():
        raise ValueError(f"{path}: column {relevance!r} is {frame[relevance].dtype}; relevance must be numbers")
    grade_N = frame[relevance].cast(pl.Float64).to_numpy()
    wrong = int((~np.isfinite(grade_N)).sum())
    if wrong:
        raise ValueError(f"{path}: column {relevance!r} holds {wrong} values in {len(frame)} rows that are not finite")
    if np.ptp(grade_N) > _WIDEST:
        raise ValueError(
            f"{path}: column {relevance!r} goes from {grade_N.min():g} to {grade_N.max():g}; for a gain of "
            f"2^relevance a scale may be {_WIDEST} wide at most"
        )
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

    return Judgments(
        list(text_Q),
        of_items(title),
        of_items(description) if description else None,
        query_N[order_N],
        item_N[order_N],
        (grade_N - grade_N.min())[order_N],
    )


def _decided(judged: Judgments) -> NDArray[np.bool_]:
    """Queries for which the order of their titles matters."""
    start_Q = judged.start_Q1[:-1]
    relevance_N = judged.relevance_N
    return np.greater(np.maximum.reduceat(relevance_N, start_Q), np.minimum.reduceat(relevance_N, start_Q))


def _retrieved(judged: Judgments, lexical: LexicalIndex, *, k: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """BM25 of every row (0 behind the first 5,000 titles) and each query's recall@k, NaN without a relevant title."""
    start_Q1 = judged.start_Q1
    relevant_N = judged.relevance_N >= RELEVANT * judged.relevance_N.max()
    bm25_N = np.zeros(len(judged.query_N), np.float32)
    recall_Q = np.full(len(judged.text_Q), np.nan)
    score_I = np.zeros(len(judged.title_I), np.float32)
    rank_I = np.full(len(judged.title_I), _DEPTH)
    for q, text in enumerate(judged.text_Q):
        rows = slice(start_Q1[q], start_Q1[q + 1])
        hits = lexical.search(text, _DEPTH)
        score_I[hits.row_K], rank_I[hits.row_K] = hits.score_K, np.arange(len(hits))
        bm25_N[rows] = score_I[judged.item_N[rows]]
        if relevant_N[rows].any():
            recall_Q[q] = (rank_I[judged.item_N[rows]][relevant_N[rows]] < k).mean()
        score_I[hits.row_K], rank_I[hits.row_K] = 0, _DEPTH
    return bm25_N, recall_Q


def _features(judged: Judgments, bm25_N: NDArray[np.float32]) -> NDArray[np.float32]:
    start_Q1 = judged.start_Q1
    blocks = [np.log1p(bm25_N)[:, None]]
    for texts in (judged.title_I, judged.description_I):
        if texts is not None:
            stats = TitleStats.of(texts)
            matches = [
                text_match(text, stats, judged.item_N[start_Q1[q] : start_Q1[q + 1]])
                for q, text in enumerate(judged.text_Q)
            ]
            blocks.append(np.concatenate(matches))
    return np.concatenate(blocks, axis=1)


def _out_of_fold(
    judged: Judgments, feature_NF: NDArray[np.float32], decided_Q: NDArray[np.bool_], *, folds: int, seed: int
) -> NDArray[np.float32]:
    """Scores of every row by the re-ranker that did not see its query; determined by the seed."""
    fold_Q = np.empty(len(decided_Q), np.int64)
    random = np.random.default_rng(seed)
    # Dealt out apart, so that every fold has its share of the queries that count.
    for part_Q in (decided_Q, ~decided_Q):
        fold_Q[part_Q] = random.permutation(int(part_Q.sum())) % folds
    score_N = np.empty(len(feature_NF), np.float32)
    for fold in range(folds):
        held_out_N = fold_Q[judged.query_N] == fold
        seen_N = ~held_out_N & decided_Q[judged.query_N]
        mean_F = feature_NF[seen_N].mean(axis=0)
        deviation_F = np.maximum(feature_NF[seen_N].std(axis=0), 1e-6)
        standard_NF = (feature_NF - mean_F) / deviation_F
        ranker = _trained(
            standard_NF[seen_N], judged.query_N[seen_N], judged.relevance_N[seen_N], seed=seed * folds + fold
        )
        with torch.inference_mode():
            score_N[held_out_N] = ranker(torch.from_numpy(standard_NF[held_out_N])).squeeze(1).numpy()
    return score_N


def _trained(
    feature_NF: NDArray[np.float32], query_N: NDArray[np.int64], relevance_N: NDArray[np.float64], *, seed: int
) -> nn.Module:
    """A two-layer network whose softmax over a query's titles comes close to its shares of the gain."""
    _, query_N, count_Q = np.unique(query_N, return_inverse=True, return_counts=True)
    gain_N = np.exp2(relevance_N - relevance_N.max()) - np.exp2(-relevance_N.max())
    share_N = (gain_N / np.bincount(query_N, gain_N)[query_N]).astype(np.float32)
    start_Q = np.cumsum(count_Q) - count_Q
    feature, share = torch.from_numpy(feature_NF), torch.from_numpy(share_N)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = nn.Sequential(
            nn.Linear(feature.shape[1], _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, 1),
        )
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)
    steps = _EPOCHS * math.ceil(len(count_Q) / _QUERIES)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=max(steps, 10))
    for _ in range(_EPOCHS):
        order_Q = random.permutation(len(count_Q))
        for first in range(0, len(order_Q), _QUERIES):
            taken_Q = order_Q[first : first + _QUERIES]
            row_B = np.concatenate([np.arange(start_Q[q], start_Q[q] + count_Q[q]) for q in taken_Q])
            request_B = torch.from_numpy(np.repeat(np.arange(len(taken_Q)), count_Q[taken_Q]))
            rows = torch.from_numpy(row_B)
            logit_B: Tensor = ranker(feature[rows]).squeeze(1)
            loss = listwise_loss(logit_B, share[rows], request_B)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return ranker
