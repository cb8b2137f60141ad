from pathlib import Path

import numpy as np
import pytest

from candidate_gen.activity import EVENT, POPULARITY, Activity, segment_popularity
from index.strings import IdMap, key64

IDS = IdMap.of([f"i{row}" for row in range(6)])


def popularity(segments: list[int], rows: list[int], **changes: int) -> np.ndarray:
    return segment_popularity(
        np.array(segments, np.int32), np.array(rows, np.int64), np.ones(len(rows)), IDS, **changes
    )


def test_a_segments_worth_is_the_shrunk_count_of_its_outcomes() -> None:
    # Everybody: i0 6, i1 4, of 10. Segment 1 holds 4 outcomes: 1 of i0, 3 of i1. It expects 2.4 and 1.6.
    made = popularity([1, 1, 1, 1, 0, 0, 0, 0, 2, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    first = made[made["segment"] == 1]
    assert first["item_key"].tolist() == [key64("i0"), key64("i1")]
    assert first["popularity"].tolist() == pytest.approx([2.4 * 11 / 12.4, 1.6 * 13 / 11.6])
    assert made[made["segment"] == 2]["item_key"].tolist() == [key64("i0"), key64("i1")], "one outcome says little"


def test_many_outcomes_overrule_everybody() -> None:
    made = popularity([1] * 500 + [2] * 5000, [3] * 400 + [2] * 100 + [2] * 5000)
    assert made[made["segment"] == 1]["item_key"][0] == key64("i3")
    assert made[made["segment"] == 2]["item_key"][0] == key64("i2")


def test_only_the_best_of_a_segment_are_listed_and_none_without_an_outcome() -> None:
    rows = [row for row in range(5) for _ in range(5 - row)]
    made = popularity([1] * len(rows), rows, listed=3)
    assert made["item_key"].tolist() == [key64("i0"), key64("i1"), key64("i2")]
    assert len(popularity([1] * len(rows), rows)) == 5
    assert len(popularity([0, 0], [1, 2])) == 0
    assert len(popularity([], [])) == 0


def test_what_was_saved_is_loaded_and_a_folder_without_it_holds_nothing(tmp_path: Path) -> None:
    assert Activity.load(tmp_path).fingerprint == Activity.none().fingerprint
    made = Activity(np.array([(1, 2, 3, 4), (5, 0, 3, 6)], EVENT), np.array([(1, 7, 0.5)], POPULARITY))
    made.save(tmp_path)
    again = Activity.load(tmp_path)
    assert again.recent_E.tolist() == made.recent_E.tolist()
    assert again.segment_P.tolist() == made.segment_P.tolist()
    assert again.fingerprint == made.fingerprint != Activity.none().fingerprint
    again.recent_E["time_ms"][1] += 1
    assert again.fingerprint != made.fingerprint


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "recent_events.npy", np.zeros(3))
    with pytest.raises(ValueError, match="holds float64; it must hold"):
        Activity.load(tmp_path)
