"""What people typed and took, counted from impressions and outcomes by hand."""

from pathlib import Path

import polars as pl
import pytest

from candidate_gen.query_log import QueryLog
from index.strings import key64
from training.datasets.dataset import EVENT_SCHEMA, IMPRESSION_SCHEMA
from training.log.query_log import query_log, rules_of

DAY_MS = 86_400_000
NOW_MS = 100 * DAY_MS


def impressions(*typed: tuple[str, str, int, str]) -> pl.DataFrame:
    """Request, user, age in days, text."""
    rows: list[tuple[object, ...]] = [
        (request, user, NOW_MS - age * DAY_MS, "search", text, [], []) for request, user, age, text in typed
    ]
    return pl.DataFrame(rows, IMPRESSION_SCHEMA, orient="row")


def clicks(*taken: tuple[str, str]) -> pl.DataFrame:
    """Request and item."""
    rows = [(f"e{n}", request, "", item, "click", 1.0, 1, 1, 0) for n, (request, item) in enumerate(taken)]
    return pl.DataFrame(rows, EVENT_SCHEMA, orient="row")


LOG = query_log(
    impressions(
        ("r1", "ann", 0, "Red  Sofa"),
        ("r2", "ann", 14, "red sofa"),
        ("r3", "bob", 14, "red sofa"),
        ("r4", "", 0, "lamp"),
        ("r5", "", 0, "lamp"),
        ("r6", "cid", 0, "  "),
        ("synthetic-1", "dan", 0, "made up"),
    ),
    clicks(("r1", "a"), ("r2", "a"), ("r3", "a"), ("r3", "b"), ("r4", "c"), ("unknown", "a")),
    as_of_ms=NOW_MS,
)


def test_people_count_once_a_query_and_old_ones_half() -> None:
    told = dict(zip(LOG.text_Q, LOG.row_Q.tolist(), strict=True))
    assert told == {"lamp": (2, 2.0), "red sofa": (2, 1.5)}


def test_what_was_taken_counts_the_people_who_took_it() -> None:
    told = {(LOG.text_Q[query], item): people for query, item, people in LOG.taken_C.tolist()}
    assert told == {("red sofa", key64("a")): 2, ("red sofa", key64("b")): 1, ("lamp", key64("c")): 1}
    assert LOG.taken().tolist() == [1, 3]


def test_what_is_stored_is_the_same_log(tmp_path: Path) -> None:
    LOG.save(tmp_path)
    assert QueryLog.load(tmp_path).fingerprint == LOG.fingerprint
    assert QueryLog.load(tmp_path / "nowhere").fingerprint == QueryLog.none().fingerprint


def test_rules_are_the_lines_of_a_file_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text("a, b\nc => d\n")
    assert rules_of(str(tmp_path / "synonyms.txt")) == ["a, b", "c => d"]
    assert rules_of(None) == []
    with pytest.raises(ValueError, match=r"retrieval\.synonyms"):
        rules_of(str(tmp_path / "none.txt"))
