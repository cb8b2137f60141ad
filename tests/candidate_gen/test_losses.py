import math

import pytest
import torch
from torch import Tensor

from candidate_gen.losses import full_softmax, mixture_log_q, sampled_softmax

QUERY = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
ITEM = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
ROWS = torch.tensor([0, 1])


def random_case(*, queries: int, columns: int, width: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return (
        torch.nn.functional.normalize(torch.randn(queries, width, generator=random), dim=1),
        torch.nn.functional.normalize(torch.randn(columns, width, generator=random), dim=1),
    )


def test_two_by_two_by_hand() -> None:
    # Scores / temperature 0.5: query 0 has 2 for its own item and 0 for the other, query 1 has 1.6 and 1.2.
    # One negative each (n = 1, log n = 0). Item 0 is drawn with probability 0.8, item 1 with 0.2, so that as
    # negatives their logits become 1.2 - log 0.8 = 1.2 + 0.223144 and 0 - log 0.2 = 1.609438.
    #   query 0: own 2.0, other 0 + 1.609438   -> log(1 + e^(1.609438 - 2.0)) = log(1 + 0.676676) = 0.516814
    #   query 1: own 1.6, other 1.2 + 0.223144 -> log(1 + e^(1.423144 - 1.6)) = log(1 + 0.837900) = 0.608624
    # mean 0.562719
    own_0, other_0 = 2.0, 0.0 - math.log(0.2)
    own_1, other_1 = 1.6, 1.2 - math.log(0.8)
    by_hand = (math.log1p(math.exp(other_0 - own_0)) + math.log1p(math.exp(other_1 - own_1))) / 2
    loss = sampled_softmax(QUERY, ITEM, item_row_C=ROWS, log_q_C=torch.tensor([0.8, 0.2]).log(), temperature=0.5)
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(0.562719, abs=1e-6)


def test_full_softmax_by_hand() -> None:
    # Query 0: logits 2, 0; query 1: 1.2, 1.6 with its positive second.
    by_hand = (math.log1p(math.exp(0 - 2)) + math.log1p(math.exp(1.2 - 1.6))) / 2
    assert float(full_softmax(QUERY, ITEM, item_row_B=ROWS, temperature=0.5)) == pytest.approx(by_hand, rel=1e-6)


def test_a_rarer_negative_weighs_more_and_a_common_one_less() -> None:
    query_BD, item_BD = random_case(queries=4, columns=4)
    losses = []
    for share in (0.05, 0.1, 0.2, 0.4, 0.8):
        log_q_C = torch.tensor([0.25, share, 0.25, 0.25]).log()
        weight_B = torch.tensor([1.0, 0.0, 0.0, 0.0])
        losses.append(
            float(
                sampled_softmax(
                    query_BD,
                    item_BD,
                    item_row_C=torch.arange(4),
                    log_q_C=log_q_C,
                    temperature=0.5,
                    weight_B=weight_B,
                )
            )
        )
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 5


def test_the_popularity_of_the_positive_itself_does_not_change_its_own_loss() -> None:
    query_BD, item_BD = random_case(queries=3, columns=3)
    first = torch.tensor([1.0, 0.0, 0.0])

    def loss(share: float) -> float:
        log_q_C = torch.tensor([share, 0.2, 0.3]).log()
        return float(
            sampled_softmax(
                query_BD, item_BD, item_row_C=torch.arange(3), log_q_C=log_q_C, temperature=0.2, weight_B=first
            )
        )

    assert loss(0.01) == pytest.approx(loss(0.9), rel=1e-6)


def test_an_accidental_hit_is_no_negative() -> None:
    query_BD, item_BD = random_case(queries=2, columns=2)
    same = item_BD[:1].expand(2, -1)
    loss = sampled_softmax(query_BD, same, item_row_C=torch.tensor([5, 5]), log_q_C=torch.zeros(2), temperature=0.1)
    assert float(loss) == 0


def test_a_batch_of_one_has_nothing_to_learn_from() -> None:
    query = QUERY[:1].clone().requires_grad_()
    loss = sampled_softmax(query, ITEM[:1], item_row_C=ROWS[:1], log_q_C=torch.zeros(1), temperature=0.1)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert query.grad is not None
    assert not query.grad.any()


@pytest.mark.parametrize("uniform", [0, 4000])
def test_the_sampled_loss_and_its_gradient_tend_to_the_full_softmax(uniform: int) -> None:
    items, batch, width = 12, 6000, 3
    random = torch.Generator().manual_seed(1)
    q_I = torch.softmax(torch.randn(items, generator=random), 0)
    _, item_ID = random_case(queries=1, columns=items, width=width)
    _, query_of_item_ID = random_case(queries=1, columns=items, width=width, seed=2)
    positive_B = torch.multinomial(q_I, batch, replacement=True, generator=random)
    negative_U = torch.randint(items, (uniform,), generator=random)
    row_C = torch.cat([positive_B, negative_U])
    log_q_I = mixture_log_q(q_I.log(), batch=batch, uniform=uniform, items=items)

    def full(item: Tensor) -> Tensor:
        return full_softmax(query_of_item_ID[positive_B], item, item_row_B=positive_B, temperature=0.3)

    def sampled(item: Tensor) -> Tensor:
        return sampled_softmax(
            query_of_item_ID[positive_B], item[row_C], item_row_C=row_C, log_q_C=log_q_I[row_C], temperature=0.3
        )

    values, gradients = [], []
    for each in (full, sampled):
        leaf = item_ID.clone().requires_grad_()
        value = each(leaf)
        torch.autograd.backward(value)
        assert leaf.grad is not None
        values.append(float(value.detach()))
        gradients.append(leaf.grad)
    assert values[1] == pytest.approx(values[0], rel=0.01)
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.05


def test_with_every_other_item_once_and_equally_likely_the_sampled_loss_is_the_full_one() -> None:
    query_BD, item_ID = random_case(queries=7, columns=7)
    rows = torch.arange(7)
    # Six negatives, each of them any of the six other items: q = 1/6, so that n q = 1.
    sampled = sampled_softmax(
        query_BD, item_ID, item_row_C=rows, log_q_C=torch.full((7,), -math.log(6)), temperature=0.2
    )
    full = full_softmax(query_BD, item_ID, item_row_B=rows, temperature=0.2)
    assert float(sampled) == pytest.approx(float(full), rel=1e-6)


def test_one_mixture_has_one_probability_by_hand() -> None:
    # Four other positives and 6 uniform draws over 3 items: (4 * 0.5 + 6 / 3) / 10 = 0.4, and for an item that is
    # never positive 0.2.
    q = torch.tensor([0.5, 0.5, 0.0])
    mixed = mixture_log_q(q.log(), batch=5, uniform=6, items=3).exp()
    assert mixed.tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert float(mixed.sum()) == pytest.approx(1)


def test_without_uniform_negatives_the_mixture_is_the_share_of_the_positives() -> None:
    log_q = torch.tensor([0.7, 0.3]).log()
    assert torch.equal(mixture_log_q(log_q, batch=8, uniform=0, items=2), log_q)


def test_weights_make_a_weighted_mean() -> None:
    query_BD, item_BD = random_case(queries=3, columns=3)
    rows = torch.arange(3)

    def loss(weight_B: list[float]) -> float:
        return float(full_softmax(query_BD, item_BD, item_row_B=rows, temperature=0.5, weight_B=torch.tensor(weight_B)))

    single = [loss([1, 0, 0]), loss([0, 1, 0]), loss([0, 0, 1])]
    assert loss([1, 2, 5]) == pytest.approx((single[0] + 2 * single[1] + 5 * single[2]) / 8, rel=1e-6)
