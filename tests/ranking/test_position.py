"""The examination model recovers a curve that it was not told."""

import numpy as np
import pytest
import torch

from ranking.losses import action_loss
from ranking.position import Examination


def test_a_simulated_examination_curve_is_recovered_beside_the_items_own_rates() -> None:
    random = np.random.default_rng(3)
    # Not monotone: the last slot of a page is looked at more than the one before.
    truth_P = np.array([1.0, 0.8, 0.55, 0.35, 0.2, 0.3])
    rate_I = random.uniform(0.1, 0.7, 20)
    item_N, position_N = random.integers(20, size=60_000), random.integers(6, size=60_000)
    # Better items stand higher, as after any ranker, so that rates by position alone would mislead.
    position_N = np.where(random.random(60_000) < rate_I[item_N], np.minimum(position_N, 2), position_N)
    label_N = random.random(60_000) < rate_I[item_N] * truth_P[position_N]

    examination = Examination(6)
    relevance_I = torch.zeros(20, requires_grad=True)
    item, position = torch.from_numpy(item_N), torch.from_numpy(position_N)
    label_N1 = torch.from_numpy(label_N.astype(np.float32))[:, None]
    optimizer = torch.optim.LBFGS([relevance_I, *examination.parameters()], max_iter=80, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = action_loss(relevance_I[item][:, None], label_N1, examination_B=examination(position)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(examination.curve_P, truth_P, atol=0.03)
    np.testing.assert_allclose(torch.sigmoid(relevance_I).detach().numpy(), rate_I, atol=0.05)


def test_the_first_slot_and_exposures_outside_a_list_are_always_examined() -> None:
    examination = Examination(4)
    position_B = torch.tensor([-1, 0, 1, 3, 9])
    probability_B = torch.sigmoid(examination(position_B))
    assert probability_B[:2].tolist() == [1.0, 1.0]
    assert probability_B[3] == probability_B[4], "beyond the table the last entry counts"
    assert examination.curve_P[0] == pytest.approx(1, abs=1e-12)
    assert len(examination.curve_P) == 4


def test_a_table_of_one_position_has_nothing_to_learn() -> None:
    assert Examination(1).curve_P.shape == (1,)
    with pytest.raises(ValueError, match="at least 1 position, got 0"):
        Examination(0)
