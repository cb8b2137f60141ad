"""Drift is nothing under a rotation, and grows with what really moved."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.drift import drift


def vectors(seed: int, count: int, d: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, d)).astype(np.float32)


def rotation(seed: int, d: int = 8) -> NDArray[np.float32]:
    return np.linalg.qr(vectors(seed, d, d))[0].astype(np.float32)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 200), scale=st.floats(0.01, 100))
def test_a_rotation_and_a_scale_are_no_drift(seed: int, count: int, scale: float) -> None:
    before = vectors(seed, count)
    found = drift(before, (scale * before @ rotation(seed + 1)).astype(np.float32), seed=0)
    assert found.common == count
    assert found.k == min(50, count - 1)
    assert found.cosine == pytest.approx(1, abs=1e-4)
    assert found.overlap > 0.97, "but for ties that rounding decides"


def test_a_turn_in_one_plane_of_half_the_items_has_the_cosine_of_the_closed_form() -> None:
    """In two dimensions, half turned by +a and half by -a: no rotation undoes both, and the mean cosine is cos a."""
    angle = 0.3
    theta = np.linspace(0, 2 * math.pi, 200, endpoint=False)
    turned = theta + np.where(np.arange(200) % 2, angle, -angle)
    before, after = (np.stack([np.cos(t), np.sin(t)], 1).astype(np.float32) for t in (theta, turned))
    assert drift(before, after, seed=0).cosine == pytest.approx(math.cos(angle), abs=1e-4)


def test_unrelated_vectors_share_neighbours_by_chance_alone() -> None:
    found = drift(vectors(0, 2000, 32), vectors(1, 2000, 32), seed=0)
    assert found.overlap == pytest.approx(50 / 1999, abs=0.01)
    assert abs(found.cosine) < 0.2


def test_neighbours_are_those_of_a_plain_search() -> None:
    before, after = vectors(0, 60), vectors(0, 60) + 0.3 * vectors(1, 60)
    shares = []
    for row in range(60):
        near = []
        for table in (before, after):
            unit = table / np.linalg.norm(table, axis=1, keepdims=True)
            score = unit @ unit[row]
            score[row] = -np.inf
            near.append(set(np.argsort(-score)[:5].tolist()))
        shares.append(len(near[0] & near[1]) / 5)
    assert drift(before, after, seed=0, k=5).overlap == pytest.approx(np.mean(shares), abs=1e-6)


def test_more_movement_is_more_drift() -> None:
    before, noise = vectors(0, 500), vectors(1, 500)
    found = [drift(before, before + share * noise, seed=0) for share in (0.0, 0.1, 0.3, 1.0)]
    for measure in ("cosine", "overlap"):
        values = [getattr(each, measure) for each in found]
        assert values == sorted(values, reverse=True)
        assert values[0] - values[-1] > 0.2


def test_poison_is_left_out_of_both() -> None:
    before, after = vectors(0, 100), vectors(0, 100)
    before[3], after[5], after[7, 0] = 0, np.nan, np.inf
    found = drift(before, after, seed=0)
    assert found.common == 97
    assert found.cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_what_cannot_be_measured_is_nan(count: int) -> None:
    found = drift(vectors(0, count), vectors(0, count), seed=0)
    assert (found.common, found.k) == (count, 0)
    assert math.isnan(found.overlap)
    assert math.isnan(found.cosine) is (count == 0)


def test_another_width_has_neighbours_but_no_alignment() -> None:
    before = vectors(0, 100)
    after = np.concatenate([before, np.zeros((100, 4), np.float32)], axis=1)
    found = drift(before, after, seed=0)
    assert math.isnan(found.cosine)
    assert found.overlap == 1.0


def test_the_same_sample_gives_the_same_figure() -> None:
    before, after = vectors(0, 500), vectors(0, 500) + 0.5 * vectors(1, 500)
    one, same, other = (drift(before, after, seed=seed, sample=50) for seed in (0, 0, 1))
    assert one == same != other


def test_rows_without_counterpart_are_refused() -> None:
    with pytest.raises(ValueError, match="3 vectors before and 2 after"):
        drift(vectors(0, 3), vectors(0, 2), seed=0)
