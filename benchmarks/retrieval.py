"""What a CPU-second of training buys: our towers beside what one would install or write instead.

All learn from the same pairs, are asked for the same users, may not name what a user took in training, and are judged
by the same code (`training.evaluation.topk`), in one run. A time is the CPU-seconds, of all threads, to learn and to
rank for every user. Where `CASCADE_DATA` names a folder that holds gowalla its LightGCN split is used, else groups of
simulated users who take what their group takes.

Shape letters: T pairs of training, U users asked for, I items, K places, D width, B a batch.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.harness import Bench, main
from training.evaluation import retrieval
from training.evaluation.interactions import Pairs, Split, read_split
from training.evaluation.topk import difference, hits, mean, ndcg, recall, top_k

_K = 20
_SEED = 0
Made = TypeVar("Made")
Peer = Callable[[Pairs], NDArray[np.int64]]
"""Learns from pairs and ranks (U, K)."""


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    data, pairs = task(quick=bench.quick)
    few = {"epochs": 3, "batch": 256} if bench.quick else {}
    (ours_UK, vector_ID), ours_s = timed(lambda: retrieval.rank(pairs, **defaults() | few))
    for name, (peer, how) in peers(bench, dim=int(defaults()["dim"])).items():
        peer_UK, peer_s = timed(partial(peer, pairs))
        bench.pair(
            f"{data}: learn, rank {len(pairs.asked_U):,} x {len(pairs.items):,}",
            np.array([ours_s]),
            np.array([peer_s]),
            peer_name=name,
            unit="s",
            note=f"{compared(pairs, ours_UK, peer_UK)}; ours {vector_ID.shape[1]} dimensions, peer {how}",
        )


def task(*, quick: bool) -> tuple[str, Pairs]:
    """A name and pairs."""
    folder = Path(os.environ.get("CASCADE_DATA", "")) / "gowalla"
    if not quick and "CASCADE_DATA" in os.environ and folder.is_dir():
        split = read_split(folder / "train.parquet", folder / "test.parquet", None, split="time", test_share=0.1)
        return "Gowalla", Pairs.of(split)
    users, items, groups = (300, 400, 20) if quick else (10_000, 8_000, 200)
    random = np.random.default_rng(_SEED)
    taken = {"user": np.repeat(np.arange(users), 24)}
    group_T = np.repeat(random.integers(groups, size=users), 24)
    own_T = group_T + groups * random.integers(items // groups, size=len(group_T))
    popular_T = np.minimum(random.zipf(1.5, len(group_T)), items) - 1
    taken["item"] = np.where(random.random(len(group_T)) < 0.7, own_T, popular_T)
    frame = pl.DataFrame(taken).unique(maintain_order=True)
    last = pl.int_range(pl.len()).over("user") >= 0.8 * pl.len().over("user")
    return "simulated groups", Pairs.of(Split(frame.filter(~last), frame.filter(last)))


def defaults() -> dict[str, Any]:
    """What `cascade evaluate retrieval` trains with, where it is told nothing."""
    declared = signature(retrieval.evaluate).parameters
    return {name: declared[name].default for name in signature(retrieval.rank).parameters if name in declared}


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    """What was made and the CPU-seconds that it took."""
    started_s = time.process_time()
    made = work()
    return made, time.process_time() - started_s


def compared(pairs: Pairs, ours_UK: NDArray[np.int64], peer_UK: NDArray[np.int64]) -> str:
    """Recall and NDCG of both, and the 95% intervals of their differences over users."""
    size_U = pairs.relevant.size_B
    shown = []
    for name, metric in (("recall", recall), ("ndcg", ndcg)):
        our_U, peer_U = (metric(hits(ranked_UK, pairs.relevant), size_U) for ranked_UK in (ours_UK, peer_UK))
        apart = difference(our_U, peer_U, seed=_SEED)
        shown.append(
            f"{name}@{_K} {mean(our_U):.4f}, peer {mean(peer_U):.4f}, {apart.low:+.4f} to {apart.high:+.4f} apart"
        )
    return "; ".join(shown)


def peers(bench: Bench, *, dim: int) -> dict[str, tuple[Peer, str]]:
    """Who else there is, each with how it was set up."""
    epochs, batch = (3, 256) if bench.quick else (15, 2048)
    found: dict[str, tuple[Peer, str]] = {
        "popularity": (popular, "the same for all"),
        "plain torch two-tower": (
            lambda pairs: two_tower(pairs, dim=dim, epochs=epochs, batch=batch),
            f"{dim} dimensions, {epochs} epochs, in-batch softmax, Adam",
        ),
    }
    if bench.installed("implicit"):
        rounds = 3 if bench.quick else 15
        found["implicit item-to-item"] = (item_to_item, "TF-IDF, the 100 nearest")
        found["implicit ALS"] = (
            lambda pairs: factors(pairs, "als", factors=dim, alpha=10.0, iterations=rounds),
            f"{dim} dimensions, alpha 10, {rounds} iterations",
        )
        found["implicit BPR"] = (
            lambda pairs: factors(pairs, "bpr", factors=dim, learning_rate=0.05, iterations=7 * rounds),
            f"{dim} dimensions, learning rate 0.05, {7 * rounds} iterations",
        )
    return found


def popular(pairs: Pairs) -> NDArray[np.int64]:
    """Everyone is shown what most took."""
    count_I = np.bincount(pairs.train_item_T, minlength=len(pairs.items)).astype(np.float32)
    return top_k(np.ones((len(pairs.asked_U), 1), np.float32), count_I[:, None], _K, masked=pairs.masked)


def two_tower(pairs: Pairs, *, dim: int, epochs: int, batch: int) -> NDArray[np.int64]:
    """The model one would write first: two embeddings, cosine, the batch's other items as negatives."""
    torch.manual_seed(_SEED)
    user, item = torch.nn.Embedding(len(pairs.users), dim), torch.nn.Embedding(len(pairs.items), dim)
    for table in (user, item):
        torch.nn.init.normal_(table.weight, std=0.1)
    optimiser = torch.optim.Adam([*user.parameters(), *item.parameters()], lr=4e-3)
    user_T, item_T = torch.tensor(pairs.train_user_T), torch.tensor(pairs.train_item_T)
    for _ in range(epochs):
        for row_B in torch.randperm(len(user_T)).split(batch):  # type: ignore[no-untyped-call]
            user_BD, item_BD = functional.normalize(user(user_T[row_B])), functional.normalize(item(item_T[row_B]))
            loss = functional.cross_entropy(user_BD @ item_BD.T / 0.1, torch.arange(len(row_B)))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        asked_UD = functional.normalize(user.weight[torch.tensor(pairs.asked_U)]).numpy()
        return top_k(asked_UD, functional.normalize(item.weight).numpy(), _K, masked=pairs.masked)


def factors(pairs: Pairs, kind: str, **options: float) -> NDArray[np.int64]:
    """Matrix factorisation by `implicit`, ranked with our code."""
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking

    made = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}[kind]
    model = made(**options, num_threads=1, random_state=_SEED)
    model.fit(_matrix(pairs), show_progress=False)
    return top_k(model.user_factors[pairs.asked_U], model.item_factors, _K, masked=pairs.masked)


def item_to_item(pairs: Pairs) -> NDArray[np.int64]:
    """Neighbours of what the user took, by `implicit`, which ranks by itself."""
    from implicit.nearest_neighbours import TFIDFRecommender

    model = TFIDFRecommender(K=100, num_threads=1)
    taken_UI = _matrix(pairs)
    model.fit(taken_UI, show_progress=False)
    ranked_UK, score_UK = model.recommend(pairs.asked_U, taken_UI[pairs.asked_U], N=_K, filter_already_liked_items=True)
    return np.where(score_UK > 0, ranked_UK, -1).astype(np.int64)


def _matrix(pairs: Pairs) -> Any:
    from scipy.sparse import csr_matrix

    shape = len(pairs.users), len(pairs.items)
    return csr_matrix((np.ones(len(pairs.train_user_T), np.float32), (pairs.train_user_T, pairs.train_item_T)), shape)


if __name__ == "__main__":
    main("retrieval", measure, "quality for CPU-seconds, beside implicit, item-to-item, popularity and plain torch")
