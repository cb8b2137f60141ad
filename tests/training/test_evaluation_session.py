"""Everyone walks a circle of 30 items from a place of their own: the next click follows from the last one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from candidate_gen.merge import merge, only
from index.types import Hits
from training.evaluation import session
from training.evaluation.session import SAID, Clicks, Pool, Stream, fit

ITEMS, DAY_MS = 30, 86_400_000
START_MS = 17_000 * DAY_MS
NAMES = {"session": "session_id", "item": "click_article_id", "time": "click_timestamp"}


def write(folder: Path, rows: list[tuple[int, int, int]]) -> Path:
    """Rows of session, item and ms since `START_MS`."""
    frame = pl.DataFrame(rows, schema=list(NAMES.values()), orient="row")
    path = folder / "clicks.parquet"
    frame.with_columns(pl.col("click_timestamp") + START_MS).write_parquet(path)
    return path


def walks(*, days: float = 3, sessions: int = 300, seed: int = 0) -> list[tuple[int, int, int]]:
    random = np.random.default_rng(seed)
    rows = []
    for walk in range(sessions):
        start, length = int(random.integers(ITEMS)), int(random.integers(1, 6))
        begin_ms = int(random.integers(int(days * DAY_MS) - 10**6))
        rows += [(walk, (start + step) % ITEMS, begin_ms + 60_000 * step) for step in range(length)]
    return rows


def read(path: Path) -> Clicks:
    return Clicks.read(path, **NAMES)


def test_the_next_step_is_found(tmp_path: Path) -> None:
    found = session.evaluate(write(tmp_path, walks()), k=3)
    assert found["hr@3"] > 0.9
    assert found["mrr@3"] > 0.8
    assert found["hr@3.low"] <= found["hr@3"] <= found["hr@3.high"]
    assert found["mrr@3"] > found["mrr@3.trending_5m"]
    assert found["mrr@3"] >= found["mrr@3.covisitation_1d"] - 0.02
    assert found["items"] == ITEMS
    assert sum(found[f"weight.{name}"] for name in SAID) == pytest.approx(1)


def test_the_same_file_gives_the_same_figures(tmp_path: Path) -> None:
    path = write(tmp_path, walks(sessions=80))
    assert session.evaluate(path) == session.evaluate(path)


def test_a_planted_future_changes_nothing(tmp_path: Path) -> None:
    """Whatever is clicked at the moment of a click or after it, also by others, its pool must be the same."""
    rows = sorted(walks(sessions=100), key=lambda row: row[2])
    before = read(write(tmp_path, rows))
    at = int(before.asked(START_MS + 2 * DAY_MS, START_MS + 3 * DAY_MS)[5])
    at_ms = int(before.time_ms_T[at]) - START_MS
    planted = [(row[0], row[1] if row[2] < at_ms else (row[1] + 11) % ITEMS, row[2]) for row in rows]
    rush = [(99_000 + number, number % ITEMS, at_ms + number // 50) for number in range(200)]
    after = read(write(tmp_path, [*planted, *rush]))
    assert after.time_ms_T[at] == before.time_ms_T[at]
    assert after.session_T[at] == before.session_T[at]
    pools = [Stream(clicks).pool(at) for clicks in (before, after)]
    assert pools[0].candidates.row_N.tolist() == pools[1].candidates.row_N.tolist()
    assert pools[0].share_CW.tolist() == pools[1].share_CW.tolist()
    # It is not blind, though: of the rush, what came a millisecond earlier is known.
    earlier = read(write(tmp_path, [*planted, *[(who, item, ms - 1) for who, item, ms in rush]]))
    moved = int(
        np.flatnonzero((earlier.session_T == before.session_T[at]) & (earlier.time_ms_T == at_ms + START_MS))[0]
    )
    assert Stream(earlier).pool(moved).share_CW.tolist() != pools[0].share_CW.tolist()


def test_the_past_is_of_the_same_session_earlier_and_newest_first(tmp_path: Path) -> None:
    rows = [(7, 1, 0), (8, 2, 1), (7, 3, 2), (8, 4, 3), (7, 5, 4), (7, 6, 4)]
    clicks = read(write(tmp_path, rows[::-1]))
    item_of = clicks.item_T.tolist()
    pasts = {item_of[at]: [item_of[past] for past in clicks.past(at)] for at in range(len(rows))}
    # Items 5 and 6 (numbers 4 and 5) are of one millisecond: neither is in the other's past.
    assert pasts == {0: [], 1: [], 2: [0], 3: [1], 4: [2, 0], 5: [2, 0]}
    assert sorted(item_of[at] for at in clicks.asked(START_MS + 2, START_MS + 4)) == [2, 3]


def test_what_the_session_clicked_is_not_named_again(tmp_path: Path) -> None:
    clicks = read(write(tmp_path, walks(sessions=100)))
    stream = Stream(clicks)
    for at in clicks.asked(START_MS + 2 * DAY_MS, START_MS + 3 * DAY_MS):
        pool = stream.pool(int(at))
        assert not set(clicks.item_T[clicks.past(int(at))]) & set(pool.candidates.row_N)
        total_W = pool.share_CW.sum(axis=0)
        assert total_W[total_W > 0] == pytest.approx(1)


def test_the_fit_finds_the_weights_that_choices_were_made_with() -> None:
    random = np.random.default_rng(0)
    true_W = np.array([0.6, 0.3, 0.1])
    share_QCW = random.dirichlet(np.full(12, 0.3), size=(5000, 3)).transpose(0, 2, 1)
    chosen_Q = [random.choice(12, p=share_CW @ true_W) for share_CW in share_QCW]
    share_QW = share_QCW[np.arange(5000), chosen_Q]
    named_by_none_QW = np.zeros((500, 3))
    assert fit(np.concatenate([named_by_none_QW, share_QW])) == pytest.approx(true_W, abs=0.03)
    assert fit(named_by_none_QW) == pytest.approx(np.full(3, 1 / 3))


def test_what_is_said_of_an_item_that_nobody_named_is_nothing() -> None:
    pool = Pool(only(np.array([4, 7]), ()), np.array([[0.2], [0.8]]))
    assert pool.share_of(7).tolist() == [0.8]
    assert pool.share_of(5).tolist() == [0.0]


def test_rankings_are_by_the_mixture_by_fused_ranks_and_by_each_source() -> None:
    named = [Hits(np.array(rows), np.ones(2, np.float32)) for rows in ([5, 3], [8, 5])]
    pool = Pool(merge(("one", "two"), named), np.array([[0.0], [0.25], [0.75]]))
    assert pool.candidates.row_N.tolist() == [5, 3, 8]
    found = {name: row_K.tolist() for name, row_K in pool.rankings(np.ones(1), 2).items()}
    # Fused: item 5 has 1/61 + 1/62, item 8 has 1/61.
    assert found == {"": [8, 3], "fused": [5, 8], "one": [5, 3], "two": [8, 5]}


@pytest.mark.parametrize("test_from", ["", str(START_MS + 2 * DAY_MS), "2016-07-20", "2016-07-20T02:00+02:00"])
def test_the_test_begins_where_it_is_told_or_with_the_last_day(test_from: str, tmp_path: Path) -> None:
    rows = walks(sessions=80)
    asked = sum(ms >= 2 * DAY_MS and step > 0 for step, (_, _, ms) in placed(rows))
    assert session.evaluate(write(tmp_path, rows), test_from=test_from)["clicks"] == asked


def placed(rows: list[tuple[int, int, int]]) -> list[tuple[int, tuple[int, int, int]]]:
    """Each row with its place in its session."""
    seen: dict[int, int] = {}
    found = []
    for row in rows:
        found.append((seen.setdefault(row[0], 0), row))
        seen[row[0]] += 1
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_from": "tomorrow"}, "test_from is 'tomorrow'; a date or time such as 2017-10-12T06:00"),
        ({"test_from": "2020-01-01"}, r"no session has a second click from 2020-01-01T00:00:00\+00:00"),
        ({"test_from": "2016-07-18"}, r"no session has a second click on the day before 2016-07-18"),
        ({"session": "visit"}, "has no column 'visit'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        session.evaluate(write(tmp_path, walks(sessions=80)), **options)


def test_dates_are_times_and_fractions_are_not(tmp_path: Path) -> None:
    path = write(tmp_path, walks(sessions=80))
    expected = session.evaluate(path)
    frame = pl.read_parquet(path)
    frame.with_columns(pl.from_epoch("click_timestamp", time_unit="ms")).write_parquet(path)
    assert session.evaluate(path) == expected
    frame.with_columns(pl.col("click_timestamp") / 3).write_parquet(path)
    with pytest.raises(ValueError, match="column 'click_timestamp' is Float64; dates or whole numbers"):
        session.evaluate(path)


@pytest.mark.slow
def test_globo_is_predicted_better_than_by_what_is_popular() -> None:
    folder = Path(os.environ.get("CASCADE_DATA", "")) / "globo-news"
    if "CASCADE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set CASCADE_DATA to a folder that holds globo-news")
    found = session.evaluate(folder / "clicks_1001_1012.parquet")
    assert found["hr@20"] >= 0.60
    assert found["mrr@20"] >= 0.24
