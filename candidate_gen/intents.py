"""Which category and which creator a query means, learned from what people took for it and from the words of items.

    P(c | w_1 .. w_n)  ~  P(c) * (prod_i P(c | w_i) / P(c)) ^ sharpness,   P(c | w) = (n_wc + s P(c)) / (n_w + s), s = 5

where n_wc of n_w texts with the word w belong to the category c (or are of the creator c). Words say the same thing
twice more often than naive Bayes believes; the exponent, which is fitted on texts that the counts do not know, makes
the probabilities honest.

Shape letters: C values (0 stands for any that is not known), V known values, N texts or items.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.search_text import UNKNOWN
from index.strings import keys64

_SMOOTHING = 5.0
_HELD_OUT = 5
"""Every so many-th text is kept to fit on."""
_FITTED_ON = 2000
"""Of those, about as many at most."""
_SHARPNESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_BINS = 10
_MOST_VALUES = 4096
"""Of an attribute, those that most items have."""

Sample = tuple[Sequence[str], int, float]
"""The words of a text, what it belongs to (a value, or an item's row where values have no numbers yet), and how many
texts it counts as."""


@dataclass(frozen=True, slots=True)
class Intents:
    """What words say about the values of something."""

    count_of: Mapping[str, Mapping[int, float]] = field(repr=False)
    prior_C: NDArray[np.float64]
    sharpness: float
    quality: Mapping[str, float]
    """On the texts held out: accuracy, log_loss, ece (in 10 bins of equal width), texts. Empty where there are none."""

    @classmethod
    def of(cls, samples: Iterable[Sample], *, values: int) -> "Intents":
        """
        Args:
            values: how many there are, with the unknown one.
        """
        every = [each for each in samples if each[1] and each[0]]
        seen = cls._counted([each for n, each in enumerate(every) if n % _HELD_OUT], values, 1.0)
        held_out = every[::_HELD_OUT]
        held_out = held_out[:: max(1, len(held_out) // _FITTED_ON)]
        known = [(p_C, each) for each in held_out if (p_C := seen._lifts(each[0])) is not None]
        if not known or not seen.count_of:
            return cls._counted(every, values, _SHARPNESS[0])
        weight_N = np.array([weight for _, (_, _, weight) in known])
        category_N = np.array([category for _, (_, category, _) in known])
        lift_NC = np.stack([lift_C for lift_C, _ in known])

        def loss(sharpness: float) -> float:
            p_N = _softmax(np.log(seen.prior_C) + sharpness * lift_NC)[np.arange(len(known)), category_N]
            return float(-(weight_N @ np.log(p_N)) / weight_N.sum())

        sharpness = min(_SHARPNESS, key=loss)
        p_NC = _softmax(np.log(seen.prior_C) + sharpness * lift_NC)
        right_N = p_NC.argmax(axis=1) == category_N
        made = cls._counted(every, values, sharpness)
        quality = {
            "accuracy": float(weight_N @ right_N / weight_N.sum()),
            "log_loss": loss(sharpness),
            "ece": _calibration_error(p_NC.max(axis=1), right_N, weight_N),
            "texts": float(len(known)),
        }
        return cls(made.count_of, made.prior_C, sharpness, quality)

    @classmethod
    def _counted(cls, samples: Sequence[Sample], values: int, sharpness: float) -> "Intents":
        count_of: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        total_C = np.full(values, 1e-3)
        for split, category, weight in samples:
            total_C[category] += weight
            for word in set(split):
                count_of[word][category] += weight
        return cls({word: dict(each) for word, each in count_of.items()}, total_C / total_C.sum(), sharpness, {})

    def probabilities(self, split: Sequence[str]) -> NDArray[np.float64] | None:
        """Of every value, given a query's words; None where no word is known."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """What a query means of one attribute of items."""

    attribute: str
    key_V: NDArray[np.uint64]
    """`key64` of the values, ascending."""
    probability_C: NDArray[np.float64]

    def of(self, items: Items, row_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """How likely each item's own value is meant, (N,); 0 where it is not known."""
        column = items.attributes.get(self.attribute)
        if column is None:
            return np.zeros(len(row_N))
        code_N = _codes(self.key_V, np.asarray(column[row_N]))
        return np.where(code_N > 0, self.probability_C[code_N], 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeIntents:
    """What words say about the values of an attribute of items."""

    attribute: str
    key_V: NDArray[np.uint64]
    """`key64` of the values, ascending."""
    names: Sequence[str]
    intents: Intents

    @classmethod
    def of(cls, items: Items, attribute: str, samples: Iterable[Sample]) -> Self:
        """
        Args:
            samples: texts that belong to rows of items.
        """
        column = items.attributes.get(attribute)
        key_I = np.zeros(len(items), np.uint64) if column is None else np.asarray(column)
        key_V, count_V = np.unique(key_I[key_I != 0], return_counts=True)
        key_V = np.sort(key_V[np.lexsort((key_V, -count_V))[:_MOST_VALUES]])
        names = [name for name in items.texts_of(key_V) if name not in ("", UNKNOWN)]
        key_V = keys64(names)
        code_I = _codes(key_V, key_I).tolist()
        coded = ((split, code_I[row], weight) for split, row, weight in samples)
        return cls(attribute=attribute, key_V=key_V, names=names, intents=Intents.of(coded, values=len(names) + 1))

    @property
    def stored(self) -> dict[str, Any]:
        """What `load` reads, as JSON has it."""
        return {
            "names": list(self.names),
            "words": {word: [list(count), list(count.values())] for word, count in self.intents.count_of.items()},
            "prior": self.intents.prior_C.tolist(),
            "sharpness": self.intents.sharpness,
            "quality": dict(self.intents.quality),
        }

    @classmethod
    def load(cls, attribute: str, stored: Mapping[str, Any]) -> Self:
        """What `stored` was."""
        count_of = {word: dict(zip(*count, strict=True)) for word, count in stored["words"].items()}
        intents = Intents(count_of, np.array(stored["prior"]), stored["sharpness"], stored["quality"])
        return cls(attribute=attribute, key_V=keys64(stored["names"]), names=stored["names"], intents=intents)

    def meant(self, split: Sequence[str]) -> Meant | None:
        """By a query's words; None where no word is known."""
        probability_C = self.intents.probabilities(split)
        if probability_C is None:
            return None
        return Meant(attribute=self.attribute, key_V=self.key_V, probability_C=probability_C)

    def likeliest(self, meant: Meant | None, most: int, *, least: float) -> tuple[tuple[str, float], ...]:
        """The values that are most likely meant, with their probabilities."""
        if meant is None:
            return ()
        likely_C = np.flatnonzero(meant.probability_C >= least)
        first = likely_C[np.argsort(-meant.probability_C[likely_C], kind="stable")][:most].tolist()
        return tuple((self.names[c - 1], float(meant.probability_C[c])) for c in first if c)


def _codes(key_V: NDArray[np.uint64], key_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """From 1; 0 for what is none of the keys."""
    at_N = np.searchsorted(key_V, key_N)
    is_known_N = np.append(key_V, np.uint64(0))[at_N] == key_N
    return np.where(is_known_N & (key_N != 0), at_N + 1, 0)


def _softmax(score_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    power_NC = np.exp(score_NC - score_NC.max(axis=-1, keepdims=True))
    softmax_NC: NDArray[np.float64] = power_NC / power_NC.sum(axis=-1, keepdims=True)
    return softmax_NC


def _calibration_error(p_N: NDArray[np.float64], right_N: NDArray[np.bool_], weight_N: NDArray[np.float64]) -> float:
    bin_N = np.minimum((p_N * _BINS).astype(np.int64), _BINS - 1)
    gap = np.bincount(bin_N, weight_N * (p_N - right_N), _BINS)
    return float(np.abs(gap).sum() / weight_N.sum())
