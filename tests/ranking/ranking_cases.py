"""A small catalogue with a ranker whose heads are not zero, for the tests of scoring.

Shape letters: I items, B queries, L history.
"""

import numpy as np
import torch

from candidate_gen.features import FeatureTable, feature_table, query_rows
from candidate_gen.items import Items
from candidate_gen.types import Candidates, HydratedQuery, Query
from ranking.model import Ranker, RankerShape

NOW_MS = 1_700_000_000_000
COUNT = 200
SOURCES = ("ann", "lexical", "popular")


def small_table(**changes: object) -> FeatureTable:
    declared: dict[str, object] = {
        "users": 50,
        "items": COUNT,
        "actions": ("click", "like"),
        "categories": ("art", "jazz", "math"),
        "sources": SOURCES,
        "user_columns": {"age": None},
        "item_columns": {"minutes": None, "format": ("book", "film")},
        "history_length": 6,
    }
    return feature_table(**{**declared, **changes})  # type: ignore[arg-type]


def small_items(table: FeatureTable) -> Items:
    random = np.random.default_rng(0)
    titles = [f"{word} volume {n}" for n, word in enumerate(random.choice(["art", "jazz", "math"], COUNT))]
    row_I = table.empty("item", COUNT)
    row_I["item_id"] = table.encode("item_id", [f"i{n}" for n in range(COUNT)])
    row_I["category"] = random.integers(4, size=COUNT)
    row_I["creator"] = random.integers(20, size=COUNT)
    row_I["title"] = table.encode("title", titles)
    for name in ("log_shown", "click_rate", "like_rate"):
        row_I[name] = random.random(COUNT)
    embedding_ID = random.normal(size=(COUNT, 8)).astype(np.float32)
    return Items.of(
        ids=[f"i{n}" for n in range(COUNT)],
        titles=titles,
        row_I=row_I,
        published_ms=NOW_MS - random.integers(1, 10**9, COUNT),
        popularity=random.random(COUNT),
        embedding_ID=embedding_ID / np.linalg.norm(embedding_ID, axis=1, keepdims=True),
    )


def random_ranker(table: FeatureTable, *, seed: int = 0) -> Ranker:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranker = Ranker(table, RankerShape(dim=8, query_width=12, rank=6, experts=3, hidden=(16, 8)))
        for parameter in ranker.parameters():
            if parameter.ndim:
                parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return ranker.eval()


def random_queries(table: FeatureTable, items: Items, count: int, *, text: str = "", seed: int = 1) -> np.ndarray:
    """Histories of every length from none."""
    random = np.random.default_rng(seed)
    length = table["history_item"].shape[0]
    row_BL = random.integers(len(items), size=(count, length))
    row_BL[np.arange(length) >= (np.arange(count) % (length + 1))[:, None]] = -1
    return query_rows(
        table,
        items.row_I,
        user_ids=[f"u{n}" for n in range(count)],
        profile_B=np.zeros(count, table.profile_dtype),
        surfaces=["home"] * count,
        texts=[text] * count,
        time_ms_B=np.full(count, NOW_MS),
        history_row_BL=row_BL,
        history_action_BL=random.integers(3, size=(count, length)).astype(np.int32),
        history_time_ms_BL=NOW_MS - random.integers(10**8, size=(count, length)),
    )


def hydrated(table: FeatureTable, items: Items, *, text: str = "", which: int = 4) -> HydratedQuery:
    row = random_queries(table, items, which + 1, text=text)[which:]
    return HydratedQuery(Query("r", NOW_MS, "home", 10, user_id="u", text=text), row, items.embedding_ID[7])


def candidates(count: int, names: tuple[str, ...] = SOURCES, *, seed: int = 2) -> Candidates:
    """Each source names about half of them."""
    random = np.random.default_rng(seed)
    named_NS = random.random((count, len(names))) < 0.5
    rank_NS = np.where(named_NS, np.cumsum(named_NS, axis=0) - 1, -1).astype(np.int16)
    score_NS = np.where(named_NS, random.random((count, len(names))) * 5, 0).astype(np.float32)
    return Candidates(random.permutation(COUNT)[:count].astype(np.int64), names, rank_NS, score_NS)
