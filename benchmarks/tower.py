"""Steps of tower training: batches cut from tensors beside a PyTorch `DataLoader` that makes one example at a time.

The peer is the loop one would write first: a `Dataset` whose `__getitem__` reads one record, default collation, the
in-batch softmax over the same towers, AdamW as it comes. Both must go through the same losses before either is timed.

Shape letters: N examples, I items, B a batch, C columns of its softmax.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Bench, Side, main
from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable, RowKind, feature_table
from candidate_gen.towers import Towers, TowerShape
from training.tower import Batch, Batches, TowerSettings, TowerTraining

_SEED = 0
_CHECKED = 5
# Dropout would draw from torch's one random state, which a DataLoader draws from too.
_SHAPE = TowerShape(id_dropout=0.0)


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    examples, items, batch = (2000, 500, 256) if bench.quick else (50_000, 5000, 512)
    settings = TowerSettings(shape=_SHAPE, batch=batch)
    table = feature_table(
        users=examples // 20,
        items=items,
        actions=("click", "like"),
        categories=[f"c{number}" for number in range(20)],
        sources=("ann",),
        user_columns={},
        item_columns={},
    )
    random = np.random.default_rng(_SEED)
    query_row_N = random_rows(table, "query", examples, random)
    item_row_I = random_rows(table, "item", items, random)
    positive_N = np.minimum(random.zipf(1.3, examples) - 1, items - 1).astype(np.int64)
    data = (table, settings, query_row_N, item_row_I, positive_N)
    for step, (ours, plain) in enumerate(zip(our_steps(*data), plain_steps(*data), strict=False)):
        if not np.isclose(ours, plain, rtol=1e-3):
            raise AssertionError(f"after {step} steps the losses are {ours} and {plain}")
        if step == _CHECKED:
            break
    our_loss, plain_loss = our_steps(*data), plain_steps(*data)
    bench.compare(
        f"examples trained on, batches of {batch}",
        Side("training/tower.py", lambda: next(our_loss)),
        Side("DataLoader a row at a time", lambda: next(plain_loss)),
        unit="/s",
        per=batch,
        note=f"losses of {_CHECKED} steps equal",
    )


def our_steps(
    table: FeatureTable,
    settings: TowerSettings,
    query_row_N: np.ndarray,
    item_row_I: np.ndarray,
    positive_N: NDArray[np.int64],
) -> Iterator[float]:
    """Losses, one for each step, for ever."""
    train = Batch(
        tensors(query_row_N, table.of("query")),
        torch.from_numpy(positive_N),
        torch.ones(len(positive_N)),
        torch.zeros(settings.uniform_negatives, dtype=torch.int64),
    )
    towers = initial_towers(table, settings)
    training = TowerTraining(
        towers, settings, item=tensors(item_row_I, table.of("item")), train=train, held_out=train, seed=_SEED
    )
    optimizer = torch.optim.AdamW(towers.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    for epoch in count():
        for batch in Batches(train, size=settings.batch, items=len(item_row_I), seed=(_SEED, epoch)):
            yield _step(optimizer, training.loss(batch))


class RowDataset(Dataset[dict[str, Any]]):
    """One example at a time."""

    def __init__(self, query_row_N: np.ndarray, positive_N: NDArray[np.int64]) -> None:
        self._query_row_N = query_row_N
        self._positive_N = positive_N

    def __len__(self) -> int:
        return len(self._positive_N)

    def __getitem__(self, at: int) -> dict[str, Any]:
        record = self._query_row_N[at]
        query = {name: np.asarray(record[name]) for name in record.dtype.names}
        return {"query": query, "positive": self._positive_N[at]}


def plain_steps(
    table: FeatureTable,
    settings: TowerSettings,
    query_row_N: np.ndarray,
    item_row_I: np.ndarray,
    positive_N: NDArray[np.int64],
) -> Iterator[float]:
    """As `our_steps`."""
    towers = initial_towers(table, settings)
    items = tensors(item_row_I, table.of("item"))
    share_I = torch.bincount(torch.from_numpy(positive_N), minlength=len(item_row_I)) / len(positive_N)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    examples = RowDataset(query_row_N, positive_N)
    for epoch in count():
        random = np.random.default_rng((_SEED, epoch))
        order = random.permutation(len(examples)).tolist()
        for batch in DataLoader(examples, settings.batch, sampler=order, drop_last=True):
            uniform = torch.from_numpy(random.integers(len(item_row_I), size=settings.uniform_negatives))
            row_C = torch.cat([batch["positive"], uniform])
            others, extra = settings.batch - 1, settings.uniform_negatives
            q_C = (others * share_I[row_C] + extra / len(item_row_I)) / (others + extra)
            query_BD = towers.query_vectors(batch["query"])
            item_CD = towers.item_vectors({name: column[row_C] for name, column in items.items()})
            yield _step(optimizer, plain_loss(query_BD @ item_CD.T / settings.temperature, row_C, q_C))


def plain_loss(logit_BC: Tensor, row_C: Tensor, q_C: Tensor) -> Tensor:
    """Softmax over the batch's items, with the log-Q correction of all but the positive; see `sampled_softmax`."""
    rows, columns = logit_BC.shape
    own_BC = torch.eye(rows, columns, dtype=torch.bool)
    corrected_BC = torch.where(own_BC, logit_BC, logit_BC - torch.log((columns - 1) * q_C))
    hit_BC = (row_C[:rows, None] == row_C[None]) & ~own_BC
    return functional.cross_entropy(corrected_BC.masked_fill(hit_BC, -torch.inf), torch.arange(rows))


def initial_towers(table: FeatureTable, settings: TowerSettings) -> Towers:
    torch.manual_seed(_SEED)
    return Towers(table, settings.shape, temperature=settings.temperature).train()


def random_rows(table: FeatureTable, kind: RowKind, count: int, random: np.random.Generator) -> np.ndarray:
    """Records with ids and numbers at random."""
    rows = table.empty(kind, count)
    for feature in table.of(kind):
        shape = (count, *feature.shape)
        is_id = feature.kind == "id"
        rows[feature.name] = random.integers(0, feature.size, shape) if is_id else random.standard_normal(shape)
    return rows


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    main("tower", measure, "tower training, beside a DataLoader that makes one example at a time")
