"""Candidates in, calibrated probabilities out: the ranker as it serves, and what stands in for it when it fails.

Shape letters: N candidates, S sources, A actions, I items, D vector width, B queries.
"""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, fields
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable, pair_rows
from candidate_gen.items import Items
from candidate_gen.text_match import field_matches
from candidate_gen.towers import map_weights
from candidate_gen.types import Candidates, HydratedQuery, by_source
from index.columns import Column, taken
from ranking.calibration import Calibration
from ranking.inference import CompiledRanker, Precision
from ranking.model import Ranker, RankerShape
from ranking.types import Scored

_WEIGHTS = "ranker.safetensors"
_DESCRIPTION = "ranker.json"
_HALVES = "ranker_items.npy"
_LEXICAL = "lexical"
_UNLIKELY = 1e-3


class RankerScorer:
    """The deep ranker and its calibration, bound to the items of one generation.

    Args:
        precision: of the ranker's products.
        half_I: see `CompiledRanker`.
    """

    def __init__(
        self,
        ranker: Ranker,
        calibration: Calibration,
        table: FeatureTable,
        items: Items,
        *,
        precision: Precision = Precision(),  # noqa: B008 - it cannot change
        half_I: Column | None = None,
    ) -> None:
        if calibration.actions != table.actions:
            raise ValueError(f"calibrated for the actions {calibration.actions}, the table has {table.actions}")
        self.ranker = ranker.eval()
        self.calibration = calibration
        self.precision = precision
        self._table = table
        self._items = items
        self._half_I = half_I

    @cached_property
    def compiled(self) -> CompiledRanker:
        """The ranker with its weights at the first use."""
        kind = self.precision.here
        return CompiledRanker(self.ranker, self._table, self._items.row_I, kind=kind, half_I=self._half_I)

    def on(self, items: Items) -> "RankerScorer":
        """The same for items whose first rows are those that it has."""
        made = copy(self)
        made._items = items
        made.compiled = self.compiled.grown(items.row_I)
        return made

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        """P(action | examined) of every action for every candidate, each independent of the others.

        Raises:
            ValueError: where a logit is NaN.
        """
        item_row_N, pair_row_N = feature_rows(self._table, self._items, hydrated, candidates)
        logit_NA = self.compiled.logits(hydrated.row, candidates.row_N, pair_row_N)
        probability_NA = self.calibration.apply(logit_NA)
        return Scored(candidates, self._table.actions, probability_NA, hydrated.row, item_row_N, pair_row_N)

    def score_of_many(self, hydrated: Sequence[HydratedQuery], candidates: Sequence[Candidates]) -> list[Scored]:
        """The same of many queries without a text, each with its candidates and with the bits that it has alone.

        Raises:
            ValueError: as `score`.
        """
        table, offset_B1 = self._table, np.cumsum([0, *map(len, candidates)])
        query_row_B = _joined([each.row for each in hydrated])
        item_row_N, pair_row_N = _feature_rows_of_many(table, self._items, query_row_B, hydrated, candidates)
        row_N = np.concatenate([each.row_N for each in candidates])
        logit_NA = self.compiled.logits_of_many(query_row_B, row_N, pair_row_N, offset_B1)
        probability_NA = self.calibration.apply(logit_NA)
        parts = [slice(first, after) for first, after in pairwise(offset_B1.tolist())]
        return [
            Scored(own, table.actions, probability_NA[part], asked.row, item_row_N[part], pair_row_N[part])
            for asked, own, part in zip(hydrated, candidates, parts, strict=True)
        ]

    def probabilities(
        self, query_row: np.ndarray, item_row_N: np.ndarray, pair_row_N: np.ndarray
    ) -> NDArray[np.float32]:
        """P(action | examined), (N, A), of feature rows, whatever items they are of.

        Raises:
            ValueError: where a logit is NaN.
        """
        table = self._table
        with torch.inference_mode():
            half = self.ranker.query_half(tensors(query_row, table.of("query")))
            logit_NA = self.ranker(
                half, tensors(item_row_N, table.of("item")), tensors(pair_row_N, table.of("pair"))
            ).numpy()
        return self.calibration.apply(logit_NA)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies every probability it can say: 16 hexadecimal digits over all that makes them, at the first use."""
        described = [
            asdict(self.ranker.shape),
            self.calibration.to_json(),
            self._table.fingerprint,
            self.precision.kind,
        ]
        digest = sha256(json.dumps(described, sort_keys=True).encode())
        for name, weight in sorted(self.ranker.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `ranker.safetensors` and `ranker.json`."""
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.ranker.state_dict().items()}
        save_file(weights, folder / _WEIGHTS)
        description = {
            "shape": asdict(self.ranker.shape),
            "precision": asdict(self.precision),
            "calibration": json.loads(self.calibration.to_json()),
            "actions": self._table.actions,
            "table": self._table.fingerprint,
            "schema": json.loads(self._table.to_json()),
            "fingerprint": self.fingerprint,
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    def save_halves(self, folder: Path) -> None:
        """Write `ranker_items.npy`: what the ranker needs of its items, 512 bytes or so each."""
        np.save(folder / _HALVES, np.asarray(self.compiled.half_I), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, table: FeatureTable, items: Items, *, halves: bool = False) -> "RankerScorer":
        """What `save` wrote, ready to serve.

        Args:
            halves: map what `save_halves` wrote, which must have been of these very items.

        Raises:
            ValueError: where the ranker was trained on another feature table (both fingerprints and the first
                difference are named), or the weights are not those that the description describes.
        """
        described = json.loads((folder / _DESCRIPTION).read_text())
        require_table(folder / _DESCRIPTION, described, table)
        shape = described["shape"]
        ranker = Ranker(table, RankerShape(**{**shape, "hidden": tuple(shape["hidden"])}))
        map_weights(ranker, folder / _WEIGHTS)
        precision = Precision(**described["precision"])
        scorer = cls(
            ranker,
            Calibration.from_json(json.dumps(described["calibration"])),
            table,
            items,
            precision=precision,
            half_I=_halves(folder) if halves and precision.here == precision.kind else None,
        )
        if scorer.fingerprint != described["fingerprint"]:
            raise ValueError(
                f"{folder / _WEIGHTS} has fingerprint {scorer.fingerprint}, its description {described['fingerprint']}"
            )
        map_weights(ranker, folder / _WEIGHTS)  # anew: what the fingerprint has read need not stay in memory
        return scorer


def _halves(folder: Path) -> np.ndarray:
    return np.asarray(np.load(folder / _HALVES, mmap_mode="r", allow_pickle=False))


class RetrievalOrder:
    """Stands in for a ranker that failed: the better an item's best rank in any source, the likelier the main action.

    The numbers order the candidates and mean nothing else. It needs no model and cannot give a value that is not
    finite; the feature rows are made as ever, so that the impression can still be learned from.
    """

    def __init__(self, table: FeatureTable, items: Items) -> None:
        self._table = table
        self._items = items

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        item_row_N, pair_row_N = feature_rows(self._table, self._items, hydrated, candidates)
        reciprocal_NS = np.where(candidates.rank_NS >= 0, 1 / (2.0 + np.maximum(candidates.rank_NS, 0)), _UNLIKELY)
        probability_NA = np.full((len(candidates), len(self._table.actions)), _UNLIKELY, np.float32)
        probability_NA[:, 0] = reciprocal_NS.max(axis=1, initial=_UNLIKELY)
        return Scored(candidates, self._table.actions, probability_NA, hydrated.row, item_row_N, pair_row_N)


def feature_rows(
    table: FeatureTable, items: Items, hydrated: HydratedQuery, candidates: Candidates
) -> tuple[np.ndarray, np.ndarray]:
    """Item rows and pair rows of the candidates, (N,) each: what every ranker sees."""
    row_N, names = candidates.row_N, candidates.source_names
    item_row_N = taken(items.row_I, row_N)
    pair_row_N = pair_rows(
        table,
        hydrated.row,
        item_row_N,
        age_ms_N=hydrated.query.time_ms - items.published_ms_I[row_N],
        tower_score_N=taken(items.embedding_ID, row_N) @ hydrated.vector_D,
        match_NF=field_matches(hydrated.query.text, items.prepared, row_N),
        bm25_N=candidates.score_NS[:, names.index(_LEXICAL)] if _LEXICAL in names else None,
        rank_NS=ranks_by_source(table, names, candidates.rank_NS),
    )
    return item_row_N, pair_row_N


def _feature_rows_of_many(
    table: FeatureTable,
    items: Items,
    query_row_B: np.ndarray,
    hydrated: Sequence[HydratedQuery],
    candidates: Sequence[Candidates],
) -> tuple[np.ndarray, np.ndarray]:
    """The same of many queries without a text, one query's candidates after the other's."""
    query_N = np.repeat(np.arange(len(hydrated)), [len(each) for each in candidates])
    row_N, names = np.concatenate([each.row_N for each in candidates]), candidates[0].source_names
    item_row_N, vector_ND = taken(items.row_I, row_N), taken(items.embedding_ID, row_N)
    # Products of one query each: their bits may depend on how many rows there are.
    tower_score_N, start = np.empty(len(row_N), np.float32), 0
    for asked, own in zip(hydrated, candidates, strict=True):
        end = start + len(own)
        np.matmul(vector_ND[start:end], asked.vector_D, out=tower_score_N[start:end])
        start = end
    bm25_N = None
    if _LEXICAL in names:
        bm25_N = np.concatenate([each.score_NS[:, names.index(_LEXICAL)] for each in candidates])
    pair_row_N = pair_rows(
        table,
        query_row_B,
        item_row_N,
        age_ms_N=np.array([each.query.time_ms for each in hydrated])[query_N] - items.published_ms_I[row_N],
        tower_score_N=tower_score_N,
        bm25_N=bm25_N,
        rank_NS=ranks_by_source(table, names, np.concatenate([each.rank_NS for each in candidates])),
        query_N=query_N,
    )
    return item_row_N, pair_row_N


def _joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Records one after the other: as bytes, for NumPy compares the fields of one record after the other's."""
    return np.frombuffer(bytearray().join([each.tobytes() for each in rows]), rows[0].dtype)


def ranks_by_source(table: FeatureTable, names: Sequence[str], rank_NS: NDArray[np.int16]) -> NDArray[np.int16]:
    """Ranks, a column for each of `names`, as columns of the table's sources; -1 for a source that was not asked."""
    return rank_NS if tuple(names) == table.sources else by_source(rank_NS, names, table.sources, missing=-1)


def require_table(path: Path, described: Mapping[str, Any], table: FeatureTable) -> None:
    """Refuse a ranker of another feature table.

    Args:
        described: what is in `path`, with the fingerprint `table` and the `schema` of the training.

    Raises:
        ValueError: both fingerprints and the first difference are named.
    """
    if described["table"] != table.fingerprint:
        trained = FeatureTable.from_json(json.dumps(described["schema"]))
        raise ValueError(
            f"{path} was trained on feature table {described['table']}, not on "
            f"{table.fingerprint}: {_first_difference(trained, table)}"
        )


def _first_difference(trained: FeatureTable, given: FeatureTable) -> str:
    for before, now in zip(trained.features, given.features, strict=False):
        if before.name != now.name:
            return f"feature {before.name!r} then stands where {now.name!r} stands now"
        for each in fields(before):
            was, is_now = getattr(before, each.name), getattr(now, each.name)
            if was != is_now:
                return f"feature {before.name!r} had {each.name} {_short(was)}, now {_short(is_now)}"
    if len(trained.features) != len(given.features):
        longer = max(trained, given, key=lambda each: len(each.features))
        first = longer.features[min(len(trained.features), len(given.features))]
        return f"feature {first.name!r} is only in the {'trained' if longer is trained else 'given'} one"
    if trained.actions != given.actions:
        return f"the actions were {trained.actions}, now {given.actions}"
    return f"the sources were {trained.sources}, now {given.sources}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
