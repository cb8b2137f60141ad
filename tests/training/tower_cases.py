"""A small world: every user likes one of four categories, and one item of each is liked most."""

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, feature_table, query_rows
from candidate_gen.towers import TowerShape
from training.learning.tower import TowerSettings

KINDS = ("art", "jazz", "math", "zoo")
ITEMS, USERS, EXAMPLES = 80, 40, 1200
FAST = TowerSettings(
    shape=TowerShape(width=16, embedding=8, hidden=16, heads=1),
    epochs=4,
    batch=64,
    uniform_negatives=16,
    learning_rate=0.02,
)


def item_rows(table: FeatureTable, numbers: range) -> np.ndarray:
    """Item n is of kind n mod 4."""
    rows = table.empty("item", len(numbers))
    rows["item_id"] = table.encode("item_id", [f"i{n}" for n in numbers])
    rows["category"] = table.encode("category", [KINDS[n % 4] for n in numbers])
    rows["title"] = table.encode("title", [f"{KINDS[n % 4]} {n}" for n in numbers])
    return rows


def small_world() -> tuple[FeatureTable, np.ndarray, np.ndarray, NDArray[np.int64]]:
    random = np.random.default_rng(0)
    table = feature_table(
        users=USERS,
        items=ITEMS,
        actions=("click",),
        categories=KINDS,
        sources=(),
        user_columns={},
        item_columns={},
        history_length=4,
        title_length=3,
    )
    item_row_I = item_rows(table, range(ITEMS))
    user_N = random.integers(USERS, size=EXAMPLES)
    positive_row_N = user_N % 4 + 4 * np.minimum(random.geometric(0.15, EXAMPLES) - 1, ITEMS // 4 - 1)
    history_row_BL = np.full((EXAMPLES, 4), -1)
    past: dict[int, list[int]] = {}
    for n, (user, row) in enumerate(zip(user_N.tolist(), positive_row_N.tolist(), strict=True)):
        newest = past.setdefault(user, [])
        history_row_BL[n, : len(newest[:4])] = newest[:4]
        newest.insert(0, row)
    time_ms_B = 1_700_000_000_000 + 60_000 * np.arange(EXAMPLES)
    query_row_N = query_rows(
        table,
        item_row_I,
        user_ids=[f"u{n}" for n in user_N],
        profile_B=np.zeros(EXAMPLES, table.profile_dtype),
        surfaces=["home"] * EXAMPLES,
        texts=[""] * EXAMPLES,
        time_ms_B=time_ms_B,
        history_row_BL=history_row_BL,
        history_action_BL=np.ones((EXAMPLES, 4), np.int32),
        history_time_ms_BL=time_ms_B[:, None] - 60_000 * np.ones((EXAMPLES, 4), np.int64),
    )
    return table, item_row_I, query_row_N, positive_row_N


TABLE, ITEM_ROWS, QUERY_ROWS, POSITIVE_ROWS = small_world()
