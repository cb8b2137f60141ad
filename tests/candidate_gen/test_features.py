import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_cases import CATEGORIES, NOW_MS, random_query_rows, small_item_rows, small_table

from candidate_gen.features import (
    Feature,
    FeatureTable,
    feature_table,
    hashed_ids,
    item_attributes,
    item_rows,
    pair_rows,
    query_rows,
)
from candidate_gen.prepared_texts import PreparedTexts
from candidate_gen.text_match import Field, field_matches, text_match
from index.strings import key64, keys64

TABLE = small_table()
ITEM_ROWS = small_item_rows(TABLE, 60)


def test_a_table_read_from_json_has_the_same_fingerprint_and_the_same_bytes() -> None:
    again = FeatureTable.from_json(TABLE.to_json())
    assert again == TABLE
    assert again.fingerprint == TABLE.fingerprint
    for row in ("query", "item", "pair"):
        assert again.dtype(row) == TABLE.dtype(row)


def test_the_fingerprint_changes_with_anything_that_changes_the_meaning_of_a_byte() -> None:
    read = json.loads(TABLE.to_json())
    seen = {TABLE.fingerprint}
    for position, (key, value) in enumerate([("size", 999), ("default", 1.0), ("vocabulary", ["a"]), ("hashes", 3)]):
        changed = json.loads(TABLE.to_json())
        changed["features"][0][key] = value
        seen.add(FeatureTable.from_json(json.dumps(changed)).fingerprint)
        assert len(seen) == position + 2
    read["actions"] = read["actions"][::-1]
    assert FeatureTable.from_json(json.dumps(read)).fingerprint not in seen


def test_a_feature_declared_twice_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="declared twice: age"):
        FeatureTable((Feature("age", "user", "number"), Feature("age", "user", "number")), (), ())


def test_an_unknown_feature_is_named_with_those_that_exist() -> None:
    with pytest.raises(KeyError, match="no feature 'agee'; there are user_id, age"):
        TABLE["agee"]


@pytest.mark.parametrize("nothing", [None, "", float("nan"), np.float64("nan"), np.float32("nan")])
@pytest.mark.parametrize("name", ["user_id", "item_id", "creator", "country", "surface", "title", "age", "minutes"])
def test_nothing_becomes_the_default(name: str, nothing: object) -> None:
    assert not TABLE.encode(name, [nothing]).any()


def test_an_unseen_value_of_a_vocabulary_becomes_the_default() -> None:
    assert TABLE.encode("country", ["nl", "xx", "be", "nan"]).tolist() == [2, 0, 1, 0]


def test_a_declared_default_stands_for_what_is_missing() -> None:
    table = FeatureTable(
        (
            Feature("age", "user", "number", default=30.0),
            Feature("country", "user", "id", 3, vocabulary=("be", "nl"), default=2),
            Feature("city", "user", "id", 64, default=7),
        ),
        (),
        (),
    )
    assert table.encode("age", [None, float("inf"), 12]).tolist() == [30.0, 30.0, 12.0]
    assert table.encode("country", [None, "xx", "be"]).tolist() == [2, 2, 1]
    assert table.encode("city", [None, ""]).tolist() == [7, 7]
    assert table.empty("query", 2)["age"].tolist() == [30.0, 30.0]
    for row in (table.empty("query", 1), table.stranger):
        row["age"] = 7.0
    assert table.empty("query", 1)["age"] == table.stranger["age"] == 30.0, "rows are the caller's own"


@pytest.mark.parametrize(
    ("name", "values", "unusable"),
    [
        ("country", ["nl", "xx", None, "", float("nan")], [False, True, False, False, True]),
        ("age", [30, float("nan"), float("inf"), 1e300, None, ""], [False, True, True, True, False, False]),
        ("creator", ["never seen", None], [False, False]),
        ("item_id", ["never seen", ""], [False, False]),
        ("title", ["words never seen", None], [False, False]),
    ],
)
def test_what_was_given_and_cannot_be_used_is_told_from_what_is_missing(
    name: str, values: list[object], unusable: list[bool]
) -> None:
    column, unusable_B = TABLE.encoded(name, values)
    assert unusable_B.tolist() == unusable
    assert np.isfinite(column).all()
    np.testing.assert_array_equal(column, TABLE.encode(name, values))


def test_a_number_too_large_for_its_column_becomes_the_default() -> None:
    assert TABLE.encode("age", [1e300, -1e300, 3]).tolist() == [0, 0, 3]


def test_text_where_a_number_belongs_is_refused_by_the_name_of_the_feature() -> None:
    with pytest.raises(ValueError, match=r"feature 'age' is a number: .*'forty'"):
        TABLE.encode("age", [1, "forty"])


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20))
def test_hashed_ids_are_in_the_table_and_never_padding(texts: list[str]) -> None:
    for feature in (TABLE["item_id"], TABLE["creator"]):
        ids = hashed_ids(keys64(texts), feature)
        assert ids.shape == (len(texts), *feature.shape)
        assert (ids >= 1).all()
        assert (ids < feature.size).all()


def test_an_id_has_the_same_rows_alone_and_among_others() -> None:
    many = TABLE.encode("item_id", [f"i{n}" for n in range(50)])
    for n in (0, 7, 49):
        assert TABLE.encode("item_id", [f"i{n}"]).tolist() == [many[n].tolist()]


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_rows_of_a_batch_equal_rows_made_one_at_a_time_byte_for_byte(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    length = 7
    profile_B = np.zeros(count, TABLE.profile_dtype)
    profile_B["age"] = random.normal(40, 10, count)
    columns: dict[str, Any] = {
        "profile_B": profile_B,
        "time_ms_B": NOW_MS + random.integers(10**11, size=count),
        "history_row_BL": random.integers(-1, len(ITEM_ROWS), size=(count, length)),
        "history_action_BL": random.integers(3, size=(count, length)).astype(np.int32),
        "history_time_ms_BL": NOW_MS - random.integers(10**11, size=(count, length)),
    }
    user_ids = [f"u{n}" for n in range(count)]
    texts = [str(random.choice(["", "jazz volume 3", "art"])) for _ in range(count)]

    def made(part: slice) -> np.ndarray:
        return query_rows(
            TABLE,
            ITEM_ROWS,
            user_ids=user_ids[part],
            surfaces=["home"] * len(user_ids[part]),
            texts=texts[part],
            **{name: column[part] for name, column in columns.items()},
        )

    together = made(slice(None))
    assert together.tobytes() == b"".join(made(slice(n, n + 1)).tobytes() for n in range(count))

    item_row_N = ITEM_ROWS[random.integers(len(ITEM_ROWS), size=count)]
    per_pair: dict[str, Any] = {
        "age_ms_N": random.integers(-1000, 10**11, size=count),
        "tower_score_N": random.normal(size=count).astype(np.float32),
        "bm25_N": random.gamma(2, size=count).astype(np.float32),
        "rank_NS": random.integers(-1, 300, size=(count, 2)).astype(np.int16),
    }
    pairs = pair_rows(TABLE, together, item_row_N, **per_pair)
    alone = [
        pair_rows(
            TABLE,
            together[n : n + 1],
            item_row_N[n : n + 1],
            **{name: column[n : n + 1] for name, column in per_pair.items()},
        )
        for n in range(count)
    ]
    assert pairs.tobytes() == b"".join(each.tobytes() for each in alone)


def test_one_query_row_serves_all_candidates_as_a_row_for_each_would() -> None:
    query_row = random_query_rows(TABLE, ITEM_ROWS, 1, seed=3)
    age_ms_N = np.arange(len(ITEM_ROWS)) * 10**7
    once = pair_rows(TABLE, query_row, ITEM_ROWS, age_ms_N=age_ms_N)
    each = pair_rows(TABLE, np.repeat(query_row, len(ITEM_ROWS)), ITEM_ROWS, age_ms_N=age_ms_N)
    assert once.tobytes() == each.tobytes()


def one_query(history_row: list[int], **changed: object) -> np.ndarray:
    arguments: dict[str, Any] = {
        "user_ids": ["u1"],
        "profile_B": np.zeros(1, TABLE.profile_dtype),
        "surfaces": ["home"],
        "texts": [""],
        "time_ms_B": np.array([NOW_MS]),
        "history_row_BL": np.array([history_row], np.int64).reshape(1, -1),
        "history_action_BL": np.ones((1, len(history_row)), np.int32),
        "history_time_ms_BL": np.full((1, len(history_row)), NOW_MS - 3_600_000),
    }
    return query_rows(TABLE, ITEM_ROWS, **(arguments | changed))


def test_a_history_keeps_its_newest_entries_in_order() -> None:
    row = one_query([4, 9, 2, 30, 41, 50, 51])
    assert row["history_item"][0].tolist() == ITEM_ROWS["item_id"][[4, 9, 2, 30, 41]].tolist()
    assert row["history_log_hours"][0] == pytest.approx(np.log(2) * np.ones(5))
    assert row["history_log_length"][0] == pytest.approx(np.log1p(5))


def test_an_item_that_is_gone_leaves_zeros_in_its_place() -> None:
    row = one_query([4, -1, 2])
    assert not row["history_item"][0, 1].any()
    assert row["history_action"][0].tolist() == [1, 0, 1, 0, 0]
    assert row["history_log_length"][0] == pytest.approx(np.log1p(2))


def test_no_history_at_all_is_zeros() -> None:
    row = one_query([])
    assert not row["history_item"].any()
    assert row["history_log_length"][0] == 0


def test_hour_and_weekday_are_utc_and_never_the_unknown_id() -> None:
    hours = [int(one_query([], time_ms_B=np.array([hour * 3_600_000]))["hour"][0]) for hour in range(24)]
    days = [int(one_query([], time_ms_B=np.array([day * 86_400_000]))["weekday"][0]) for day in range(7)]
    assert hours == list(range(1, 25))
    assert days == list(range(1, 8))


def test_affinity_is_the_share_of_the_history_with_the_same_value() -> None:
    pairs = pair_rows(TABLE, one_query([0, 3, 1, 2]), ITEM_ROWS[:3], age_ms_N=np.zeros(3, np.int64))
    assert pairs["category_affinity"].tolist() == [0.5, 0.25, 0.25]
    assert np.exp(pairs["log_repeats"]).tolist() == pytest.approx([2, 2, 2])


def test_an_unknown_value_has_no_affinity_with_another_unknown_value() -> None:
    unknown = TABLE.empty("item", 1)
    pairs = pair_rows(TABLE, one_query([]), unknown, age_ms_N=np.zeros(1, np.int64))
    assert pairs["category_affinity"][0] == 0
    assert pairs["log_repeats"][0] == 0


def test_matches_of_what_was_typed_stand_in_the_pair_row_and_are_zero_where_nothing_was() -> None:
    titles, row_N = ["art volume 0", "jazz volume 1", "red wine"], np.arange(3)
    prepared: dict[Field, PreparedTexts] = {
        "title": PreparedTexts.of(titles),
        "text": PreparedTexts.of([f"{title} {about}" for title, about in zip(titles, ("x", "y", "jazz"), strict=True)]),
    }

    def pairs(text: str) -> np.ndarray:
        match_NF = field_matches(text, prepared, row_N)
        query = one_query([], texts=[text])
        return pair_rows(TABLE, query, ITEM_ROWS[:3], age_ms_N=np.zeros(3, np.int64), match_NF=match_NF)

    typed = pairs("jazz volume 1 encyclopedia")
    assert typed["title_coverage"].tolist() == [0.25, 0.75, 0]
    assert typed["text_coverage"].tolist() == [0.25, 0.75, 0.25]
    assert typed["text_bm25"][1] == pytest.approx(
        np.log1p(text_match("jazz volume 1 encyclopedia", prepared["text"], row_N)[1, 0])
    )
    names = [name for name, _ in TABLE.matches]
    assert {name for name in names if not typed[name].any()} == {
        "title_phrase",
        "title_last_word",
        "title_last_position",
    }
    for nothing in ("", "  "):
        assert field_matches(nothing, prepared, row_N) is None
        assert not any(pairs(nothing)[name].any() for name in names)


def test_a_table_with_a_feature_that_this_version_does_not_make_is_refused(tmp_path: Path) -> None:
    TABLE.save(tmp_path)
    assert FeatureTable.load(tmp_path) == TABLE
    older = replace(TABLE, features=(*TABLE.features, Feature("text_overlap", "pair", "number")))
    assert older.fingerprint != TABLE.fingerprint
    older.save(tmp_path)
    with pytest.raises(
        ValueError, match="declares 'text_overlap', which this version does not make: train a generation"
    ):
        FeatureTable.load(tmp_path)


def test_ranks_become_reciprocal_and_absence_zero() -> None:
    pairs = pair_rows(
        TABLE,
        one_query([]),
        ITEM_ROWS[:3],
        age_ms_N=np.zeros(3, np.int64),
        rank_NS=np.array([[0, -1], [3, 1], [-1, -1]], np.int16),
    )
    assert pairs["ann_reciprocal_rank"].tolist() == [1, 0.25, 0]
    assert pairs["popular_reciprocal_rank"].tolist() == [0, 0.5, 0]
    assert pairs["retrieved"].tolist() == [1, 1, 0]


def test_categories_of_items_and_histories_are_the_same_numbers() -> None:
    assert one_query([1])["history_category"][0, 0] == 1 + CATEGORIES.index("jazz")


COLUMNS = feature_table(
    users=5,
    items=5,
    actions=("click",),
    categories=CATEGORIES,
    sources=(),
    user_columns={},
    item_columns={"price": None, "format": ("book", "film")},
)
VALUES: dict[str, Any] = {
    "categories": ["jazz", None, "never seen", "art"],
    "creators": ["", "c1", None, "c1"],
    "columns": {"price": [3, None, float("inf"), -0.1], "format": ["film", "tape", None, ""], "extra": [1, 2, 3, 4]},
}


def test_declared_item_columns_are_those_that_not_every_data_set_has() -> None:
    assert [feature.name for feature in TABLE.item_columns] == ["minutes"]
    assert [feature.name for feature in COLUMNS.item_columns] == ["price", "format"]


def test_an_item_record_is_its_encoded_values_and_no_counters() -> None:
    ids, titles = ["i0", "i1", "i2", "i3"], ["one two", None, "", "three"]
    row_I = item_rows(COLUMNS, ids=ids, titles=titles, **VALUES)
    raw = {
        "item_id": ids,
        "title": titles,
        "category": VALUES["categories"],
        "creator": VALUES["creators"],
        **VALUES["columns"],
    }
    assert row_I.dtype == COLUMNS.dtype("item")
    for name in row_I.dtype.names or ():
        expected = COLUMNS.encode(name, raw[name]) if name in raw else np.zeros(4)
        np.testing.assert_array_equal(row_I[name], expected, err_msg=name)
    assert row_I["category"].tolist() == [2, 0, 0, 1]
    np.testing.assert_array_equal(row_I["price"], np.array([3, 0, 0, -0.1], np.float32))


def test_attributes_are_keys_of_texts_known_or_not_and_plain_numbers_with_what_is_missing_told_apart() -> None:
    attributes = item_attributes(COLUMNS, **VALUES)
    assert list(attributes) == ["category", "creator", "price", "format"]
    assert attributes["category"].tolist() == [key64("jazz"), 0, key64("never seen"), key64("art")]
    assert attributes["creator"].tolist() == [0, key64("c1"), 0, key64("c1")]
    assert attributes["format"].tolist() == [key64("film"), key64("tape"), 0, 0]
    np.testing.assert_array_equal(attributes["price"], [3, np.nan, np.nan, -0.1])
    assert [column.dtype for column in attributes.values()] == [np.uint64, np.uint64, np.float64, np.uint64]
    nothing = item_attributes(COLUMNS, categories=[], creators=[], columns={"price": [], "format": []})
    assert {name: column.dtype for name, column in nothing.items()} == {
        name: column.dtype for name, column in attributes.items()
    }


@pytest.mark.parametrize("made", [item_attributes, item_rows])
def test_an_item_column_that_is_missing_or_not_a_number_is_refused_by_name(made: Any) -> None:
    known: dict[str, Any] = {"categories": ["art"], "creators": ["c"]}
    if made is item_rows:
        known |= {"ids": ["i"], "titles": ["t"]}
    with pytest.raises(ValueError, match="item columns format are missing; declared are price, format"):
        made(COLUMNS, **known, columns={"price": [1]})
    with pytest.raises(ValueError, match=r"feature 'price' is a number: .*'cheap'"):
        made(COLUMNS, **known, columns={"price": ["cheap"], "format": [""]})
