"""What of the generations that answered is needed to read what they logged: feature tables, vectors, examination."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from index.generations import GenerationStore, Manifest
from protos.impression_pb2 import Impression
from training.off_policy.estimate import examination


@dataclass(frozen=True, eq=False)
class Answerer:
    """One generation, as it was published."""

    manifest: Manifest
    table: FeatureTable
    items: Items

    @classmethod
    def load(cls, store: GenerationStore, generation: str) -> "Answerer":
        folder = store.folder(generation)
        return cls(store.manifest(generation), FeatureTable.load(folder), Items.load(folder))

    @cached_property
    def examination_K(self) -> NDArray[np.float64]:
        """P(looked at) by slot."""
        return examination({name: p for name, p in self.manifest.metrics.items() if p is not None})

    @cached_property
    def middle_D(self) -> NDArray[np.float32]:
        """Mean of the vectors of all items."""
        mean_D: NDArray[np.float32] = np.asarray(self.items.embedding_ID, np.float32).mean(axis=0)
        return mean_D

    def vectors(self, item_ids: Sequence[str]) -> NDArray[np.float32]:
        """Of those items that were in the catalogue when it was published, (N, D)."""
        row_N = self.items.ids.rows_of(item_ids)
        return np.asarray(self.items.embedding_ID)[row_N[row_N >= 0]]


@dataclass(frozen=True, eq=False)
class Answerers:
    """Those that the store still holds."""

    by_id: dict[str, Answerer]

    @classmethod
    def load(cls, store: GenerationStore) -> "Answerers":
        return cls({generation: Answerer.load(store, generation) for generation in store.ids()})

    @cached_property
    def tables(self) -> dict[str, FeatureTable]:
        """By fingerprint: what is gone was often written with a table that is still there."""
        return {each.table.fingerprint: each.table for each in self.by_id.values()}

    def readable(self, impressions: Iterable[Impression]) -> Iterator[tuple[FeatureTable, list[Impression]]]:
        """Impressions whose bytes can be read, by their feature table."""
        by_table: dict[str, list[Impression]] = {}
        for each in impressions:
            if each.schema in self.tables:
                by_table.setdefault(each.schema, []).append(each)
        for schema, group in by_table.items():
            yield self.tables[schema], group

    def counted(self, logged: Sequence[Impression]) -> NDArray[np.bool_]:
        """Of every exposure, whether its item was in the catalogue when the generation was published that showed it,
        (N,): one that came later has no counters yet. Of a generation that is gone nobody knows, so all of its are."""
        parts = [np.empty(0, np.bool_)]
        for each in logged:
            answerer = self.by_id.get(each.generation)
            parts.append(
                answerer.items.ids.rows_of(list(each.item_id)) >= 0
                if answerer
                else np.ones(len(each.item_id), np.bool_)
            )
        return np.concatenate(parts)

    def similarity(self, first: str, second: str, *, most: int = 2000) -> float:
        """Linear centred kernel alignment of two generations' vectors of the items that both hold: 1 where one is the
        other turned or scaled, near 0 where they have nothing in common. NaN where one is gone or few are in both.

        Kornblith et al. 2019, "Similarity of neural network representations revisited".
        """
        if first == second:
            return 1.0
        if first not in self.by_id or second not in self.by_id:
            return float("nan")
        one, other = self.by_id[first].items, self.by_id[second].items
        row_N = np.linspace(0, len(one) - 1, min(most, len(one))).astype(np.int64)
        found_N = other.ids.rows_of([one.ids.ids[row] for row in row_N.tolist()])
        kept_N = found_N >= 0
        if kept_N.sum() < 10:
            return float("nan")
        x_ND = np.asarray(one.embedding_ID, np.float64)[row_N[kept_N]]
        y_ND = np.asarray(other.embedding_ID, np.float64)[found_N[kept_N]]
        x_ND, y_ND = x_ND - x_ND.mean(axis=0), y_ND - y_ND.mean(axis=0)
        own = float(np.linalg.norm(x_ND.T @ x_ND) * np.linalg.norm(y_ND.T @ y_ND))
        return float(np.linalg.norm(x_ND.T @ y_ND) ** 2 / own) if own else float("nan")
