"""Generations that arms of experiments name, loaded and warm beside the one in use."""

import threading
from collections.abc import Iterable

from serving.generation import Generation
from serving.generations import Generations


class HeldGenerations:
    """Reading takes a lock only where the catalogue has changed since."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._held: dict[str, Generation] = {}
        self._changing = threading.Lock()

    def __contains__(self, generation: str) -> bool:
        return generation in self._held

    def hold(self, ids: Iterable[str]) -> None:
        """Keep these and no others.

        Raises:
            UnknownGeneration, CorruptGeneration, GenerationMismatch: see `Generation.load`; then all is as it was.
        """
        active = self._generations.active
        known = self._held | ({active.id: active} if active is not None else {})
        held = {each: known.get(each) or self._generations.loaded(each) for each in ids}
        with self._changing:
            self._held = held

    def get(self, generation: str) -> Generation:
        """With every change of the catalogue that was acknowledged before this call.

        Raises:
            CorruptLog, LogUnavailable, UnknownChange: as `Generations.catch_up`.
            KeyError: it is not held.
        """
        active, held = self._generations.active, self._held[generation]
        if active is not None and active.id == generation:
            return active
        if self._generations.catalog.head() <= held.catalog_seq:
            return held
        with self._changing:
            held = self._generations.current(self._held.get(generation, held))
            if generation in self._held:
                self._held = {**self._held, generation: held}
            return held
