"""What callers tell a server while it serves, as the sources that learn from it take it in.

Each generation begins with the events that it carries and goes on with those that came since, so that a swap forgets
nothing that this process still remembers.

Shape letters: E events.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from candidate_gen.activity import EVENT
from candidate_gen.items import Items
from candidate_gen.live import LiveCounts
from candidate_gen.types import Query
from index.masks import Mask
from index.strings import key64
from index.types import Hits
from protos.impression_pb2 import Outcome
from serving.generation import Generation, action_key

_GENERATIONS = 5
"""Whose counts are kept: of the one that serves, of the one before or to come, and of those that arms name."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """One generation's."""

    live: LiveCounts
    items: Items
    """As they were when these were begun."""
    action_key: int
    """Of the outcome that counts."""

    @classmethod
    def begun(cls, generation: Generation) -> "_Counts":
        settings = generation.retrieval
        live = LiveCounts(
            generation.items,
            trending_half_life_s=settings.trending_half_life_hours * 3600,
            covisitation_half_life_s=settings.covisitation_half_life_days * 86_400,
            visit_s=settings.visit_minutes * 60,
        )
        made = cls(live, generation.items, action_key(generation.table.actions[0]))
        made.add(generation.activity.recent_E, made.items)
        return made

    def add(self, event_E: np.ndarray, items: Items) -> None:
        self.live.add(event_E[event_E["action_key"] == self.action_key], items)


class Live:
    """Events of this process and, where they are exchanged, of others. Threads may share it.

    Args:
        active: the generation that serves.
        remembered: events kept for generations to come, the newest.
    """

    def __init__(self, active: Callable[[], Generation | None], *, remembered: int = 50_000) -> None:
        self._active = active
        self._remembered = remembered
        self._recent: deque[np.ndarray] = deque()
        self._recent_events = self._batches = 0
        self._counts: dict[str, _Counts] = {}
        self._lock = Lock()
        self.outbox: deque[bytes] = deque(maxlen=1024)
        """Own events that no other server was told of yet, as `EVENT`; the oldest are dropped."""

    def prepare(self, generation: Generation) -> None:
        """Make its counts, which takes a while, so that its first request finds them."""
        with self._lock:
            if generation.id in self._counts:
                return
            since, batches = self._batches, list(self._recent)
        counts = _Counts.begun(generation)
        until_ms = generation.manifest.data_window[1]

        def later(batch_E: np.ndarray) -> None:
            counts.add(batch_E[batch_E["time_ms"] > until_ms], counts.items)

        for batch_E in batches:
            later(batch_E)
        with self._lock:
            missed = min(self._batches - since, len(self._recent))
            for batch_E in list(self._recent)[len(self._recent) - missed :]:
                later(batch_E)
            self._counts[generation.id] = counts
            active = self._active()
            others = [name for name in self._counts if active is None or name != active.id]
            for name in others[: max(len(self._counts) - _GENERATIONS, 0)]:
                del self._counts[name]

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes that callers of this process wrote, in the order in which they became known."""
        event_E = np.array(
            [
                (key64(each.item_id), _visitor_key(each), action_key(each.action), each.time_ms)
                for each in sorted(outcomes, key=lambda each: (each.visible_ms, each.time_ms, each.event_id))
            ],
            EVENT,
        )
        if len(event_E):
            self.outbox.append(event_E.tobytes())
            self.add(event_E)

    def add(self, event_E: np.ndarray) -> None:
        """Count events, for every generation that is prepared."""
        active = self._active()
        with self._lock:
            self._recent.append(event_E)
            self._batches += 1
            self._recent_events += len(event_E)
            while self._recent_events - len(self._recent[0]) >= self._remembered:
                self._recent_events -= len(self._recent.popleft())
            prepared = list(self._counts.items())
        for name, counts in prepared:
            counts.add(event_E, active.items if active is not None and active.id == name else counts.items)

    def named(self, query: Query, generation: Generation, allowed: Mask | None) -> dict[str, Hits]:
        """What each live source says of a query now."""
        counts = self._counts_of(generation)
        return counts.live.named(query, generation.items, allowed, generation.retrieval.quotas)

    def named_of_many(
        self, queries: Sequence[Query], generation: Generation, allowed: Mask | None
    ) -> list[dict[str, Hits]]:
        """The same of queries of one moment."""
        counts = self._counts_of(generation)
        return counts.live.named_of_many(queries, generation.items, allowed, generation.retrieval.quotas)

    def _counts_of(self, generation: Generation) -> _Counts:
        counts = self._counts.get(generation.id)
        if counts is None:
            self.prepare(generation)
            counts = self._counts[generation.id]
        return counts


def _visitor_key(outcome: Outcome) -> int:
    """Of whoever it was: the user, or the device, or the visit; 0 where nothing is known."""
    known = outcome.user_id or outcome.visitor_id or outcome.session_id
    return key64(known) if known else 0
