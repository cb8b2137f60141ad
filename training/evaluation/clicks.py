"""What people answer to what they are shown: the probability of every action, and the order of one user's candidates.

Shape letters: N rows of the log in order of time, H pairs of the history, U users, I items.
"""

import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranking.metrics import auc, ece, gauc, logloss
from training.datasets.tables import read_table, require_unique
from training.evaluation.click_features import ClickLog, Columns, log_features, plain_counters
from training.evaluation.click_history import HistoryEffects, Shown, back_positions, sigmoid
from training.evaluation.interactions import read_columns
from training.progress import progress


def evaluate(
    train: Path,
    test: Path,
    *,
    users: Path | None = None,
    items: Path | None = None,
    history: Path | None = None,
    user: str = "user_id",
    item: str = "video_id",
    time: str = "time_ms",
    actions: str = "is_click,long_view",
    place: str = "tab",
    number: str = "duration_ms",
    item_groups: str = "author_id,music_id,tag",
    shown: str = "watch_seq",
    taken: str = "long_watch_seq",
    trees: int = 350,
    leaves: int = 15,
    learning_rate: float = 0.04,
    members: int = 3,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Fit boosted trees on the impressions of one file and predict those of the other, which are later.

    Every feature of a row is of strictly earlier times (rows of one user at one moment do not see each other); the
    labels of earlier rows of the test are known to later ones, as they are when serving. There are two heads for each
    action. The **probability** reads everything, and starts from the level of the last two days; no calibration
    follows. The **order** of one user's candidates reads no outcome of the user in the log: who has taken much of
    what a test holds for him has little left to take, so that such features order a user's rows backwards in time.

    The baseline is LightGBM with 31 leaves and 60 trees on the raw columns, the lengths of the history's lists, and
    running rates and numbers of items, groups, users and users with groups.

    Args:
        train: Parquet or CSV, a row for each impression.
        test: likewise; training rows later than its first are counted.
        users: a row for each user; all its columns are features, text as codes.
        items: a row for each item; likewise, dates in text as days.
        history: a row for each user, with lists of items from before `train`, oldest first.
        user: column of the users' ids in all files.
        item: of the items' ids.
        time: of the milliseconds.
        actions: columns of what came of it, 0 or 1.
        place: column of where it was shown.
        number: of a number known when it is shown.
        item_groups: columns of `items` whose values items share; text counts to its first comma.
        shown: column of `history`, what the user was shown.
        taken: of what of it was taken.
        members: models of different seeds whose predictions are averaged.

    Returns:
        For each action `.auc`, `.logloss` and `.ece` of the probability and `.gauc` of the order (AUC within a user,
        weighted by rows; users with one class left out), `.baseline.` the same of the baseline; `rows` and `users` of
        the test, `train.late` (rows of training that are later than the first of the test) and `cpu_seconds`.

    Raises:
        ValueError: where a file lacks a column, holds nulls where none may be or is empty, where a label is not 0 or
            1, and where an id stands twice in a table.
    """
    started = clock.process_time()
    names = _words(actions)
    columns = (user, item, time, place, number, *names)
    impressions = _impressions(train, test, columns, time=time, actions=names)
    item_frame = _table(items, item)
    groups = [name for name in _words(item_groups) if name in item_frame.columns]
    user_frame = _table(users, user)
    past_frame = _table(history, user, shown, taken)
    user_ids = _ids(impressions[user], user_frame[user], past_frame[user])
    item_ids = _ids(impressions[item], item_frame[item], past_frame[shown].explode())
    by_user, by_item = _aligned(user_frame, user, user_ids), _aligned(item_frame, item, item_ids)
    by_past = _aligned(past_frame, user, user_ids)
    log = ClickLog(
        user_N=_positions(impressions[user], user_ids),
        item_N=_positions(impressions[item], item_ids),
        time_ms_N=impressions[time].to_numpy(),
        place_N=impressions[place].rank("dense").fill_null(0).cast(pl.Int64).to_numpy(),
        number_N=impressions[number].cast(pl.Float64).to_numpy(),
        fitted_N=impressions["fitted"].to_numpy(),
        label_N={name: impressions[name].cast(pl.Float64).to_numpy() for name in names},
        group_I={name: _group(by_item[name]) for name in groups},
    )
    about_I = {f"item.{name}": values for name, values in _numbers(by_item.drop(item)).items()}
    about_U = {f"user.{name}": values for name, values in _numbers(by_user.drop(user)).items()}
    size_U = {f"past.{name}": values for name, values in _numbers(by_past.drop(user)).items()}
    tables: Columns = {name: value_I[log.item_N] for name, value_I in about_I.items()}
    tables |= {name: value_U[log.user_N] for name, value_U in (about_U | size_U).items()}
    with _progress(2 + 3 * len(names)) as done:
        pairs = _shown(past_frame.select(user=user, shown=shown, taken=taken), user_ids, item_ids)
        numbers_I = {name: value_I for name, value_I in about_I.items() if name.removeprefix("item.") not in groups}
        past = HistoryEffects(pairs, log.group_I, numbers_I).features(log.user_N, log.item_N) if history else {}
        done("history")
        found = log_features(log, past)
        order = found.order | past | tables
        every = order | found.user_outcomes
        done("counters")
        settings = {"num_leaves": leaves, "learning_rate": learning_rate, "num_threads": threads}
        order_NF, every_NF = _matrix(order), _matrix(every)
        seeds = range(seed * members, (seed + 1) * members)
        metrics: dict[str, float] = {}
        for action in names:
            label_N, held = log.label_N[action], ~log.fitted_N
            tested, user_N = label_N[held], log.user_N[held]
            chance = _odds(every_NF, label_N, log.fitted_N, found.level_N[action], settings, seeds=seeds, trees=trees)
            done(f"{action}: probability")
            score = _odds(order_NF, label_N, log.fitted_N, None, settings, seeds=seeds, trees=trees)
            done(f"{action}: order")
            plain_NF = _matrix(plain_counters(log, action) | tables)
            plain = _odds(
                plain_NF, label_N, log.fitted_N, None, settings | _PLAIN, seeds=range(seed, seed + 1), trees=60
            )
            done(f"{action}: baseline")
            for prefix, odds, ordered in ((action, chance, score), (f"{action}.baseline", plain, plain)):
                metrics[f"{prefix}.auc"] = auc(tested, odds)
                metrics[f"{prefix}.logloss"] = logloss(tested, odds)
                metrics[f"{prefix}.ece"] = ece(tested, odds)
                metrics[f"{prefix}.gauc"] = gauc(tested, ordered, user_N).mean
    return metrics | {
        "rows": float(held.sum()),
        "users": float(len(np.unique(user_N))),
        "train.late": float(log.fitted_N[np.argmin(log.fitted_N) :].sum()),
        "cpu_seconds": clock.process_time() - started,
    }


_FITTED = {
    "objective": "binary",
    "min_data_in_leaf": 200,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 30.0,
    "max_bin": 127,
    "deterministic": True,
    "verbose": -1,
}
_PLAIN = {
    "num_leaves": 31,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "feature_fraction": 1.0,
    "bagging_fraction": 1.0,
    "lambda_l2": 0.0,
}


def _odds(
    feature_NF: NDArray[np.float32],
    label_N: NDArray[np.float64],
    fitted_N: NDArray[np.bool_],
    offset_N: NDArray[np.float64] | None,
    settings: Mapping[str, float],
    *,
    seeds: range,
    trees: int,
) -> NDArray[np.float64]:
    """P(label) of the rows not fitted; the trees explain what an offset in log-odds leaves."""
    data = lightgbm.Dataset(
        feature_NF[fitted_N],
        label_N[fitted_N],
        init_score=None if offset_N is None else offset_N[fitted_N],
        free_raw_data=False,
    )
    held_NF = feature_NF[~fitted_N]
    odds = np.zeros(len(held_NF))
    for seed in seeds:
        model = lightgbm.train({**_FITTED, **settings, "seed": seed}, data, trees)
        logit = np.asarray(model.predict(held_NF, raw_score=True, num_threads=settings["num_threads"]))
        odds += sigmoid(logit if offset_N is None else logit + offset_N[~fitted_N]) / len(seeds)
    return odds


def _impressions(
    train: Path, test: Path, columns: tuple[str, ...], *, time: str, actions: tuple[str, ...]
) -> pl.DataFrame:
    """Rows of both files in order of time; `fitted` tells them apart."""
    frames = [read_columns(path, columns) for path in (train, test)]
    for path, frame in zip((train, test), frames, strict=True):
        for name in actions:
            if not frame[name].cast(pl.Float64, strict=False).is_in([0.0, 1.0]).fill_null(value=False).all():
                raise ValueError(f"{path}: column {name!r} holds other values than 0 and 1")
        if not frame[time].dtype.is_integer():
            raise ValueError(f"{path}: column {time!r} is {frame[time].dtype}; whole milliseconds are needed")
    marked = [frame.with_columns(fitted=pl.lit(fitted)) for frame, fitted in zip(frames, (True, False), strict=True)]
    return pl.concat(marked, how="vertical_relaxed").sort(time, maintain_order=True)


def _table(path: Path | None, key: str, *lists: str) -> pl.DataFrame:
    """A table with one row for each key, or an empty one without a path."""
    if path is None:
        return pl.DataFrame(schema={key: pl.Int64} | {name: pl.List(pl.Int64) for name in lists})
    frame = read_table(path, (key, *lists))
    require_unique(path, frame[key], name=key)
    return frame


def _ids(*columns: pl.Series) -> pl.Series:
    """The distinct values of all, rising: whole numbers where all are, else text."""
    whole = all(column.dtype.is_integer() for column in columns)
    return pl.concat([column.cast(pl.Int64 if whole else pl.Utf8) for column in columns]).drop_nulls().unique().sort()


def _aligned(frame: pl.DataFrame, key: str, ids: pl.Series) -> pl.DataFrame:
    """A row for each id, nulls where the table holds none."""
    return pl.DataFrame({key: ids}).join(frame.cast({key: ids.dtype}), on=key, how="left", maintain_order="left")


def _positions(values: pl.Series, ids: pl.Series) -> NDArray[np.int64]:
    """Positions among sorted ids."""
    return ids.search_sorted(values.cast(ids.dtype)).cast(pl.Int64).to_numpy()


def _group(values: pl.Series) -> NDArray[np.int64]:
    """Codes, 0 for null; text counts to its first comma."""
    if values.dtype == pl.Utf8:
        values = values.str.split(",").list.first()
    return values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


def _numbers(frame: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Columns as numbers, NaN for null: dates in text as days, other text as codes, lists as their lengths."""
    found = {}
    for values in frame:
        number = values
        if values.dtype == pl.Utf8:
            days = values.str.to_date("%Y-%m-%d", strict=False)
            number = days.cast(pl.Int32) if days.null_count() <= values.null_count() else values.rank("dense")
        elif values.dtype == pl.List:
            number = values.list.len()
        found[values.name] = number.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return found


def _shown(past: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> Shown:
    lists = past.filter(pl.col("shown").list.len() > 0)
    back_H = back_positions(lists["shown"].list.len().to_list())
    rows = lists.explode("shown").with_columns(hit=pl.col("taken").list.contains(pl.col("shown")))
    return Shown(
        user_H=_positions(rows["user"], user_ids),
        item_H=_positions(rows["shown"], item_ids),
        taken_H=rows["hit"].fill_null(value=False).cast(pl.Float64).to_numpy(),
        back_H=back_H,
        users=len(user_ids),
        items=len(item_ids),
    )


def _matrix(columns: Columns) -> NDArray[np.float32]:
    return np.stack([np.asarray(column, np.float32) for column in columns.values()], axis=1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Called with what is done; shown on a terminal only."""
    with progress(transient=True) as bar:
        task = bar.add_task("clicks", total=steps)
        yield lambda what: bar.update(task, advance=1, description=what)
