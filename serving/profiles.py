"""What is stored of users: their columns as the generation was built with, and what was told of them since.

Shape letters: U users of the generation, R users asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable
from index.strings import IdMap
from protos.catalog_pb2 import CatalogUser, ForgetUserRequest, UpsertUsersRequest
from serving.changes import values_of
from serving.log.catalog_log import Entry, forgotten_in

NEVER_MS = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Profiles:
    """Columns of users by id. Immutable: a change makes a new value."""

    users: IdMap
    profile_U: np.ndarray
    changed: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    """Records, (1,), of those told of since; None for one who was forgotten."""
    forgotten: Mapping[str, int] = field(default_factory=dict)
    """When somebody was last forgotten, in ms."""

    def of(self, user_id: str) -> np.ndarray | None:
        """The record, (1,), of a user; None for a stranger."""
        if user_id in self.changed:
            return self.changed[user_id]
        row = int(self.users.rows_of([user_id])[0]) if user_id else -1
        return np.array(self.profile_U[row : row + 1]) if row >= 0 else None

    def records(self, user_ids: Sequence[str], *, stranger: np.ndarray) -> np.ndarray:
        """`of` for many, (R,), with a record that stands for those of whom nothing is stored."""
        row_R = self.users.rows_of(user_ids)
        known_R: NDArray[np.bool_] = (row_R >= 0) & np.array([bool(each) for each in user_ids], np.bool_)
        record_R = np.repeat(stranger, len(user_ids))
        record_R[known_R] = self.profile_U[row_R[known_R]]
        for r, user_id in enumerate(user_ids):
            if user_id in self.changed:
                told = self.changed[user_id]
                record_R[r] = (stranger if told is None else told)[0]
        return record_R

    def known(self, user_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Of whom something is stored, (R,)."""
        known_R: NDArray[np.bool_] = self.users.rows_of(user_ids) >= 0
        for r, user_id in enumerate(user_ids):
            if not user_id or user_id in self.changed:
                known_R[r] = self.changed.get(user_id) is not None
        return known_R

    def forgotten_ms(self, user_id: str) -> int:
        """Until when nothing of a user is to be known; long ago for one who was never forgotten."""
        return self.forgotten.get(user_id, NEVER_MS)

    def after(self, entries: Sequence[Entry], table: FeatureTable) -> "Profiles":
        """The same after entries of the catalogue log; itself where they are not about users."""
        changed: dict[str, np.ndarray | None] = {}
        for entry in entries:
            request = entry.request
            if isinstance(request, UpsertUsersRequest):
                changed |= {user.user_id: _record(user, table) for user in request.users}
            elif isinstance(request, ForgetUserRequest):
                changed[request.user_id] = None
        if not changed:
            return self
        return replace(self, changed={**self.changed, **changed}, forgotten={**self.forgotten, **forgotten_in(entries)})

    def folded(self) -> tuple[IdMap, np.ndarray]:
        """Ids and records as a generation is built with them: with what was told, without the forgotten."""
        if not self.changed:
            return self.users, self.profile_U
        kept = [user_id for user_id in self.users.ids if user_id not in self.changed]
        told = {user_id: record for user_id, record in self.changed.items() if record is not None}
        old_U = self.profile_U[self.users.rows_of(kept)] if kept else self.profile_U[:0]
        return IdMap.of([*kept, *told]), np.concatenate([old_U, *told.values()])


def _record(user: CatalogUser, table: FeatureTable) -> np.ndarray:
    """What is missing has its default, as for a user of whom nothing is known."""
    record = table.stranger
    for name, value in values_of(user).items():
        record[name] = table.encode(name, [value])
    return record
