"""Training examples: what the ranker could have known when it scored, and what the user then did.

Every join is point-in-time and bitemporal: a row for time T is made of events that had happened and were visible at
T, and of item counters as of the start of T's UTC day. Logged impressions carry the bytes that the ranker saw; those
are taken as they are.

The first action of a feature table is the main one: its outcomes are what popularity counts and what towers learn.

Shape letters: N examples (exposures or positives), R requests, A actions, B queries, L history, I items, H hard
negatives of a positive.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen import features
from candidate_gen.features import FeatureTable, RowKind, pair_rows, query_rows
from candidate_gen.prepared_texts import PreparedTexts
from candidate_gen.sources import TextSearch
from candidate_gen.text_match import TEXT_MATCH, Field, field_matches
from protos.impression_pb2 import Impression
from training.datasets.dataset import SYNTHETIC, searchable
from training.examples.counters import ItemCounters, counters_at
from training.examples.events import action_code, known_events, numbered, point_in_time_history
from training.examples.point_in_time import rows_known

ATTRIBUTION_MS = 3_600_000
"""How long after an exposure its outcomes are waited for."""
_DAY_MS = 86_400_000
_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Examples:
    """Exposures with their features and labels. Columns of a request are kept once, `request_N` points to them."""

    query_row_R: np.ndarray
    """Records of the query dtype."""
    time_ms_R: NDArray[np.int64]
    request_N: NDArray[np.int64]
    """Position of the exposure's request among R; rows of a request are neighbours."""
    item_row_N: np.ndarray
    """Records of the item dtype, as of the request."""
    pair_row_N: np.ndarray
    """Records of the pair dtype."""
    position_N: NDArray[np.int32]
    """Slot the item was shown in, from 0."""
    propensity_N: NDArray[np.float64]
    """P(item in its slot | query, slots before)."""
    label_NA: NDArray[np.float32]
    """1 where the action followed within the attribution window, else 0."""

    def __post_init__(self) -> None:
        count, requests = len(self.request_N), len(self.time_ms_R)
        lengths = [len(getattr(self, name)) for name in ("item_row_N", "pair_row_N", "position_N", "propensity_N")]
        if len(self.query_row_R) != requests or set(lengths) | {len(self.label_NA)} != {count}:
            raise ValueError(
                f"columns of {lengths} rows and {len(self.label_NA)} labels for {count} examples, "
                f"{len(self.query_row_R)} query rows for {requests} requests"
            )

    def __len__(self) -> int:
        return len(self.request_N)

    @property
    def query_row_N(self) -> np.ndarray:
        """The query row of every exposure."""
        rows: np.ndarray = self.query_row_R[self.request_N]
        return rows

    @property
    def time_ms_N(self) -> NDArray[np.int64]:
        """When each exposure's request was made."""
        return self.time_ms_R[self.request_N]

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> "Examples":
        """The exposures at `index` (positions or a mask), and of the requests only theirs."""
        kept_R, request_N = np.unique(self.request_N[index], return_inverse=True)
        return Examples(
            self.query_row_R[kept_R],
            self.time_ms_R[kept_R],
            request_N.reshape(-1).astype(np.int64),
            self.item_row_N[index],
            self.pair_row_N[index],
            self.position_N[index],
            self.propensity_N[index],
            self.label_NA[index],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> "Examples":
        """All of them, in the order given.

        Raises:
            ValueError: without any, or where their rows are of different feature tables.
        """
        if not parts:
            raise ValueError("there are no examples to learn from")
        first = parts[0]
        for name in ("query_row_R", "item_row_N", "pair_row_N"):
            for other in parts[1:]:
                if getattr(other, name).dtype != getattr(first, name).dtype:
                    raise ValueError(f"{name} of one part has fields that another part has not; use one feature table")
        offsets = np.cumsum([0, *(len(each.time_ms_R) for each in parts[:-1])])
        request_N = np.concatenate([each.request_N + offset for each, offset in zip(parts, offsets, strict=True)])
        rest = ("item_row_N", "pair_row_N", "position_N", "propensity_N", "label_NA")
        return cls(
            np.concatenate([each.query_row_R for each in parts]),
            np.concatenate([each.time_ms_R for each in parts]),
            request_N,
            *(np.concatenate([getattr(each, name) for each in parts]) for name in rest),
        )


def item_attributes(table: FeatureTable, items: pl.DataFrame) -> dict[str, NDArray[Any]]:
    """What requests can filter the frame's items by, in its order."""
    return features.item_attributes(table, **described(table, items))


def described(table: FeatureTable, items: pl.DataFrame) -> dict[str, Any]:
    """Categories, creators and declared columns of the frame's items."""
    return {
        "categories": items["category"].to_list(),
        "creators": items["creator"].to_list(),
        "columns": {feature.name: items[feature.name].to_list() for feature in table.item_columns},
    }


def item_rows(table: FeatureTable, items: pl.DataFrame, counters: ItemCounters) -> np.ndarray:
    """Item records, (I,), in the order of the frame."""
    row_I = _static_rows(table, items)
    for name, column_I in counters.column_of.items():
        row_I[name] = column_I
    return row_I


def profiles(table: FeatureTable, users: pl.DataFrame) -> np.ndarray:
    """Stored user columns as records of `table.profile_dtype`, in the order of the frame."""
    profile_U = np.zeros(users.height, table.profile_dtype)
    for feature in table.profile:
        profile_U[feature.name] = table.encode(feature.name, users[feature.name].to_list())
    return profile_U


def from_impressions(
    table: FeatureTable,
    *,
    users: pl.DataFrame,
    items: pl.DataFrame,
    impressions: pl.DataFrame,
    events: pl.DataFrame,
    watermark_ms: int,
    window_ms: int = ATTRIBUTION_MS,
    lexical: TextSearch | None = None,
    part: slice = slice(None),
) -> Examples:
    """Examples of a log without feature bytes, whose features are joined as of each request.

    Retrieval left no trace in such a log: scores and ranks of sources are at their defaults, but for how well an item
    matches what was typed, which can be asked again. Exposures of items that the catalogue does not hold are left out.

    Args:
        lexical: of the items; without it nothing matches.
        events: outcomes, and at once the source of histories and counters.
        watermark_ms: nothing visible later is read; exposures less than `window_ms` older are withheld, for a
            missing outcome of theirs may yet come.
        part: of the impressions that `mature` finds, those to make examples of; what is known at a moment is known
            from all.
    """
    asked = mature(impressions, watermark_ms=watermark_ms, window_ms=window_ms)
    built_ms = int(asked["time_ms"].min() or 0)  # type: ignore[arg-type]
    day_ms_D = np.unique(asked["time_ms"].to_numpy() // _DAY_MS) * _DAY_MS
    slots = (
        asked[part]
        .with_columns(position=pl.int_ranges(pl.col("item_id").list.len(), dtype=pl.Int32))
        .explode("item_id", "propensity", "position")
        .join(numbered(items["item_id"], "item_id", "item"), on="item_id", maintain_order="left")
    )
    requests = slots.unique("request_id", keep="first", maintain_order=True)
    request_N = (
        slots.select("request_id")
        .join(numbered(requests["request_id"], "request_id", "request"), on="request_id", maintain_order="left")[
            "request"
        ]
        .to_numpy()
    )
    item_N, time_ms_N = slots["item"].to_numpy(), slots["time_ms"].to_numpy()
    static_I = _static_rows(table, items)
    query_row_R = _query_rows(table, static_I, users=users, items=items, events=events, asked=requests)
    item_row_N = static_I[item_N]
    # The days before those of the part too: what fades day by day rounds as often.
    day_ms_D = day_ms_D[day_ms_D <= time_ms_N.max(initial=-1)]
    daily = counters_at(impressions, events, items, as_of_ms_D=day_ms_D, table=table)
    count_D = np.bincount(np.searchsorted(day_ms_D, time_ms_N // _DAY_MS * _DAY_MS), minlength=len(day_ms_D))
    for counters, end, count in zip(daily, np.cumsum(count_D), count_D, strict=True):
        of_day = slice(end - count, end)
        for name, column_I in counters.column_of.items():
            item_row_N[name][of_day] = column_I[item_N[of_day]]
    age_ms_N = time_ms_N - items["published_ms"].to_numpy()[item_N]
    match_NF = matches_of(items, requests["text"].to_list(), request_N, item_N, built_ms=built_ms)
    bm25_N = np.zeros(len(request_N), np.float32)
    if lexical is not None:
        bm25_N = bm25_of(lexical, requests["text"].to_list(), request_N, item_N, items=items.height)
    pair_row_N = pairs_not_retrieved(
        table, query_row_R, request_N, item_row_N, age_ms_N, match_NF=match_NF, bm25_N=bm25_N
    )
    return Examples(
        query_row_R,
        requests["time_ms"].to_numpy(),
        request_N,
        item_row_N,
        pair_row_N,
        slots["position"].to_numpy(),
        slots["propensity"].to_numpy(),
        _labels(table.actions, slots, events, watermark_ms=watermark_ms, window_ms=window_ms),
    )


def mature(impressions: pl.DataFrame, *, watermark_ms: int, window_ms: int = ATTRIBUTION_MS) -> pl.DataFrame:
    """Those that showed something and whose outcomes have had their time, by (time, request id)."""
    shown = impressions.filter(pl.col("time_ms") <= watermark_ms - window_ms, pl.col("item_id").list.len() > 0)
    return shown.sort("time_ms", "request_id")


def from_log(
    table: FeatureTable,
    impressions: Iterable[Impression],
    outcomes: pl.DataFrame,
    *,
    watermark_ms: int,
    window_ms: int = ATTRIBUTION_MS,
) -> Examples:
    """Examples of what was served: the logged feature bytes are the training bytes.

    Raises:
        ValueError: where bytes were written with another feature table, or do not fit the items shown.
    """
    mature = [each for each in impressions if each.item_id and each.time_ms <= watermark_ms - window_ms]
    for each in mature:
        if each.schema != table.fingerprint:
            raise ValueError(
                f"impression {each.request_id} was logged with feature table {each.schema}, not {table.fingerprint}"
            )
    count_R = np.array([len(each.item_id) for each in mature], np.int64)
    slots = pl.DataFrame(
        {
            "request_id": np.repeat(np.array([each.request_id for each in mature], np.object_), count_R).tolist(),
            "item_id": [item_id for each in mature for item_id in each.item_id],
            "time_ms": np.repeat(np.array([each.time_ms for each in mature], np.int64), count_R),
        },
        {"request_id": pl.Utf8, "item_id": pl.Utf8, "time_ms": pl.Int64},
    )
    return Examples(
        _rows(table, "query", [(each.request_id, each.query_row, 1) for each in mature]),
        np.array([each.time_ms for each in mature], np.int64),
        np.repeat(np.arange(len(mature)), count_R),
        _rows(table, "item", [(each.request_id, each.item_rows, len(each.item_id)) for each in mature]),
        _rows(table, "pair", [(each.request_id, each.pair_rows, len(each.item_id)) for each in mature]),
        np.concatenate([np.empty(0, np.int32), *(np.arange(count, dtype=np.int32) for count in count_R)]),
        np.array([propensity for each in mature for propensity in each.propensity], np.float64),
        _labels(table.actions, slots, outcomes, watermark_ms=watermark_ms, window_ms=window_ms),
    )


def tower_pairs(
    table: FeatureTable,
    *,
    users: pl.DataFrame,
    items: pl.DataFrame,
    item_row_I: np.ndarray,
    events: pl.DataFrame,
    impressions: pl.DataFrame,
    most: int,
    hard: int,
    watermark_ms: int,
    window_ms: int = ATTRIBUTION_MS,
) -> tuple[np.ndarray, NDArray[np.int64], NDArray[np.int64]]:
    """What the towers learn from, oldest first: query rows, the row of the item that was then taken, and those of
    items that the same request showed and that were not taken, (N, hard), with -1 where there are fewer.

    A query is the request that led to the outcome (its time, surface and typed text), or the time of the outcome
    where no request is known. Its history ends strictly before, so that it never holds the outcome itself nor those
    of the same moment.

    Args:
        most: where there are more outcomes than this, evenly spaced ones are taken.
        hard: of what a request showed and was not taken, the first so many in slot order. Impressions that were made
            up show nothing, and those less than `window_ms` before `watermark_ms` may yet be followed by an outcome.
    """
    requests = impressions.select("request_id", "surface", "text", asked_ms="time_ms")
    positives = (
        events.filter(pl.col("action") == table.actions[0])
        .join(numbered(items["item_id"], "item_id", "item"), on="item_id")
        .join(requests, on="request_id", how="left")
        .with_columns(
            pl.col("surface", "text").fill_null(""), time_ms=pl.coalesce("asked_ms", "time_ms"), taken_ms="time_ms"
        )
        .sort("time_ms", "taken_ms", "event_id")
    )
    positives = positives.gather_every(math.ceil(max(1, positives.height) / most))
    query_row_N = _query_rows(
        table, item_row_I, users=users, items=items, events=events, asked=positives, strictly=True
    )
    taken = events.filter(pl.col("action") == table.actions[0]).select("request_id", "item_id")
    passed_over = (
        impressions.filter(
            pl.col("time_ms") <= watermark_ms - window_ms, ~pl.col("request_id").str.starts_with(SYNTHETIC)
        )
        .select("request_id", "item_id")
        .explode("item_id")
        .join(taken, on=["request_id", "item_id"], how="anti", maintain_order="left")
        .join(numbered(items["item_id"], "item_id", "item"), on="item_id", maintain_order="left")
        .with_columns(column=pl.int_range(pl.len()).over("request_id"))
        .filter(pl.col("column") < hard)
    )
    pairs = positives.select("request_id").with_row_index("row").join(passed_over, on="request_id")
    hard_row_NH = np.full((positives.height, hard), -1, np.int64)
    hard_row_NH[pairs["row"].to_numpy(), pairs["column"].to_numpy()] = pairs["item"].to_numpy()
    return query_row_N, positives["item"].to_numpy(), hard_row_NH


def _query_rows(
    table: FeatureTable,
    item_row_I: np.ndarray,
    *,
    users: pl.DataFrame,
    items: pl.DataFrame,
    events: pl.DataFrame,
    asked: pl.DataFrame,
    strictly: bool = False,
) -> np.ndarray:
    """Query records of a frame with user_id, time_ms, surface and text."""
    time_ms_B = asked["time_ms"].to_numpy()
    row_BL, action_BL, past_ms_BL = point_in_time_history(
        events,
        asked["user_id"],
        time_ms_B,
        length=table["history_item"].shape[0],
        item_ids=items["item_id"],
        actions=table.actions,
        strictly=strictly,
    )
    return query_rows(
        table,
        item_row_I,
        user_ids=asked["user_id"].to_list(),
        profile_B=np.concatenate([profiles(table, users), table.stranger])[rows_known(users, asked)],  # -1: the last
        surfaces=asked["surface"].to_list(),
        texts=asked["text"].to_list(),
        time_ms_B=time_ms_B,
        history_row_BL=row_BL,
        history_action_BL=action_BL,
        history_time_ms_BL=past_ms_BL,
    )


def pairs_not_retrieved(
    table: FeatureTable,
    query_row_R: np.ndarray,
    request_N: NDArray[np.int64],
    item_row_N: np.ndarray,
    age_ms_N: NDArray[np.int64],
    *,
    match_NF: Mapping[Field, NDArray[np.float32]],
    bm25_N: NDArray[np.float32],
) -> np.ndarray:
    """Pair records without sources' ranks, in chunks: a query row for each pair at once would be large."""
    parts = [table.empty("pair", 0)]
    for start in range(0, len(request_N), _CHUNK):
        part = slice(start, start + _CHUNK)
        parts.append(
            pair_rows(
                table,
                query_row_R[request_N[part]],
                item_row_N[part],
                age_ms_N=age_ms_N[part],
                match_NF={name: each_NF[part] for name, each_NF in match_NF.items()},
                bm25_N=bm25_N[part],
            )
        )
    return np.concatenate(parts)


def matches_of(
    items: pl.DataFrame,
    texts: Sequence[str],
    request_N: NDArray[np.int64],
    item_N: NDArray[np.int64],
    *,
    built_ms: int,
) -> dict[Field, NDArray[np.float32]]:
    """How well each exposure's item matches what was typed, as `pair_rows` takes it; zeros where nothing was.

    Args:
        texts: what each request typed.
        request_N: never falls.
        built_ms: as in a generation that was built then, statistics of words are those of the items published by
            then, whatever came later.
    """
    match_NF = no_matches(len(request_N))
    if not any(texts):
        return match_NF
    later_I = items["published_ms"].to_numpy() > built_ms
    row_I = np.argsort(np.argsort(later_I, kind="stable"))
    built, later = items.filter(~later_I), items.filter(later_I)
    prepared: dict[Field, PreparedTexts] = {
        "title": PreparedTexts.of(built["title"].to_list()).appended(later["title"].to_list()),
        "text": PreparedTexts.of(searchable(built)).appended(searchable(later)),
    }
    start_R = np.searchsorted(request_N, np.arange(len(texts) + 1))
    for r, text in enumerate(texts):
        exposed = slice(start_R[r], start_R[r + 1])
        for name, matched_KF in (field_matches(text, prepared, row_I[item_N[exposed]]) or {}).items():
            match_NF[name][exposed] = matched_KF
    return match_NF


def no_matches(count: int) -> dict[Field, NDArray[np.float32]]:
    """Of exposures where nothing was typed."""
    return {name: np.zeros((count, len(TEXT_MATCH)), np.float32) for name in get_args(Field)}


def bm25_of(
    lexical: TextSearch,
    texts: Sequence[str],
    request_N: NDArray[np.int64],
    item_N: NDArray[np.int64],
    *,
    items: int,
) -> NDArray[np.float32]:
    """How well each exposure's item matches what was typed; 0 where it does not."""
    bm25_N = np.zeros(len(request_N), np.float32)
    start_R = np.searchsorted(request_N, np.arange(len(texts) + 1))
    for r, text in enumerate(texts):
        if not text:
            continue
        hits = lexical.search(text, items)
        score_of = dict(zip(hits.row_K.tolist(), hits.score_K.tolist(), strict=True))
        exposed = slice(start_R[r], start_R[r + 1])
        bm25_N[exposed] = [score_of.get(item, 0.0) for item in item_N[exposed].tolist()]
    return bm25_N


def _static_rows(table: FeatureTable, items: pl.DataFrame) -> np.ndarray:
    return features.item_rows(
        table,
        ids=items["item_id"].to_list(),
        titles=items["title"].to_list(),
        **described(table, items),
    )


def _labels(
    actions: Sequence[str], slots: pl.DataFrame, outcomes: pl.DataFrame, *, watermark_ms: int, window_ms: int
) -> NDArray[np.float32]:
    """Labels (N, A) of exposures (request_id, item_id, time_ms): 1 where the outcome came in time and is visible."""
    label_NA = np.zeros((slots.height, len(actions)), np.float32)
    hits = (
        known_events(outcomes)
        .filter(pl.col("known_ms") <= watermark_ms)
        .with_columns(action=action_code(actions))
        .filter(pl.col("action") > 0)
        .join(
            slots.select("request_id", "item_id", shown_ms="time_ms").with_row_index("slot"),
            on=["request_id", "item_id"],
        )
        .filter((pl.col("time_ms") - pl.col("shown_ms")).is_between(0, window_ms))
    )
    label_NA[hits["slot"].to_numpy(), hits["action"].to_numpy() - 1] = 1
    return label_NA


def _rows(table: FeatureTable, kind: RowKind, logged: Sequence[tuple[str, bytes, int]]) -> np.ndarray:
    dtype = table.dtype(kind)
    for request_id, bytes_of, count in logged:
        if len(bytes_of) != count * dtype.itemsize:
            raise ValueError(
                f"impression {request_id} holds {len(bytes_of)} bytes of {kind} rows; "
                f"{count} rows take {count * dtype.itemsize}"
            )
    return np.frombuffer(b"".join(bytes_of for _, bytes_of, _ in logged), dtype)
