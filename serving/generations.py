"""Which generation serves, and how that changes."""

import threading
from collections.abc import Callable
from contextlib import suppress

from index.generations import GenerationStore
from index.placement import Placement
from serving.clock import now_ms
from serving.generation import Generation
from serving.kept import Kept
from serving.log.catalog_log import FILE, CatalogLog, Change, Entry, StaleHead, UnknownChange
from serving.log.impression_log import CorruptLog, LogUnavailable


class Generations:
    """The generation that serves, and how it changes. Reading `active` is one atomic load, never a lock.

    Two locks: `_changing` for what may take long (loading), `_advancing` for what may not (the next change of the
    catalogue, the swap). Whatever becomes active knows every change that was acknowledged by then.
    """

    def __init__(self, store: GenerationStore, *, placement: Placement | None = None) -> None:
        self.store = store
        self.catalog = CatalogLog(store.root / FILE)
        self._placement = placement
        self.on_ready: Callable[[Generation], None] = lambda _: None
        """Told of every generation that is prepared, before it serves. What it raises refuses the generation."""
        self._active: Generation | None = None
        self._ready: dict[str, Generation] = {}
        """Loaded and warm, but not active: what was prepared last, and what was active before."""
        self._kept = Kept[Generation]()
        """What was active before."""
        self._changing = threading.Lock()
        self._advancing = threading.Lock()

    def close(self) -> None:
        self.catalog.close()

    @property
    def active(self) -> Generation | None:
        return self._active

    def catch_up(self) -> Generation | None:
        """The active generation with every change of the catalogue that was acknowledged before this call, by any
        server of the store; for every request. It never waits for a generation to load.

        Raises:
            CorruptLog, LogUnavailable, UnknownChange: and what is active stays.
        """
        active = self._active
        if active is None or self.catalog.head() <= active.catalog_seq:
            return active
        with self._advancing:
            return self._advance(self._active)

    def kept(self, generation: str) -> Generation | None:
        """One that is active, or was until less than `KEPT_S` ago, with every change of the catalogue that can be read;
        None for any other."""
        with self._advancing:
            held = self._kept.find(generation)
            if self._active is not None and self._active.id == generation:
                return self._active
            with suppress(CorruptLog, LogUnavailable, UnknownChange):
                if held is not None:
                    held = self.current(held)
                    self._kept.keep(generation, held)
            return held

    def change(self, plan: Callable[[Generation], Change | None], *, time_ms: int) -> int:
        """Log a change of the catalogue and serve it: on disk and in `active` when this returns; its number, or 0.

        Args:
            plan: from the generation as it is, what to log, or None for nothing; called again where another server
                was first.

        Raises:
            CorruptLog, LogUnavailable, UnknownChange: it is not acknowledged.
            ValueError: while no generation is active.
        """
        with self._advancing:
            while True:
                active = self._advance(self._active)
                if active is None:
                    raise ValueError("no generation is active, so there is nothing to change")
                request = plan(active)
                if request is None:
                    return 0
                # Made before it is logged: what cannot be applied must never get there, for all servers would fail.
                following = active.changed([Entry(active.catalog_seq + 1, time_ms, request)])
                try:
                    self.catalog.append(request, time_ms=time_ms, after=active.catalog_seq)
                except StaleHead:
                    continue
                self._active = following
                return following.catalog_seq

    def prepare(self, generation: str) -> Generation:
        """Load, check and warm a generation beside the one that serves."""
        with self._changing:
            return self._prepare(generation)

    def activate(self, generation: str, expected: str | None, *, reason: str = "", by: str = "") -> Generation:
        """Make it the current one, here and in the store, if the current one is still `expected`.

        Args:
            reason, by: for the audit log of the store: why, and who.

        Raises:
            StaleExpected: somebody else was first.
        """
        with self._changing:
            held = generation in self._ready
            prepared = self._prepare(generation)
            verified = None if held else prepared.manifest  # a moment ago; once is enough
            self.store.activate(
                generation, time_ms=now_ms(), reason=reason, by=by, expected=expected, verified=verified
            )
            return self._swap(prepared)

    def roll_back(self, *, reason: str = "", by: str = "") -> Generation:
        """Back to the one before.

        Args:
            reason, by: for the audit log of the store: why, and who.

        Raises:
            UnknownGeneration: there is none before.
        """
        with self._changing:
            before = self.store.before()
            prepared = None if before is None else self._prepare(before)
            current = self.store.rollback(time_ms=now_ms(), reason=reason or "rollback", by=by)
            return self._swap(prepared if prepared is not None and prepared.id == current else self._prepare(current))

    def follow(self) -> Generation | None:
        """Take up what the store calls current, if that changed. The last good one stays where it fails to load."""
        with self._changing:
            current = self.store.current()
            if current is None or (self._active is not None and self._active.id == current):
                return self.catch_up()
            return self._swap(self._prepare(current))

    def _prepare(self, generation: str) -> Generation:
        if self._active is not None and self._active.id == generation:
            return self._active
        self._ready = {generation: self.current(self.loaded(generation))}
        return self._ready[generation]

    def loaded(self, generation: str) -> Generation:
        """One beside the one that serves, at hand or from the store; maybe without the last changes."""
        loaded = self._ready.get(generation) or Generation.load(self.store, generation, placement=self._placement)
        self.on_ready(loaded)
        return loaded

    def _swap(self, prepared: Generation) -> Generation:
        with self._advancing:
            before = self._active
            if before is None or before.id != prepared.id:
                self._active = self.current(prepared)
                self._ready = {before.id: before} if before is not None else {}
                if before is not None:
                    self._kept.keep(before.id, before)
            else:
                self._active = self.current(before)
            return self._active

    def _advance(self, active: Generation | None) -> Generation | None:
        """What is active, brought up to the log. For whoever holds `_advancing`."""
        if active is not None:
            self._active = active = self.current(active)
        return active

    def current(self, generation: Generation) -> Generation:
        """A generation with every change that was acknowledged before this call.

        Raises:
            CorruptLog: also where the log has lost changes that the generation holds.
        """
        head = self.catalog.head()
        if head < generation.catalog_seq:
            raise CorruptLog(
                f"{self.catalog.path} ends with change {head} of the catalogue, "
                f"generation {generation.id} holds all up to {generation.catalog_seq}"
            )
        return generation.changed(self.catalog.since(generation.catalog_seq, until=head))
