"""Boosted trees as the ranker: a dense matrix of the feature table's rows, one LightGBM model an action.

What a tree can split on is a *column*. Every number is one, as it is; of a number with a shape (one for each past
outcome) the first, which is the newest. An id is one where its values have a meaning of their own and there are few:
those with a vocabulary of at most 255 values, and the context (surface, hour, weekday), as categories. Left out are
hashed ids, whose buckets mean nothing to a split (user, item, creator), larger vocabularies, words, and the ids of the
history: what they say of a candidate is in the pair rows already (affinities, repeats, text match).

Shape letters: N candidates or examples, R requests, A actions, F columns of one kind of row, C columns, W 4-byte words
of a record.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable, RowKind
from candidate_gen.items import Items
from candidate_gen.types import Candidates, HydratedQuery
from ranking.calibration import Calibration
from ranking.scorer import feature_rows, require_table
from ranking.types import Scored

DESCRIPTION = "trees.json"
_KINDS: tuple[RowKind, ...] = ("query", "item", "pair")
_MOST_CATEGORIES = 256


@dataclass(frozen=True, slots=True)
class _Taken:
    """Columns that one kind of row gives."""

    word_F: NDArray[np.int64]
    category_F: NDArray[np.bool_]

    def of(self, rows_N: np.ndarray) -> NDArray[np.float32]:
        words_NW = np.ascontiguousarray(rows_N).view("<i4").reshape(len(rows_N), rows_N.dtype.itemsize // 4)
        taken_NF = words_NW[:, self.word_F]
        return np.where(self.category_F, taken_NF, taken_NF.view("<f4")).astype(np.float32)


class Columns:
    """The columns of a table and their order: query, item, pair, each in the order of its bytes."""

    def __init__(self, table: FeatureTable) -> None:
        kept = {kind: [each for each in table.of(kind) if _is_column(each)] for kind in _KINDS}
        self.names = tuple(each.name for kind in _KINDS for each in kept[kind])
        self.categorical = tuple(c for c, name in enumerate(self.names) if table[name].kind == "id")
        self._taken = [_taken(table.dtype(kind), kept[kind]) for kind in _KINDS]

    def matrix(
        self, query_row_R: np.ndarray, request_N: NDArray[np.int64], item_row_N: np.ndarray, pair_row_N: np.ndarray
    ) -> NDArray[np.float32]:
        """Dense rows, (N, C); `request_N` points into `query_row_R`."""
        query, item, pair = self._taken
        return np.concatenate([query.of(query_row_R)[request_N], item.of(item_row_N), pair.of(pair_row_N)], axis=1)


class Trees:
    """A model for each action, as LightGBM writes it, on the columns of a table."""

    def __init__(self, table: FeatureTable, text_A: Sequence[str], base_A: Sequence[float]) -> None:
        """
        Args:
            text_A: `Booster.model_to_string`, in the order of the table's actions.
            base_A: what is added to each model's sum.

        Raises:
            ValueError: where they are not one an action, or a text is no model of this table's columns.
        """
        if not len(text_A) == len(base_A) == len(table.actions):
            raise ValueError(f"{len(text_A)} models and {len(base_A)} bases for {len(table.actions)} actions")
        self.columns = Columns(table)
        self.text_A = tuple(text_A)
        self.base_A = tuple(base_A)
        self._model_A = [_model(text, len(self.columns.names)) for text in text_A]

    @property
    def count_A(self) -> tuple[int, ...]:
        """Trees of each action."""
        return tuple(model.num_trees() for model in self._model_A)

    def logits(self, row_NC: NDArray[np.float32]) -> NDArray[np.float64]:
        """One for each action, (N, A); each row by itself and on the calling thread; never NaN, whatever the row."""
        logit_NA = np.empty((len(row_NC), len(self._model_A)), np.float64)
        if len(row_NC):
            for a, (model, base) in enumerate(zip(self._model_A, self.base_A, strict=True)):
                logit_NA[:, a] = base + model.predict(row_NC, raw_score=True, num_threads=1)
        return logit_NA


class TreesScorer:
    """Trees and their calibration, bound to the items of one generation."""

    def __init__(self, ranker: Trees, calibration: Calibration, table: FeatureTable, items: Items) -> None:
        if calibration.actions != table.actions:
            raise ValueError(f"calibrated for the actions {calibration.actions}, the table has {table.actions}")
        self.ranker = ranker
        self.calibration = calibration
        self._table = table
        self._items = items

    def on(self, items: Items) -> "TreesScorer":
        """The same for other items."""
        return TreesScorer(self.ranker, self.calibration, self._table, items)

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        """P(action | examined) of every action for every candidate, each independent of the others."""
        item_row_N, pair_row_N = feature_rows(self._table, self._items, hydrated, candidates)
        probability_NA = self.probabilities(hydrated.row, item_row_N, pair_row_N)
        return Scored(candidates, self._table.actions, probability_NA, hydrated.row, item_row_N, pair_row_N)

    def probabilities(
        self, query_row: np.ndarray, item_row_N: np.ndarray, pair_row_N: np.ndarray
    ) -> NDArray[np.float32]:
        """P(action | examined), (N, A), of feature rows, whatever items they are of."""
        request_N = np.zeros(len(item_row_N), np.int64)
        row_NC = self.ranker.columns.matrix(query_row, request_N, item_row_N, pair_row_N)
        return self.calibration.apply(self.ranker.logits(row_NC))

    @property
    def fingerprint(self) -> str:
        """Identifies every probability it can say: 16 hexadecimal digits over models, calibration and table."""
        return _fingerprint(self.ranker.text_A, self.ranker.base_A, self.calibration, self._table)

    def save(self, folder: Path) -> None:
        """Write `trees.json` and, for action n, `trees.n.txt`."""
        for a, text in enumerate(self.ranker.text_A):
            _path(folder, a).write_text(text)
        description = {
            "base": self.ranker.base_A,
            "columns": self.ranker.columns.names,
            "calibration": json.loads(self.calibration.to_json()),
            "actions": self._table.actions,
            "table": self._table.fingerprint,
            "schema": json.loads(self._table.to_json()),
            "fingerprint": self.fingerprint,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, table: FeatureTable, items: Items) -> "TreesScorer":
        """What `save` wrote, ready to serve. Models are parsed only when they are the ones that were described.

        Raises:
            ValueError: where the trees were grown on another feature table (both fingerprints and the first
                difference are named), or are not those that the description describes.
        """
        path = folder / DESCRIPTION
        described = json.loads(path.read_text())
        require_table(path, described, table)
        text_A = [_path(folder, a).read_text() for a in range(len(table.actions))]
        calibration = Calibration.from_json(json.dumps(described["calibration"]))
        found = _fingerprint(text_A, described["base"], calibration, table)
        if found != described["fingerprint"]:
            raise ValueError(f"{path}: the trees have fingerprint {found}, not {described['fingerprint']}")
        return cls(Trees(table, text_A, described["base"]), calibration, table, items)


def _is_column(feature: Feature) -> bool:
    if feature.kind == "number":
        return True
    meant = bool(feature.vocabulary) or feature.owner == "context"
    return meant and not feature.shape and feature.size <= _MOST_CATEGORIES


def _taken(dtype: np.dtype[np.void], kept: Sequence[Feature]) -> _Taken:
    assert dtype.fields is not None
    word_F = np.array([dtype.fields[each.name][1] // 4 for each in kept], np.int64)
    return _Taken(word_F, np.array([each.kind == "id" for each in kept], np.bool_))


def _model(text: str, columns: int) -> Any:
    # Only where trees rank: the import takes most of a second and needs libgomp.
    from lightgbm import Booster
    from lightgbm.basic import LightGBMError

    try:
        model = Booster(model_str=text)
    except LightGBMError as error:
        raise ValueError(f"LightGBM cannot read the trees: {' '.join(str(error).split())}") from None
    if model.num_feature() != columns:
        raise ValueError(f"the trees read {model.num_feature()} columns, the feature table gives {columns}")
    return model


def _path(folder: Path, action: int) -> Path:
    return folder / f"trees.{action}.txt"


def _fingerprint(text_A: Sequence[str], base_A: Sequence[float], calibration: Calibration, table: FeatureTable) -> str:
    described = [list(base_A), calibration.to_json(), table.fingerprint]
    digest = sha256(json.dumps(described, sort_keys=True).encode())
    for text in text_A:
        digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()[:16]
