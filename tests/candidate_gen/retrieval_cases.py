"""A small catalogue, its feature table and queries for the tests of retrieval."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, feature_table, item_rows, query_rows
from candidate_gen.items import Items
from candidate_gen.types import History, HydratedQuery, Query
from index.masks import Mask
from index.types import Hits

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
CATEGORIES = ("art", "jazz", "math")


def small_table(*, items: int = 60, users: int = 20) -> FeatureTable:
    return feature_table(
        users=users,
        items=items,
        actions=("click", "like"),
        categories=CATEGORIES,
        sources=("ann", "popular"),
        user_columns={"age": None, "country": ("be", "nl")},
        item_columns={"minutes": None},
        history_length=5,
        title_length=6,
    )


def small_item_rows(table: FeatureTable, count: int, *, first: int = 0) -> np.ndarray:
    """Item n has category n mod 3, a creator for each seven items, and a title of its category and number."""
    numbers = range(first, first + count)
    return item_rows(
        table,
        ids=[f"i{n}" for n in numbers],
        categories=[CATEGORIES[n % 3] for n in numbers],
        creators=[f"c{n // 7}" for n in numbers],
        titles=[f"{CATEGORIES[n % 3]} volume {n}" for n in numbers],
        columns={"minutes": [float(n % 11) for n in numbers]},
    )


def random_query_rows(table: FeatureTable, item_row_I: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Histories of every length from empty to longer than the table keeps."""
    random = np.random.default_rng(seed)
    longest = table["history_item"].shape[0] + 2
    row_BL = random.integers(len(item_row_I), size=(count, longest))
    row_BL[np.arange(longest) >= random.integers(longest + 1, size=count)[:, None]] = -1
    profile_B = np.zeros(count, table.profile_dtype)
    profile_B["age"] = random.normal(40, 10, count)
    profile_B["country"] = random.integers(3, size=count)
    time_ms_B = NOW_MS + random.integers(30 * DAY_MS, size=count)
    return query_rows(
        table,
        item_row_I,
        user_ids=[f"u{n}" for n in random.integers(20, size=count)],
        profile_B=profile_B,
        surfaces=["home"] * count,
        texts=[random.choice(["", "jazz volume", "math"]) for _ in range(count)],
        time_ms_B=time_ms_B,
        history_row_BL=row_BL,
        history_action_BL=random.integers(3, size=(count, longest)).astype(np.int32),
        history_time_ms_BL=time_ms_B[:, None] - random.integers(9 * DAY_MS, size=(count, longest)),
    )


def catalogue(
    *,
    embedding_ID: NDArray[np.float32],
    popularity: Sequence[float] | None = None,
    age_days: Sequence[float] | None = None,
    available: Sequence[bool] | None = None,
) -> Items:
    """As many items as embeddings; where not said, equally popular, published now and available."""
    count = len(embedding_ID)
    ids = [f"i{row}" for row in range(count)]
    ages = np.zeros(count) if age_days is None else np.array(age_days)
    return Items.of(
        ids=ids,
        titles=ids,
        row_I=np.zeros(count, [("item_id", "<i4")]),
        published_ms=NOW_MS - ages * DAY_MS,
        available=available,
        popularity=popularity,
        embedding_ID=embedding_ID.astype(np.float32),
    )


def rows(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def hydrated(
    *,
    history: NDArray[np.int64] | None = None,
    actions: Sequence[int] | None = None,
    seeds: NDArray[np.int64] | None = None,
    excluded: NDArray[np.int64] | None = None,
    text: str = "",
    time_ms: int = NOW_MS,
    vector_D: NDArray[np.float32] | None = None,
    allowed: Mask | None = None,
) -> HydratedQuery:
    row_L = rows() if history is None else history
    action_L = np.array([1] * len(row_L) if actions is None else actions, np.int32)
    query = Query(
        "r0",
        time_ms,
        "home",
        10,
        text=text,
        history=History(row_L, action_L, np.full(len(row_L), time_ms - DAY_MS)),
        seed_row_S=rows() if seeds is None else seeds,
        exclude_row_X=rows() if excluded is None else excluded,
    )
    return HydratedQuery(query, np.zeros(1), np.zeros(0, np.float32) if vector_D is None else vector_D, allowed)


class ExhaustiveSearch:
    """What a vector index must answer, by sorting everything."""

    def __init__(self, embedding_ID: NDArray[np.float32], *, partial: bool = False) -> None:
        self._embedding_ID = embedding_ID
        self._partial = partial

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
        score_I = (self._embedding_ID @ query_D).astype(np.float32)
        order_I = np.argsort(-score_I, kind="stable")
        order_I = order_I if allowed is None else order_I[allowed.allowed_I[order_I]]
        return Hits(order_I[:k], score_I[order_I[:k]], self._partial)


def unit_vectors(count: int, width: int = 4, *, seed: int = 0) -> NDArray[np.float32]:
    vector_ID = np.random.default_rng(seed).normal(size=(count, width))
    unit_ID: NDArray[np.float32] = (vector_ID / np.linalg.norm(vector_ID, axis=1, keepdims=True)).astype(np.float32)
    return unit_ID
