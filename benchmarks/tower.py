"""Steps of tower training beside the loops one would write first; all go through nearly the same losses.

Exactly the same until a table is so large that ours moves only the rows that a step read.

- Ids alone, in-batch softmax, batches of 4096, two threads: beside plain autograd, which holds every logit in its
  graph, makes gradients of whole tables and steps with `torch.optim.Adam`, on batches that are cut as ours are. Where
  CASCADE_DATA names a folder that holds gowalla/ those are its pairs, else as many at random.
- Every kind of feature, batches of 512, one thread: beside a `Dataset` whose `__getitem__` reads one record.

Shape letters: N examples, I items, B a batch, C columns of its softmax.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Bench, Side, main
from candidate_gen.embedding import tensors
from candidate_gen.features import Feature, FeatureTable, RowKind, feature_table
from candidate_gen.towers import Towers, TowerShape
from training.learning.batches import Batches, Examples
from training.learning.tower import TowerSettings, TowerTraining, train_towers

_SEED = 0
_CHECKED = 5
_WIDTH = 64
_GOWALLA = (29_858, 40_981, 810_128)
"""Users, items, pairs."""

Loader = Callable[[NDArray[np.int64]], Iterator[tuple[dict[str, Tensor], Tensor]]]
"""Query columns and positives of the batches of an order of the examples."""


@dataclass(frozen=True, slots=True)
class Data:
    """What towers are trained on."""

    table: FeatureTable
    query_row_N: np.ndarray
    item_row_I: np.ndarray
    positive_N: NDArray[np.int64]


def measure(bench: Bench) -> None:
    ids(bench)
    features(bench)


def ids(bench: Bench) -> None:
    torch.set_num_threads(1 if bench.quick else 2)
    name, data = pairs(quick=bench.quick)
    batch = 512 if bench.quick else 4096
    shape = TowerShape(width=_WIDTH, embedding=_WIDTH, hidden=0, id_dropout=0.0)
    exact = TowerSettings(shape=shape, batch=batch, uniform_negatives=0, epochs=1, validation=0.0)
    settings = replace(exact, precision="bfloat16_loss")
    for each in (exact, settings):
        compare(
            bench,
            f"{name}: examples trained on, batches of {batch}, {each.precision}",
            our_steps(data, each),
            ("plain autograd and Adam", plain_steps(data, each, sliced(data, batch))),
            batch=batch,
        )
    batches = cut(data, settings)
    started_s = time.perf_counter()
    taken_s = np.diff([started_s, *(time.perf_counter() for _ in batches)])
    bench.record(f"{name}: a batch of {batch} cut", taken_s, unit="ms")
    with TemporaryDirectory() as folder:
        _, metrics = train_towers(
            data.table,
            data.item_row_I,
            data.query_row_N,
            data.positive_N,
            settings=settings,
            seed=_SEED,
            folder=Path(folder),
        )
    bench.record(
        f"{name}: a step of a whole fit, {settings.precision}",
        np.array([batch / metrics["examples_per_s"]]),
        unit="ms",
        note=f"{metrics['examples_per_s']:,.0f}/s",
    )


def features(bench: Bench) -> None:
    torch.set_num_threads(1)
    examples, items, batch = (2000, 500, 256) if bench.quick else (50_000, 5000, 512)
    # Dropout would draw from torch's one random state, which a DataLoader draws from too.
    settings = TowerSettings(shape=TowerShape(id_dropout=0.0), batch=batch)
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
    data = Data(
        table,
        random_rows(table, "query", examples, random),
        random_rows(table, "item", items, random),
        np.minimum(random.zipf(1.3, examples) - 1, items - 1).astype(np.int64),
    )
    compare(
        bench,
        f"examples trained on, batches of {batch}",
        our_steps(data, settings),
        ("DataLoader a row at a time", plain_steps(data, settings, row_by_row(data, batch))),
        batch=batch,
    )


def compare(bench: Bench, name: str, ours: Iterator[float], peer: tuple[str, Iterator[float]], *, batch: int) -> None:
    """Time steps of both, whose losses must stay alike."""
    peer_name, plain = peer
    first_B2 = np.array([(next(ours), next(plain)) for _ in range(_CHECKED)])
    if not np.allclose(first_B2[:, 0], first_B2[:, 1], rtol=0.01):
        raise AssertionError(f"{name}: the first losses, ours and the peer's: {first_B2.tolist()}")
    our_losses: list[float] = []
    plain_losses: list[float] = []
    bench.compare(
        name,
        Side("training/learning/tower.py", lambda: our_losses.append(next(ours))),
        Side(peer_name, lambda: plain_losses.append(next(plain))),
        unit="/s",
        per=batch,
        note=f"losses of {_CHECKED} steps all but equal",
    )
    half = len(our_losses) // 2
    later = np.mean(our_losses[half:]), np.mean(plain_losses[half:])
    if not np.isclose(*later, rtol=0.02):
        raise AssertionError(f"{name}: the losses of {half} later steps, ours and the peer's: {later}")


def pairs(*, quick: bool) -> tuple[str, Data]:
    """Those of Gowalla, or at random and as many, and a name."""
    users, items, count = (500, 800, 6000) if quick else _GOWALLA
    name, folder = "random pairs", Path(os.environ.get("CASCADE_DATA", "")) / "gowalla"
    if not quick and "CASCADE_DATA" in os.environ and folder.is_dir():
        name = "Gowalla"
        frame = pl.read_parquet(folder / "train.parquet").select(
            pl.col("user", "item").rank("dense").cast(pl.Int64) - 1
        )
        user_N, item_N = (frame[column].to_numpy(writable=True) for column in ("user", "item"))
        users, items = int(user_N.max()) + 1, int(item_N.max()) + 1
    else:
        random = np.random.default_rng(_SEED)
        share_I = (30 + np.arange(items)) ** -0.8
        user_N, item_N = random.integers(users, size=count), random.choice(items, count, p=share_I / share_I.sum())
    table = FeatureTable(
        (
            Feature("user_id", "user", "id", users + 1, vocabulary=tuple(map(str, range(users)))),
            Feature("item_id", "item", "id", items + 1, vocabulary=tuple(map(str, range(items)))),
        ),
        actions=(),
        sources=(),
    )
    query_row_N, item_row_I = table.empty("query", len(user_N)), table.empty("item", items)
    query_row_N["user_id"], item_row_I["item_id"] = 1 + user_N, 1 + np.arange(items)
    return name, Data(table, query_row_N, item_row_I, item_N)


def examples_of(data: Data) -> Examples:
    count = len(data.positive_N)
    return Examples(
        tensors(data.query_row_N, data.table.of("query")),
        torch.from_numpy(data.positive_N[:, None]),
        torch.ones(count),
        torch.empty((count, 0), dtype=torch.int64),
    )


def cut(data: Data, settings: TowerSettings, *, epoch: int = 0) -> Batches:
    return Batches(
        examples_of(data),
        size=settings.batch,
        items=len(data.item_row_I),
        uniform=settings.uniform_negatives,
        seed=(_SEED, epoch),
    )


def our_steps(data: Data, settings: TowerSettings) -> Iterator[float]:
    """Losses, one for each step, for ever."""
    train = examples_of(data)
    item = tensors(data.item_row_I, data.table.of("item"))
    training = TowerTraining(
        initial_towers(data, settings), settings, item=item, train=train, held_out=train, seed=_SEED
    )
    optimizer = training.optimizer()
    for epoch in count():
        for batch in cut(data, settings, epoch=epoch):
            yield _step(optimizer, training.loss(batch))


def plain_steps(data: Data, settings: TowerSettings, load: Loader) -> Iterator[float]:
    """As `our_steps`."""
    towers = initial_towers(data, settings)
    items = tensors(data.item_row_I, data.table.of("item"))
    size, extra = len(data.item_row_I), settings.uniform_negatives
    share_I = torch.bincount(torch.from_numpy(data.positive_N), minlength=size) / len(data.positive_N)
    optimizer = torch.optim.Adam(towers.parameters(), lr=settings.learning_rate)
    for epoch in count():
        random = np.random.default_rng((_SEED, epoch))
        for query, positive_B in load(random.permutation(len(data.positive_N))):
            row_C = torch.cat([positive_B, torch.from_numpy(random.integers(size, size=extra))])
            others = len(positive_B) - 1
            q_C = (others * share_I[row_C] + extra / size) / (others + extra)
            query_BD = towers.query_vectors(query)
            item_CD = towers.item_vectors({name: column[row_C] for name, column in items.items()})
            yield _step(optimizer, plain_loss(query_BD @ item_CD.T / settings.temperature, row_C, q_C))


def sliced(data: Data, size: int) -> Loader:
    """Batches cut from tensors."""
    query, positive_N = tensors(data.query_row_N, data.table.of("query")), torch.from_numpy(data.positive_N)

    def load(order_N: NDArray[np.int64]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in range(0, len(order_N) - size + 1, size):
            at_B = torch.from_numpy(order_N[start : start + size])
            yield {name: column[at_B] for name, column in query.items()}, positive_N[at_B]

    return load


def row_by_row(data: Data, size: int) -> Loader:
    """Batches that a `DataLoader` collates."""
    examples = RowDataset(data.query_row_N, data.positive_N)

    def load(order_N: NDArray[np.int64]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in DataLoader(examples, size, sampler=order_N.tolist(), drop_last=True):
            yield batch["query"], batch["positive"]

    return load


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


def plain_loss(logit_BC: Tensor, row_C: Tensor, q_C: Tensor) -> Tensor:
    """Softmax over the batch's items, with the log-Q correction of all but the positive; see `sampled_softmax`."""
    rows, columns = logit_BC.shape
    own_BC = torch.eye(rows, columns, dtype=torch.bool)
    corrected_BC = torch.where(own_BC, logit_BC, logit_BC - torch.log((columns - 1) * q_C))
    hit_BC = (row_C[:rows, None] == row_C[None]) & ~own_BC
    return functional.cross_entropy(corrected_BC.masked_fill(hit_BC, -torch.inf), torch.arange(rows))


def initial_towers(data: Data, settings: TowerSettings) -> Towers:
    torch.manual_seed(_SEED)
    return Towers(data.table, settings.shape, temperature=settings.temperature).train()


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
    main("tower", measure, "tower training, beside plain autograd and beside a DataLoader of single examples")
