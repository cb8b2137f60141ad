"""A generation: everything one request needs, bound together, loaded, checked and swapped as one thing.

What `write` puts into a folder, `Generation.read` reads; both are here so that they cannot drift apart. Between two
generations the catalogue changes: each change makes a new value that shares all but the items with the one before,
and a request keeps the value that it began with.

Shape letters: L history, P what several users did, U users, I items.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candidate_gen.activity import Activity
from candidate_gen.compiled_tower import QueryEncoder, query_encoder
from candidate_gen.completions import Completions
from candidate_gen.features import FeatureTable
from candidate_gen.filters import Disallowed, Excluded, Seen, Shown, Unpublished
from candidate_gen.items import Items
from candidate_gen.matches import Matching
from candidate_gen.predicates import Attributes
from candidate_gen.query_log import QueryLog
from candidate_gen.search_text import field_order
from candidate_gen.towers import Towers
from candidate_gen.types import History
from candidate_gen.understanding import Understanding
from index.columns import growing
from index.delta import Base, GrownIndex
from index.generations import GenerationStore, Manifest
from index.lexical import LexicalIndex
from index.placement import Placement, opened
from index.shards import ShardedIndex
from index.strings import IdMap
from index.vectors import VectorIndex
from policy.rules import RulesInForce
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from protos.admin_pb2 import PutRulesRequest
from ranking.rankers import AnyScorer, load_scorer
from ranking.scorer import RankerScorer, RetrievalOrder
from serving.breaker import Watch
from serving.canaries import NOT_OF_A_CANARY, Unfit, canaries, check_answers, check_recall
from serving.changes import changed
from serving.hydration import hydration
from serving.log.catalog_log import FILE, CatalogLog, Entry
from serving.pipeline import RANKER, Filter, Pipeline, nothing_pinned
from serving.profiles import Profiles
from serving.retrieval import RetrievalSettings, chosen, fan_out, grown, mixed
from serving.rules import rules_after

_AS_BEFORE = {"lexical_weight": None, "most_of_search": None}
"""How generations retrieve that were made before these were settings."""
_NO_ACTIVITY = Activity.none().fingerprint
"""Of generations made before there was any."""


class GenerationMismatch(ValueError):
    """Parts of different trainings, which must never answer one request together."""


def write(
    folder: Path,
    *,
    table: FeatureTable,
    items: Items,
    users: IdMap,
    profile_U: np.ndarray,
    towers: Towers,
    vectors: VectorIndex | ShardedIndex,
    scorer: AnyScorer,
    policy: PolicySettings,
    retrieval: RetrievalSettings,
    activity: Activity | None = None,
    queries: QueryLog | None = None,
    synonyms: Sequence[str] = (),
) -> dict[str, str]:
    """Fill a staged folder; returns the fingerprints that `GenerationStore.publish` binds into the manifest.

    Args:
        activity, queries: of nobody where not given.
        synonyms: rules as `candidate_gen.synonyms` reads them.

    Raises:
        ValueError: naming the line of a rule that cannot be read.
    """
    activity, queries = activity or Activity.none(), queries or QueryLog.none()
    table.save(folder)
    items.save(folder)
    users.save(folder, "user_id")
    np.save(folder / "profile_U.npy", profile_U, allow_pickle=False)
    towers.save(folder)
    vectors.save(folder)
    boosts = {name: retrieval.boosts.get(name, 1) for name in field_order(retrieval.boosts)}
    lexical = LexicalIndex.build(folder / "lexical", items.searchable, boosts=boosts)
    scorer.save(folder)
    if isinstance(scorer, RankerScorer):
        scorer.save_halves(folder)
    activity.save(folder)
    queries.save(folder)
    understanding = Understanding.of(items, queries, table, rules=synonyms).save(folder)
    completions = Completions.of(items, queries, lexical, table, is_spelt=understanding.spelling.is_right)
    completions.save(folder)
    (folder / "policy.json").write_text(policy.to_json())
    (folder / "retrieval.json").write_text(json.dumps(asdict(retrieval), sort_keys=True))
    return {
        "schema": table.fingerprint,
        "items": items.fingerprint,
        "towers": towers.fingerprint,
        "vectors": vectors.towers,
        "ranker": scorer.fingerprint,
        "policy": policy.fingerprint,
        "activity": activity.fingerprint,
        "queries": queries.fingerprint,
        "understanding": understanding.fingerprint,
        "completions": completions.fingerprint,
    }


@dataclass(frozen=True)
class Generation:
    """One loaded generation with the changes of the catalogue up to one of them. Immutable: a request pins it for its
    whole life."""

    id: str
    manifest: Manifest
    table: FeatureTable
    items: Items
    profiles: Profiles
    towers: Towers
    encode_query: QueryEncoder
    """Of `towers`."""
    vectors: Base
    lexical: LexicalIndex
    attributes: Attributes
    scorer: AnyScorer
    retrieval: RetrievalSettings
    settings: PolicySettings
    activity: Activity
    """What the sources that learn while they serve begin with."""
    catalog_seq: int
    """Number of the last change that it knows of."""
    pipeline: Pipeline
    rules: RulesInForce | None = None
    """None where there were never any."""
    understanding: Understanding | None = None
    """None for a generation of before there was any: what is typed is searched for as it is."""
    completions: Completions | None = None
    """None likewise: nothing is suggested."""

    @classmethod
    def load(cls, store: GenerationStore, generation: str, *, placement: Placement | None = None) -> "Generation":
        """Verify every file against the manifest, then `read`, and apply the rules that its catalogue knew.

        Raises:
            UnknownGeneration, CorruptGeneration: see `GenerationStore`.
            GenerationMismatch: both fingerprints are in the message.
            CorruptLog, LogUnavailable, UnknownChange: see `CatalogLog` and `rules_after`.
        """
        manifest = store.verify(generation)
        made = cls.read(store.folder(generation), manifest, placement=placement)
        with closing(CatalogLog(store.root / FILE)) as log:
            put = log.rules(until=made.catalog_seq)
            forgotten = log.forgotten(until=made.catalog_seq)
        made = replace(made, profiles=replace(made.profiles, forgotten=forgotten))
        return made if put is None else made._with(made.items, made.profiles, put, made.catalog_seq)

    @classmethod
    def read(cls, folder: Path, manifest: Manifest, *, placement: Placement | None = None) -> "Generation":
        """Load what `write` wrote, refuse parts that do not belong together, warm up. Checksums are not looked at.

        Raises:
            GenerationMismatch: both fingerprints are in the message; or what else is wrong with the first bad part.
        """
        try:
            return cls._read(folder, manifest, placement or Placement())
        except GenerationMismatch:
            raise
        except (ValueError, OSError, KeyError) as error:
            raise GenerationMismatch(f"generation {manifest.id} cannot be read: {error}") from error

    @classmethod
    def _read(cls, folder: Path, manifest: Manifest, placement: Placement) -> "Generation":
        table = FeatureTable.load(folder)
        _agree("schema", table.fingerprint, "manifest", manifest.fingerprints["schema"])
        items = Items.load(folder)
        _agree("items", items.fingerprint, "manifest", manifest.fingerprints["items"])
        items = Items.load(folder)  # mapped anew, as are weights: what a fingerprint has read need not stay in memory
        _agree("item rows", str(items.row_I.dtype), "schema", str(table.dtype("item")))
        towers = Towers.load(folder, table)
        fingerprint = towers.fingerprint  # reads every weight
        _agree("towers", fingerprint, "manifest", manifest.fingerprints["towers"])
        towers.map_weights(folder)
        vectors = opened(folder, np.asarray(items.embedding_ID), placement)
        _agree("index built from towers", vectors.towers, "towers", fingerprint)
        if len(vectors) != len(items):
            raise GenerationMismatch(f"the index holds {len(vectors)} items, the catalogue {len(items)}")
        encode_query = query_encoder(towers)
        scorer = load_scorer(folder, table, items, halves=True)
        _agree("ranker", scorer.fingerprint, "manifest", manifest.fingerprints["ranker"])
        settings = PolicySettings.from_json((folder / "policy.json").read_text())
        _agree("policy", settings.fingerprint, "manifest", manifest.fingerprints["policy"])
        retrieval = RetrievalSettings(**_AS_BEFORE | json.loads((folder / "retrieval.json").read_text()))
        activity = Activity.load(folder)
        _agree("activity", activity.fingerprint, "manifest", manifest.fingerprints.get("activity", _NO_ACTIVITY))
        understanding, completions = Understanding.load(folder), Completions.load(folder)
        for name, part in (("understanding", understanding), ("completions", completions)):
            _agree(name, part.fingerprint if part else "", "manifest", manifest.fingerprints.get(name, ""))
        profile_U = np.asarray(np.load(folder / "profile_U.npy", mmap_mode="r", allow_pickle=False))
        _agree("user profiles", str(profile_U.dtype), "schema", str(table.profile_dtype))
        profiles = Profiles(IdMap.load(folder, "user_id"), profile_U)
        lexical = LexicalIndex.load(folder / "lexical")
        attributes = Attributes(items)
        sources = chosen(retrieval, items, vectors=vectors, lexical=lexical, activity=activity, table=table)
        made = cls(
            id=manifest.id,
            manifest=manifest,
            table=table,
            items=items,
            profiles=profiles,
            towers=towers,
            encode_query=encode_query,
            vectors=vectors,
            lexical=lexical,
            attributes=attributes,
            scorer=scorer,
            retrieval=retrieval,
            settings=settings,
            activity=activity,
            catalog_seq=manifest.catalog_seq,
            pipeline=Pipeline(
                hydrate=hydration(
                    table,
                    items,
                    profiles,
                    attributes=attributes,
                    encode_query=encode_query,
                    matching=Matching(items, lexical),
                ),
                sources=sources,
                items=len(items),
                filters=_filters(retrieval, items),
                scorer=scorer,
                retrieval_order=RetrievalOrder(table, items),
                selector=SlatePolicy(settings, items, manifest.id),
                fan_out=fan_out(vectors),
                patience_s=retrieval.patience_ms / 1000,
                most=retrieval.most,
                mix={} if retrieval.lexical_weight is None else mixed(retrieval.lexical_weight),
                most_of_search=retrieval.most_of_search,
                watched={name: Watch() for name in (*(each.name for each, _ in sources[:-1]), RANKER)},
            ),
            understanding=understanding,
            completions=completions,
        )
        made.warm_up()
        return made

    def changed(self, entries: Iterable[Entry]) -> "Generation":
        """The generation after the next entries of the catalogue log.

        It depends on the entries alone, not on how many are given at once.

        Raises:
            ValueError: where an entry is not the next one.
        """
        items, put, seq = self.items, None, self.catalog_seq
        entries = list(entries)
        fields = tuple(self.lexical.boosts)
        for entry in entries:
            if entry.seq != seq + 1:
                raise ValueError(f"entry {entry.seq} was given, change {seq + 1} of the catalogue is next")
            items, seq = changed(items, entry, table=self.table, towers=self.towers, fields=fields), entry.seq
            put = entry if isinstance(entry.request, PutRulesRequest) else put
        profiles = self.profiles.after(entries, self.table)
        return self if seq == self.catalog_seq else self._with(items, profiles, put, seq)

    def _with(self, items: Items, profiles: Profiles, put: Entry | None, catalog_seq: int) -> "Generation":
        """The same with other items, of which the first rows are those that it has, with other profiles, and with
        other rules if they were put."""
        attributes = self.attributes if items is self.items else self.attributes.on(items)
        rules = rules_after(put, self.rules, items=items, attributes=attributes)
        added_N = np.arange(len(self.items), len(items))
        lexical = self.lexical.grown(items.searchable.take(added_N)) if len(added_N) else self.lexical
        parts = _ruled(self.settings, items, self.id, rules)
        if items is not self.items or profiles is not self.profiles:
            parts["hydrate"] = hydration(
                self.table,
                items,
                profiles,
                attributes=attributes,
                encode_query=self.encode_query,
                matching=Matching(items, lexical),
            )
        if items is self.items:
            return replace(
                self,
                profiles=profiles,
                catalog_seq=catalog_seq,
                rules=rules,
                pipeline=replace(self.pipeline, **parts),
            )
        base = self.vectors.base if isinstance(self.vectors, GrownIndex) else self.vectors
        vectors = GrownIndex(base, growing(items.embedding_ID).tail)
        scorer = self.scorer.on(items)
        return replace(
            self,
            items=items,
            profiles=profiles,
            vectors=vectors,
            lexical=lexical,
            attributes=attributes,
            scorer=scorer,
            catalog_seq=catalog_seq,
            rules=rules,
            pipeline=replace(
                self.pipeline,
                sources=grown(self.pipeline.sources, items, vectors=vectors, lexical=lexical),
                items=len(items),
                filters=_filters(self.retrieval, items),
                scorer=scorer,
                retrieval_order=RetrievalOrder(self.table, items),
                **parts,
            ),
        )

    @property
    def policy(self) -> SlatePolicy:
        """
        Raises:
            ValueError: where slates are drawn by something else.
        """
        if not isinstance(self.pipeline.selector, SlatePolicy):
            raise ValueError(f"generation {self.id} has no policy that knows its propensities")
        return self.pipeline.selector

    @cached_property
    def matching(self) -> Matching:
        return Matching(self.items, self.lexical)

    @property
    def rules_etag(self) -> str:
        """Version of the rules in force; empty where there were never any."""
        return self.rules.book.etag if self.rules else ""

    @property
    def tail(self) -> int:
        """Rows added by changes of the catalogue since the build."""
        return len(growing(self.items.row_I).tail)

    def warm_up(self) -> None:
        """Answer canary queries, so that the first caller does not pay and a broken generation never serves.

        Raises:
            GenerationMismatch: where an answer is empty, degraded or not finite, or the index finds too little.
        """
        if self.completions is not None:  # compiles what finds them
            self.completions.starting("", 1, shown=lambda key_N: np.ones(len(key_N), np.bool_))
        queries = canaries(self.profiles.users, self.items.titles, at_ms=self.manifest.data_window[1])
        query_BD = np.stack([self.pipeline.hydrate(query).vector_D for query in queries])
        try:
            check_answers(self.pipeline, queries, wrong=NOT_OF_A_CANARY)
            if isinstance(self.vectors, VectorIndex | ShardedIndex):
                check_recall(self.vectors, query_BD)
        except Unfit as error:
            raise GenerationMismatch(f"generation {self.id} is not fit to serve: {error}") from error

    @cached_property
    def _action_rows(self) -> dict[int, int]:
        return {action_key(name): row for row, name in enumerate(self.table.actions, start=1)}

    def history(
        self, key_L: NDArray[np.uint64], action_key_L: NDArray[np.uint32], time_ms_L: NDArray[np.int64]
    ) -> History:
        """Stored user state in this generation's rows; items that it does not hold are left out."""
        return self.histories(key_L, action_key_L, time_ms_L, np.array([0, len(key_L)]))[0]

    def histories(
        self,
        key_P: NDArray[np.uint64],
        action_key_P: NDArray[np.uint32],
        time_ms_P: NDArray[np.int64],
        offset_U1: NDArray[np.int64],
    ) -> list[History]:
        """The same of many users: what user u did begins at offset_U1[u]."""
        row_P = self.items.ids.rows(key_P)
        action_P = np.array([self._action_rows.get(key, 0) for key in action_key_P.tolist()], np.int32)
        known_P = row_P >= 0
        row_P, action_P, time_ms_P = row_P[known_P], action_P[known_P], time_ms_P[known_P]
        edges = np.concatenate([[0], np.cumsum(known_P)])[offset_U1].tolist()
        parts = [slice(start, end) for start, end in pairwise(edges)]
        return [History(row_P[part], action_P[part], time_ms_P[part]) for part in parts]


def action_key(name: str) -> int:
    """An action's name in the user state and the log, where the order of a feature table may have changed."""
    return zlib.crc32(name.encode())


def _ruled(settings: PolicySettings, items: Items, generation: str, rules: RulesInForce | None) -> dict[str, Any]:
    """What of a pipeline depends on the rules."""
    pinned = rules.pinned if rules else nothing_pinned
    return {"selector": SlatePolicy(settings, items, generation, rules), "pinned": pinned}


def _filters(retrieval: RetrievalSettings, items: Items) -> list[Filter]:
    return [Disallowed(), Unpublished(items), Excluded(), *([Seen()] if retrieval.hide_seen else []), Shown()]


def _agree(what: str, found: str, other: str, expected: str) -> None:
    if found != expected:
        raise GenerationMismatch(f"{what} ({found}) and {other} ({expected}) are not of one training")
