"""What changes while a server serves, and what the requests notice of it: swaps of generations, upserts, deletes.

A server process of its own answers a closed loop of a few clients. Windows in which nothing happens and windows in
which the server takes up another generation alternate; how long a request takes at the 99th percentile in the one and
in the other is the ratio. Every generation has items that no other has, so an answer made of two would show. Models
learned nothing: what is measured is time.

Shape letters: B windows, D embedding width, J rows added, N requests or changes.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Bench, Side, main
from candidate_gen.features import FeatureTable, feature_table, item_attributes, item_rows
from candidate_gen.items import Items
from candidate_gen.sources import SOURCES
from candidate_gen.towers import Towers, TowerShape
from index.columns import GrownColumn, growing
from index.delta import GrownIndex
from index.generations import GenerationStore
from index.strings import IdMap
from index.vectors import VectorIndex
from policy.settings import PolicySettings
from ranking.calibration import Calibration
from ranking.model import Ranker, RankerShape
from ranking.scorer import RankerScorer
from serving.client import CallFailed, CascadeClient
from serving.generation import write
from serving.records import ItemEntry
from serving.retrieval import RetrievalSettings
from training.server_process import server_process

_ACTIONS = ("click", "like")
_CATEGORIES = tuple(f"category {number}" for number in range(20))
_USERS = 1000
_OWN = 10
"""Every tenth item is of its generation alone."""
_LABELS = ("a", "b", "c")
"""One generation each. Of two, the server would keep the other one loaded, and activating it would cost nothing."""
_CLIENTS = 2
_HISTORY = 8
_SLATE = 20
_DEADLINE_S = 30.0
_LEAST_WINDOW_S = 1.0
_SETTLE_S = 0.25
"""A swap's window goes on that long after it, for pages touched the first time and for what is thrown away."""
_BATCH = 1000
_MOST_SEARCHES = 1000


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    items, swaps, changes = (2000, 3, 10) if bench.quick else (100_000, 12, 200)
    add(bench, 20_000 if bench.quick else 200_000)
    with TemporaryDirectory(prefix="cascade-benchmark-") as name:
        folder, now_ms = Path(name), time.time_ns() // 1_000_000
        store = GenerationStore(folder / "generations")
        published = {label: publish(store, label, count=items, now_ms=now_ms) for label in _LABELS}
        store.activate(published[_LABELS[0]], time_ms=now_ms)
        overrides = [f"generations={store.root}", f"log={folder / 'log'}", "redis=none"]
        with (
            server_process(folder, overrides) as (target, admin_target),
            CascadeClient(target, admin_target=admin_target, deadline_s=_DEADLINE_S) as client,
            asking(target, published, items) as load,
        ):
            swap(bench, client, load, published, swaps=swaps, note=f"{items:,} items, {_CLIENTS} clients")
            change(bench, client, changes)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the load."""

    started_s: float
    taken_s: float
    fault: str
    """Empty where it was answered by one generation with all of its stages."""


def add(bench: Bench, rows: int) -> None:
    """Vectors appended to the delta in batches, each batch searchable, beside a new array for each batch."""
    d = TowerShape().width
    random = np.random.default_rng(0)
    vector_JD = random.standard_normal((rows, d), np.float32)
    vector_JD /= np.linalg.norm(vector_JD, axis=1, keepdims=True)
    base_ID = vector_JD[:1000]
    base = VectorIndex.build(base_ID, towers="none", kind="exact")

    def grow() -> GrownIndex:
        column: GrownColumn = growing(base_ID)
        for start in range(0, rows, _BATCH):
            column = column.append(vector_JD[start : start + _BATCH])
            index = GrownIndex(base, column.tail)
        return index

    def concatenate() -> GrownIndex:
        tail_JD = base_ID[:0]
        for start in range(0, rows, _BATCH):
            tail_JD = np.concatenate((tail_JD, vector_JD[start : start + _BATCH]))
            index = GrownIndex(base, tail_JD)
        return index

    equal = np.array_equal(grow().tail_JD, concatenate().tail_JD)
    note = f"{rows:,} x {d} in batches of {_BATCH}; the same vectors: {'yes' if equal else 'NO'}"
    ours, peer = Side("GrownColumn", grow), Side("np.concatenate", concatenate)
    bench.compare("vectors added to the delta", ours, peer, unit="/s", per=rows, note=note)


def publish(store: GenerationStore, label: str, *, count: int, now_ms: int) -> str:
    """A generation of parts of their real size; not activated."""
    table = feature_table(
        users=_USERS,
        items=count,
        actions=_ACTIONS,
        categories=_CATEGORIES,
        sources=SOURCES,
        user_columns={},
        item_columns={"price": None},
    )
    torch.manual_seed(_LABELS.index(label))
    towers = Towers(table, TowerShape(), temperature=0.1).eval()
    items = catalogue(table, towers, label, count=count, now_ms=now_ms)
    ranker = Ranker(table, RankerShape()).eval()
    with store.stage() as folder:
        fingerprints = write(
            folder,
            table=table,
            items=items,
            users=IdMap.of([f"u{number}" for number in range(_USERS)]),
            profile_U=np.zeros(_USERS, table.profile_dtype),
            towers=towers,
            vectors=VectorIndex.build(np.asarray(items.embedding_ID), towers=towers.fingerprint),
            scorer=RankerScorer(ranker, Calibration.identity(_ACTIONS), table, items),
            policy=PolicySettings(weights={"click": 1.0, "like": 2.0}, temperature=0.3, epsilon=0.05, diversity=0.1),
            retrieval=RetrievalSettings(hide_seen=False),
        )
        return store.publish(
            folder,
            fingerprints=fingerprints,
            parent=None,
            config={"label": label},
            data_window=(now_ms - 86_400_000, now_ms),
            metrics={},
            created_ms=now_ms,
        )


def catalogue(table: FeatureTable, towers: Towers, label: str, *, count: int, now_ms: int) -> Items:
    """Items i0, i1, ..., of which every `_OWN`th has an id of this generation alone; a hundredth is hidden."""
    random = np.random.default_rng(_LABELS.index(label))
    ids = [f"{label if row % _OWN == 0 else 'i'}{row}" for row in range(count)]
    category_I = random.integers(len(_CATEGORIES), size=count)
    categories = [_CATEGORIES[category] for category in category_I]
    creators = [f"creator {number}" for number in random.integers(max(count // 20, 1), size=count)]
    titles = [f"volume {row} of {category}" for row, category in enumerate(categories)]
    columns = {"price": random.integers(1, 100, count).astype(float).tolist()}
    row_I = item_rows(table, ids=ids, categories=categories, creators=creators, titles=titles, columns=columns)
    return Items.of(
        ids=ids,
        titles=titles,
        row_I=row_I,
        published_ms=now_ms - random.integers(1, 90 * 86_400_000, count),
        embedding_ID=towers.encode_items(row_I),
        available=np.arange(count) % 100 != 99,
        popularity=random.pareto(1.5, count),
        attributes=item_attributes(table, categories=categories, creators=creators, columns=columns),
    )


@contextmanager
def asking(target: str, published: dict[str, str], items: int) -> Iterator[list[Asked]]:
    """Clients that each ask again as soon as they are answered; what they asked is in the list, ever more of it."""
    asked: list[Asked] = []
    done = threading.Event()
    labels = {generation: label for label, generation in published.items()}

    def ask(number: int) -> None:
        random = np.random.default_rng(number)
        with CascadeClient(target, deadline_s=_DEADLINE_S) as client:
            while not done.is_set():
                started_s = time.perf_counter()
                fault = _fault(client, labels, items, random)
                asked.append(Asked(started_s, time.perf_counter() - started_s, fault))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(_CLIENTS)]
    for each in threads:
        each.start()
    try:
        yield asked
    finally:
        done.set()
        for each in threads:
            each.join()


def _fault(client: CascadeClient, labels: dict[str, str], items: int, random: np.random.Generator) -> str:
    """What is wrong with the answer to a request, recommend or search by chance."""
    user_id = f"u{random.integers(_USERS)}"
    recent = [f"i{row}" for row in random.integers(items, size=_HISTORY) if row % _OWN]
    try:
        if random.random() < 0.5:
            slate = client.recommend(user_id, recent_item_ids=recent, size=_SLATE)
        else:
            query = f"volume {random.choice(_CATEGORIES)}"
            slate = client.search(query, user_id=user_id, recent_item_ids=recent, size=_SLATE)
    except CallFailed:
        return "failed"
    foreign = set(_LABELS) - {labels[slate.generation]}
    if any(item.item_id[0] in foreign for item in slate.items):
        return "mixed"
    return "degraded" if slate.degraded or len(slate.items) != _SLATE else ""


def swap(
    bench: Bench, client: CascadeClient, load: list[Asked], published: dict[str, str], *, swaps: int, note: str
) -> None:
    """Windows without and with a swap in turn, the one as long as the other; the first swap only warms up."""
    generations = cycle([*published.values()][1:] + [*published.values()][:1])
    window_s = _LEAST_WINDOW_S
    steady_B, swapping_B, activation_s = [], [], []
    for turn in range(-1, swaps):
        steady_from_s = time.perf_counter()
        time.sleep(window_s)
        from_s = time.perf_counter()
        client.activate(next(generations))
        active_s = time.perf_counter()
        time.sleep(max(_SETTLE_S, _LEAST_WINDOW_S - (active_s - from_s)))
        until_s = time.perf_counter()
        window_s = until_s - from_s
        if turn >= 0:
            activation_s.append(active_s - from_s)
            steady_B.append(_taken_s(load, steady_from_s, from_s))
            swapping_B.append(_taken_s(load, from_s, until_s))
    faults = [each.fault for each in load]
    counted = ", ".join(f"{faults.count(fault)} {fault}" for fault in ("failed", "degraded", "mixed"))
    bench.record("Activate: load, verify, warm up, swap", np.array(activation_s), unit="ms", note=note)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours_B, peer_B = (np.array([np.quantile(each, share) for each in side]) for side in (steady_B, swapping_B))
        pooled = np.quantile(np.concatenate(swapping_B), share) / np.quantile(np.concatenate(steady_B), share)
        bench.pair(
            f"request without a swap, {name}",
            ours_B,
            peer_B,
            peer_name="during one",
            unit="ms",
            note=f"{swaps} windows of each, of all requests together {pooled:.2f}; of {len(faults):,}: {counted}",
        )


def _taken_s(load: list[Asked], from_s: float, until_s: float) -> NDArray[np.float64]:
    """Of the requests that were at work in the window."""
    whole = load.copy()
    return np.array(
        [each.taken_s for each in whole if each.started_s < until_s and each.started_s + each.taken_s > from_s]
    )


def change(bench: Bench, client: CascadeClient, changes: int) -> None:
    """From the call that upserts or deletes to the end of the first search that shows it, or no longer does."""
    added_s, deleted_s, early = [], [], 0

    def known(item_id: str, *, shown: bool) -> None:
        nonlocal early
        for _ in range(_MOST_SEARCHES):
            slate = client.search(item_id, filter=f'creator = "{item_id}"', size=5)
            if (item_id in [item.item_id for item in slate.items]) == shown:
                return
            early += 1
        raise RuntimeError(f"{_MOST_SEARCHES} searches did not learn of the change of {item_id}")

    for number in range(changes):
        item_id = f"new{number}"
        entry = ItemEntry(item_id, title=f"volume {item_id}", category=_CATEGORIES[0], creator=item_id, price=1.0)
        started_s = time.perf_counter()
        client.upsert_items([entry])
        known(item_id, shown=True)
        added_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        client.delete_items([item_id])
        known(item_id, shown=False)
        deleted_s.append(time.perf_counter() - started_s)
    for name, taken_s in (("upsert of 1", added_s), ("delete of 1", deleted_s)):
        p95_ms = 1000 * float(np.quantile(taken_s, 0.95))
        note = f"p95 {p95_ms:.3g} ms; {changes} under load, {early} searches too early"
        bench.record(f"{name} until a search knows of it", np.array(taken_s), unit="ms", note=note)


if __name__ == "__main__":
    main("swap", measure, "what requests notice of a swap of generations and of changes of the catalogue")
