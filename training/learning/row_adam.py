"""Adam for embedding tables of which a step touches few rows.

Shape letters: R rows that a gradient names, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class RowAdamW(torch.optim.AdamW):
    """AdamW in which a sparse gradient moves, decays and costs only the rows that it names.

    The moments of other rows stay as they are, as in `torch.optim.SparseAdam`: a row that is seldom touched does not
    drift on momentum in between. Dense gradients are treated as by AdamW, fused.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (group, weight)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None and weight.grad.is_sparse
        ]
        gradients = [weight.grad for _, weight in sparse]
        for group, weight in sparse:
            self._step_rows(weight, weight.grad.coalesce(), group)
            weight.grad = None
        super().step()
        for (_, weight), gradient in zip(sparse, gradients, strict=True):
            weight.grad = gradient
        return loss

    def _step_rows(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        row_R, (beta1, beta2) = gradient.indices()[0], group["betas"]
        held = [weight, state["exp_avg"], state["exp_avg_sq"]]
        weight_RD, first_RD, second_RD = (each.index_select(0, row_R) for each in held)
        adamw(
            [weight_RD],
            [gradient.values()],
            [first_RD],
            [second_RD],
            [],
            [state["step"]],
            foreach=False,
            fused=bool(group["fused"]),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for each, rows in zip(held, (weight_RD, first_RD, second_RD), strict=True):
            each.index_copy_(0, row_R, rows)
