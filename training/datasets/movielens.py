"""MovieLens as a data set: 1M and latest-small, as GroupLens gives them or as Parquet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from candidate_gen.search_text import UNKNOWN
from training.datasets.dataset import (
    DEFAULT_WEIGHTS,
    DESCRIPTION,
    IMPRESSION_SCHEMA,
    ITEM_SCHEMA,
    Columns,
    DataError,
    Dataset,
    unattributed_events,
)
from training.datasets.tables import (
    read_table,
    require_filled,
    require_known,
    require_past,
    require_rows,
    require_unique,
)

_ORIGIN = "MovieLens is to be had at https://grouplens.org/datasets/movielens/"
_TOLD = ("genres", "director", "plot")
"""What is told of a movie beside its title."""


def movielens_1m(root: Path | str, *, now_ms: int) -> Dataset:
    """MovieLens 1M: GroupLens's own `ratings.dat`, `movies.dat`, `users.dat`, or the same as Parquet.

    Every rating is a click, every rating of 4 or 5 also a like. An item's category is its first genre; two more
    genres and the decade are declared columns; the creator is the director, which only the Parquet knows. Search reads
    the genres and, where the Parquet has them, director and plot. An item is published at the start of the year in
    its title.

    The Parquet form (`interactions.parquet`, `movies.parquet`, `users.parquet`) knows ratings and times only of some
    users. The others' ratings are clicks without a value, in their known order (`pos`) on a made-up clock: a rating a
    minute, starting the earlier the higher the user's number, as among the users whose times are known.
    """
    root = Path(root)
    if (root / "ratings.dat").exists() or not (root / "interactions.parquet").exists():
        log_path = root / "ratings.dat"
        ratings = _dat(log_path, ("user_id", "movie_id", "rating", "timestamp"))
        movie_path = root / "movies.dat"
        movies = _told(_dat(movie_path, ("movie_id", "title", "genres")))
        people = _dat(root / "users.dat", ("user_id", "gender", "age", "occupation", "zip"))
    else:
        log_path, movie_path = root / "interactions.parquet", root / "movies.parquet"
        ratings = _with_made_up_clock(
            read_table(log_path, ("user_id", "movie_id", "rating", "timestamp", "pos"), origin=_ORIGIN)
        )
        movies = _told(read_table(movie_path, ("movie_id", "title", "genres", "director"), origin=_ORIGIN))
        people = read_table(root / "users.parquet", ("user_id", "gender", "age", "occupation"), origin=_ORIGIN)
    user_columns: Columns = {
        "gender": tuple(people["gender"].unique().sort()),
        "age": tuple(people["age"].unique().sort().cast(pl.Utf8)),
        "occupation": tuple(people["occupation"].unique().sort().cast(pl.Utf8)),
    }
    users = people.select(pl.col("user_id", *user_columns).cast(pl.Utf8))
    return _movielens(log_path, ratings, movie_path, movies, users=users, user_columns=user_columns, now_ms=now_ms)


def movielens_small(root: Path | str, *, now_ms: int) -> Dataset:
    """MovieLens latest-small: `ratings` and `movies` as GroupLens's .csv or as .parquet; nothing is known of users.

    Otherwise like `movielens_1m`.
    """
    root = Path(root)
    ending = "parquet" if (root / "ratings.parquet").exists() else "csv"
    log_path, movie_path = root / f"ratings.{ending}", root / f"movies.{ending}"
    ratings = read_table(log_path, ("userId", "movieId", "rating", "timestamp"), origin=_ORIGIN)
    movies = read_table(movie_path, ("movieId", "title", "genres"), origin=_ORIGIN)
    ratings = ratings.rename({"userId": "user_id", "movieId": "movie_id"})
    movies = _told(movies.rename({"movieId": "movie_id"}))
    users = ratings.select(pl.col("user_id").unique().sort().cast(pl.Utf8))
    return _movielens(log_path, ratings, movie_path, movies, users=users, user_columns={}, now_ms=now_ms)


def _movielens(
    log_path: Path,
    ratings: pl.DataFrame,
    movie_path: Path,
    movies: pl.DataFrame,
    *,
    users: pl.DataFrame,
    user_columns: Columns,
    now_ms: int,
) -> Dataset:
    """Both releases from frames with the names of the first."""
    for path, frame, columns in (
        (log_path, ratings, ("user_id", "movie_id", "timestamp")),
        (movie_path, movies, ("movie_id",)),
    ):
        require_filled(path, frame, {name: name for name in columns})
    require_unique(movie_path, movies["movie_id"], name="movie_id")
    ratings = ratings.with_columns(time_ms=pl.col("timestamp").cast(pl.Int64) * 1000)
    require_past(log_path, ratings["time_ms"], name="timestamp", now_ms=now_ms)
    pair = ratings.select(pl.struct("user_id", "movie_id")).to_series()
    require_unique(log_path, pair, name="user_id, movie_id")
    clicks = unattributed_events(
        ratings["user_id"],
        ratings["movie_id"],
        ratings["time_ms"],
        action=None,
        value=ratings["rating"],
        event=ratings.select(pl.format("{}-{}", "user_id", "movie_id")).to_series(),
    )
    likes = clicks.filter(pl.col("value") >= 4).with_columns(action=pl.lit("like"))
    events = pl.concat([clicks, likes]).with_columns(event_id=pl.format("{}-{}", "action", "event_id"))

    genres = pl.col("genres").str.replace(r"^\(no genres listed\)$", UNKNOWN).str.split("|")
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    first_ms = clicks.group_by("item_id").agg(first_ms=pl.col("time_ms").min())
    items = (
        movies.with_columns(
            item_id=pl.col("movie_id").cast(pl.Utf8),
            category=genres.list.get(0, null_on_oob=True),
            genre_2=genres.list.get(1, null_on_oob=True).fill_null("none"),
            genre_3=genres.list.get(2, null_on_oob=True).fill_null("none"),
            decade=pl.format("{}0s", year // 10).fill_null(UNKNOWN),
            creator=pl.col("director").fill_null(UNKNOWN),
            available=pl.lit(True),
            description=pl.concat_str(*_TOLD, separator=" ", ignore_nulls=True),
        )
        .join(first_ms, on="item_id", how="left", maintain_order="left")
        .with_columns(
            published_ms=pl.coalesce(pl.datetime(year, 1, 1, time_unit="ms").cast(pl.Int64), "first_ms", pl.lit(0))
        )
    )
    require_known(log_path, events["item_id"], name="movie_id", known=items["item_id"], table=movie_path)
    people = log_path.with_name(f"users{log_path.suffix}")
    require_known(log_path, events["user_id"], name="user_id", known=users["user_id"], table=people)
    item_columns: Columns = {name: tuple(items[name].unique().sort()) for name in ("genre_2", "genre_3", "decade")}
    return Dataset(
        items=items.select(*ITEM_SCHEMA, DESCRIPTION, *item_columns),
        users=users,
        impressions=pl.DataFrame(schema=IMPRESSION_SCHEMA),
        events=events.sort("time_ms", "event_id"),
        actions=("click", "like"),
        weights={name: DEFAULT_WEIGHTS[name] for name in ("click", "like")},
        user_columns=user_columns,
        item_columns=item_columns,
    )


def _told(movies: pl.DataFrame) -> pl.DataFrame:
    """With what GroupLens does not tell as null."""
    return movies.with_columns(pl.lit(None, pl.Utf8).alias(name) for name in _TOLD if name not in movies.columns)


def _with_made_up_clock(ratings: pl.DataFrame) -> pl.DataFrame:
    """Seconds for ratings without a timestamp, see `movielens_1m`."""
    known = ratings.filter(pl.col("timestamp").is_not_null())
    if known.is_empty() or known.height == ratings.height:
        return ratings
    starts = known.group_by("user_id").agg(start=pl.col("timestamp").min()).sort("user_id")
    slope, _ = np.polyfit(starts["user_id"].to_numpy(), starts["start"].to_numpy(), 1)
    last_user, anchor = int(starts["user_id"][-1]), int(starts["start"].to_numpy().min())
    start = anchor + (min(slope, 0.0) * (pl.col("user_id") - last_user)).cast(pl.Int64)
    rank = pl.col("pos").fill_null(1 << 30).rank("ordinal").over("user_id")
    return ratings.with_columns(timestamp=pl.coalesce("timestamp", start + 60 * rank.cast(pl.Int64)))


def _dat(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """A file of MovieLens 1M: Latin-1, fields parted by `::`, all but the text fields whole numbers."""
    if not path.exists():
        raise DataError(f"{path} is missing; {_ORIGIN} (or give the Parquet form, interactions.parquet)")
    lines = [line.split("::") for line in path.read_text("latin-1").splitlines() if line]
    bad = sum(len(line) != len(columns) for line in lines)
    if bad:
        raise DataError(f"{path}: {bad} of {len(lines)} lines do not have the fields {'::'.join(columns)}")
    frame = pl.DataFrame(lines, dict.fromkeys(columns, pl.Utf8), orient="row")
    whole = [name for name in columns if name not in ("title", "genres", "gender", "zip")]
    read = frame.with_columns(pl.col(whole).cast(pl.Int64, strict=False))
    for name in whole:
        if read[name].null_count():
            raise DataError(f"{path}: column {name!r} is no number in {read[name].null_count()} of {len(lines)} lines")
    require_rows(path, read)
    return read
