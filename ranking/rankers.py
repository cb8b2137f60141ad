"""The rankers there are, behind one `Scorer`: the deep one and boosted trees. A folder's description says which."""

from pathlib import Path

from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from ranking.calibration import Calibration
from ranking.inference import Precision
from ranking.model import Ranker
from ranking.scorer import RankerScorer
from ranking.trees import DESCRIPTION, Trees, TreesScorer

AnyRanker = Ranker | Trees
AnyScorer = RankerScorer | TreesScorer


def bound(
    ranker: AnyRanker,
    calibration: Calibration,
    table: FeatureTable,
    items: Items,
    *,
    precision: Precision = Precision(),  # noqa: B008 - it cannot change
) -> AnyScorer:
    """The scorer of a ranker, for the items of one generation.

    Args:
        precision: of the deep one.
    """
    if isinstance(ranker, Trees):
        return TreesScorer(ranker, calibration, table, items)
    return RankerScorer(ranker, calibration, table, items, precision=precision)


def load_scorer(folder: Path, table: FeatureTable, items: Items, *, halves: bool = False) -> AnyScorer:
    """What the `save` of any of them wrote, ready to serve.

    Args:
        halves: see `RankerScorer.load`.

    Raises:
        ValueError: see `RankerScorer.load` and `TreesScorer.load`.
    """
    if (folder / DESCRIPTION).exists():
        return TreesScorer.load(folder, table, items)
    return RankerScorer.load(folder, table, items, halves=halves)
