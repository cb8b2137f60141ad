"""MovieLens in each of its forms, and the one line said about what is none of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.datasets.dataset import DataError, Dataset
from training.datasets.movielens import movielens_1m, movielens_small

NOW_MS = 1_800_000_000_000


def _movielens_dat(root: Path) -> None:
    (root / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n")
    (root / "movies.dat").write_bytes(
        "10::Amélie (2001)::Comedy|Romance|Drama|War\n20::Space Jam (1996)::Animation\n30::No Year::Drama\n".encode(
            "latin-1"
        )
    )
    (root / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")


def test_movielens_1m_as_grouplens_gives_it(tmp_path: Path) -> None:
    _movielens_dat(tmp_path)
    data = movielens_1m(tmp_path, now_ms=NOW_MS)
    assert data.items.select("item_id", "title", "category", "genre_2", "genre_3", "decade").rows() == [
        ("10", "Amélie (2001)", "Comedy", "Romance", "Drama", "2000s"),
        ("20", "Space Jam (1996)", "Animation", "none", "none", "1990s"),
        ("30", "No Year", "Drama", "none", "none", "unknown"),
    ]
    assert data.items["published_ms"].to_list() == [978_307_200_000, 820_454_400_000, 0]
    assert data.events.select("event_id", "action", "value", "time_ms").rows() == [
        ("click-1-10", "click", 5.0, 978_300_760_000),
        ("like-1-10", "like", 5.0, 978_300_760_000),
        ("click-2-10", "click", 4.0, 978_301_968_000),
        ("like-2-10", "like", 4.0, 978_301_968_000),
        ("click-1-20", "click", 3.0, 978_302_109_000),
    ]
    assert data.users.rows() == [("1", "F", "1", "10"), ("2", "M", "56", "16")]
    assert data.user_columns == {"gender": ("F", "M"), "age": ("1", "56"), "occupation": ("10", "16")}


def test_movielens_1m_as_parquet_orders_ratings_without_a_time_and_gives_them_no_like(tmp_path: Path) -> None:
    _movielens_dat(tmp_path)
    (tmp_path / "ratings.dat").unlink()
    pl.DataFrame(
        {
            "user_id": [1, 1, 2, 3, 3, 3],
            "movie_id": [10, 20, 10, 10, 20, 30],
            "rating": [5, 3, 4, None, None, None],
            "timestamp": [978_300_760, 978_302_109, 978_000_000, None, None, None],
            "pos": [0, 1, 0, 1, None, 0],
        }
    ).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame(
        {"movie_id": [10, 20, 30], "title": ["A (1990)", "B", "C"], "genres": ["X", "X|Y", "Y"]}
        | {"director": ["Someone", None, None]}
    ).write_parquet(tmp_path / "movies.parquet")
    pl.DataFrame(
        {"user_id": [1, 2, 3], "gender": ["F", "M", "M"], "age": [1, 25, 25], "occupation": [0, 1, 2]}
    ).write_parquet(tmp_path / "users.parquet")
    data = movielens_1m(tmp_path, now_ms=NOW_MS)
    made_up = data.events.filter(user_id="3").sort("time_ms")
    assert made_up["item_id"].to_list() == ["30", "10", "20"]
    assert made_up["action"].to_list() == ["click"] * 3
    assert made_up["value"].null_count() == 3
    assert set(np.diff(made_up["time_ms"].to_numpy()).tolist()) == {60_000}
    assert made_up["time_ms"].to_numpy()[0] < 978_000_000_000  # higher numbers came earlier
    assert data.items["creator"].to_list() == ["Someone", "unknown", "unknown"]
    assert data.events.filter(action="like").height == 2


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_movielens_small_reads_both_forms(tmp_path: Path, ending: str) -> None:
    ratings = pl.DataFrame({"userId": [1, 2], "movieId": [7, 8], "rating": [4.5, 2.0], "timestamp": [10, 20]})
    movies = pl.DataFrame(
        {"movieId": [7, 8], "title": ["A (1990) ", "B"], "genres": ["Sci-Fi|Drama", "(no genres listed)"]}
    )
    for name, frame in (("ratings", ratings), ("movies", movies)):
        getattr(frame, f"write_{ending}")(tmp_path / f"{name}.{ending}")
    data = movielens_small(tmp_path, now_ms=NOW_MS)
    assert data.items["category"].to_list() == ["Sci-Fi", "unknown"]
    assert data.items["published_ms"].to_list() == [631_152_000_000, 20_000]
    assert data.events["action"].to_list() == ["click", "like", "click"]
    assert data.user_columns == {}


@pytest.mark.parametrize("adapter", [movielens_1m, movielens_small])
def test_without_movielens_the_message_names_the_file_and_where_to_get_it(
    tmp_path: Path, adapter: Callable[..., Dataset]
) -> None:
    with pytest.raises(DataError, match=r"ratings\.\w+ is missing; MovieLens is to be had at https://grouplens\.org"):
        adapter(tmp_path, now_ms=NOW_MS)


def test_a_broken_movielens_line_is_counted(tmp_path: Path) -> None:
    _movielens_dat(tmp_path)
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n1::20::3\n")
    with pytest.raises(DataError, match=r"ratings\.dat: 1 of 2 lines do not have the fields user_id::movie_id"):
        movielens_1m(tmp_path, now_ms=NOW_MS)
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n1::20::x::978300760\n")
    with pytest.raises(DataError, match=r"column 'rating' is no number in 1 of 2 lines"):
        movielens_1m(tmp_path, now_ms=NOW_MS)
