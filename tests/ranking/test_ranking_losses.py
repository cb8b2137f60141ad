"""Losses against the formulas written out in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ranking.losses import action_loss, inverse_propensity_weights, listwise_loss


def _columns(seed: int, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logit_BA = 3 * torch.randn(rows, 2, generator=random, dtype=torch.float64)
    return logit_BA, (torch.rand(rows, 2, generator=random) < 0.4).double()


def test_without_examination_it_is_binary_cross_entropy() -> None:
    logit_BA, label_BA = _columns(0)
    expected_A = functional.binary_cross_entropy_with_logits(logit_BA, label_BA, reduction="none").mean(0)
    torch.testing.assert_close(action_loss(logit_BA, label_BA), expected_A)


@given(st.integers(0, 1000))
def test_with_examination_it_is_the_likelihood_of_the_product(seed: int) -> None:
    logit_BA, label_BA = _columns(seed)
    examination_B = torch.linspace(-4, 30, 12, dtype=torch.float64)
    weight_B = torch.linspace(0, 2, 12, dtype=torch.float64)
    p_BA = torch.sigmoid(examination_B)[:, None] * torch.sigmoid(logit_BA)
    loss_BA = -(label_BA * p_BA.log() + (1 - label_BA) * (1 - p_BA).log())
    expected_A = (loss_BA * weight_B[:, None]).sum(0) / weight_B.sum()
    torch.testing.assert_close(
        action_loss(logit_BA, label_BA, examination_B=examination_B, weight_B=weight_B), expected_A
    )


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    logit_BA = torch.tensor([[200.0], [-200.0], [200.0], [-200.0]], requires_grad=True)
    examination_B = torch.tensor([30.0, 30.0, -50.0, -50.0], requires_grad=True)
    loss = action_loss(logit_BA, torch.tensor([[0.0], [1.0], [1.0], [0.0]]), examination_B=examination_B).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    for leaf in (logit_BA, examination_B):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_the_listwise_loss_is_a_softmax_within_each_request() -> None:
    logit_B = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0], dtype=torch.float64)
    label_B = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    request_B = torch.tensor([0, 1, 0, 1, 2])
    expected = -(torch.log_softmax(logit_B[[1, 3]], 0)[0] + torch.log_softmax(logit_B[[0, 2]], 0)[1]) / 2
    torch.testing.assert_close(listwise_loss(logit_B, label_B, request_B), expected)


def test_examination_shifts_a_rows_chance_in_its_list() -> None:
    logit_B = torch.zeros(2, dtype=torch.float64)
    seen_B = torch.tensor([30.0, 0.0], dtype=torch.float64)
    loss = listwise_loss(logit_B, torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), examination_B=seen_B)
    torch.testing.assert_close(loss, -torch.tensor(1 / 3, dtype=torch.float64).log())


def test_lists_without_a_positive_and_no_rows_at_all_cost_nothing() -> None:
    logit_B = torch.randn(4, requires_grad=True)
    loss = listwise_loss(logit_B, torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert float(listwise_loss(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64))) == 0


def test_weights_are_clipped_inverse_propensities_with_mean_1() -> None:
    weight_N = inverse_propensity_weights(np.array([1.0, 0.5, 0.01]), clip=4)
    np.testing.assert_allclose(weight_N, np.array([1, 2, 4]) / (7 / 3), rtol=1e-6)
    np.testing.assert_array_equal(inverse_propensity_weights(np.array([0.3, 0.001]), clip=1), [1, 1])
    assert inverse_propensity_weights(np.empty(0), clip=2).shape == (0,)


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_propensity_is_refused(propensity: float) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 propensities lie outside \(0, 1\]"):
        inverse_propensity_weights(np.array([0.5, propensity]), clip=2)
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        inverse_propensity_weights(np.array([0.5]), clip=0.5)
