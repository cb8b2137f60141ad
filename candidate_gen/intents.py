"""Which category a query means, learned from what people took for it and from the words of titles.

    P(c | w_1 .. w_n)  ~  P(c) * (prod_i P(c | w_i) / P(c)) ^ sharpness,   P(c | w) = (n_wc + s P(c)) / (n_w + s), s = 5

where n_wc of n_w texts with the word w belong to the category c. Words say the same thing twice more often than naive
Bayes believes; the exponent, which is fitted on texts that the counts do not know, makes the probabilities honest.

Shape letters: C categories (0 is the unknown one), N texts.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SMOOTHING = 5.0
_HELD_OUT = 5
"""Every so many-th text is fitted on."""
_SHARPNESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_BINS = 10

Sample = tuple[Sequence[str], int, float]
"""The words of a text, its category, and how many texts it counts as."""


@dataclass(frozen=True, slots=True)
class Intents:
    """What words say about categories."""

    count_of: Mapping[str, Mapping[int, float]] = field(repr=False)
    prior_C: NDArray[np.float64]
    sharpness: float
    quality: Mapping[str, float]
    """On the texts held out: accuracy, log_loss, ece (in 10 bins of equal width), texts. Empty where there are none."""

    @classmethod
    def of(cls, samples: Iterable[Sample], *, categories: int) -> "Intents":
        """
        Args:
            categories: how many there are, with the unknown one.
        """
        every = [each for each in samples if each[1] and each[0]]
        seen = cls._counted([each for n, each in enumerate(every) if n % _HELD_OUT], categories, 1.0)
        held_out = every[::_HELD_OUT]
        known = [(p_C, each) for each in held_out if (p_C := seen._lifts(each[0])) is not None]
        if not known or not seen.count_of:
            return cls._counted(every, categories, _SHARPNESS[0])
        weight_N = np.array([weight for _, (_, _, weight) in known])
        category_N = np.array([category for _, (_, category, _) in known])
        lift_NC = np.stack([lift_C for lift_C, _ in known])

        def loss(sharpness: float) -> float:
            p_N = _softmax(np.log(seen.prior_C) + sharpness * lift_NC)[np.arange(len(known)), category_N]
            return float(-(weight_N @ np.log(p_N)) / weight_N.sum())

        sharpness = min(_SHARPNESS, key=loss)
        p_NC = _softmax(np.log(seen.prior_C) + sharpness * lift_NC)
        right_N = p_NC.argmax(axis=1) == category_N
        made = cls._counted(every, categories, sharpness)
        quality = {
            "accuracy": float(weight_N @ right_N / weight_N.sum()),
            "log_loss": loss(sharpness),
            "ece": _calibration_error(p_NC.max(axis=1), right_N, weight_N),
            "texts": float(len(known)),
        }
        return cls(made.count_of, made.prior_C, sharpness, quality)

    @classmethod
    def _counted(cls, samples: Sequence[Sample], categories: int, sharpness: float) -> "Intents":
        count_of: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        total_C = np.full(categories, 1e-3)
        for split, category, weight in samples:
            total_C[category] += weight
            for word in set(split):
                count_of[word][category] += weight
        return cls({word: dict(each) for word, each in count_of.items()}, total_C / total_C.sum(), sharpness, {})

    def probabilities(self, split: Sequence[str]) -> NDArray[np.float64] | None:
        """Of every category, given a query's words; None where no word is known."""
        lift_C = self._lifts(split)
        return None if lift_C is None else _softmax(np.log(self.prior_C) + self.sharpness * lift_C)

    def _lifts(self, split: Sequence[str]) -> NDArray[np.float64] | None:
        """Sum over the words of ln P(c | w) / P(c)."""
        known = [self.count_of[word] for word in dict.fromkeys(split) if word in self.count_of]
        if not known:
            return None
        lift_C = np.zeros(len(self.prior_C))
        for count in known:
            code, n_wc = np.array(list(count)), np.array(list(count.values()))
            n_w = n_wc.sum()
            lift_C += np.log(_SMOOTHING / (n_w + _SMOOTHING))
            lift_C[code] += np.log1p(n_wc / (_SMOOTHING * self.prior_C[code]))
        return lift_C


def _softmax(score_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    power_NC = np.exp(score_NC - score_NC.max(axis=-1, keepdims=True))
    softmax_NC: NDArray[np.float64] = power_NC / power_NC.sum(axis=-1, keepdims=True)
    return softmax_NC


def _calibration_error(p_N: NDArray[np.float64], right_N: NDArray[np.bool_], weight_N: NDArray[np.float64]) -> float:
    bin_N = np.minimum((p_N * _BINS).astype(np.int64), _BINS - 1)
    gap = np.bincount(bin_N, weight_N * (p_N - right_N), _BINS)
    return float(np.abs(gap).sum() / weight_N.sum())
