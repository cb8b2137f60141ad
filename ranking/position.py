"""Position bias: an outcome needs the item to be examined first.

P(action | item, position) = P(examined | position) * P(action | item, examined)

The second factor is the ranker's and serves alone; the first is learned beside it from the log and stays in training.
Both can be told apart because exploration shows one item at many positions. Richardson et al. 2007, "Predicting
clicks: estimating the click-through rate for new ads" (the examination hypothesis).

Shape letters: B rows, P positions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

_CERTAIN = 30.0
"""Logit of the anchor: a probability of 1 to the last bit of a float32."""


class Examination(nn.Module):
    """A table of examination logits by position. No shape is imposed: it need not fall from slot to slot.

    Position 0 is examined with probability 1, which fixes the scale that the product leaves open. So is -1 (shown
    outside any list). Positions beyond the table share its last entry.
    """

    logit_P: Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        if positions < 1:
            raise ValueError(f"an examination table needs at least 1 position, got {positions}")
        self.logit_P = nn.Parameter(torch.ones(positions - 1))

    def forward(self, position_B: Tensor) -> Tensor:
        """Examination logits, (B,)."""
        logit_P = functional.pad(self.logit_P, (1, 0), value=_CERTAIN)
        return logit_P[position_B.clamp(0, len(logit_P) - 1)]

    @property
    def curve_P(self) -> NDArray[np.float64]:
        """P(examined | position) of every position in the table."""
        with torch.inference_mode():
            curve: NDArray[np.float64] = torch.sigmoid(self(torch.arange(len(self.logit_P) + 1)).double()).cpu().numpy()
        return curve
