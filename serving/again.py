"""A logged request asked again: the same code, from what was logged, so the same answer, or a bug.

Shape letters: N candidates, E eligible candidates of the log.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping

import numpy as np

from candidate_gen.types import Query
from protos.impression_pb2 import Impression
from serving.answers import columns_of, policy_of, record, understood_of
from serving.codec import query_of
from serving.experiments.drafting import drafted
from serving.experiments.variants import varied
from serving.generation import Generation
from serving.generations import Generations
from serving.log.catalog_log import CatalogLog
from serving.paging import QUESTION
from serving.pipeline import Answer

_ASKED = (
    "request_id",
    "time_ms",
    *QUESTION,
    "visitor_id",
    "session_id",
    "size",
    "page",
    "features",
    "live_hits",
    "shown_item_key",
    "history_item_key",
    "history_action_key",
    "history_time_ms",
    "experiment_arms",
    "labels",
    "variation",
    "traffic",
    "shadow_of",
    "drafted",
)
_STAGES = {
    "understand": ("understood",),
    "features": ("schema", "query_row", "item_rows", "pair_rows"),
    "score": ("action_names", "eligible_utility"),
    "select": (
        "policy",
        "item_id",
        "propensity",
        "slot_flags",
        "slot_team",
        "utility",
        "probability",
        "source_bits",
        "source_rank",
    ),
}
"""Fields that must be equal, by the stage that makes them, after those of `_retrieved`."""
_KEPT = 16


class Snapshots:
    """Generations as they were when an impression was made.

    Args:
        generations: by id, as loaded.
        catalog: the catalogue log beside them; None where nothing has changed.
    """

    def __init__(self, generations: Mapping[str, Generation], catalog: CatalogLog | None) -> None:
        self._loaded = generations
        self._catalog = catalog
        self._made = {each: deque[Generation](maxlen=_KEPT) for each in generations}

    def answered(self, logged: Impression) -> Generation:
        """Who answered it, as the arms of experiments had changed it.

        Raises:
            ValueError: where its generation is not among those given, or the log does not reach as far.
        """
        return varied(self._of(logged.generation, logged), logged.variation)

    def second(self, logged: Impression) -> Generation | None:
        """Who drafted the slate with them; None where nobody did.

        Raises:
            ValueError: as `answered`.
        """
        if not logged.HasField("drafted"):
            return None
        return varied(self._of(logged.drafted.generation, logged), logged.drafted.variation)

    def _of(self, generation: str, logged: Impression) -> Generation:
        if generation not in self._loaded:
            raise ValueError(
                f"impression {logged.request_id} was answered by generation {generation}, "
                f"which is not among {', '.join(sorted(self._loaded))}"
            )
        return self.at(generation, logged)

    def at(self, generation: str, logged: Impression) -> Generation:
        """A generation with the catalogue as the impression's answer knew it, or as it was built where that is later.

        Changes are made once while impressions come in the order of `catalog_seq`; going back goes on from one of the
        last 16 snapshots, or begins anew.
        """
        loaded, made = self._loaded[generation], self._made[generation]
        seq = max(logged.catalog_seq, loaded.catalog_seq)
        while made and made[-1].catalog_seq > seq:
            made.pop()
        snapshot = made[-1] if made else loaded
        if seq > snapshot.catalog_seq and self._catalog:
            snapshot = snapshot.changed(self._catalog.since(snapshot.catalog_seq, until=seq))
            made.append(snapshot)
        if snapshot.catalog_seq < seq:
            raise ValueError(
                f"impression {logged.request_id} knew of change {seq} of the catalogue; the log of changes "
                f"{f'at {self._catalog.path} ends with {snapshot.catalog_seq}' if self._catalog else 'is not given'}"
            )
        return snapshot


class Past:
    """Who answered a request, as it was then; loaded where it is no longer at hand, and the last one kept."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._loading = threading.Lock()
        self._snapshots: tuple[str, Snapshots] | None = None
        """Of the generation named."""

    def answered(self, logged: Impression) -> Generation:
        """
        Raises:
            UnknownGeneration, CorruptGeneration, GenerationMismatch: see `Generation.load`.
            ValueError: see `Snapshots.answered`.
        """
        active = self._generations.active
        if active is not None and (active.id, active.catalog_seq) == (logged.generation, logged.catalog_seq):
            return varied(active, logged.variation)
        with self._loading:
            if self._snapshots is None or self._snapshots[0] != logged.generation:
                loaded = Generation.load(self._generations.store, logged.generation)
                self._snapshots = loaded.id, Snapshots({loaded.id: loaded}, self._generations.catalog)
            return self._snapshots[1].answered(logged)


def answering(logged: Impression) -> set[str]:
    """Ids of the generations that made an answer."""
    return {logged.generation, *([logged.drafted.generation] if logged.HasField("drafted") else [])}


def ask_again(logged: Impression, generation: Generation, second: Generation | None = None) -> tuple[Query, Answer]:
    """What was asked, and the answer that it gets now.

    Args:
        second: who drafts the slate with the generation, where that was so.

    Raises:
        ValueError: where it is missing.
    """
    query, without = query_of(logged, generation), frozenset(logged.skipped_sources)
    if not logged.HasField("drafted"):
        return query, generation.pipeline.run(query, without=without)
    if second is None:
        raise ValueError(f"impression {logged.request_id} was drafted by two arms; only the first was given")
    sides = (query, generation), (query_of(logged, second), second)
    return query, drafted(*sides, budget_s=math.inf, without=without)


def recorded_again(logged: Impression, generation: Generation, second: Generation | None = None) -> Impression:
    """The impression that the request makes now."""
    query, answer = ask_again(logged, generation, second)
    asked = Impression()
    asked.CopyFrom(logged)
    for field, _ in logged.ListFields():
        if field.name not in _ASKED:
            asked.ClearField(field.name)
    return record(asked, query=query, answer=answer, generation=generation, eligible=bool(logged.eligible_item_key))


def first_difference(
    logged: Impression, query: Query, answer: Answer, generation: Generation
) -> tuple[str, str] | None:
    """The first stage whose result differs from what was logged, and the field; None where they are equal bit by bit.

    It is what comparing with the impression of the answer would say, without making it.

    Args:
        query: of the impression.
        answer: what it gets now, from `generation`.
    """
    return _retrieved(logged, answer, generation) or _made(logged, query, answer, generation)


def _retrieved(logged: Impression, answer: Answer, generation: Generation) -> tuple[str, str] | None:
    candidates = answer.scored.candidates
    if tuple(logged.source_names) != candidates.source_names:
        return "retrieve", "source_names"
    # An id's row says no less than its key, which would have to be made of every candidate's id.
    row_E = generation.items.ids.rows(np.array(logged.eligible_item_key, np.uint64))
    return ("retrieve", "eligible_item_key") if len(row_E) and not _same(row_E, candidates.row_N) else None


def _made(logged: Impression, query: Query, answer: Answer, generation: Generation) -> tuple[str, str] | None:
    again = {
        **columns_of(answer, generation),
        "understood": understood_of(query),
        "eligible_utility": answer.slate.utility_N if logged.eligible_item_key else (),
        "policy": policy_of(query, answer, generation),
    }
    for stage, names in _STAGES.items():
        for name in names:
            was, now = getattr(logged, name), again[name]
            if isinstance(now, np.ndarray):
                equal = _same(np.array(was, now.dtype), now) if now.dtype.kind == "f" else list(was) == now.tolist()
            else:
                equal = tuple(was) == tuple(now) if isinstance(now, tuple | list) else was == now
            if not equal:
                return stage, name
    return None


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal bit by bit."""
    return one.tobytes() == other.tobytes()
