"""Boosted trees as they serve: what they read of the rows, what they say, and what they refuse to load."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray
from ranking_cases import NOW_MS, SOURCES, candidates, hydrated, random_queries, random_ranker, small_items, small_table

from candidate_gen.features import FeatureTable, pair_rows
from ranking.calibration import Calibration, Identity, Isotonic, Platt
from ranking.rankers import bound, load_scorer
from ranking.scorer import RankerScorer
from ranking.trees import Columns, Trees, TreesScorer

TABLE = small_table()
ITEMS = small_items(TABLE)
CALIBRATION = Calibration(("click", "like"), (Platt(0.8, -1.5), Isotonic((-2.0, 0.0, 3.0), (0.01, 0.2, 0.5))))


def _rows(table: FeatureTable, count: int = 600) -> NDArray[np.float32]:
    """Dense rows of random queries with random items."""
    random = np.random.default_rng(5)
    query_row_R = random_queries(table, ITEMS, count // 6)
    request_N = np.arange(count) // 6
    item_N = random.integers(len(ITEMS), size=count)
    item_row_N = ITEMS.row_I[item_N]
    pair_row_N = pair_rows(table, query_row_R[request_N], item_row_N, age_ms_N=NOW_MS - ITEMS.published_ms_I[item_N])
    return Columns(table).matrix(query_row_R, request_N, item_row_N, pair_row_N)


def _text(row_NC: NDArray[np.float32], categorical: tuple[int, ...], *, seed: int) -> str:
    """A model of labels that depend on every column a little."""
    random = np.random.default_rng(seed)
    signal_N = np.nan_to_num(row_NC - row_NC.mean(0)) @ random.normal(size=row_NC.shape[1])
    label_N = (signal_N > np.median(signal_N)).astype(np.float32)
    data = lightgbm.Dataset(row_NC, label_N, categorical_feature=list(categorical))
    told = {"objective": "binary", "num_leaves": 8, "min_data_in_leaf": 5, "seed": seed, "verbose": -1}
    told |= {"min_data_per_group": 5, "num_threads": 1}
    return str(lightgbm.train(told, data, 20).model_to_string())


def _trees(table: FeatureTable = TABLE, *, seed: int = 0) -> Trees:
    row_NC, categorical = _rows(table), Columns(table).categorical
    return Trees(table, [_text(row_NC, categorical, seed=seed + a) for a in range(2)], [0.0, -1.0])


TREES = _trees()


def _scorer() -> TreesScorer:
    return TreesScorer(TREES, CALIBRATION, TABLE, ITEMS)


def test_columns_are_the_numbers_and_the_ids_that_mean_something() -> None:
    columns = Columns(TABLE)
    numbers = {each.name for each in TABLE.features if each.kind == "number"}
    ids = {"surface", "hour", "weekday", "category", "format"}
    assert set(columns.names) == numbers | ids
    assert {columns.names[c] for c in columns.categorical} == ids
    many = small_table(categories=tuple(f"c{n}" for n in range(256)))
    assert "category" not in Columns(many).names


def test_the_matrix_holds_each_rows_own_values() -> None:
    query_row_R = random_queries(TABLE, ITEMS, 3)
    request_N = np.array([0, 2, 2, 1, 0])
    item_row_N = ITEMS.row_I[np.arange(5)]
    pair_row_N = pair_rows(TABLE, query_row_R[request_N], item_row_N, age_ms_N=np.arange(5) * 10**8)
    columns = Columns(TABLE)
    matrix_NC = columns.matrix(query_row_R, request_N, item_row_N, pair_row_N)
    assert matrix_NC.dtype == np.float32
    for c, name in enumerate(columns.names):
        owner = TABLE[name].owner
        rows_N = {"item": item_row_N, "pair": pair_row_N}.get(owner, query_row_R[request_N])
        value_N = rows_N[name].reshape(5, -1)[:, 0]
        np.testing.assert_array_equal(matrix_NC[:, c], value_N.astype(np.float32), err_msg=name)


def test_probabilities_are_those_of_lightgbm_behind_the_calibration() -> None:
    scored = _scorer().score(hydrated(TABLE, ITEMS), candidates(80))
    row_NC = TREES.columns.matrix(scored.query_row, np.zeros(80, np.int64), scored.item_row_N, scored.pair_row_N)
    logit_NA = [
        base + np.asarray(lightgbm.Booster(model_str=text).predict(row_NC, raw_score=True))
        for text, base in zip(TREES.text_A, TREES.base_A, strict=True)
    ]
    np.testing.assert_array_equal(scored.probability_NA, CALIBRATION.apply(np.stack(logit_NA, axis=1)))
    assert len(np.unique(scored.probability_NA[:, 0])) > 20


def test_the_rows_in_the_answer_are_those_that_any_ranker_sees() -> None:
    query, proposed = hydrated(TABLE, ITEMS, text="jazz volume 3"), candidates(60)
    deep = RankerScorer(random_ranker(TABLE), CALIBRATION, TABLE, ITEMS).score(query, proposed)
    scored = _scorer().score(query, proposed)
    assert scored.pair_row_N.tobytes() == deep.pair_row_N.tobytes()
    assert scored.item_row_N.tobytes() == deep.item_row_N.tobytes()
    assert scored.query_row.tobytes() == deep.query_row.tobytes()


def test_a_candidate_has_the_same_probability_alone_as_among_others() -> None:
    scorer, query, proposed = _scorer(), hydrated(TABLE, ITEMS, text="art"), candidates(90)
    together_NA = scorer.score(query, proposed).probability_NA
    turned_NA = scorer.score(query, proposed.take(np.arange(90)[::-1])).probability_NA
    np.testing.assert_array_equal(turned_NA[::-1], together_NA)
    for n in range(0, 90, 7):
        alone_1A = scorer.score(query, proposed.keep(np.arange(90) == n)).probability_NA
        np.testing.assert_array_equal(alone_1A[0], together_NA[n])


def test_threads_that_score_at_once_say_what_one_says_alone() -> None:
    scorer, queries = _scorer(), [hydrated(TABLE, ITEMS, which=n % 7) for n in range(40)]
    proposed = candidates(120)
    alone = [scorer.score(query, proposed).probability_NA for query in queries]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda query: scorer.score(query, proposed).probability_NA, queries))
    for one_NA, other_NA in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one_NA, other_NA)


def test_no_candidates_get_no_probabilities() -> None:
    scored = _scorer().score(hydrated(TABLE, ITEMS), candidates(0))
    assert scored.probability_NA.shape == (0, 2)
    assert scored.probability_NA.dtype == np.float32


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_what_is_not_a_number_goes_in_and_does_not_come_out(broken: float) -> None:
    query = hydrated(TABLE, ITEMS)
    with np.errstate(over="ignore", invalid="ignore"):
        scored = _scorer().score(replace(query, vector_D=np.full(8, broken, np.float32)), candidates(50))
    assert not np.isfinite(scored.pair_row_N["tower_score"]).all()
    assert np.isfinite(scored.probability_NA).all()
    row_NC = np.full((3, len(TREES.columns.names)), broken, np.float32)
    assert np.isfinite(TREES.logits(row_NC)).all()


def test_an_id_beyond_the_vocabulary_is_like_one_that_no_tree_has_seen() -> None:
    row_NC = _rows(TABLE, 60)
    c = TREES.columns.names.index("category")
    said = []
    for code in (4, 77, 2**30):
        row_NC[:, c] = code
        said.append(TREES.logits(row_NC))
    np.testing.assert_array_equal(said[0], said[1])
    np.testing.assert_array_equal(said[0], said[2])


def test_what_is_saved_scores_the_same_when_loaded(tmp_path: Path) -> None:
    scorer, query, proposed = _scorer(), hydrated(TABLE, ITEMS), candidates(50)
    scorer.save(tmp_path)
    again = load_scorer(tmp_path, FeatureTable.from_json(TABLE.to_json()), ITEMS)
    assert isinstance(again, TreesScorer)
    np.testing.assert_array_equal(
        again.score(query, proposed).probability_NA, scorer.score(query, proposed).probability_NA
    )
    assert again.fingerprint == scorer.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"trees.0.txt", "trees.1.txt", "trees.json"}


def test_other_items_are_scored_by_the_same_trees() -> None:
    scorer, query, proposed = _scorer(), hydrated(TABLE, ITEMS), candidates(30)
    turned = ITEMS.take(np.arange(len(ITEMS))[::-1])
    moved = scorer.on(turned)
    assert moved.fingerprint == scorer.fingerprint
    at = replace(proposed, row_N=len(ITEMS) - 1 - proposed.row_N)
    np.testing.assert_array_equal(moved.score(query, at).probability_NA, scorer.score(query, proposed).probability_NA)


def test_the_description_in_a_folder_says_which_ranker_it_is(tmp_path: Path) -> None:
    deep = bound(random_ranker(TABLE), CALIBRATION, TABLE, ITEMS)
    assert isinstance(deep, RankerScorer)
    assert isinstance(bound(TREES, CALIBRATION, TABLE, ITEMS), TreesScorer)
    deep.save(tmp_path)
    assert isinstance(load_scorer(tmp_path, TABLE, ITEMS), RankerScorer)


def test_fingerprints_tell_trees_bases_calibrations_and_tables_apart() -> None:
    other_table = small_table(history_length=7)
    scorers = [
        _scorer(),
        TreesScorer(_trees(seed=4), CALIBRATION, TABLE, ITEMS),
        TreesScorer(Trees(TABLE, TREES.text_A, [0.0, 0.0]), CALIBRATION, TABLE, ITEMS),
        TreesScorer(TREES, Calibration(TABLE.actions, (Identity(), Identity())), TABLE, ITEMS),
        TreesScorer(Trees(other_table, TREES.text_A, TREES.base_A), CALIBRATION, other_table, ITEMS),
    ]
    assert len({scorer.fingerprint for scorer in scorers}) == len(scorers)
    assert scorers[0].fingerprint == _scorer().fingerprint


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (small_table(history_length=7), "feature 'history_item' had shape (6, 2), now (7, 2)"),
        (small_table(sources=SOURCES[:2]), "feature 'popular_reciprocal_rank' is only in the trained one"),
    ],
)
def test_another_feature_table_is_refused_and_the_first_difference_named(
    tmp_path: Path, other: FeatureTable, difference: str
) -> None:
    _scorer().save(tmp_path)
    with pytest.raises(ValueError, match="was trained on feature table") as refused:
        load_scorer(tmp_path, other, ITEMS)
    assert difference in str(refused.value)
    assert TABLE.fingerprint in str(refused.value)


def test_trees_that_are_not_those_described_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    _scorer().save(tmp_path)
    path = tmp_path / "trees.1.txt"
    path.write_text(path.read_text().replace("leaf_value=", "leaf_value=9", 1))
    with pytest.raises(ValueError, match=r"the trees have fingerprint [0-9a-f]{16}, not"):
        TreesScorer.load(tmp_path, TABLE, ITEMS)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        TreesScorer.load(tmp_path, TABLE, ITEMS)


def test_trees_that_do_not_fit_the_table_or_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="1 models and 1 bases for 2 actions"):
        Trees(TABLE, TREES.text_A[:1], [0.0])
    wide = small_table(user_columns={"age": None, "height": None})
    columns = len(TREES.columns.names)
    with pytest.raises(ValueError, match=f"the trees read {columns} columns, the feature table gives {columns + 1}"):
        Trees(wide, TREES.text_A, TREES.base_A)
    with pytest.raises(ValueError, match="LightGBM cannot read the trees"):
        Trees(TABLE, ["no tree", "neither"], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"\('click',\), the table has \('click', 'like'\)"):
        TreesScorer(TREES, Calibration.identity(("click",)), TABLE, ITEMS)


def test_the_description_is_for_people_too(tmp_path: Path) -> None:
    _scorer().save(tmp_path)
    described = json.loads((tmp_path / "trees.json").read_text())
    assert described["columns"] == list(TREES.columns.names)
    assert described["actions"] == ["click", "like"]


def test_serving_imports_no_trees_where_none_rank() -> None:
    code = "import sys, serving.generation, ranking.rankers; sys.exit('lightgbm' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
