"""Whether to train again: which alarms ask for it, and which forbid it."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.monitoring.checks import Check
from training.monitoring.limits import Limits


class AlarmsRaised(ValueError):
    """Something is wrong that training anew does not mend; the message lists it."""


class RetrainAdvised(ValueError):
    """What is served no longer fits what comes; the message says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do."""

    retrain: bool
    reasons: tuple[str, ...]
    """Why, whether or not it is held back."""
    held_back_by: tuple[str, ...]
    """What must be mended first."""
    alarms: int

    @classmethod
    def of(cls, found: Sequence[Check], limits: Limits) -> "Verdict":
        alarms = loudest([check for check in found if check.alarm])
        reasons = tuple(sentence(each) for each in alarms if each.section in limits.retrain_on)
        held_back_by = tuple(sentence(each) for each in alarms if each.section in limits.held_back_by)
        return cls(bool(reasons) and not held_back_by, reasons, held_back_by, len(alarms))

    def require(self, *, where: str) -> None:
        """
        Raises:
            RetrainAdvised, AlarmsRaised: for what was found.
        """
        if self.retrain:
            raise RetrainAdvised(f"train again: {'; '.join(self.reasons)}; see {where}")
        if self.alarms:
            first = (*self.held_back_by, *self.reasons)
            named = f": {'; '.join(first)}" if first else ""
            raise AlarmsRaised(f"{self.alarms} alarm{'' if self.alarms == 1 else 's'}{named}; see {where}")


def loudest(found: Sequence[Check]) -> list[Check]:
    """Of what several statistics say of one thing, the one that is furthest beyond its limit; in their order."""
    first: dict[tuple[str, str], Check] = {}
    for check in found:
        held = first.get((check.section, check.name))
        if held is None or (check.alarm, check.ratio) > (held.alarm, held.ratio):
            first[check.section, check.name] = check
    return list(first.values())


def sentence(check: Check) -> str:
    """A comparison in words."""
    name = f"{check.section}: {check.name}"
    match check.statistic:
        case "change":
            relative = f", {check.value / check.then:+.0%}" if check.then else ""
            return f"{name} is {check.now:.3g}, was {check.then:.3g}{relative} (limit {check.limit:.2g} off)"
        case "age":
            return f"{name}: {check.now:.3g} (limit {check.limit:g})"
        case "similarity":
            return f"{name} are {check.now:.2f} alike (at least {1 - check.limit:.2f})"
        case "share":
            return f"{name} differs in {check.value:.2%} of rows (limit {check.limit:.2%})"
    word = {"psi": "PSI", "ks": "KS", "wasserstein": "Wasserstein"}[check.statistic]
    return f"{name} has moved, {word} {check.value:.2g} (limit {check.limit:.2g}, its own days {check.then:.2g})"
