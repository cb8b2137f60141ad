"""What no longer serves but is kept for a while, for those who turn the pages of its answers."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

KEPT_S = 900.0

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """Values by name, each for `KEPT_S` from when it was first kept; for one thread at a time.

    Args:
        clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[float, _Value]] = {}

    def keep(self, name: str, value: _Value) -> None:
        """From now on; or in place of what it was until now."""
        self._drop()
        until = self._kept[name][0] if name in self._kept else self._clock() + KEPT_S
        self._kept[name] = until, value

    def find(self, name: str) -> _Value | None:
        self._drop()
        return self._kept[name][1] if name in self._kept else None

    def _drop(self) -> None:
        now = self._clock()
        for name in [name for name, (until, _) in self._kept.items() if until <= now]:
            del self._kept[name]
