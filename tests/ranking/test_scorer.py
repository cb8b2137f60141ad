"""Scoring as it serves: the rows it saw, the probabilities it says, and what it refuses to load."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_cases import COUNT, NOW_MS, SOURCES, candidates, hydrated, random_ranker, small_items, small_table

from candidate_gen.features import FeatureTable, pair_rows
from candidate_gen.text_match import field_matches
from candidate_gen.types import Candidates
from ranking.calibration import Calibration, Isotonic, Platt
from ranking.inference import Precision, halves_are_fast
from ranking.scorer import RankerScorer, RetrievalOrder

TABLE = small_table()
ITEMS = small_items(TABLE)
CALIBRATION = Calibration(("click", "like"), (Platt(0.8, -1.5), Isotonic((-2.0, 0.0, 3.0), (0.01, 0.2, 0.5))))


def _scorer() -> RankerScorer:
    return RankerScorer(random_ranker(TABLE), CALIBRATION, TABLE, ITEMS)


def test_the_rows_in_the_answer_are_those_of_the_feature_table() -> None:
    query, proposed = hydrated(TABLE, ITEMS, text="jazz volume 3"), candidates(60)
    scored = _scorer().score(query, proposed)
    row_N = proposed.row_N
    expected_N = pair_rows(
        TABLE,
        query.row,
        ITEMS.row_I[row_N],
        age_ms_N=NOW_MS - ITEMS.published_ms_I[row_N],
        tower_score_N=ITEMS.embedding_ID[row_N] @ query.vector_D,
        match_NF=field_matches("jazz volume 3", ITEMS.prepared, row_N),
        bm25_N=proposed.score_NS[:, SOURCES.index("lexical")],
        rank_NS=proposed.rank_NS,
    )
    assert scored.pair_row_N.tobytes() == expected_N.tobytes()
    assert scored.item_row_N.tobytes() == ITEMS.row_I[row_N].tobytes()
    assert scored.query_row.tobytes() == query.row.tobytes()
    assert len(np.unique(scored.pair_row_N["title_idf_overlap"])) > 1


def test_sources_are_matched_by_name_whatever_their_order() -> None:
    query, proposed = hydrated(TABLE, ITEMS), candidates(60)
    order = [2, 0, 1]
    turned = Candidates(
        proposed.row_N,
        (*(SOURCES[s] for s in order), "sponsored"),
        np.concatenate([proposed.rank_NS[:, order], np.zeros((60, 1), np.int16)], axis=1),
        np.concatenate([proposed.score_NS[:, order], np.ones((60, 1), np.float32)], axis=1),
    )
    one, other = _scorer().score(query, proposed), _scorer().score(query, turned)
    assert one.pair_row_N.tobytes() == other.pair_row_N.tobytes()
    np.testing.assert_array_equal(one.probability_NA, other.probability_NA)
    without = Candidates(proposed.row_N, ("ann",), proposed.rank_NS[:, :1], proposed.score_NS[:, :1])
    pair_row_N = _scorer().score(query, without).pair_row_N
    assert not pair_row_N["bm25"].any()
    assert not pair_row_N["popular_reciprocal_rank"].any()


def test_a_candidate_has_the_same_probability_alone_as_among_others() -> None:
    scorer, query, proposed = _scorer(), hydrated(TABLE, ITEMS, text="art"), candidates(90)
    together_NA = scorer.score(query, proposed).probability_NA
    assert ((together_NA > 0) & (together_NA < 1)).all()
    for n in range(0, 90, 7):
        alone_1A = scorer.score(query, proposed.keep(np.arange(90) == n)).probability_NA
        np.testing.assert_allclose(alone_1A[0], together_NA[n], rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [_scorer, lambda: RetrievalOrder(TABLE, ITEMS)])
def test_no_candidates_get_no_probabilities(make: object) -> None:
    scored = make().score(hydrated(TABLE, ITEMS), candidates(0))  # type: ignore[operator]
    assert len(scored) == 0
    assert scored.probability_NA.shape == (0, 2)
    assert scored.probability_NA.dtype == np.float32


def test_what_is_saved_scores_the_same_when_loaded(tmp_path: Path) -> None:
    scorer, query, proposed = _scorer(), hydrated(TABLE, ITEMS), candidates(50)
    scorer.ranker.embed.fit_ids(ITEMS.row_I[np.arange(COUNT // 2)])
    scorer.save(tmp_path)
    again = RankerScorer.load(tmp_path, FeatureTable.from_json(TABLE.to_json()), ITEMS)
    np.testing.assert_array_equal(
        again.score(query, proposed).probability_NA, scorer.score(query, proposed).probability_NA
    )
    assert again.fingerprint == scorer.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"ranker.safetensors", "ranker.json"}


def test_what_is_kept_of_the_items_is_read_back_and_not_worked_out_again(tmp_path: Path) -> None:
    scorer, query, proposed = _scorer(), hydrated(TABLE, ITEMS), candidates(50)
    scorer.save(tmp_path)
    scorer.save_halves(tmp_path)
    again = RankerScorer.load(tmp_path, TABLE, ITEMS, halves=True)
    assert again.compiled.half_I is not None
    np.testing.assert_array_equal(
        again.score(query, proposed).probability_NA, scorer.score(query, proposed).probability_NA
    )
    np.save(tmp_path / "ranker_items.npy", np.asarray(scorer.compiled.half_I)[::-1])
    other = RankerScorer.load(tmp_path, TABLE, ITEMS, halves=True)
    assert (other.score(query, proposed).probability_NA != scorer.score(query, proposed).probability_NA).any()
    np.save(tmp_path / "ranker_items.npy", np.asarray(scorer.compiled.half_I)[1:])
    with pytest.raises(ValueError, match="part of 199 items"):
        RankerScorer.load(tmp_path, TABLE, ITEMS, halves=True).score(query, proposed)


def test_items_that_come_later_are_scored_like_the_others() -> None:
    query = hydrated(TABLE, ITEMS)
    first = RankerScorer(random_ranker(TABLE), CALIBRATION, TABLE, ITEMS.take(np.arange(150)))
    late = first.on(ITEMS.take(np.arange(150)).appended(ITEMS.take(np.arange(150, COUNT))))
    proposed = candidates(100)
    assert (proposed.row_N >= 150).any()
    np.testing.assert_array_equal(
        late.score(query, proposed).probability_NA, _scorer().score(query, proposed).probability_NA
    )
    assert late.fingerprint == first.fingerprint
    assert len(first.compiled.half_I) == 150


def test_the_precision_is_written_down_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    precision = Precision("bfloat16", 3e-5)
    scorer = RankerScorer(random_ranker(TABLE), CALIBRATION, TABLE, ITEMS, precision=precision)
    scorer.save(tmp_path)
    assert json.loads((tmp_path / "ranker.json").read_text())["precision"] == {"kind": "bfloat16", "ndcg_change": 3e-5}
    assert RankerScorer.load(tmp_path, TABLE, ITEMS).precision == precision
    assert scorer.compiled.kind == ("bfloat16" if halves_are_fast() else "float32")
    assert scorer.fingerprint != _scorer().fingerprint


def test_fingerprints_tell_weights_calibration_and_tables_apart() -> None:
    other_table = small_table(history_length=7)
    scorers = [
        _scorer(),
        RankerScorer(random_ranker(TABLE, seed=1), CALIBRATION, TABLE, ITEMS),
        RankerScorer(random_ranker(TABLE), Calibration.identity(TABLE.actions), TABLE, ITEMS),
        RankerScorer(random_ranker(other_table), CALIBRATION, other_table, ITEMS),
    ]
    assert len({scorer.fingerprint for scorer in scorers}) == len(scorers)
    assert scorers[0].fingerprint == _scorer().fingerprint


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (small_table(history_length=7), "feature 'history_item' had shape (6, 2), now (7, 2)"),
        (small_table(user_columns={}), "feature 'age' then stands where 'surface' stands now"),
        (
            small_table(categories=("art", "jazz", "maths")),
            "feature 'category' had vocabulary ('art', 'jazz', 'math'), now ('art', 'jazz', 'maths')",
        ),
        (small_table(sources=SOURCES[:2]), "feature 'popular_reciprocal_rank' is only in the trained one"),
        (replace(TABLE, actions=("click", "love")), "the actions were ('click', 'like'), now ('click', 'love')"),
    ],
)
def test_another_feature_table_is_refused_and_the_first_difference_named(
    tmp_path: Path, other: FeatureTable, difference: str
) -> None:
    _scorer().save(tmp_path)
    with pytest.raises(ValueError, match=r"trained on feature table") as refused:
        RankerScorer.load(tmp_path, other, ITEMS)
    message = str(refused.value)
    assert TABLE.fingerprint in message
    assert other.fingerprint in message
    assert difference in message


def test_weights_that_are_not_those_described_are_refused(tmp_path: Path) -> None:
    _scorer().save(tmp_path)
    good = (tmp_path / "ranker.json").read_text()
    (tmp_path / "ranker.json").write_text(json.dumps({**json.loads(good), "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match=r"has fingerprint [0-9a-f]{16}, its description 0{16}"):
        RankerScorer.load(tmp_path, TABLE, ITEMS)
    described = json.loads(good)
    described["shape"]["rank"] += 1
    (tmp_path / "ranker.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="does not fit its description"):
        RankerScorer.load(tmp_path, TABLE, ITEMS)


def test_a_ranker_that_says_nan_is_an_error_and_not_an_answer() -> None:
    scorer = _scorer()
    with torch.no_grad():
        scorer.ranker.linear.bias[1] = torch.nan
    with pytest.raises(ValueError, match="logits are NaN"):
        scorer.score(hydrated(TABLE, ITEMS), candidates(5))


def test_a_calibration_of_other_actions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\('click',\), the table has \('click', 'like'\)"):
        RankerScorer(random_ranker(TABLE), Calibration.identity(("click",)), TABLE, ITEMS)


def test_retrieval_order_prefers_the_best_rank_in_any_source() -> None:
    rank_NS = np.array([[5, -1, 2], [-1, 0, 40], [-1, -1, -1], [1, -1, -1], [-1, 30000, -1]], np.int16)
    proposed = Candidates(np.arange(5), SOURCES, rank_NS, np.zeros((5, 3), np.float32))
    scored = RetrievalOrder(TABLE, ITEMS).score(hydrated(TABLE, ITEMS), proposed)
    click_N, like_N = scored.probability_NA.T
    assert np.argsort(-click_N, kind="stable").tolist() == [1, 3, 0, 2, 4]
    assert ((scored.probability_NA > 0) & (scored.probability_NA < 1)).all()
    assert like_N.max() <= click_N.min()
    expected = _scorer().score(hydrated(TABLE, ITEMS), proposed)
    assert scored.pair_row_N.tobytes() == expected.pair_row_N.tobytes()
