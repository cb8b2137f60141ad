import math

import pytest
import torch
from torch import Tensor

from candidate_gen.losses import full_softmax
from candidate_gen.set_softmax import set_softmax

QUERIES, ITEMS, WIDTH = 5, 7, 3
QUERY_P = torch.tensor([0, 0, 0, 1, 3, 3, 4])
ITEM_ROW_P = torch.tensor([6, 0, 2, 2, 1, 5, 0])
WEIGHT_P = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0])


def vectors(*, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    query_BD = torch.randn(QUERIES, WIDTH, generator=random, requires_grad=True)
    return query_BD, torch.randn(ITEMS, WIDTH, generator=random, requires_grad=True)


def plain(query_BD: Tensor, item_ID: Tensor, *, temperature: float, positive_temperature: float | None) -> Tensor:
    """The formula, term by term."""
    terms = []
    for b, i in zip(QUERY_P.tolist(), ITEM_ROW_P.tolist(), strict=True):
        own = ITEM_ROW_P[b == QUERY_P].tolist()
        kept = [j for j in range(ITEMS) if positive_temperature is None or j not in own]
        score_I = query_BD[b] @ item_ID.T
        positive = score_I[i] / (positive_temperature or temperature)
        terms.append(torch.logsumexp(score_I[kept] / temperature, 0) - positive)
    return (torch.stack(terms) * WEIGHT_P).sum() / WEIGHT_P.sum()


def loss(query_BD: Tensor, item_ID: Tensor, **others: object) -> Tensor:
    given = {"query_P": QUERY_P, "item_row_P": ITEM_ROW_P, "weight_P": WEIGHT_P, "temperature": 0.5}
    return set_softmax(query_BD, item_ID, **(given | others))  # type: ignore[arg-type]


@pytest.mark.parametrize("positive_temperature", [None, 0.7])
@pytest.mark.parametrize("rows_at_a_time", [1, 2, QUERIES])
def test_loss_and_gradients_are_those_of_the_formula(
    positive_temperature: float | None, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("candidate_gen.set_softmax._CELLS", {"cpu": rows_at_a_time * ITEMS})
    query_BD, item_ID = vectors()
    expected = plain(query_BD, item_ID, temperature=0.5, positive_temperature=positive_temperature)
    gradients = torch.autograd.grad(expected, (query_BD, item_ID))
    found = loss(query_BD, item_ID, positive_temperature=positive_temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, (query_BD, item_ID)), gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_one_positive_a_query_is_the_full_softmax() -> None:
    query_BD, item_ID = vectors()
    row_B = torch.tensor([3, 3, 0, 6, 1])
    for other in (None, 0.6):
        ours = loss(
            query_BD,
            item_ID,
            query_P=torch.arange(QUERIES),
            item_row_P=row_B,
            weight_P=torch.ones(QUERIES),
            positive_temperature=other,
        )
        theirs = full_softmax(query_BD, item_ID, item_row_B=row_B, temperature=0.5, positive_temperature=other)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_query_that_took_everything_has_no_negatives_and_a_finite_loss() -> None:
    query_BD, item_ID = vectors()
    found = loss(
        query_BD,
        item_ID,
        query_P=torch.zeros(ITEMS, dtype=torch.int64),
        item_row_P=torch.arange(ITEMS),
        weight_P=torch.ones(ITEMS),
        positive_temperature=0.5,
    )
    assert found.item() == pytest.approx(-(query_BD[0] @ item_ID.T).mean().item() / 0.5, rel=1e-5)
    assert all(torch.isfinite(each).all() for each in torch.autograd.grad(found, (query_BD, item_ID)))


def test_large_scores_overflow_nothing() -> None:
    query_BD, item_ID = vectors()
    assert math.isfinite(loss(query_BD * 1000, item_ID, positive_temperature=0.7).item())


def test_rounded_products_give_nearly_the_same_gradients() -> None:
    random = torch.Generator().manual_seed(0)
    query_BD = torch.nn.functional.normalize(torch.randn(64, 32, generator=random), dim=1).requires_grad_()
    item_ID = torch.nn.functional.normalize(torch.randn(500, 32, generator=random), dim=1).requires_grad_()
    found = {}
    for products in (torch.float32, torch.bfloat16):
        value = set_softmax(
            query_BD,
            item_ID,
            query_P=torch.arange(64).repeat_interleave(3),
            item_row_P=torch.arange(192) * 2,
            weight_P=torch.ones(192),
            temperature=0.08,
            positive_temperature=0.1,
            products=products,
        )
        found[products] = torch.cat([each.flatten() for each in torch.autograd.grad(value, (query_BD, item_ID))])
    difference = found[torch.bfloat16] - found[torch.float32]
    assert difference.norm() < 0.01 * found[torch.float32].norm()
