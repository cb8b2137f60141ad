"""A small catalogue behind a real server: real policy, filters, log and store, made-up retrieval and ranking.

Shape letters: I items, N candidates, A actions.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from candidate_gen.activity import Activity
from candidate_gen.features import FeatureTable, feature_table
from candidate_gen.filters import Disallowed, Excluded
from candidate_gen.items import Items
from candidate_gen.predicates import Attributes
from candidate_gen.types import Candidates, HydratedQuery, Query
from index.generations import GenerationStore, Manifest
from index.placement import Placement
from index.strings import IdMap
from index.types import Hits
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from protos.impression_pb2 import Impression, Outcome
from ranking.types import Scored
from serving.breaker import Watch
from serving.generation import Generation, GenerationMismatch
from serving.generations import Generations
from serving.log.impression_log import LogUnavailable, Status
from serving.parts import Log, State
from serving.pipeline import RANKER, Pipeline
from serving.profiles import Profiles
from serving.retrieval import RetrievalSettings
from serving.server import Address, Server
from serving.settings import ServerSettings, ServiceSettings
from serving.state.redis_store import StateUnavailable
from serving.state.replies import Answered
from serving.state.user_state import Claim, Recalled, UserEvent, Wanted

NOW_MS = 1_700_000_000_000
ACTIONS = ("click", "like")
SOURCES = ("ann", "lexical", "similar", "fresh", "popular")
CATEGORIES = ("music", "news", "sport")
SETTINGS = PolicySettings(weights={"click": 1.0, "like": 2.0}, temperature=0.3, epsilon=0.05, diversity=0.1)
TABLE: FeatureTable = feature_table(
    users=10,
    items=60,
    actions=ACTIONS,
    categories=CATEGORIES,
    sources=SOURCES,
    user_columns={"age": None, "country": ("at", "de")},
    item_columns={},
    history_length=8,
    title_length=4,
)


@dataclass(slots=True)
class Switch:
    """What a part of the pipeline should do wrong, changed from outside while it serves."""

    fail: frozenset[str] = frozenset()
    sleep_s: float = 0.0
    calls: int = 0
    """Slates scored."""
    watched: bool = False
    """Whether sources and the ranker have breakers."""
    loads: int = 0
    """Generations loaded, or refused because their id is in `fail`."""


@dataclass(frozen=True, slots=True)
class ListedSource:
    """Names fixed rows, or what `rows` makes of the query."""

    name: str
    row_K: NDArray[np.int64]
    switch: Switch

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        if self.name in self.switch.fail:
            raise OSError("/secret/path of a source")
        row_K = self.row_K[:k]
        if self.name == "lexical" and not hydrated.query.text:
            row_K = row_K[:0]
        return Hits(row_K, np.linspace(1, 0, len(row_K), dtype=np.float32))


@dataclass(frozen=True, slots=True)
class NumberScorer:
    """Probabilities from user, item and time of the query, so that nothing about the query is without effect."""

    items: Items
    switch: Switch

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        query = hydrated.query
        self.switch.calls += 1
        time.sleep(self.switch.sleep_s)
        if "ranker" in self.switch.fail:
            raise OSError("/secret/path of the ranker")
        mixed = sum(query.user_id.encode()) + query.time_ms % 97 + len(query.history)
        turn_N = (candidates.row_N * 37 + mixed) % 61 / 61
        rows = candidates.row_N
        pair_row_N = TABLE.empty("pair", len(rows))
        pair_row_N["tower_score"] = turn_N
        return Scored(
            candidates=candidates,
            action_names=ACTIONS,
            probability_NA=np.stack([turn_N, turn_N / 2], axis=1).astype(np.float32),
            query_row=hydrated.row,
            item_row_N=self.items.row_I[rows],
            pair_row_N=pair_row_N,
        )


@dataclass(frozen=True, slots=True)
class OrderScorer:
    """Stands in for the scorer: the order of retrieval."""

    items: Items

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        share_N = np.linspace(0.5, 0.1, len(candidates), dtype=np.float32)
        return Scored(
            candidates=candidates,
            action_names=ACTIONS,
            probability_NA=np.stack([share_N, share_N], axis=1),
            query_row=hydrated.row,
            item_row_N=self.items.row_I[candidates.row_N],
            pair_row_N=TABLE.empty("pair", len(candidates)),
        )


class NoWords:
    """A lexical index in which nothing matches."""

    boosts: ClassVar[Mapping[str, int]] = {}

    def matches(self, text: str, *, every: bool) -> NDArray[np.int64]:  # noqa: ARG002
        return np.empty(0, np.int64)


def item_ids(count: int = 60) -> list[str]:
    return [f"i{row}" for row in range(count)]


def catalogue(label: str, count: int = 60) -> Items:
    """Titles say which generation they are of; i0 is not available."""
    rows = TABLE.empty("item", count)
    rows["item_id"] = TABLE.encode("item_id", item_ids(count))
    rows["category"] = 1 + np.arange(count) % len(CATEGORIES)
    rows["creator"] = 1 + np.arange(count) % 7
    embedding_ID = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    return Items.of(
        ids=item_ids(count),
        titles=[f"{label} title {row}" for row in range(count)],
        row_I=rows,
        published_ms=NOW_MS - np.arange(count, dtype=np.int64) * 3_600_000,
        available=np.arange(count) > 0,
        popularity=np.arange(count, dtype=np.float32)[::-1].copy(),
        embedding_ID=embedding_ID / np.linalg.norm(embedding_ID, axis=1, keepdims=True),
    )


def manifest(name: str) -> Manifest:
    return Manifest(name, None, NOW_MS, (NOW_MS - 1, NOW_MS), {"schema": TABLE.fingerprint}, {}, {"auc": 0.7}, {})


def generation(
    name: str = "000001-00000000", *, switch: Switch | None = None, about: Manifest | None = None, count: int = 60
) -> Generation:
    """A generation of `catalogue(name)`. It knows the users u0 to u9."""
    items = catalogue(name, count)
    switch = switch or Switch()

    def hydrate(query: Query) -> HydratedQuery:
        if "hydrate" in switch.fail:
            raise OSError("/secret/path of hydration")
        row = TABLE.empty("query", 1)
        row["history_log_length"] = np.log1p(len(query.history))
        row["age"] = query.features.get("age", 0.0)
        unusable = tuple(name for name, value in query.features.items() if TABLE.encoded(name, [value])[1].any())
        return HydratedQuery(
            query, row, np.ones(8, np.float32) / np.sqrt(8).astype(np.float32), items.allowed, unusable
        )

    rows = np.arange(count, dtype=np.int64)
    sources = [
        (ListedSource("ann", rows[10:40], switch), 20),
        (ListedSource("lexical", rows[15:25], switch), 10),
        (ListedSource("similar", rows[30:50], switch), 10),
        (ListedSource("fresh", rows[:5], switch), 5),
        (ListedSource("popular", rows, switch), 10),
    ]
    pipeline = Pipeline(
        hydrate=hydrate,
        sources=sources,
        items=count,
        filters=[Disallowed(), Excluded()],
        scorer=NumberScorer(items, switch),
        retrieval_order=OrderScorer(items),
        selector=SlatePolicy(SETTINGS, items, name),
        watched={each: Watch() for each in (*SOURCES[:-1], RANKER)} if switch.watched else {},
    )
    return Generation(
        id=name,
        manifest=about or manifest(name),
        table=TABLE,
        items=items,
        profiles=Profiles(IdMap.of([f"u{row}" for row in range(10)]), np.zeros(10, TABLE.profile_dtype)),
        towers=cast(Any, None),
        encode_query=cast(Any, None),
        vectors=cast(Any, None),
        lexical=cast(Any, NoWords()),
        attributes=Attributes(items),
        scorer=cast(Any, None),
        retrieval=RetrievalSettings(),
        settings=SETTINGS,
        activity=Activity.none(),
        catalog_seq=0,
        pipeline=pipeline,
    )


@dataclass(slots=True)
class Fixed:
    """Who knows the active generation, for tests without a store."""

    active: Generation | None

    def catch_up(self) -> Generation | None:
        return self.active

    def kept(self, generation: str) -> Generation | None:
        return self.active if self.active is not None and self.active.id == generation else None


@dataclass(slots=True)
class MemoryState:
    """`UserState` without Redis."""

    events: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    down: bool = False

    ids: set[str] = field(default_factory=set)

    def recall(self, wanted: Wanted) -> Recalled:
        self._answers()
        rows = self.events.get(wanted.user_id, [])[::-1]
        keys, actions, times = zip(*rows, strict=True) if rows else ((), (), ())
        history = np.array(keys, np.uint64), np.array(actions, np.uint32), np.array(times, np.int64)
        return Recalled(history=history, claimed=wanted.claim is not None)

    def push(self, events: Sequence[UserEvent]) -> list[bool]:
        self._answers()
        new = []
        for event in events:
            new.append(event.event_id not in self.ids)
            self.ids.add(event.event_id)
            if event.user_id and new[-1]:
                self.events.setdefault(event.user_id, []).append(event[2:])
        return new

    def forget(self, user_id: str) -> None:
        self._answers()
        self.events.pop(user_id, None)

    def renew(self, claim: Claim) -> None: ...

    def release(self, claim: Claim) -> None: ...

    def answer(self, claim: Claim, answered: Answered) -> None: ...

    def show(self, user_id: str, item_key_K: Sequence[int], *, time_ms: int, most: int, ttl_s: int) -> None: ...

    def _answers(self) -> None:
        if self.down:
            raise StateUnavailable("user state: no answer")


@dataclass(slots=True)
class MemoryLog:
    """`ImpressionLog` without a disk."""

    impressions: dict[str, Impression] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    available: bool = True

    def append(self, impression: Impression) -> None:
        if not self.available:
            raise LogUnavailable("the disk is full")
        self.impressions.setdefault(impression.request_id, Impression.FromString(impression.SerializeToString()))

    def write_outcomes(self, outcomes: Sequence[Outcome]) -> list[Status]:
        if not self.available:
            raise LogUnavailable("the disk is full")
        statuses: list[Status] = []
        for one in outcomes:
            statuses.append("duplicate" if one.event_id in self.outcomes else "stored")
            self.outcomes.setdefault(one.event_id, one)
        return statuses

    def find(self, request_id: str) -> Impression | None:
        return self.impressions.get(request_id)


def publish(store: GenerationStore, number: int) -> str:
    """A generation whose one file a fake `Generation.load` does not read, but the store verifies."""
    with store.stage() as folder:
        (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 4)
        return store.publish(
            folder,
            fingerprints={"schema": TABLE.fingerprint},
            parent=None,
            config={"number": number},
            data_window=(NOW_MS - 1, NOW_MS),
            metrics={"ranker": {"auc": 0.5 + number / 100}},
            created_ms=NOW_MS,
        )


def load_fakes(patch: pytest.MonkeyPatch, switch: Switch | None = None) -> None:
    """Make `Generation.load` verify the store's files and then answer with the small catalogue."""

    switch = switch or Switch()

    def load(store: GenerationStore, name: str, *, placement: Placement | None = None) -> Generation:
        switch.loads += 1
        if name in switch.fail:
            raise GenerationMismatch(f"generation {name} is of two trainings")
        return generation(name, about=store.verify(name), switch=switch)

    patch.setattr(Generation, "load", staticmethod(load))


def settings(folder: Path, **changes: Any) -> ServerSettings:
    service = ServiceSettings(**{"clock": "request", "deadline_s": 20.0, "eligible_share": 1.0, **changes})
    return ServerSettings(
        generations=folder / "generations",
        log=folder / "log",
        port=0,
        admin_port=0,
        watch_s=0.02,
        lame_duck_s=0.0,
        grace_s=5.0,
        service=service,
    )


@contextmanager
def running(
    generations: Generations, chosen: ServerSettings, *, state: State | None = None, log: Log | None = None
) -> Iterator[Address]:
    server = Server(generations, state=state, log=log, settings=chosen)
    address = server.start()
    try:
        yield address
    finally:
        server.stop()


@contextmanager
def serving(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    switch: Switch | None = None,
    state: State | None = None,
    log: Log | None = None,
    **changes: Any,
) -> Iterator[Address]:
    """A server of one active generation."""
    load_fakes(patch, switch)
    store = GenerationStore(folder / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    with running(Generations(store), settings(folder, **changes), state=state, log=log) as address:
        yield address


def call(channel: grpc.Channel, method: str, wire: bytes, *, timeout: float = 20.0) -> bytes:
    """Raw bytes to a method such as Recommender/Recommend."""
    multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/cascade.v1.{method}")
    return multi(wire, timeout=timeout)


def refusal(channel: grpc.Channel, method: str, wire: bytes, *, timeout: float = 20.0) -> tuple[str, str]:
    """Status name and message; OK and nothing for an answer."""
    try:
        call(channel, method, wire, timeout=timeout)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""
