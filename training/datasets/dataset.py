"""Data sets: whatever it was, it becomes four frames (items, users, impressions, events) that everything else reads.

Adapters (`training.datasets.movielens`, `training.datasets.parquet`) and the simulated world make it. Frames:

    items        item_id, title, category, creator, published_ms, available, and the declared item columns; where
                 there is one, description: what search reads beside title and category
    users        user_id, and the declared user columns as they are by now
    user_states  where profiles change: user_id, time_ms (from when it holds), visible_ms (from when it was known), and
                 the declared user columns; of every user in any order
    impressions  request_id, user_id, time_ms, surface, text, item_id (a list in slot order), propensity (P(item in its
                 slot | slots before), a list)
    events       event_id, request_id ("" where none), user_id, item_id, action, value, time_ms, visible_ms, position
                 (-1 where none)

Shape letters: P positives, K slots, M negatives of a positive, I items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.counts import Spans
from candidate_gen.search_text import FIELDS, UNKNOWN, field_order
from candidate_gen.text import words
from index.lexical import FIELD_END

ITEM_SCHEMA = pl.Schema(
    {
        "item_id": pl.Utf8,
        "title": pl.Utf8,
        "category": pl.Utf8,
        "creator": pl.Utf8,
        "published_ms": pl.Int64,
        "available": pl.Boolean,
    }
)
DESCRIPTION = "description"
"""The item column that need not be there."""
USER_SCHEMA = pl.Schema({"user_id": pl.Utf8})
STATE_SCHEMA = pl.Schema({"user_id": pl.Utf8, "time_ms": pl.Int64, "visible_ms": pl.Int64})
"""Of user states, beside the declared columns."""
IMPRESSION_SCHEMA = pl.Schema(
    {
        "request_id": pl.Utf8(),
        "user_id": pl.Utf8(),
        "time_ms": pl.Int64(),
        "surface": pl.Utf8(),
        "text": pl.Utf8(),
        "item_id": pl.List(pl.Utf8()),
        "propensity": pl.List(pl.Float64()),
    }
)
EVENT_SCHEMA = pl.Schema(
    {
        "event_id": pl.Utf8,
        "request_id": pl.Utf8,
        "user_id": pl.Utf8,
        "item_id": pl.Utf8,
        "action": pl.Utf8,
        "value": pl.Float64,
        "time_ms": pl.Int64,
        "visible_ms": pl.Int64,
        "position": pl.Int32,
    }
)
DEFAULT_WEIGHTS = {"click": 1.0, "like": 2.0, "hide": -2.0}
"""Utility of an action where a data set says nothing else; 1 for names that are not here."""
SYNTHETIC = "synthetic"
"""How request ids of made-up impressions begin: fit to train a ranker, never to estimate a policy's value."""
_DAY_MS = 86_400_000
_DRAWS = 50
"""How often a negative is drawn again before a user counts as having taken everything."""

Columns = Mapping[str, tuple[str, ...] | None]
"""Declared columns: the known values of a category, None for a number."""


class DataError(ValueError):
    """Input that cannot be used; one line that names the file, the column and the count."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Canonical frames and what their names mean."""

    items: pl.DataFrame
    users: pl.DataFrame
    impressions: pl.DataFrame
    events: pl.DataFrame
    actions: tuple[str, ...]
    """What the ranker predicts; the first is the main one."""
    weights: Mapping[str, float]
    """Utility of each action."""
    user_columns: Columns = field(default_factory=dict)
    item_columns: Columns = field(default_factory=dict)
    item_texts: tuple[str, ...] = ()
    """Declared item columns that search alone reads."""
    repeats: bool = False
    """Whether people come back to what they already had, as to a song and not as to a book."""
    spans: Spans = field(default_factory=Spans)
    """Over how much of the past the feature table counts."""
    user_states: pl.DataFrame | None = None
    """None where every user is, as far as the data says, what the user always was."""

    @property
    def told_of_users(self) -> pl.DataFrame:
        """What a request's profile is taken from: the user states, or where there are none the users."""
        return self.users if self.user_states is None else self.user_states

    @property
    def _item_schema(self) -> dict[str, Any]:
        return {**ITEM_SCHEMA, **dict.fromkeys(self.item_columns), **dict.fromkeys(self.item_texts, pl.Utf8())}

    def __post_init__(self) -> None:
        frames: list[tuple[str, pl.DataFrame, Mapping[str, Any]]] = [
            ("items", self.items, self._item_schema),
            ("users", self.users, {**USER_SCHEMA, **dict.fromkeys(self.user_columns)}),
            ("impressions", self.impressions, IMPRESSION_SCHEMA),
            ("events", self.events, EVENT_SCHEMA),
        ]
        if self.user_states is not None:
            frames.append(("user_states", self.user_states, {**STATE_SCHEMA, **dict.fromkeys(self.user_columns)}))
        if DESCRIPTION in self.items.columns and self.items.schema[DESCRIPTION] != pl.Utf8:
            raise DataError(f"items: column {DESCRIPTION!r} must be String, is {self.items.schema[DESCRIPTION]}")
        for name, frame, schema in frames:
            for column, kind in schema.items():
                if column not in frame.columns:
                    raise DataError(f"{name} has no column {column!r}; it has {', '.join(frame.columns)}")
                if kind is not None and frame.schema[column] != kind:
                    raise DataError(f"{name}: column {column!r} must be {kind}, is {frame.schema[column]}")
        missing = [action for action in self.actions if action not in self.weights]
        if missing or not self.actions:
            raise DataError(f"every action needs a weight; actions {self.actions}, weights {dict(self.weights)}")


def searchable(items: pl.DataFrame, texts: Iterable[str] = ()) -> list[str]:
    """What search reads of every item, as fields of one text (`index.lexical`): title, category, creator, description
    and declared texts. A category or creator that is not known says nothing."""
    unknown = pl.col("category", "creator").replace(UNKNOWN, "")
    known = items.with_columns(unknown, *(pl.lit("").alias(name) for name in FIELDS if name not in items.columns))
    fields = pl.col(field_order(texts)).fill_null("").str.replace_all(FIELD_END, " ", literal=True)
    return known.select(pl.concat_str(fields, separator=FIELD_END).str.strip_chars_end(FIELD_END)).to_series().to_list()


def field_boosts(boosts: Mapping[str, int], texts: Iterable[str]) -> dict[str, int]:
    """The boost of every field that search reads, in the order of `searchable`; 1 for those that are not named.

    Raises:
        ValueError: a boost of a field that is none of them.
    """
    fields = field_order(texts)
    if unknown := sorted(set(boosts) - set(fields)):
        raise ValueError(f"boosts names {unknown[0]!r}; search reads {', '.join(fields)}")
    return {name: boosts.get(name, 1) for name in fields}


def unattributed_events(
    user: pl.Series,
    item: pl.Series,
    time_ms: pl.Series,
    *,
    action: pl.Series | None,
    value: pl.Series | None,
    event: pl.Series | None,
) -> pl.DataFrame:
    """Events of no impression, visible when they happened.

    Without actions all are clicks, without values all are 1, without ids each is named by its row.
    """
    count = len(user)
    return pl.DataFrame(
        {
            "event_id": [f"e{row}" for row in range(count)] if event is None else event.cast(pl.Utf8),
            "request_id": pl.repeat("", count, eager=True),
            "user_id": user.cast(pl.Utf8),
            "item_id": item.cast(pl.Utf8),
            "action": pl.repeat("click", count, eager=True) if action is None else action.cast(pl.Utf8),
            "value": pl.repeat(1.0, count, eager=True) if value is None else value.cast(pl.Float64),
            "time_ms": time_ms,
            "visible_ms": time_ms,
            "position": pl.repeat(-1, count, dtype=pl.Int32, eager=True),
        },
        EVENT_SCHEMA,
    )


def synthesise_impressions(
    dataset: Dataset, *, negatives: int = 9, positives: int = 20_000, searches: float = 0.2, seed: int
) -> Dataset:
    """Impressions for a data set that knows only what users took: made up, to train the ranker with.

    For each of up to `positives` sampled (user, item) pairs an impression just before the pair's first event, so that
    nothing known then tells of it: the item in a random slot among `negatives` items that the user never took, half of
    them drawn by popularity, half uniformly, from what was published by then. The pair's events within a day become
    its outcomes. Pairs with an event whose value is not known are not sampled, for their missing outcomes are not
    negatives; nor are pairs for which there are not so many negatives.

    A share `searches` of them are searches for the item: up to three words that search reads of it were typed, as
    in Azzopardi et al. 2007, "Building simulated queries for known-item topics". Half of their negatives match too.

    Surfaces are those that a server takes for granted. Request ids begin with `SYNTHETIC`, every propensity is
    1 / (negatives + 1): none of it says what any policy showed, so off-policy estimates must never read it.

    Raises:
        DataError: where no pair has so many negatives.
    """
    if negatives < 1 or positives < 1:
        raise DataError(f"negatives and positives must be at least 1, got {negatives} and {positives}")
    rng = np.random.default_rng([seed, 0x5E9])
    pairs = (
        dataset.events.filter(pl.col("user_id") != "")
        .join(dataset.items.with_row_index("item").select("item_id", "item", "published_ms"), on="item_id")
        .group_by("user_id", "item_id", "item", "published_ms")
        .agg(time_ms=pl.col("time_ms").min() - 1, known=pl.col("value").is_not_null().all())
        .sort("time_ms", "user_id", "item_id")
    )
    users = pairs.select(pl.col("user_id").unique().sort()).with_row_index("user")
    pairs = pairs.join(users, on="user_id", maintain_order="left").with_columns(pl.col("user", "item").cast(pl.Int64))
    taken = np.unique(pairs["user"].to_numpy() * dataset.items.height + pairs["item"].to_numpy())
    size = negatives + 1
    published_ms_I = dataset.items["published_ms"].to_numpy()
    published_P = np.searchsorted(np.sort(published_ms_I), pairs["time_ms"].to_numpy(), side="right")
    there_P = (pairs["published_ms"] <= pairs["time_ms"]).to_numpy()
    rows = np.flatnonzero(pairs["known"].to_numpy() & there_P & (published_P > negatives))
    if len(rows) > positives:
        rows = np.sort(rng.choice(rows, positives, replace=False))
    negative_PM = _negatives(
        published_ms_I,
        popularity_I=np.bincount(pairs["item"].to_numpy(), minlength=dataset.items.height),
        user_P=pairs["user"].to_numpy()[rows],
        published_P=published_P[rows],
        taken=taken,
        count=negatives,
        rng=rng,
    )
    full_P = (negative_PM >= 0).all(axis=1)
    rows, negative_PM = rows[full_P], negative_PM[full_P]
    if not len(rows):
        raise DataError(
            f"none of {pairs.height} pairs of user and item can be shown among {negatives} items that were published "
            "by then and that the user never took"
        )
    sampled = pairs[rows]
    texts, negative_PM = _searched(dataset.items, sampled, negative_PM, taken=taken, share=searches, rng=rng)
    time_ms_P = sampled["time_ms"].to_numpy()
    slot_P = rng.integers(size, size=len(rows))
    item_PK = np.insert(negative_PM, 0, sampled["item"].to_numpy(), axis=1)
    order_PK = np.argsort(rng.random((len(rows), size)), axis=1)
    at_P = np.arange(len(rows))
    order_PK[at_P, (order_PK == 0).argmax(axis=1)] = order_PK[at_P, slot_P]
    order_PK[at_P, slot_P] = 0
    item_PK = np.take_along_axis(item_PK, order_PK, axis=1)
    item_ids = dataset.items["item_id"].to_numpy()
    impressions = pl.DataFrame(
        {
            "request_id": [f"{SYNTHETIC}-{seed}-{row}" for row in range(len(rows))],
            "user_id": sampled["user_id"],
            "time_ms": time_ms_P,
            "surface": ["search" if text else "home" for text in texts],
            "text": texts,
            "item_id": item_ids[item_PK].tolist(),
            "propensity": np.full(item_PK.shape, 1 / size).tolist(),
        },
        IMPRESSION_SCHEMA,
    )
    links = sampled.select(
        "user_id",
        "item_id",
        shown_ms="time_ms",
        made_request=impressions["request_id"],
        made_position=pl.Series(slot_P, dtype=pl.Int32),
    )
    inside = pl.col("time_ms") - pl.col("shown_ms") <= _DAY_MS
    events = dataset.events.join(links, on=["user_id", "item_id"], how="left", maintain_order="left").with_columns(
        request_id=pl.when(inside).then("made_request").otherwise("request_id"),
        position=pl.when(inside).then("made_position").otherwise("position"),
    )
    return replace(
        dataset,
        impressions=pl.concat([dataset.impressions, impressions.sort("time_ms", "request_id")]),
        events=events.select(dataset.events.columns),
    )


def _searched(
    items: pl.DataFrame,
    sampled: pl.DataFrame,
    negative_PM: NDArray[np.int64],
    *,
    taken: NDArray[np.int64],
    share: float,
    rng: np.random.Generator,
) -> tuple[list[str], NDArray[np.int64]]:
    """What was typed for each positive, mostly nothing, and the negatives, half of them now such as match it too.

    Half of the searches are of the title's words. Words that more than half of the items hold tell nothing.
    """
    words_I = [sorted({word for word in words(text) if len(word) > 2}) for text in searchable(items)]
    holders: dict[str, list[int]] = {}
    for row, held in enumerate(words_I):
        for word in held:
            holders.setdefault(word, []).append(row)
    titles, published_ms_I = items["title"].to_list(), items["published_ms"].to_numpy()
    texts, shown_PM = [""] * sampled.height, negative_PM.copy()
    chance_P = rng.random(sampled.height)
    positives = sampled.select("user", "item", "time_ms").rows()
    for p in np.flatnonzero(chance_P < share).tolist():
        user, item, at_ms = positives[p]
        telling = [word for word in words_I[item] if 2 * len(holders[word]) <= items.height]
        if chance_P[p] < share / 2:
            telling = sorted(set(telling) & set(words(titles[item])))
        if not telling:
            continue
        typed = rng.choice(telling, min(len(telling), int(rng.integers(1, 4))), replace=False).tolist()
        texts[p] = " ".join(typed)
        matching = np.unique(np.concatenate([holders[word] for word in typed]))
        matching = matching[(published_ms_I[matching] <= at_ms) & ~np.isin(matching, negative_PM[p])]
        matching = matching[~_among(user * items.height + matching, taken)]
        some = min(len(matching), negative_PM.shape[1] // 2)
        shown_PM[p, :some] = rng.choice(matching, some, replace=False)
    return texts, shown_PM


def _among(pair: NDArray[np.int64], taken: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which are in a sorted array."""
    return np.asarray(taken[np.minimum(np.searchsorted(taken, pair), len(taken) - 1)] == pair)


def _negatives(
    published_ms_I: NDArray[np.int64],
    *,
    popularity_I: NDArray[np.int64],
    user_P: NDArray[np.int64],
    published_P: NDArray[np.int64],
    taken: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Item rows (P, M), each once, none taken by the user, drawn from the `published_P` oldest; -1 where none is left.

    Args:
        taken: sorted, user * items + item.
    """
    by_age_I = np.argsort(published_ms_I, kind="stable")
    weight_I = np.cumsum(popularity_I[by_age_I])
    chosen_PM = np.full((len(user_P), count), -1, np.int64)
    for _ in range(_DRAWS):
        p, m = np.nonzero(chosen_PM < 0)
        if not len(p):
            break
        among = published_P[p]
        by_weight = np.searchsorted(weight_I, rng.random(len(p)) * weight_I[among - 1], side="right")
        popular = rng.random(len(p)) < 0.5
        drawn = by_age_I[np.where(popular, np.minimum(by_weight, among - 1), rng.integers(among))]
        pair = user_P[p] * len(by_age_I) + drawn
        chosen_PM[p, m] = np.where(_among(pair, taken), -1, drawn)
        order_PM = np.argsort(chosen_PM, axis=1, kind="stable")
        sorted_PM = np.take_along_axis(chosen_PM, order_PM, axis=1)
        again, at = np.nonzero(sorted_PM[:, 1:] == sorted_PM[:, :-1])
        chosen_PM[again, order_PM[again, at + 1]] = -1
    return chosen_PM
