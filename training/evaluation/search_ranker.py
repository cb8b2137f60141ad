"""A re-ranker of judged titles, always scoring queries that it has not seen.

Shape letters: N judgments (rows, those of a query side by side), Q queries, F features, B rows of a batch.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ranking.losses import listwise_loss

_EPOCHS = 12
_QUERIES = 256
_HIDDEN = 64
_LEARNING_RATE = 3e-3


def folded(decided_Q: NDArray[np.bool_], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each query. Those that count are dealt out apart, so that every fold has its share of them."""
    fold_Q = np.empty(len(decided_Q), np.int64)
    random = np.random.default_rng(seed)
    for part_Q in (decided_Q, ~decided_Q):
        fold_Q[part_Q] = random.permutation(int(part_Q.sum())) % folds
    return fold_Q


def out_of_fold(
    feature_NF: NDArray[np.float32],
    relevance_N: NDArray[np.float64],
    query_N: NDArray[np.int64],
    decided_Q: NDArray[np.bool_],
    fold_Q: NDArray[np.int64],
    *,
    members: int,
    seed: int,
) -> NDArray[np.float32]:
    """Scores of every row by rankers that did not see its query; determined by the seed.

    Args:
        members: rankers of different seeds whose scores are added up.
    """
    folds = int(fold_Q.max()) + 1
    score_N = np.zeros(len(feature_NF), np.float32)
    for fold in range(folds):
        held_out_N = fold_Q[query_N] == fold
        seen_N = ~held_out_N & decided_Q[query_N]
        mean_F = feature_NF[seen_N].mean(axis=0)
        deviation_F = np.maximum(feature_NF[seen_N].std(axis=0), 1e-6)
        standard_NF = (feature_NF - mean_F) / deviation_F
        for member in range(members):
            ranker = _trained(
                standard_NF[seen_N], query_N[seen_N], relevance_N[seen_N], seed=(seed * folds + fold) * members + member
            )
            with torch.inference_mode():
                score_N[held_out_N] += ranker(torch.from_numpy(standard_NF[held_out_N])).squeeze(1).numpy()
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
