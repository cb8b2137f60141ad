"""What the ranker is trained to minimise.

Shape letters: B rows, A actions, R requests.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def action_loss(
    logit_BA: Tensor, label_BA: Tensor, *, examination_B: Tensor | None = None, weight_B: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each action, (A,), averaged over the rows with their weights.

    With z the action's logit and l the logit of examination, P(label) = sigmoid(l) * sigmoid(z), hence
    -log P = -log sigmoid(l) - log sigmoid(z) and
    -log(1 - P) = -log(sigmoid(-z) + sigmoid(-l) * sigmoid(z)), both without cancellation at either end.

    Args:
        examination_B: logits of P(examined | position); every row counts as examined where left out.
        weight_B: such as `inverse_propensity_weights`; not negative.
    """
    hit_BA, miss_BA = functional.logsigmoid(logit_BA), functional.logsigmoid(-logit_BA)
    if examination_B is not None:
        seen_B1, unseen_B1 = (
            functional.logsigmoid(examination_B)[:, None],
            functional.logsigmoid(-examination_B)[:, None],
        )
        hit_BA, miss_BA = seen_B1 + hit_BA, torch.logaddexp(miss_BA, unseen_B1 + hit_BA)
    loss_BA = -(label_BA * hit_BA + (1 - label_BA) * miss_BA)
    if weight_B is None:
        return loss_BA.mean(0)
    return (loss_BA * weight_B[:, None]).sum(0) / weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)


def listwise_loss(
    logit_B: Tensor, label_B: Tensor, request_B: Tensor, *, examination_B: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy of the positive rows among the rows of their request, averaged over positive rows.

    0 where no row is positive. Requests must be whole. Cao et al. 2007, "Learning to rank: from pairwise approach
    to listwise approach", in the top-one form.

    Args:
        request_B: numbers of the requests in 0..R-1, in any order.
        examination_B: logits of P(examined | position), whose log-probability shifts a row's chance in its list.
    """
    if examination_B is not None:
        logit_B = logit_B + functional.logsigmoid(examination_B)
    requests = int(request_B.max()) + 1 if len(request_B) else 0
    highest_R = torch.full((requests,), -torch.inf, dtype=logit_B.dtype, device=logit_B.device)
    highest_R = highest_R.scatter_reduce(0, request_B, logit_B.detach(), "amax")
    mass_B = (logit_B - highest_R[request_B]).exp()
    total_R = torch.zeros(requests, dtype=logit_B.dtype, device=logit_B.device).index_add(0, request_B, mass_B)
    log_share_B = logit_B - highest_R[request_B] - total_R.log()[request_B]
    return -(label_B * log_share_B).sum() / label_B.sum().clamp(min=1)


def inverse_propensity_weights(propensity_N: NDArray[np.float64], *, clip: float) -> NDArray[np.float32]:
    """min(1 / propensity, clip), scaled to a mean of 1; a clip of 1 weighs all rows alike.

    Clipping trades bias for variance. Swaminathan & Joachims 2015, "Counterfactual risk minimization".

    Raises:
        ValueError: for a clip below 1 or a propensity outside (0, 1].
    """
    if not clip >= 1:
        raise ValueError(f"the clip must be at least 1, got {clip}")
    if not len(propensity_N):
        return np.empty(0, np.float32)
    wrong_N = ~((propensity_N > 0) & (propensity_N <= 1))
    if wrong_N.any():
        raise ValueError(
            f"{int(wrong_N.sum())} of {len(wrong_N)} propensities lie outside (0, 1], "
            f"the first is {float(propensity_N[wrong_N][0])}"
        )
    weight_N = np.minimum(1 / propensity_N, clip)
    normalised_N: NDArray[np.float32] = (weight_N / weight_N.mean()).astype(np.float32)
    return normalised_N
