"""A whole generation of models that learned nothing, made in a moment: everything real but the weights.

Shape letters: I items.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from candidate_gen.features import FeatureTable, attribute_texts, feature_table, item_attributes, item_rows
from candidate_gen.items import Items
from candidate_gen.sources import SOURCES
from candidate_gen.towers import Towers, TowerShape
from index.generations import GenerationStore
from index.strings import IdMap
from index.vectors import VectorIndex
from policy.settings import PolicySettings
from ranking.calibration import Calibration
from ranking.model import Ranker, RankerShape
from ranking.scorer import RankerScorer
from serving.client import CascadeClient
from serving.generation import Generation, write
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.parts import State
from serving.retrieval import RetrievalSettings
from serving.server import Address, Server
from serving.settings import ServerSettings, ServiceSettings

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
CATEGORIES = ("art", "jazz", "math")
ACTIONS = ("click", "like")
COUNT = 200
TABLE: FeatureTable = feature_table(
    users=20,
    items=COUNT,
    actions=ACTIONS,
    categories=CATEGORIES,
    sources=SOURCES,
    user_columns={"age": None},
    item_columns={"price": None, "format": ("book", "film")},
    history_length=6,
    title_length=6,
)
POLICY = PolicySettings(weights={"click": 1.0, "like": 2.0}, temperature=0.3, epsilon=0.05, diversity=0.1)
RETRIEVAL = RetrievalSettings(
    quotas={"ann": 2 * COUNT, "lexical": COUNT, "similar": COUNT, "fresh": 30, "popular": 30},
    fresh_explored=0.0,
    hide_seen=False,
)


def towers(seed: int = 0) -> Towers:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Towers(TABLE, TowerShape(width=8, embedding=4, hidden=8, heads=1), temperature=0.1).eval()


def catalogue(encoder: Towers, count: int = COUNT) -> Items:
    """Items i0, i1, ...: each is a little less popular and a little older than the one before; i0 is hidden."""
    random = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(count)]
    titles = [f"volume {row} of {CATEGORIES[row % 3]}" for row in range(count)]
    categories = [CATEGORIES[row % 3] for row in range(count)]
    creators = [f"c{row % 7}" for row in range(count)]
    columns: dict[str, Sequence[object]] = {
        "price": (np.arange(count) / 2).tolist(),
        "format": [("book", "film", None)[row % 3] for row in range(count)],
    }
    row_I = item_rows(TABLE, ids=ids, categories=categories, creators=creators, titles=titles, columns=columns)
    for name, _ in TABLE.counters:
        row_I[name] = random.random(count)
    return Items.of(
        ids=ids,
        titles=titles,
        row_I=row_I,
        published_ms=NOW_MS - DAY_MS - np.arange(count) * 3_600_000,
        embedding_ID=encoder.encode_items(row_I),
        available=np.arange(count) > 0,
        popularity=np.linspace(9, 1, count),
        attributes=item_attributes(TABLE, categories=categories, creators=creators, columns=columns),
        texts=attribute_texts(TABLE, categories=categories, creators=creators, columns=columns),
    )


def publish(store: GenerationStore, *, items: Items | None = None, catalog_seq: int = 0, seed: int = 0) -> str:
    """A generation of these items, or of `catalogue`; not activated."""
    encoder = towers(seed)
    items = items or catalogue(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranker = Ranker(TABLE, RankerShape(dim=4, query_width=8, cross_layers=0, hidden=(8,)))
        for parameter in ranker.parameters():
            if parameter.ndim:
                parameter.data.add_(0.2 * torch.randn(parameter.shape))
    with store.stage() as folder:
        fingerprints = write(
            folder,
            table=TABLE,
            items=items,
            users=IdMap.of([f"u{row}" for row in range(20)]),
            profile_U=np.zeros(20, TABLE.profile_dtype),
            towers=encoder,
            vectors=VectorIndex.build(np.array(items.embedding_ID), towers=encoder.fingerprint, kind="exact"),
            scorer=RankerScorer(ranker.eval(), Calibration.identity(ACTIONS), TABLE, items),
            policy=POLICY,
            retrieval=RETRIEVAL,
        )
        return store.publish(
            folder,
            fingerprints=fingerprints,
            parent=None,
            config={"seed": seed, "catalog_seq": catalog_seq},
            data_window=(NOW_MS - DAY_MS, NOW_MS),
            metrics={},
            created_ms=NOW_MS,
            catalog_seq=catalog_seq,
        )


def store_of(folder: Path) -> GenerationStore:
    """A store whose one generation is current."""
    store = GenerationStore(folder / "generations")
    store.activate(publish(store), time_ms=NOW_MS)
    return store


def settings(folder: Path) -> ServerSettings:
    return ServerSettings(
        generations=folder / "generations",
        log=folder / "log",
        port=0,
        admin_port=0,
        watch_s=0.05,
        lame_duck_s=0.0,
        grace_s=5.0,
        service=ServiceSettings(clock="request", deadline_s=20.0, eligible_share=1.0),
    )


@contextmanager
def running(
    folder: Path, *, log: Path | None = None, state: State | None = None, **changes: Any
) -> Iterator[tuple[CascadeClient, Generations, Address]]:
    """A server of the store in a folder.

    Args:
        log: file of its impressions; without it nothing is logged.
        changes: of `ServiceSettings`.
    """
    generations = Generations(GenerationStore(folder / "generations"))
    impressions = ImpressionLog(log, durability="os") if log is not None else None
    chosen = settings(folder)
    chosen = replace(chosen, service=replace(chosen.service, **changes))
    server = Server(generations, state=state, log=impressions, settings=chosen)
    address = server.start()
    try:
        with CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20.0) as client:
            yield client, generations, address
    finally:
        server.stop()
        generations.close()
        if impressions is not None:
            impressions.close()


def shown(client: CascadeClient, query: str = "", *, size: int = 500, **asked: str) -> dict[str, tuple[str, ...]]:
    """Everything that can be had for a query, or without one: the sources of each item."""
    if query:
        slate = client.search(query, size=size, time_ms=NOW_MS, **asked)  # type: ignore[arg-type]  # texts all
    else:
        slate = client.recommend("u1", size=size, time_ms=NOW_MS, **asked)  # type: ignore[arg-type]  # texts all
    return {item.item_id: item.sources for item in slate.items}


def loaded(store: GenerationStore, generation: str | None = None) -> Generation:
    return Generation.load(store, generation or store.ids()[-1])


def ids_of(items: Items, rows: Sequence[int] | np.ndarray) -> list[str]:
    return [items.ids.ids[int(row)] for row in rows]
