"""A small shop, what people searched for in it, and what is understood of that."""

from collections.abc import Mapping

import numpy as np

from candidate_gen.features import FeatureTable, feature_table, item_attributes, item_rows
from candidate_gen.items import Items
from candidate_gen.query_log import QUERY, TAKEN, QueryLog
from index.strings import key64

NOW_MS = 1_700_000_000_000
COLOURS = ("red", "blue", "dark green")
GOODS = [
    # title, category, colour, price
    ("Velvet Sofa red", "Living", "red", 400.0),
    ("Leather Sofa dark green", "Living", "dark green", 900.0),
    ("Corner Couch blue", "Living", "blue", 700.0),
    ("Folding Couch", "Living", "blue", 300.0),
    ("Bath Towel red", "Bath", "red", 12.0),
    ("Hand Towel blue", "Bath", "blue", 8.0),
    ("Towel Rail", "Bath", None, 35.0),
    ("Shower Head", "Bath", None, 60.0),
    ("Ceiling Lamp 36-in.", "Light", "red", 120.0),
    ("Desk Lamp blue", "Light", "blue", 45.0),
    ("Ceiling Fan", "Light", None, 150.0),
    ("Hidden Lamp", "Light", None, 20.0),
]
CREATORS = (*("Velour", "Velour", "Nook", "Nook"), *("Terry", "Terry", "unknown"), "unknown", *("Glow", "Lumen") * 2)
HIDDEN = 11
TYPED: Mapping[str, tuple[int, Mapping[int, int]]] = {
    "sofa": (40, {0: 12, 1: 10, 2: 8, 3: 6}),
    "couch": (30, {0: 9, 1: 8, 2: 10, 3: 5}),
    "towel": (25, {4: 12, 5: 10}),
    "towel rail": (9, {6: 8}),
    "ceiling lamp": (20, {8: 18}),
    "lamp": (12, {9: 10, 8: 2}),
    "shower head": (15, {7: 12}),
    "shwoer head": (3, {}),
    "hidden": (9, {}),
    "a present for jo": (1, {}),
    "nothing of the kind": (8, {}),
}
"""How many people typed it, and how many took which item."""


def shop_table() -> FeatureTable:
    return feature_table(
        users=10,
        items=len(GOODS),
        actions=("click",),
        categories=("Bath", "Light", "Living"),
        sources=("ann", "lexical", "understood", "popular"),
        user_columns={},
        item_columns={"color": COLOURS, "price": None},
        history_length=4,
        title_length=4,
    )


def shop(table: FeatureTable) -> Items:
    titles, categories, colours, prices = map(list, zip(*GOODS, strict=True))
    ids = [f"g{n}" for n in range(len(GOODS))]
    columns = {"color": colours, "price": prices}
    return Items.of(
        ids=ids,
        titles=titles,
        row_I=item_rows(table, ids=ids, categories=categories, creators=CREATORS, titles=titles, columns=columns),
        published_ms=np.full(len(GOODS), NOW_MS - 1),
        available=np.arange(len(GOODS)) != HIDDEN,
        popularity=np.arange(len(GOODS), 0, -1).astype(np.float32),
        embedding_ID=np.eye(len(GOODS), 4, dtype=np.float32),
        attributes=item_attributes(table, categories=categories, creators=CREATORS, columns=columns),
        texts={*categories, *CREATORS, *COLOURS},
    )


def shop_log() -> QueryLog:
    row_Q = np.zeros(len(TYPED), QUERY)
    row_Q["people"] = row_Q["weight"] = [people for people, _ in TYPED.values()]
    taken = [(q, key64(f"g{item}"), n) for q, (_, of) in enumerate(TYPED.values()) for item, n in of.items()]
    return QueryLog(list(TYPED), row_Q, np.array(taken, TAKEN))
