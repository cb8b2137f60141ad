"""Beside `AdamW` where every row is touched, beside `SparseAdam` where few are."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from training.learning.row_adam import RowAdamW

ROWS, WIDTH = 30, 4
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def start(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def rows_of_steps(steps: int, *, touched: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(ROWS, (touched,), generator=random) for _ in range(steps)]


def after(make: Make, steps: Sequence[Tensor], *, sparse: bool) -> Tensor:
    """The weights after a step for each of `steps`: rows, which may repeat, that are pulled to different places."""
    weight = start()
    optimizer = make([weight])
    for step, row_R in enumerate(steps):
        optimizer.zero_grad()
        read_RD = torch.nn.functional.embedding(row_R, weight, sparse=sparse)
        torch.autograd.backward((read_RD - row_R[:, None].sin() - step / 9).square().sum())
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_where_every_row_is_touched_it_is_adamw(decay: float) -> None:
    steps = [torch.arange(ROWS)] * 25
    row_wise = after(lambda w: RowAdamW(w, lr=0.05, weight_decay=decay, fused=True), steps, sparse=True)
    plain = after(lambda w: torch.optim.AdamW(w, lr=0.05, weight_decay=decay), steps, sparse=False)
    torch.testing.assert_close(row_wise, plain, rtol=1e-5, atol=1e-5)
    assert float((plain - start().detach()).abs().max()) > 0.5


def test_where_few_rows_are_touched_it_is_sparse_adam() -> None:
    steps = rows_of_steps(40, touched=7)
    # The two place eps differently, by a factor near 1.
    row_wise = after(lambda w: RowAdamW(w, lr=0.05, weight_decay=0.0, eps=1e-12), steps, sparse=True)
    peer = after(lambda w: torch.optim.SparseAdam(w, lr=0.05, eps=1e-12), steps, sparse=True)
    torch.testing.assert_close(row_wise, peer, rtol=1e-4, atol=1e-4)
    assert float((peer - start().detach()).abs().max()) > 0.5


def test_dense_gradients_are_treated_as_by_adamw() -> None:
    steps = rows_of_steps(40, touched=7)
    row_wise, plain = (
        after(lambda w, of=of: of(w, lr=0.05, weight_decay=0.1, fused=True), steps, sparse=False)  # type: ignore[misc]
        for of in (RowAdamW, torch.optim.AdamW)
    )
    assert torch.equal(row_wise, plain)


def test_rows_that_a_step_does_not_name_neither_move_nor_decay() -> None:
    first, second = torch.arange(10), torch.arange(5, 15)
    once, twice = (
        after(lambda w: RowAdamW(w, lr=0.05, weight_decay=0.1), steps, sparse=True)
        for steps in ([first], [first, second])
    )
    assert torch.equal(twice[:5], once[:5])
    assert not torch.isclose(twice[5:15], once[5:15]).any()
    assert torch.equal(twice[15:], start().detach()[15:])


def test_one_optimizer_takes_sparse_and_dense_gradients_and_leaves_them_as_they_were() -> None:
    table, dense = start(), start(1)
    optimizer = RowAdamW([table, dense], lr=0.05, weight_decay=0.0, fused=True)
    row_R = torch.tensor([2, 2, 5])
    loss = (torch.nn.functional.embedding(row_R, table, sparse=True) * dense[:3]).sum()
    torch.autograd.backward(loss)
    gradient = table.grad
    before = table.detach().clone()
    optimizer.step()
    assert table.grad is gradient
    moved = (table.detach() != before).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 5]
    assert (dense.detach() != start(1).detach()).any(1).nonzero().flatten().tolist() == [0, 1, 2]


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    steps = rows_of_steps(12, touched=7)

    def run(weight: Tensor, optimizer: RowAdamW, part: Sequence[Tensor]) -> None:
        for row_R in part:
            optimizer.zero_grad()
            read_RD = torch.nn.functional.embedding(row_R, weight, sparse=True)
            torch.autograd.backward((read_RD - 1).square().sum())
            optimizer.step()

    whole, stopped = start(), start()
    run(whole, RowAdamW([whole], lr=0.05), steps)
    first = RowAdamW([stopped], lr=0.05)
    run(stopped, first, steps[:5])
    resumed = stopped.detach().clone().requires_grad_()
    second = RowAdamW([resumed], lr=0.05)
    second.load_state_dict(first.state_dict())
    run(resumed, second, steps[5:])
    assert torch.equal(resumed, whole)
