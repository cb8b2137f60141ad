"""A generation: everything one request needs, bound together, loaded, checked and swapped as one thing.

What `write` puts into a folder, `Generation.load` reads; both are here so that they cannot drift apart.

Shape letters: L history, U users, I items.
"""

import json
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, query_rows
from candidate_gen.filters import Excluded, Seen, Unavailable, Unpublished
from candidate_gen.items import Items
from candidate_gen.sources import Ann, Fresh, Lexical, Popular, SimilarToRecent
from candidate_gen.towers import Towers
from candidate_gen.types import History, HydratedQuery, Query
from index.generations import GenerationStore, Manifest
from index.lexical import LexicalIndex
from index.strings import IdMap
from index.vectors import VectorIndex
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from ranking.scorer import RankerScorer, RetrievalOrder
from serving.pipeline import Filter, Pipeline, Source


class GenerationMismatch(ValueError):
    """Parts of different trainings, which must never answer one request together."""


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How many candidates each source may name, and which of them are not eligible."""

    quotas: Mapping[str, int] = field(
        default_factory=lambda: {"ann": 200, "lexical": 100, "similar": 80, "fresh": 50, "popular": 50}
    )
    fresh_days: float = 3.0
    hide_seen: bool | None = None
    """Leave out what the user's history holds; None: as suits the data, see `Dataset.repeats`."""

    def __post_init__(self) -> None:
        if any(quota < 0 for quota in self.quotas.values()) or self.quotas.get("popular", 0) < 1:
            raise ValueError(f"quotas must not be negative and popular's at least 1, got {dict(self.quotas)}")
        if self.fresh_days <= 0:
            raise ValueError(f"fresh_days must be positive, got {self.fresh_days}")


def write(
    folder: Path,
    *,
    table: FeatureTable,
    items: Items,
    users: IdMap,
    profile_U: np.ndarray,
    towers: Towers,
    vectors: VectorIndex,
    scorer: RankerScorer,
    policy: PolicySettings,
    retrieval: RetrievalSettings,
    searchable: Sequence[str],
) -> dict[str, str]:
    """Fill a staged folder; returns the fingerprints that `GenerationStore.publish` binds into the manifest.

    Args:
        searchable: what the lexical index reads of every item.
    """
    (folder / "schema.json").write_text(table.to_json())
    items.save(folder)
    users.save(folder, "user_id")
    np.save(folder / "profile_U.npy", profile_U, allow_pickle=False)
    towers.save(folder)
    vectors.save(folder)
    LexicalIndex.build(folder / "lexical", searchable)
    scorer.save(folder)
    (folder / "policy.json").write_text(policy.to_json())
    (folder / "retrieval.json").write_text(json.dumps(asdict(retrieval), sort_keys=True))
    return {
        "schema": table.fingerprint,
        "items": items.fingerprint,
        "towers": towers.fingerprint,
        "vectors": vectors.towers,
        "ranker": scorer.fingerprint,
        "policy": policy.fingerprint,
    }


@dataclass(frozen=True)
class Generation:
    """One loaded generation. Immutable: a request pins it for its whole life."""

    id: str
    manifest: Manifest
    table: FeatureTable
    items: Items
    users: IdMap
    profile_U: np.ndarray
    towers: Towers
    vectors: VectorIndex
    settings: PolicySettings
    pipeline: Pipeline

    @classmethod
    def load(cls, store: GenerationStore, generation: str) -> "Generation":
        """Verify every file against the manifest, refuse parts that do not belong together, warm up.

        Raises:
            UnknownGeneration, CorruptGeneration: see `GenerationStore`.
            GenerationMismatch: both fingerprints are in the message.
        """
        manifest = store.verify(generation)
        folder = store.folder(generation)
        table = FeatureTable.from_json((folder / "schema.json").read_text())
        _agree("schema", table.fingerprint, "manifest", manifest.fingerprints["schema"])
        items = Items.load(folder)
        _agree("items", items.fingerprint, "manifest", manifest.fingerprints["items"])
        _agree("item rows", str(items.row_I.dtype), "schema", str(table.dtype("item")))
        towers = Towers.load(folder, table)
        _agree("towers", towers.fingerprint, "manifest", manifest.fingerprints["towers"])
        vectors = VectorIndex.load(folder)
        _agree("index built from towers", vectors.towers, "towers", towers.fingerprint)
        if len(vectors) != len(items):
            raise GenerationMismatch(f"the index holds {len(vectors)} items, the catalogue {len(items)}")
        scorer = RankerScorer.load(folder, table, items)
        _agree("ranker", scorer.fingerprint, "manifest", manifest.fingerprints["ranker"])
        settings = PolicySettings.from_json((folder / "policy.json").read_text())
        _agree("policy", settings.fingerprint, "manifest", manifest.fingerprints["policy"])
        retrieval = RetrievalSettings(**json.loads((folder / "retrieval.json").read_text()))
        users = IdMap.load(folder, "user_id")
        profile_U = np.load(folder / "profile_U.npy", mmap_mode="r", allow_pickle=False)
        _agree("user profiles", str(profile_U.dtype), "schema", str(table.profile_dtype))

        def hydrate(query: Query) -> HydratedQuery:
            row = _query_row(table, items, users, profile_U, query)
            return HydratedQuery(query, row, towers.encode_queries(row)[0])

        sources: dict[str, Source] = {
            "ann": Ann(vectors, items),
            "lexical": Lexical(LexicalIndex.load(folder / "lexical")),
            "similar": SimilarToRecent(vectors, items),
            "fresh": Fresh(items, horizon_days=retrieval.fresh_days),
            "popular": Popular(items),
        }
        filters: list[Filter] = [Unavailable(items), Unpublished(items), Excluded()]
        if retrieval.hide_seen:
            filters.append(Seen())
        pipeline = Pipeline(
            hydrate=hydrate,
            sources=[(sources[name], retrieval.quotas[name]) for name in sources if retrieval.quotas.get(name)],
            filters=filters,
            scorer=scorer,
            retrieval_order=RetrievalOrder(table, items),
            selector=SlatePolicy(settings, items, generation),
        )
        loaded = cls(generation, manifest, table, items, users, profile_U, towers, vectors, settings, pipeline)
        loaded.warm_up()
        return loaded

    def warm_up(self) -> None:
        """Answer canary queries, so that the first caller does not pay and a broken generation never serves.

        Raises:
            GenerationMismatch: where an answer is empty, degraded or not finite.
        """
        at_ms = self.manifest.data_window[1]
        typed = next((title for title in self.items.titles if title), "")
        for user_id, text in (("", ""), (self.users.ids[0] if len(self.users) else "", ""), ("", typed)):
            query = Query(f"canary/{user_id}/{text}", at_ms, "canary", 10, user_id=user_id, text=text)
            answer = self.pipeline.run(query)
            if answer.trace.degraded or not np.isfinite(answer.slate.propensity_K).all():
                raise GenerationMismatch(
                    f"generation {self.id} answers a canary query (user {user_id!r}, text {text!r}) with "
                    f"{len(answer.slate)} items, degraded bits {answer.trace.degraded}, "
                    f"skipped sources {answer.trace.skipped_sources}"
                )

    @cached_property
    def _action_rows(self) -> dict[int, int]:
        return {action_key(name): row for row, name in enumerate(self.table.actions, start=1)}

    def history(
        self, key_L: NDArray[np.uint64], action_key_L: NDArray[np.uint32], time_ms_L: NDArray[np.int64]
    ) -> History:
        """Stored user state in this generation's rows; items that it does not hold are left out."""
        row_L = self.items.ids.rows(key_L)
        action_L = np.array([self._action_rows.get(int(key), 0) for key in action_key_L], np.int32)
        known_L = row_L >= 0
        return History(row_L[known_L], action_L[known_L], time_ms_L[known_L])


def action_key(name: str) -> int:
    """An action's name in the user state and the log, where the order of a feature table may have changed."""
    return zlib.crc32(name.encode())


def _query_row(table: FeatureTable, items: Items, users: IdMap, profile_U: np.ndarray, query: Query) -> np.ndarray:
    profile = np.zeros(1, table.profile_dtype)
    user_row = users.rows_of([query.user_id])[0] if query.user_id else -1
    if user_row >= 0:
        profile[0] = profile_U[user_row]
    else:
        for feature in table.profile:
            profile[feature.name] = feature.default
    for name, value in query.features.items():
        if name in (profile.dtype.names or ()):
            profile[name] = table.encode(name, [value])
    history = query.history
    return query_rows(
        table,
        items.row_I,
        user_ids=[query.user_id],
        profile_B=profile,
        surfaces=[query.surface],
        texts=[query.text],
        time_ms_B=np.array([query.time_ms], np.int64),
        history_row_BL=history.row_L[None],
        history_action_BL=history.action_L[None],
        history_time_ms_BL=history.time_ms_L[None],
    )


def _agree(what: str, found: str, other: str, expected: str) -> None:
    if found != expected:
        raise GenerationMismatch(f"{what} ({found}) and {other} ({expected}) are not of one training")


class Generations:
    """The generation that serves, and how it changes. Reading `active` is one atomic load, never a lock."""

    def __init__(self, store: GenerationStore) -> None:
        self.store = store
        self._active: Generation | None = None
        self._ready: dict[str, Generation] = {}
        """Loaded and warm, but not active: what was prepared last, and what was active before."""
        self._changing = threading.Lock()

    @property
    def active(self) -> Generation | None:
        return self._active

    def prepare(self, generation: str) -> Generation:
        """Load, check and warm a generation beside the one that serves."""
        with self._changing:
            return self._prepare(generation)

    def activate(self, generation: str, expected: str | None) -> Generation:
        """Make it the current one, here and in the store, if the current one is still `expected`.

        Raises:
            StaleExpected: somebody else was first.
        """
        with self._changing:
            loaded = self._prepare(generation)
            self.store.activate(generation, time_ms=_now_ms(), expected=expected)
            return self._swap(loaded)

    def roll_back(self) -> Generation:
        """Back to the one before.

        Raises:
            UnknownGeneration: there is none before.
        """
        with self._changing:
            before = self.store.before()
            if before is not None:
                self._prepare(before)
            return self._swap(self._prepare(self.store.rollback(time_ms=_now_ms())))

    def follow(self) -> Generation | None:
        """Take up what the store calls current, if that changed. The last good one stays where it fails to load."""
        with self._changing:
            current = self.store.current()
            if current is None or (self._active is not None and self._active.id == current):
                return self._active
            return self._swap(self._prepare(current))

    def _prepare(self, generation: str) -> Generation:
        if self._active is not None and self._active.id == generation:
            return self._active
        if generation not in self._ready:
            self._ready = {generation: Generation.load(self.store, generation)}
        return self._ready[generation]

    def _swap(self, loaded: Generation) -> Generation:
        self._ready = {self._active.id: self._active} if self._active is not None else {}
        self._active = loaded
        return loaded


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
