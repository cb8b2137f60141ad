"""The one feature table: it drives towers, ranker, online rows, logged rows and training examples.

A *row* is a NumPy record whose fields are features: the query row (user, context, history; one a request), the
item row (one an item, kept in the generation) and the pair row (one a candidate). The bytes of these records are
what the impression log keeps and what training reads, so there is nothing to recompute and nothing to skew.

Shape letters: B queries, L history, N candidates, I items, T tokens, H hashes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from candidate_gen.counts import NEVER_LOG_HOURS, Count, Cross, Crossing, Spans, counts, crosses
from candidate_gen.text import token_ids
from candidate_gen.text_match import Field, Match, matches
from index.columns import Column, plain
from index.strings import key64, keys64

Owner = Literal["user", "context", "history", "item", "pair"]
RowKind = Literal["query", "item", "pair"]
_OWNERS: dict[RowKind, tuple[Owner, ...]] = {
    "query": ("user", "context", "history"),
    "item": ("item",),
    "pair": ("pair",),
}
_DAY_MS = 86_400_000
_SPANS = Spans()
_FILE = "schema.json"
_PLAIN_PAIR = ("log_age_days", "bm25", "tower_score", "retrieved")
"""Numbers of the pair that are neither crosses nor matches."""
_RANK = "_reciprocal_rank"


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of the table."""

    name: str
    owner: Owner
    kind: Literal["id", "number"]
    size: int = 0
    """Rows of the embedding table of an id, row 0 being unknown or padding."""
    shape: tuple[int, ...] = ()
    hashes: int = 1
    """Embedding rows an id is spread over (the last axis of `shape` where above 1): two ids that share one row
    seldom share both, so that new ids need no retraining and old ones seldom collide."""
    vocabulary: tuple[str, ...] = ()
    """Known values, the first has row 1; empty for hashed ids."""
    default: float = 0.0
    shares: str = ""
    """Name of the feature whose embedding table is used."""
    count: Count | None = None
    """What it counts, for a counter of items."""
    cross: Cross | None = None
    """What it compares, for a number of the pair that is made of the history."""
    match: Match | None = None
    """What it compares, for a number of the pair that is made of texts."""

    @property
    def field(self) -> tuple[str, str, tuple[int, ...]]:
        return self.name, "<i4" if self.kind == "id" else "<f4", self.shape


@dataclass(frozen=True)
class FeatureTable:
    """Every feature, and the names that give numbered things their meaning."""

    features: tuple[Feature, ...]
    actions: tuple[str, ...]
    """Outcomes that the ranker predicts."""
    sources: tuple[str, ...]
    """Retrieval sources whose ranks are features."""

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"features declared twice: {', '.join(sorted(repeated))}")

    def __getitem__(self, name: str) -> Feature:
        if name not in self._named:
            raise KeyError(f"no feature {name!r}; there are {', '.join(self._named)}")
        return self._named[name]

    def __contains__(self, name: str) -> bool:
        return name in self._named

    @cached_property
    def _named(self) -> dict[str, Feature]:
        return {feature.name: feature for feature in self.features}

    def of(self, row: RowKind) -> tuple[Feature, ...]:
        """Features of one kind of row, in the order of its bytes."""
        return tuple(feature for feature in self.features if feature.owner in _OWNERS[row])

    def dtype(self, row: RowKind) -> np.dtype[np.void]:
        """Packed little-endian record of one kind of row, which are words of four bytes."""
        return self._blank[row].dtype

    def words(self, row: RowKind, name: str) -> slice:
        """Where a feature is in its record, in words."""
        fields = self.dtype(row).fields
        assert fields is not None
        dtype, offset = fields[name][:2]
        return slice(offset // 4, (offset + dtype.itemsize) // 4)

    def empty(self, row: RowKind, count: int) -> np.ndarray:
        """`count` rows that hold every feature's default."""
        return self._blank[row].repeat(count)

    @cached_property
    def _blank(self) -> dict[RowKind, np.ndarray]:
        """A row of each kind, (1,)."""
        return {row: _defaults(self.of(row)) for row in _OWNERS}

    @cached_property
    def profile(self) -> tuple[Feature, ...]:
        """Stored user columns: what the user row of the generation holds."""
        return tuple(feature for feature in self.features if feature.owner == "user" and feature.name != "user_id")

    @property
    def profile_dtype(self) -> np.dtype[np.void]:
        return self._stranger.dtype

    @property
    def stranger(self) -> np.ndarray:
        """The profile of a user of whom nothing is known, (1,)."""
        return self._stranger.copy()

    @cached_property
    def _stranger(self) -> np.ndarray:
        return _defaults(self.profile)

    @property
    def item_columns(self) -> tuple[Feature, ...]:
        """Declared item columns, beyond those that every data set has."""
        known = {"item_id", "category", "creator", "title", *(name for name, _ in self.counters)}
        return tuple(feature for feature in self.of("item") if feature.name not in known)

    @cached_property
    def counters(self) -> tuple[tuple[str, Count], ...]:
        """Counters in the item row, by name."""
        return tuple((feature.name, feature.count) for feature in self.of("item") if feature.count is not None)

    @cached_property
    def crosses(self) -> tuple[tuple[str, Cross], ...]:
        """Numbers in the pair row that are made of the history, by name."""
        return tuple((feature.name, feature.cross) for feature in self.of("pair") if feature.cross is not None)

    @cached_property
    def matches(self) -> tuple[tuple[str, Match], ...]:
        """Numbers in the pair row that are made of texts, by name."""
        return tuple((feature.name, feature.match) for feature in self.of("pair") if feature.match is not None)

    @cached_property
    def crossing(self) -> Crossing:
        """Works the crosses out."""
        kinds: tuple[RowKind, ...] = ("query", "item")
        at = {feature.name: self.words(kind, feature.name) for kind in kinds for feature in self.of(kind)}
        return Crossing(self.crosses, self.actions, at)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the bytes of the rows: equal fingerprints, equal meaning of every byte."""
        return sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(
            {
                "features": [_described(feature) for feature in self.features],
                "actions": self.actions,
                "sources": self.sources,
            },
            sort_keys=True,
        )

    def save(self, folder: Path) -> None:
        (folder / _FILE).write_text(self.to_json())

    @classmethod
    def load(cls, folder: Path) -> "FeatureTable":
        """What `save` left.

        Raises:
            ValueError: a table of another version of this code, which made features of the pair that this one does not.
        """
        table = cls.from_json((folder / _FILE).read_text())
        made = {*_PLAIN_PAIR, *(f"{source}{_RANK}" for source in table.sources)}
        for feature in table.of("pair"):
            if feature.name not in made and feature.cross is None and feature.match is None:
                raise ValueError(
                    f"{folder / _FILE} declares {feature.name!r}, which this version does not make: "
                    "train a generation with this version in a folder of its own"
                )
        return table

    @classmethod
    def from_json(cls, text: str) -> "FeatureTable":
        read = json.loads(text)
        features = tuple(
            Feature(
                **{
                    **each,
                    "shape": tuple(each["shape"]),
                    "vocabulary": tuple(each["vocabulary"]),
                    "count": Count(**each["count"]) if "count" in each else None,
                    "cross": Cross(**each["cross"]) if "cross" in each else None,
                    "match": Match(**each["match"]) if "match" in each else None,
                }
            )
            for each in read["features"]
        )
        return cls(features, tuple(read["actions"]), tuple(read["sources"]))

    def encode(self, name: str, values: Sequence[object]) -> NDArray[np.int32] | NDArray[np.float32]:
        """A column of raw values as the feature's stored form; None, NaN, "" and unseen values become its default.

        Raises:
            ValueError: where a number is given as text that is none.
        """
        return self.encoded(name, values)[0]

    def encoded(
        self, name: str, values: Sequence[object]
    ) -> tuple[NDArray[np.int32] | NDArray[np.float32], NDArray[np.bool_]]:
        """The same, and for which values the default stands though something was given: not finite, or unseen in a
        vocabulary. What a hash makes an id of is never unseen here; a model knows which ids it was not trained on."""
        feature = self[name]
        given_B = np.array([value is not None and value != "" for value in values], np.bool_)
        if feature.kind == "number":
            with np.errstate(over="ignore"):
                column = _numbers(name, values).astype(np.float32)
            unusable_B = ~np.isfinite(column)
            column[unusable_B] = feature.default
            return column, unusable_B & given_B
        known_B = np.array([not _missing(v) for v in values], np.bool_)
        texts = [str(v) if k else "" for v, k in zip(values, known_B, strict=True)]
        none_B = np.zeros(len(texts), np.bool_)
        if name in ("title", "text"):
            return token_ids(texts, length=feature.shape[0], size=feature.size), none_B
        default = int(feature.default)
        if feature.vocabulary:
            row_of = {value: row for row, value in enumerate(feature.vocabulary, start=1)}
            row_B = np.array([row_of.get(text, -1) for text in texts], np.int32)
            return np.where(row_B > 0, row_B, default).astype(np.int32), given_B & (row_B < 0)
        ids = hashed_ids(keys64(texts), feature)
        return np.where(known_B.reshape(-1, *[1] * (ids.ndim - 1)), ids, default).astype(np.int32), none_B


def words(rows: np.ndarray) -> NDArray[np.int32]:
    """Records as words, (rows, words), for compiled code: which is compiled for arrays that can be written to."""
    return plain(rows, rows.dtype).view(np.int32).reshape(len(rows), rows.dtype.itemsize // 4)


def _defaults(features: Sequence[Feature]) -> np.ndarray:
    """A record that holds every feature's default, (1,)."""
    row = np.zeros(1, np.dtype([feature.field for feature in features]))
    for feature in features:
        row[feature.name] = feature.default
    return row


def _described(feature: Feature) -> dict[str, Any]:
    """As JSON holds it: what a table before counters had a declaration did not hold is left out where it is None."""
    return {name: value for name, value in asdict(feature).items() if value is not None}


def _missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _numbers(name: str, values: Sequence[object]) -> NDArray[np.float64]:
    """As numbers; NaN where missing."""
    try:
        return np.array([np.nan if _missing(v) else float(v) for v in values], np.float64)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"feature {name!r} is a number: {error}") from None


def hashed_ids(key_B: NDArray[np.uint64], feature: Feature) -> NDArray[np.int32]:
    """64-bit keys to embedding rows, (B,) or (B, H); never row 0."""
    halves_B2 = key_B.astype("<u8", order="C").view("<u4").reshape(-1, 2)
    ids_BH = (1 + halves_B2[:, np.arange(feature.hashes) % 2] % (feature.size - 1)).astype(np.int32)
    return ids_BH if feature.hashes > 1 else ids_BH[:, 0]


def feature_table(
    *,
    users: int,
    items: int,
    actions: Sequence[str],
    categories: Sequence[str],
    sources: Sequence[str],
    user_columns: Mapping[str, Sequence[str] | None],
    item_columns: Mapping[str, Sequence[str] | None],
    spans: Spans = _SPANS,
    history_length: int = 32,
    title_length: int = 12,
) -> FeatureTable:
    """The table of a data set.

    Args:
        users: how many there are; sizes the hashed embedding.
        items: likewise.
        user_columns: stored columns by name; the known values of a category, or None for a number.
        item_columns: likewise, beyond id, title, category, creator and counters, which every data set has.
        spans: of the counters and of the crosses with the history.
    """

    def buckets(count: int) -> int:
        return 1 << max(6, int(np.ceil(np.log2(2 * count + 2))))

    def declared(owner: Owner, columns: Mapping[str, Sequence[str] | None]) -> list[Feature]:
        return [
            Feature(name, owner, "number")
            if values is None
            else Feature(name, owner, "id", len(values) + 1, vocabulary=tuple(values))
            for name, values in columns.items()
        ]

    item_id = Feature("item_id", "item", "id", buckets(items), (2,), hashes=2)
    category = Feature("category", "item", "id", len(categories) + 1, vocabulary=tuple(categories))
    creator = Feature("creator", "item", "id", buckets(items // 4))
    title = Feature("title", "item", "id", 1 << 14, (title_length,))
    past = history_length
    features = [
        Feature("user_id", "user", "id", buckets(users), (2,), hashes=2),
        *declared("user", user_columns),
        Feature("surface", "context", "id", 64),
        Feature("hour", "context", "id", 25),
        Feature("weekday", "context", "id", 8),
        Feature("text", "context", "id", title.size, (title_length,), shares="title"),
        Feature("history_item", "history", "id", item_id.size, (past, 2), hashes=2, shares="item_id"),
        Feature("history_category", "history", "id", category.size, (past,), shares="category"),
        Feature("history_creator", "history", "id", creator.size, (past,), shares="creator"),
        Feature("history_action", "history", "id", len(actions) + 1, (past,)),
        Feature("history_log_hours", "history", "number", shape=(past,)),
        Feature("history_log_length", "history", "number"),
        item_id,
        category,
        creator,
        title,
        *declared("item", item_columns),
        *[Feature(name, "item", "number", count=count) for name, count in counts(actions, spans)],
        Feature("log_age_days", "pair", "number"),
        *[
            Feature(name, "pair", "number", default=NEVER_LOG_HOURS * (cross.measure == "hours"), cross=cross)
            for name, cross in crosses(actions, spans)
        ],
        *[Feature(name, "pair", "number", match=match) for name, match in matches()],
        Feature("bm25", "pair", "number"),
        Feature("tower_score", "pair", "number"),
        Feature("retrieved", "pair", "number"),
        *[Feature(f"{source}{_RANK}", "pair", "number") for source in sources],
    ]
    return FeatureTable(tuple(features), tuple(actions), tuple(sources))


def item_rows(
    table: FeatureTable,
    *,
    ids: Sequence[str],
    categories: Sequence[str | None],
    creators: Sequence[str | None],
    titles: Sequence[str | None],
    columns: Mapping[str, Sequence[object]],
) -> np.ndarray:
    """Item records, offline and online: the same code. Counters are at their defaults.

    Args:
        columns: raw values of every one of `table.item_columns`, by name.

    Raises:
        ValueError: a declared column is not there, or a number is given as text that is none.
    """
    row_I = table.empty("item", len(ids))
    known = {"item_id": ids, "category": categories, "creator": creators, "title": titles}
    for name, values in (*known.items(), *_declared(table, columns)):
        row_I[name] = table.encode(name, values)
    return row_I


def item_attributes(
    table: FeatureTable,
    *,
    categories: Sequence[str | None],
    creators: Sequence[str | None],
    columns: Mapping[str, Sequence[object]],
) -> dict[str, NDArray[Any]]:
    """What requests can filter items by: `Items.attributes`. Values and errors are those of `item_rows`."""
    attributes: dict[str, NDArray[Any]] = {"category": _keys(categories), "creator": _keys(creators)}
    for name, values in _declared(table, columns):
        if table[name].kind == "number":
            attributes[name] = np.where(np.isfinite(number_I := _numbers(name, values)), number_I, np.nan)
        else:
            attributes[name] = _keys(values)
    return attributes


def attribute_texts(
    table: FeatureTable,
    *,
    categories: Sequence[str | None],
    creators: Sequence[str | None],
    columns: Mapping[str, Sequence[object]],
) -> set[str]:
    """The texts among what requests can filter items by: `Items.texts`."""
    listed = [values for name, values in _declared(table, columns) if table[name].kind != "number"]
    return {str(value) for values in (categories, creators, *listed) for value in values if not _missing(value)} - {""}


def _declared(table: FeatureTable, columns: Mapping[str, Sequence[object]]) -> list[tuple[str, Sequence[object]]]:
    names = [feature.name for feature in table.item_columns]
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"item columns {', '.join(missing)} are missing; declared are {', '.join(names)}")
    return [(name, columns[name]) for name in names]


def _keys(values: Sequence[object]) -> NDArray[np.uint64]:
    """`key64` of each; 0 where missing."""
    texts = ["" if _missing(value) else str(value) for value in values]
    key_of = {text: key64(text) if text else 0 for text in set(texts)}
    return np.fromiter((key_of[text] for text in texts), np.uint64, len(texts))


def query_rows(
    table: FeatureTable,
    item_row_I: Column,
    *,
    user_ids: Sequence[str],
    profile_B: np.ndarray,
    surfaces: Sequence[str],
    texts: Sequence[str],
    time_ms_B: NDArray[np.int64],
    history_row_BL: NDArray[np.int64],
    history_action_BL: NDArray[np.int32],
    history_time_ms_BL: NDArray[np.int64],
) -> np.ndarray:
    """Query rows, offline (B of them) and online (one): the same code.

    Args:
        profile_B: records of `table.profile_dtype`.
        history_row_BL: item rows, newest first; -1 pads on the right and stands for items that are gone.
    """
    rows_B = table.empty("query", len(user_ids))
    for name in profile_B.dtype.names or ():
        rows_B[name] = profile_B[name]
    rows_B["user_id"] = table.encode("user_id", user_ids)
    rows_B["surface"] = table.encode("surface", surfaces)
    if any(texts):
        rows_B["text"] = table.encode("text", texts)
    rows_B["hour"] = 1 + time_ms_B // 3_600_000 % 24
    rows_B["weekday"] = 1 + time_ms_B // _DAY_MS % 7
    kept = min(history_row_BL.shape[1], table["history_item"].shape[0])
    known_BL = history_row_BL[:, :kept] >= 0
    past_BL = np.where(known_BL, history_row_BL[:, :kept], 0)
    if kept and len(item_row_I):
        rows_B["history_item"][:, :kept] = item_row_I["item_id"][past_BL] * known_BL[..., None]
        rows_B["history_category"][:, :kept] = item_row_I["category"][past_BL] * known_BL
        rows_B["history_creator"][:, :kept] = item_row_I["creator"][past_BL] * known_BL
        rows_B["history_action"][:, :kept] = history_action_BL[:, :kept] * known_BL
        age_ms_BL = np.maximum(time_ms_B[:, None] - history_time_ms_BL[:, :kept], 0)
        rows_B["history_log_hours"][:, :kept] = np.log1p(age_ms_BL / 3_600_000) * known_BL
    rows_B["history_log_length"] = np.log1p(known_BL.sum(axis=1))
    return rows_B


def pair_rows(
    table: FeatureTable,
    query_row_N: np.ndarray,
    item_row_N: np.ndarray,
    *,
    age_ms_N: NDArray[np.int64],
    tower_score_N: NDArray[np.float32] | None = None,
    match_NF: Mapping[Field, NDArray[np.float32]] | None = None,
    bm25_N: NDArray[np.float32] | None = None,
    rank_NS: NDArray[np.int16] | None = None,
    query_N: NDArray[np.int64] | None = None,
) -> np.ndarray:
    """Pair rows, offline (a query row for each item row) and online (one query row for all).

    Args:
        query_row_N: several for several items each, where `query_N` says whose is which.
        age_ms_N: time since the item was published.
        tower_score_N: inner product of the towers; None where no tower proposed anything.
        match_NF: `text_match` of what was typed and each text of the items; None where nothing was typed.
        bm25_N: of the text index; 0 where it was not asked.
        rank_NS: 0-based ranks by source in the order of `table.sources`, -1 where absent.
    """
    rows_N = table.empty("pair", len(item_row_N))
    rows_N["log_age_days"] = np.log1p(np.maximum(age_ms_N, 0) / _DAY_MS)
    if table.crosses:
        for name, value_N in table.crossing(words(query_row_N), words(item_row_N), query_N).items():
            rows_N[name] = value_N
    if match_NF is not None:
        for name, match in table.matches:
            matched_N = match_NF[match.field][:, match.column]
            rows_N[name] = np.log1p(matched_N) if match.measure == "bm25" else matched_N
    if bm25_N is not None:
        rows_N["bm25"] = np.log1p(np.maximum(bm25_N, 0))
    if tower_score_N is not None:
        rows_N["tower_score"] = tower_score_N
    if rank_NS is not None:
        named_NS = rank_NS >= 0
        reciprocal_NS = np.where(named_NS, 1 / (1 + np.maximum(rank_NS, 0)), 0)
        rows_N["retrieved"] = named_NS.any(axis=1)
        for source, reciprocal_N in zip(table.sources, reciprocal_NS.T, strict=True):
            rows_N[f"{source}{_RANK}"] = reciprocal_N
    return rows_N
