"""What users did up to a build: where the sources that go by events begin.

Items and users are 64-bit keys (`index.strings.key64`), not rows: they outlive every catalogue.

Shape letters: E events (or outcomes), P pairs of segment and item, I items, N items of one segment.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.strings import IdMap, keys64

EVENT = np.dtype([("item_key", "<u8"), ("visitor_key", "<u8"), ("action_key", "<u4"), ("time_ms", "<i8")])
"""One positive outcome. Visitor 0 is nobody in particular; the action is the CRC-32 of its name."""
POPULARITY = np.dtype([("segment", "<i4"), ("item_key", "<u8"), ("popularity", "<f4")])
"""What an item is worth to a segment: a value of a user column, as the feature table numbers it from 1."""
_LISTED = 200
_PRIOR = 10.0
_FILES = {"recent_E": ("recent_events.npy", EVENT), "segment_P": ("segment_popularity.npy", POPULARITY)}


@dataclass(frozen=True, slots=True)
class Activity:
    """Recent events in the order in which they became known, and the best of every segment, best first."""

    recent_E: np.ndarray
    segment_P: np.ndarray

    @classmethod
    def none(cls) -> "Activity":
        """Of a system that nobody has used."""
        return cls(np.empty(0, EVENT), np.empty(0, POPULARITY))

    @property
    def fingerprint(self) -> str:
        """Identifies all of it: 16 hexadecimal digits."""
        digest = sha256()
        for name in _FILES:
            digest.update(f"{name} {len(getattr(self, name))}".encode() + getattr(self, name).tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        for name, (file, _) in _FILES.items():
            np.save(folder / file, getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Activity":
        """What `save` wrote; nothing where a generation has no such files.

        Raises:
            ValueError: where a file holds something else.
        """
        found = {}
        for name, (file, dtype) in _FILES.items():
            path = folder / file
            found[name] = np.load(path, allow_pickle=False) if path.exists() else np.empty(0, dtype)
            if found[name].dtype != dtype:
                raise ValueError(f"{path} holds {found[name].dtype}; it must hold {dtype}")
        return cls(**found)


def segment_popularity(
    segment_E: NDArray[np.integer],
    row_E: NDArray[np.int64],
    worth_E: NDArray[np.float64],
    ids: IdMap,
    *,
    listed: int = _LISTED,
) -> np.ndarray:
    """The best of every segment, as `POPULARITY`.

    An item that outcomes of a segment speak for with n, where its share of everybody's leads to expect e of the
    segment's, is worth e (n + a) / (e + a), a = 10: the mean of e r given n ~ Poisson(e r), r ~ Gamma(a, a). So a
    segment that says little has the order of everybody.

    Args:
        segment_E: of each outcome; 0 where there is none, which only counts for everybody.
        row_E: its item.
        worth_E: 1, or less for an old one.
        listed: items kept for each segment.
    """
    total_I = np.bincount(row_E, worth_E, minlength=len(ids))
    parts = [np.empty(0, POPULARITY)]
    for segment in np.unique(segment_E[segment_E > 0]).tolist():
        of_E = segment_E == segment
        count_I = np.bincount(row_E[of_E], worth_E[of_E], minlength=len(ids))
        expected_I = count_I.sum() * total_I / total_I.sum()
        worth_I = expected_I * (count_I + _PRIOR) / (expected_I + _PRIOR)
        row_N = np.argpartition(-worth_I, listed - 1)[:listed] if listed < len(ids) else np.arange(len(ids))
        row_N = row_N[worth_I[row_N] > 0]
        row_N = row_N[np.lexsort((row_N, -worth_I[row_N]))]
        part = np.zeros(len(row_N), POPULARITY)
        part["segment"], part["popularity"] = segment, worth_I[row_N]
        part["item_key"] = keys64(ids.ids.take(row_N))
        parts.append(part)
    return np.concatenate(parts)
