"""Users with a taste for one of two groups, items of two qualities, places with other rates."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.evaluation import click_features, clicks
from training.evaluation.click_features import ClickLog, log_features
from training.evaluation.click_history import HistoryEffects, Shown, back_positions

USERS, ITEMS, DAY_MS = 120, 60, 86_400_000
QUICK = {"trees": 80, "members": 1, "learning_rate": 0.1}
START_MS = 1_650_000_000_000


def write(folder: Path, *, rows: int = 6000) -> dict[str, Path]:
    """Files of a log of six days, the last two the test, and of what came before."""
    random = np.random.default_rng(0)
    generous_U, quality_I = random.normal(0, 1.2, USERS), random.normal(0, 1, ITEMS)

    def drawn(count: int) -> pl.DataFrame:
        user, item, tab = (random.integers(0, n, count) for n in (USERS, ITEMS, 3))
        logit = generous_U[user] + quality_I[item] + np.where(user % 2 == item % 2, 0.8, -0.8) + tab - 1.5
        click = random.random(count) < 1 / (1 + np.exp(-logit))
        return pl.DataFrame({"user_id": user, "video_id": item, "tab": tab, "is_click": click.astype(int)})

    time = np.sort(random.integers(0, 6 * DAY_MS, rows)) + START_MS
    log = drawn(rows).with_columns(
        time_ms=pl.Series(time), long_view=pl.col("is_click"), duration_ms=1000.0 + pl.col("video_id") % 7
    )
    before = drawn(3000).group_by("user_id", maintain_order=True)
    history = before.agg(
        watch_seq=pl.col("video_id"), long_watch_seq=pl.col("video_id").filter(pl.col("is_click") == 1)
    )
    item = np.arange(ITEMS)
    items = pl.DataFrame(
        {
            "video_id": item,
            "author_id": item // 3,
            "tag": [f"{i % 2},9" for i in item],
            "upload_dt": ["2022-04-01"] * ITEMS,
        }
    )
    frames = {
        "train": log.filter(pl.col("time_ms") < START_MS + 4 * DAY_MS),
        "test": log.filter(pl.col("time_ms") >= START_MS + 4 * DAY_MS),
        "users": pl.DataFrame({"user_id": np.arange(USERS), "degree": ["high", "low", None] * (USERS // 3)}),
        "items": items,
        "history": history,
    }
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in frames}


def test_probabilities_and_order_beat_the_baseline_and_are_near_what_was_planted(tmp_path: Path) -> None:
    found = clicks.evaluate(**write(tmp_path), actions="is_click", **QUICK)  # type: ignore[arg-type]
    assert found["is_click.auc"] > 0.78
    assert found["is_click.gauc"] > max(0.72, found["is_click.baseline.gauc"])
    assert found["is_click.logloss"] < found["is_click.baseline.logloss"]
    assert found["is_click.ece"] < 0.06
    assert found["train.late"] == 0


def test_the_log_alone_is_enough_and_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    paths = write(tmp_path, rows=2500)
    first, second = (
        clicks.evaluate(paths["train"], paths["test"], actions="is_click", seed=3, **QUICK)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert {**first, "cpu_seconds": 0} == {**second, "cpu_seconds": 0}
    assert first["is_click.auc"] > 0.6


def test_ids_that_no_table_holds_are_no_fault_and_may_be_text(tmp_path: Path) -> None:
    paths = write(tmp_path, rows=2500)
    for name in ("train", "test", "users", "history"):
        named = pl.concat_str(pl.lit("u"), pl.col("user_id").cast(pl.Utf8)).alias("user_id")
        frame = pl.read_parquet(paths[name]).with_columns(named)
        (frame.head(50) if name in ("users", "history") else frame).write_parquet(paths[name])
    found = clicks.evaluate(**paths, actions="is_click", **QUICK)  # type: ignore[arg-type]
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train", pl.col("is_click") * 2, "train.parquet: column 'is_click' holds other values than 0 and 1"),
        ("test", pl.col("time_ms").cast(pl.Float64), "test.parquet: column 'time_ms' is Float64; whole milliseconds"),
        ("test", pl.lit(None, pl.Int64).alias("tab"), "test.parquet: column 'tab' holds"),
        ("items", pl.lit(1).alias("video_id"), "items.parquet: column 'video_id' repeats an earlier value"),
        ("history", pl.lit(1).alias("user_id"), "history.parquet: column 'user_id' repeats an earlier value"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(
    name: str, change: pl.Expr, message: str, tmp_path: Path
) -> None:
    paths = write(tmp_path, rows=500)
    pl.read_parquet(paths[name]).with_columns(change).write_parquet(paths[name])
    with pytest.raises(ValueError, match=message):
        clicks.evaluate(**paths, **QUICK)  # type: ignore[arg-type]


def planted(labels: Mapping[int, float], *, rows: int = 400) -> ClickLog:
    """A log, some of whose labels are replaced; several users have rows of one moment."""
    random = np.random.default_rng(1)
    label_N = random.integers(0, 2, rows).astype(float)
    for row, label in labels.items():
        label_N[row] = label
    return ClickLog(
        user_N=random.integers(0, 9, rows),
        item_N=random.integers(0, 12, rows),
        time_ms_N=np.repeat(np.arange(rows // 2), 2) * 3_600_000,
        place_N=random.integers(0, 2, rows),
        number_N=random.normal(size=rows),
        fitted_N=np.arange(rows) < 200,
        label_N={"click": label_N},
        group_I={"kind": np.arange(12) % 3},
    )


def test_no_feature_of_a_row_moves_with_an_outcome_of_its_own_moment_or_later() -> None:
    past: click_features.Columns = {"past.logit": np.linspace(-1, 1, 400)}
    # Rows 300 and 301 are of one moment: neither sees the other's outcome, nor any that follows.
    changed = [log_features(planted(dict.fromkeys(range(300, 400), label)), past) for label in (0.0, 1.0)]
    moved = set()
    for one, two in zip(*((each.order, each.user_outcomes, each.level_N) for each in changed), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name][:302], two[name][:302], err_msg=name)
            moved |= {name} if not np.array_equal(one[name][302:], two[name][302:], equal_nan=True) else set()
    assert {"click.item", "click.user", "click.place", "click.user_kind", "click"} <= moved


def test_what_orders_one_users_candidates_reads_no_outcome_of_the_user() -> None:
    mine = planted({})
    rows = np.flatnonzero(mine.user_N == 3)
    lonely = planted(dict.fromkeys(rows.tolist(), 1.0))
    found = [log_features(log, {}) for log in (mine, lonely)]
    shown = [name for name in found[0].order if "user" in name or name == "shown.gap"]
    for name in shown:
        np.testing.assert_array_equal(found[0].order[name], found[1].order[name])
    assert not np.array_equal(found[0].user_outcomes["click.user"], found[1].user_outcomes["click.user"])


def test_the_history_tells_users_and_items_apart_and_says_nothing_of_strangers() -> None:
    random = np.random.default_rng(2)
    user_H, item_H = np.repeat(np.arange(40), 30), random.integers(0, 20, 1200)
    taken_H = (random.random(1200) < np.where(user_H < 20, 0.8, 0.2) * np.where(item_H < 10, 1.0, 0.5)).astype(float)
    shown = Shown(user_H, item_H, taken_H, back_positions([30] * 40), users=41, items=21)
    group_I = np.arange(21) // 5
    found = HistoryEffects(shown, {"kind": group_I}, {"length": np.arange(21.0)}).features(
        np.arange(41), np.array([*range(20), *range(20), 20])
    )
    assert found["past.user"][:20].mean() > 0.5 > -0.5 > found["past.user"][20:40].mean()
    assert found["past.quality"][:10].mean() > 0.2 + found["past.quality"][10:20].mean()
    for name in ("past.user", "past.user_recent", "past.user_seen", "past.user_kind", "past.slope_length", "past.item"):
        assert found[name][40] == 0, name
    assert all(np.isfinite(column).all() for column in found.values())


def test_entries_of_lists_are_counted_from_the_newest() -> None:
    assert back_positions([3, 0, 2]).tolist() == [2, 1, 0, 1, 0]
