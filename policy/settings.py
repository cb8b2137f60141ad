"""The knobs of the draw, as one immutable value that a generation stores and an impression names."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from hashlib import sha256
from typing import Literal

MAX_MINIMA = 24
"""Categories with a minimum."""
_ADDED = (
    "diversity_by",
    "category_window",
    "creator_window",
    "min_per_category",
    "duplicate_attribute",
    "fresh_floor",
)


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What the slate is worth, what it must hold, and how much is left to chance.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """

    weights: Mapping[str, float]
    """Utility of one outcome of each action; an action that is not named here is worth nothing.

    Signs are validated, because a harm that counts as a gain is the costliest typing error there is: a weight is
    at most 0 for a negative action, at least 0 for every other, and one of them is above 0.
    """
    negative_actions: tuple[str, ...] = ("hide", "dislike", "report", "block")
    """Actions that nobody wants more of."""
    temperature: float = 0.1
    """Of the softmax over adjusted utilities, in units of utility; 0 takes the best."""
    epsilon: float = 0.05
    """Share of draws that are uniform over the feasible items: every feasible item has at least epsilon / N."""
    diversity: float = 0.05
    """Utility lost by an item whose direction the slate already holds (the lambda of MMR)."""
    diversity_by: Literal["mmr", "dpp"] = "mmr"
    """Similarity to the nearest item of the slate, or what a determinantal point process makes of all of them."""
    freshness_weight: float = 0.0
    """Utility gained by an item published this instant."""
    half_life_days: float = 7.0
    """Age at which half of that gain is left."""
    max_per_category: int = 0
    """Items of one category in a slate; 0 sets no cap."""
    category_window: int = 0
    """Consecutive slots for which that cap holds, wherever they begin; 0: the whole slate."""
    max_per_creator: int = 0
    """Items of one creator in a slate; 0 sets no cap."""
    creator_window: int = 0
    """Consecutive slots for which that cap holds, wherever they begin; 0: the whole slate."""
    min_per_category: Mapping[str, int] = field(default_factory=dict)
    """Items of a category, by its name, that a slate holds at least."""
    duplicate_attribute: str = ""
    """Item attribute whose value duplicates share: a slate holds at most one of them; empty: there are none."""
    fresh_quota: float = 0.0
    """Share of the slots that hold fresh items at least, rounded up to whole slots."""
    fresh_floor: float = 0.0
    """Share of draws that are uniform over the feasible fresh items, where there are any."""
    fresh_days: float = 1.0
    """Age up to which an item is fresh."""

    def __post_init__(self) -> None:
        weights = {action: _number(f"weights.{action}", w, -1e6, 1e6) for action, w in dict(self.weights).items()}
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("epsilon", 0.0, 1.0),
            ("diversity", 0.0, 1e6),
            ("freshness_weight", 0.0, 1e6),
            ("half_life_days", 0.0, math.inf),
            ("fresh_quota", 0.0, 1.0),
            ("fresh_floor", 0.0, 1.0),
            ("fresh_days", 0.0, math.inf),
        ):
            object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        for name in ("max_per_category", "category_window", "max_per_creator", "creator_window"):
            _check_whole(name, getattr(self, name))
        minima = dict(self.min_per_category)
        for category, least in minima.items():
            _check_whole(f"min_per_category[{category!r}]", least)
        if len(minima) > MAX_MINIMA:
            raise ValueError(f"min_per_category names {len(minima)} categories; at most {MAX_MINIMA} are allowed")
        if self.diversity_by not in ("mmr", "dpp"):
            raise ValueError(f"diversity_by is {self.diversity_by!r}; it must be mmr or dpp")
        if not isinstance(self.duplicate_attribute, str):
            raise ValueError(f"duplicate_attribute is {self.duplicate_attribute!r}; the name of an attribute is needed")
        if not self.half_life_days:
            raise ValueError("half_life_days is 0.0; it must be above 0")
        negative = self.negative_actions
        if not isinstance(negative, tuple | list) or not all(isinstance(action, str) for action in negative):
            raise ValueError(f"negative_actions is {negative!r}; a list of action names is needed")
        object.__setattr__(self, "min_per_category", minima)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "negative_actions", tuple(negative))
        self._check_signs()
        self._check_together()

    def _check_together(self) -> None:
        """That no two settings contradict each other."""
        if self.epsilon + self.fresh_floor > 1:
            raise ValueError(
                f"epsilon is {self.epsilon} and fresh_floor is {self.fresh_floor}; together they are at most 1"
            )
        for kind in ("category", "creator"):
            most, window = getattr(self, f"max_per_{kind}"), getattr(self, f"{kind}_window")
            if window and not 0 < most < window:
                raise ValueError(
                    f"{kind}_window is {window} and max_per_{kind} {most}; a cap of a window is from 1 to {window - 1}"
                )
        for category, least in self.min_per_category.items():
            if self.max_per_category and not self.category_window and least > self.max_per_category:
                raise ValueError(
                    f"min_per_category[{category!r}] is {least} and max_per_category {self.max_per_category}; "
                    "no slate holds as many and as few"
                )

    def _check_signs(self) -> None:
        for action, weight in self.weights.items():
            negative = action in self.negative_actions
            if weight > 0 and negative:
                raise ValueError(f"weights.{action} is {weight}; {action!r} is a negative action, at most 0 is allowed")
            if weight < 0 and not negative:
                allowed = ", ".join(self.negative_actions) or "none"
                raise ValueError(f"weights.{action} is {weight}; below 0 only for negative actions ({allowed})")
        if not any(weight > 0 for weight in self.weights.values()):
            raise ValueError(f"weights are {dict(self.weights)}; at least one must be above 0")

    @cached_property
    def fingerprint(self) -> str:
        """Equal fingerprints, equal draws from equal candidates."""
        return sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Without what was added since the first generations were published and has its default: theirs must go on to
        have the fingerprints that they were published with."""
        written = asdict(self)
        for each in fields(self):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if each.name in _ADDED and written[each.name] == default:
                del written[each.name]
        return json.dumps(written, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "PolicySettings":
        """Settings that `to_json` wrote, or a person: fields left out keep their defaults."""
        try:
            read = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"policy settings are not JSON: {error}") from error
        if not isinstance(read, dict) or not isinstance(read.get("weights"), dict):
            raise ValueError('policy settings must be a JSON object with "weights", an object of action: number')
        known = [each.name for each in fields(cls)]
        for name in read:
            if name not in known:
                nearest = get_close_matches(name, known, 1, 0.0)[0]
                raise ValueError(f"no policy setting {name!r}; the nearest is {nearest!r}")
        return cls(**read)


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}; a whole number is needed, 0 for none")


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; a finite number is needed")
    if not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    return float(value)
