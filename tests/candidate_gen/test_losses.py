"""Losses beside the arithmetic written out, beside plain autograd, and beside each other in the limit.

Shape letters: B positives, S distinct sampled items, C columns, H hard negatives of a query, I items, D width.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from candidate_gen import losses
from candidate_gen.losses import StreamingShare, full_softmax, mixture_log_q, sampled_softmax

QUERY = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
ITEM = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
ROWS = torch.tensor([0, 1])


def random_case(*, queries: int, columns: int, width: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return (
        functional.normalize(torch.randn(queries, width, generator=random), dim=1),
        functional.normalize(torch.randn(columns, width, generator=random), dim=1),
    )


def each_once(query_BD: Tensor, item_BD: Tensor, q_B: Tensor | None = None, **others: Any) -> float:
    """The loss where every query has an item of its own and the batch holds each once."""
    rows = len(item_BD)
    log_q_S = torch.full((rows,), -math.log(rows)) if q_B is None else q_B.log()
    arguments: dict[str, Any] = {
        "own_B": torch.arange(rows),
        "count_S": torch.ones(rows),
        "log_q_S": log_q_S,
        "temperature": 0.5,
    }
    return float(sampled_softmax(query_BD, item_BD, **arguments | others))


def plain_softmax(
    query_BD: Tensor,
    item_CD: Tensor,
    *,
    own_B: Tensor,
    count_S: Tensor,
    log_q_S: Tensor,
    temperature: float | Tensor,
    positive_temperature: float | None = None,
    hard_BH: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """`sampled_softmax` as its docstring writes it, all logits at once, differentiated by autograd."""
    rows, columns, sampled = len(query_BD), len(item_CD), len(count_S)
    logit_BC = query_BD @ item_CD.T / temperature
    own_BC = functional.one_hot(own_B, columns).bool()
    hard_BC = torch.zeros_like(own_BC)
    for b, hard in enumerate(hard_BH.tolist() if hard_BH is not None else []):
        hard_BC[b, [column for column in hard if column >= 0]] = True
    hard_BC &= ~own_BC
    others = max(float(count_S.sum()) - 1, 1)
    drawn_BS = logit_BC[:, :sampled] + torch.log(count_S / (others * log_q_S.exp()))
    terms = [
        drawn_BS.masked_fill((own_BC | hard_BC)[:, :sampled], -math.inf),
        logit_BC.masked_fill(~hard_BC, -math.inf),
    ]
    positive_B = logit_BC[torch.arange(rows), own_B]
    if positive_temperature is None:
        terms.append(positive_B[:, None])
    else:
        positive_B = positive_B * temperature / positive_temperature
    loss_B = torch.logsumexp(torch.cat(terms, 1), 1) - positive_B
    share_B = torch.ones(rows) if weight_B is None else weight_B
    return (share_B * loss_B).sum() / share_B.sum()


def case(*, seed: int, hard: int, only_hard: int, weighted: bool, spread: float = 1.0) -> dict[str, Any]:
    """Everything that `sampled_softmax` takes, at random, but the temperatures."""
    random = torch.Generator().manual_seed(seed)
    rows, sampled, width = (int(torch.randint(2, 30, (), generator=random)) for _ in range(3))
    own_B = torch.randint(sampled, (rows,), generator=random)
    return {
        "query_BD": spread * torch.randn(rows, width, generator=random) / math.sqrt(width),
        "item_CD": torch.randn(sampled + only_hard, width, generator=random),
        "own_B": own_B,
        "count_S": torch.bincount(own_B, minlength=sampled).clamp(min=1),
        "log_q_S": torch.log_softmax(torch.randn(sampled, generator=random), 0),
        "hard_BH": torch.randint(-1, sampled + only_hard, (rows, hard), generator=random) if hard else None,
        "weight_B": torch.rand(rows, generator=random) + 0.1 if weighted else None,
    }


def value_and_gradients(
    loss: Callable[..., Tensor], given_case: dict[str, Any], *, at: float = 0.3, **others: Any
) -> list[Tensor]:
    """The loss at a temperature, then its gradients by query, item and temperature."""
    leaves = {name: given_case[name].clone().requires_grad_() for name in ("query_BD", "item_CD")}
    leaves["temperature"] = torch.tensor(at, requires_grad=True)
    value = loss(**given_case | leaves | others)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    return [value.detach(), *gradients]


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
    assert each_once(QUERY, ITEM, torch.tensor([0.8, 0.2])) == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(0.562719, abs=1e-6)


def test_two_by_two_gradient_by_hand() -> None:
    # The negative's probability is 1 - e^-loss: 0.403584 for query 0 and 0.455900 for query 1. Each query is pulled to
    # its own item and pushed from the other by that, over temperature 0.5 and 2 queries, which is a factor 1:
    # query 0 gets 0.403584 (item 1 - item 0), query 1 gets 0.455900 (item 0 - item 1).
    query = QUERY.clone().requires_grad_()
    torch.autograd.backward(
        sampled_softmax(
            query,
            ITEM,
            own_B=ROWS,
            count_S=torch.ones(2),
            log_q_S=torch.tensor([0.8, 0.2]).log(),
            temperature=0.5,
        )
    )
    assert query.grad is not None
    first, second = 0.676676 / 1.676676, 0.837900 / 1.837900
    assert query.grad.flatten().tolist() == pytest.approx([-first, first, second, -second], abs=1e-5)


def test_full_softmax_by_hand() -> None:
    # Query 0: logits 2, 0; query 1: 1.2, 1.6 with its positive second.
    by_hand = (math.log1p(math.exp(0 - 2)) + math.log1p(math.exp(1.2 - 1.6))) / 2
    assert float(full_softmax(QUERY, ITEM, item_row_B=ROWS, temperature=0.5)) == pytest.approx(by_hand, rel=1e-6)


def test_bilateral_softmax_by_hand() -> None:
    # At 0.5 the other item has logit 0 and 1.2, at 0.8 the own one 1 / 0.8 = 1.25 and 0.8 / 0.8 = 1; the sum over one
    # negative is that negative: (-1.25 + 0 - 1 + 1.2) / 2 = -0.525.
    loss = full_softmax(QUERY, ITEM, item_row_B=ROWS, temperature=0.5, positive_temperature=0.8)
    assert float(loss) == pytest.approx(-0.525, abs=1e-6)


def test_the_correction_lowers_what_is_drawn_more_often_than_evenly_and_raises_the_others() -> None:
    query_BD, item_BD = random_case(queries=2, columns=2)
    first = torch.tensor([1.0, 0.0])
    even = each_once(query_BD, item_BD, torch.tensor([0.5, 1.0]), weight_B=first)
    uncorrected = float(functional.cross_entropy((query_BD @ item_BD.T / 0.5)[:1], ROWS[:1]))
    assert even == pytest.approx(uncorrected, rel=1e-6)
    assert each_once(query_BD, item_BD, torch.tensor([0.5, 0.9]), weight_B=first) > even
    assert each_once(query_BD, item_BD, torch.tensor([0.5, 0.1]), weight_B=first) > even


def test_a_rarer_negative_weighs_more_and_a_common_one_less() -> None:
    query_BD, item_BD = random_case(queries=4, columns=4)
    first = torch.tensor([1.0, 0.0, 0.0, 0.0])
    shares = (0.05, 0.1, 0.2, 0.4, 0.8)
    found = [each_once(query_BD, item_BD, torch.tensor([0.25, q, 0.25, 0.25]), weight_B=first) for q in shares]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 5


def test_the_popularity_of_the_positive_itself_does_not_change_its_own_loss() -> None:
    query_BD, item_BD = random_case(queries=3, columns=3)
    first = torch.tensor([1.0, 0.0, 0.0])
    rare, common = (each_once(query_BD, item_BD, torch.tensor([q, 0.2, 0.3]), weight_B=first) for q in (0.01, 0.9))
    assert rare == pytest.approx(common, rel=1e-6)


def test_an_accidental_hit_is_no_negative() -> None:
    query_BD, item_BD = random_case(queries=2, columns=2)
    given_case: dict[str, Any] = {"own_B": torch.tensor([0, 0]), "log_q_S": torch.zeros(1), "temperature": 0.1}
    loss = sampled_softmax(query_BD, item_BD[:1], count_S=torch.tensor([2]), **given_case)
    assert float(loss) == 0


def test_an_item_drawn_twice_weighs_as_two_that_are_alike() -> None:
    query_BD, item_BD = random_case(queries=1, columns=2)
    own_B = torch.zeros(1, dtype=torch.int64)
    twice = sampled_softmax(
        query_BD,
        item_BD,
        own_B=own_B,
        count_S=torch.tensor([1, 2]),
        log_q_S=torch.tensor([-1.0, -2.0]),
        temperature=0.4,
    )
    alike = sampled_softmax(
        query_BD,
        item_BD[[0, 1, 1]],
        own_B=own_B,
        count_S=torch.ones(3),
        log_q_S=torch.tensor([-1.0, -2.0, -2.0]),
        temperature=0.4,
    )
    assert float(twice) == pytest.approx(float(alike), rel=1e-6)


@pytest.mark.parametrize("positive_temperature", [None, 0.2])
def test_a_batch_of_one_has_no_negatives_to_learn_from(positive_temperature: float | None) -> None:
    query = QUERY[:1].clone().requires_grad_()
    loss = sampled_softmax(
        query,
        ITEM[:1],
        own_B=ROWS[:1],
        count_S=torch.ones(1),
        log_q_S=torch.zeros(1),
        temperature=0.1,
        positive_temperature=positive_temperature,
    )
    torch.autograd.backward(loss)
    # The bilateral softmax still pulls the query to its item: -1 / 0.2.
    assert float(loss.detach()) == pytest.approx(0 if positive_temperature is None else -5)
    assert query.grad is not None
    assert query.grad.flatten().tolist() == pytest.approx([0, 0] if positive_temperature is None else [-5, 0])


def test_hard_negatives_are_terms_without_correction_by_hand() -> None:
    # Query 0 at temperature 0.5: own 2, the other item 0, a hard one at (0.6, 0.8) 1.2. With it the sum of query 0 is
    # e^2 + e^(0 - log 0.2) + e^1.2; query 1 has none.
    item_CD = torch.cat([ITEM, QUERY[1:]])
    hard_BH = torch.tensor([[2], [-1]])
    q_S = torch.tensor([0.8, 0.2])
    loss = sampled_softmax(
        QUERY, item_CD, own_B=ROWS, count_S=torch.ones(2), log_q_S=q_S.log(), temperature=0.5, hard_BH=hard_BH
    )
    first = math.log(math.exp(2) + 1 / 0.2 + math.exp(1.2)) - 2
    second = math.log(math.exp(1.6) + math.exp(1.2) / 0.8) - 1.6
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_hard_negative_counts_once_however_often_it_is_named_or_drawn_and_never_where_it_is_the_positive() -> None:
    query_BD, item_BD = random_case(queries=3, columns=3)
    once = torch.tensor([[1], [-1], [-1]])
    again = torch.tensor([[1, 1, 0, -1], [1, 1, -1, -1], [2, -1, 2, -1]])
    drawn_less, drawn_more = (torch.tensor([0.3, q, 0.3]) for q in (0.01, 0.9))
    first = torch.tensor([1.0, 0.0, 0.0])
    expected = each_once(query_BD, item_BD, drawn_less, hard_BH=once)
    assert each_once(query_BD, item_BD, drawn_less, hard_BH=again) == pytest.approx(expected, rel=1e-6)
    # That it is there is certain, so how likely it was to be drawn counts for nothing.
    less, more = (each_once(query_BD, item_BD, q, hard_BH=once, weight_B=first) for q in (drawn_less, drawn_more))
    assert less == pytest.approx(more, rel=1e-6)


@pytest.mark.parametrize("uniform", [0, 4000])
@pytest.mark.parametrize("positive_temperature", [None, 0.4])
def test_the_sampled_loss_and_its_gradient_tend_to_the_full_softmax(
    uniform: int, positive_temperature: float | None
) -> None:
    items, width = 12, 3
    random = torch.Generator().manual_seed(1)
    q_I = torch.softmax(torch.randn(items, generator=random), 0)
    _, item_ID = random_case(queries=1, columns=items, width=width)
    _, query_of_item_ID = random_case(queries=1, columns=items, width=width, seed=2)
    errors = []
    for batch in (60, 600, 6000):
        positive_B = torch.multinomial(q_I, batch, replacement=True, generator=random)
        negative_U = torch.randint(items, (uniform * batch // 6000,), generator=random)
        row_S, column, count_S = torch.unique(
            torch.cat([positive_B, negative_U]), return_inverse=True, return_counts=True
        )
        log_q_I = mixture_log_q(q_I.log(), batch=batch, uniform=len(negative_U), items=items)
        values, gradients = [], []
        leaf = item_ID.clone().requires_grad_()
        given_case: dict[str, Any] = {"temperature": 0.3, "positive_temperature": positive_temperature}
        for value in (
            full_softmax(query_of_item_ID[positive_B], leaf, item_row_B=positive_B, **given_case),
            sampled_softmax(
                query_of_item_ID[positive_B],
                leaf[row_S],
                own_B=column[:batch],
                count_S=count_S,
                log_q_S=log_q_I[row_S],
                **given_case,
            ),
        ):
            values.append(float(value.detach()))
            gradients.append(torch.autograd.grad(value, leaf)[0])
        errors.append(float((gradients[1] - gradients[0]).norm() / gradients[0].norm()))
    assert values[1] == pytest.approx(values[0], rel=0.01)
    assert errors[-1] < min(0.05, errors[0])


def test_with_every_other_item_once_and_equally_likely_the_sampled_loss_is_the_full_one() -> None:
    query_BD, item_ID = random_case(queries=7, columns=7)
    # Six negatives, each of them any of the six other items: q = 1/6, so that n q = 1.
    sampled = each_once(query_BD, item_ID, torch.full((7,), 1 / 6))
    full = full_softmax(query_BD, item_ID, item_row_B=torch.arange(7), temperature=0.5)
    assert sampled == pytest.approx(float(full), rel=1e-6)


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

    def loss(weight_B: list[float]) -> float:
        return each_once(query_BD, item_BD, weight_B=torch.tensor(weight_B))

    single = [loss([1, 0, 0]), loss([0, 1, 0]), loss([0, 0, 1])]
    assert loss([1, 2, 5]) == pytest.approx((single[0] + 2 * single[1] + 5 * single[2]) / 8, rel=1e-6)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    cells=st.sampled_from([1, 40, 1 << 19]),
    hard=st.integers(0, 4),
    only_hard=st.integers(0, 3),
    positive_temperature=st.sampled_from([None, 0.25, 0.4]),
)
def test_some_rows_at_a_time_the_loss_and_its_gradients_are_those_of_autograd(
    seed: int, cells: int, hard: int, only_hard: int, positive_temperature: float | None
) -> None:
    given_case = case(seed=seed, hard=hard, only_hard=only_hard, weighted=bool(seed % 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_CELLS_CPU", cells)
        found = value_and_gradients(sampled_softmax, given_case, positive_temperature=positive_temperature)
    expected = value_and_gradients(plain_softmax, given_case, positive_temperature=positive_temperature)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 30.0, 3000.0])
def test_logits_of_any_size_are_numbers_and_those_of_autograd(spread: float) -> None:
    given_case = case(seed=5, hard=2, only_hard=2, weighted=True, spread=spread)
    found = value_and_gradients(sampled_softmax, given_case)
    expected = value_and_gradients(plain_softmax, given_case)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.3])
def test_products_in_bfloat16_change_gradients_over_cosines_by_less_than_a_hundredth(temperature: float) -> None:
    query_BD, item_CD = random_case(queries=300, columns=400, width=64)
    # Positives are near their queries, as in a model that has learned.
    own_B = torch.randint(400, (300,), generator=torch.Generator().manual_seed(3))
    given_case = {
        "query_BD": functional.normalize(query_BD + item_CD[own_B], dim=1),
        "item_CD": item_CD,
        "own_B": own_B,
        "count_S": torch.bincount(own_B, minlength=400).clamp(min=1),
        "log_q_S": torch.full((400,), -math.log(400)),
    }
    exact, rounded = (
        value_and_gradients(sampled_softmax, given_case, at=temperature, products=products)
        for products in (torch.float32, torch.bfloat16)
    )
    assert float(rounded[0]) == pytest.approx(float(exact[0]), rel=2e-3)
    for ours, plain in zip(rounded[1:3], exact[1:3], strict=True):
        assert float((ours - plain).norm() / plain.norm()) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_loss_and_its_gradients_are_those_of_the_cpu(products: torch.dtype) -> None:
    given_case = case(seed=7, hard=2, only_hard=2, weighted=True)
    moved = {name: value.cuda() for name, value in given_case.items()}
    found = value_and_gradients(sampled_softmax, moved, products=products)
    expected = value_and_gradients(sampled_softmax, given_case)
    tolerance = 1e-4 if products == torch.float32 else 0.05
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), plain, rtol=tolerance, atol=tolerance)


def stream(share_I: np.ndarray, *, batch: int, batches: int, seed: int = 0, **others: Any) -> StreamingShare:
    random = np.random.default_rng(seed)
    share = StreamingShare(**{"slots": 4 * len(share_I), **others})
    for _ in range(batches):
        share.update(torch.from_numpy(random.choice(len(share_I), size=batch, p=share_I)))
    return share


@pytest.mark.parametrize("batch", [4, 16, 256])
def test_the_streamed_shares_tend_to_the_true_ones_whatever_the_batch(batch: int) -> None:
    share_I = 1 / np.arange(1, 41)
    share_I /= share_I.sum()
    streamed = stream(share_I, batch=batch, batches=20_000 // batch, pace=0.02)
    ratio_I = streamed.log_q(torch.arange(40)).exp().numpy() / share_I
    assert np.abs(np.log(ratio_I)).max() < 0.5
    assert np.abs(np.log(ratio_I)).mean() < 0.1


def test_the_first_batch_gives_its_own_shares_and_what_never_appeared_has_none() -> None:
    share = StreamingShare(64)
    share.update(torch.tensor([3, 3, 3, 5]))
    assert share.log_q(torch.tensor([3, 5])).exp().tolist() == pytest.approx([0.75, 0.25])
    assert float(share.log_q(torch.tensor([4]))) == -math.inf


def test_the_streamed_share_follows_a_change() -> None:
    share = stream(np.array([0.9, 0.1]), batch=32, batches=100)
    before = float(share.log_q(torch.tensor([0])).exp())
    random = np.random.default_rng(1)
    for _ in range(200):
        share.update(torch.from_numpy(random.choice(2, size=32, p=[0.1, 0.9])))
    after = float(share.log_q(torch.tensor([0])).exp())
    assert before == pytest.approx(0.9, rel=0.1)
    assert after == pytest.approx(0.1, rel=0.5)


def test_items_that_share_a_slot_of_one_hash_are_told_apart_by_the_other() -> None:
    # 60 items in 80 slots: most meet another in one of the two hashes, few in both.
    share_I = np.full(60, 1 / 60)
    ratio_I = stream(share_I, batch=60, batches=2000, slots=80, pace=0.01).log_q(torch.arange(60)).exp() * 60
    assert float(ratio_I.min()) > 0.8
    assert float(ratio_I.median()) == pytest.approx(1, rel=0.1)


def test_what_a_stream_told_is_part_of_the_weights() -> None:
    told, fresh = stream(np.array([0.5, 0.5]), batch=4, batches=9), StreamingShare(8)
    fresh.load_state_dict(told.state_dict())
    assert torch.equal(fresh.log_q(torch.arange(2)), told.log_q(torch.arange(2)))


@pytest.mark.parametrize("pace", [0.0, 1.5])
def test_a_pace_that_cannot_be_is_refused(pace: float) -> None:
    with pytest.raises(ValueError, match=f"pace is {pace}"):
        StreamingShare(8, pace=pace)
