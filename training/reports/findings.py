"""What a run's numbers say, in sentences: good or bad as they are, nothing that the numbers do not hold."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

CALLS = ("recommend", "search", "rank", "write", "activate", "total", "client")
"""Names in `latency_ms` that are whole calls and not stages of one; `client` is what a caller sees."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and whether the reader can be glad of it."""

    verdict: Literal["good", "bad", "note"]
    text: str


def number(summary: Mapping[str, Any], path: str) -> float:
    """A value of a summary by its dotted path; NaN where it is absent or not a number."""
    at: Any = summary
    for key in path.split("."):
        at = at.get(key) if isinstance(at, Mapping) else None
    return float(at) if isinstance(at, int | float) and not isinstance(at, bool) else math.nan


def findings(summary: Mapping[str, Any]) -> list[Finding]:
    """Every sentence that the summary has the numbers for, most important first."""
    return [
        *_rewards(summary),
        *_estimate(summary),
        *_replay(summary),
        *_requests(summary),
        *_index(summary),
        *_ranker(summary),
        *_latency(summary),
    ]


def _rewards(summary: Mapping[str, Any]) -> Iterator[Finding]:
    popularity, cycle1, cycle2, oracle = (
        number(summary, f"reward.{name}") for name in ("popularity", "cycle1", "cycle2", "oracle")
    )
    if _all(cycle1, cycle2):
        if cycle2 > cycle1:
            part = 100 * (cycle2 - cycle1) / (oracle - cycle1) if _all(oracle) and oracle > cycle1 else math.nan
            yield Finding(
                "good",
                f"Cycle 2, trained on what cycle 1 served and logged, earns {_more(cycle2, cycle1)} than cycle 1"
                + (f" and closes {part:.0f}% of its distance to the oracle." if _all(part) else "."),
            )
        else:
            yield Finding(
                "bad",
                f"Cycle 2 does not beat cycle 1: {cycle2:.3g} against {cycle1:.3g} per request. Its training log may "
                "be too short, or exploration too narrow; compare several seeds before drawing a conclusion.",
            )
    if _all(popularity, cycle1):
        if cycle1 > popularity:
            yield Finding("good", f"Cycle 1 earns {_more(cycle1, popularity)} than showing what is popular.")
        else:
            yield Finding("bad", f"Cycle 1 ({cycle1:.3g}) does not beat showing what is popular ({popularity:.3g}).")


def _estimate(summary: Mapping[str, Any]) -> Iterator[Finding]:
    value, low, high, truth = (number(summary, f"ope.{name}") for name in ("estimate", "low", "high", "truth"))
    if not _all(value, low, high):
        return
    slots = number(summary, "ope.slots")
    reach = " in the first slot" if slots == 1 else f" in the first {slots:.0f} slots" if _all(slots) else ""
    interval = f"{value:.3g}{reach} with a 95% interval of {low:.3g} to {high:.3g}"
    if refused := summary["ope"].get("refused"):
        yield Finding(
            "note",
            f"Cycle 2 is not estimated from the log of cycle 1, which says too little about it: {refused}. More "
            "requests or more exploration (policy.epsilon, policy.temperature) would help. It would have said "
            f"{interval}{f'; the truth is {truth:.3g}' if _all(truth) else ''}.",
        )
    elif not _all(truth):
        yield Finding("note", f"The new policy is estimated at {interval}; nobody knows the truth here.")
    elif low <= truth <= high:
        yield Finding("good", f"Before it was shown, cycle 2 was estimated at {interval}; the truth is {truth:.3g}.")
    else:
        yield Finding("bad", f"The off-policy estimate, {interval}, misses the truth, {truth:.3g}.")


def _replay(summary: Mapping[str, Any]) -> Iterator[Finding]:
    requests, mismatches = number(summary, "replay.requests"), number(summary, "replay.mismatches")
    if _all(requests, mismatches):
        if not requests:
            yield Finding("bad", "No request was replayed, so nothing shows that the log can be trusted.")
        elif mismatches:
            yield Finding("bad", f"{mismatches:,.0f} of {requests:,.0f} replayed requests gave another answer.")
        else:
            yield Finding("good", f"All {requests:,.0f} replayed requests gave the same slate and propensities again.")


def _requests(summary: Mapping[str, Any]) -> Iterator[Finding]:
    served, failed = number(summary, "requests.served"), number(summary, "requests.failed")
    if _all(served, failed):
        if failed:
            yield Finding(
                "bad", f"{failed:,.0f} requests failed and {served:,.0f} were served; see the run's server.log."
            )
        else:
            yield Finding("good", f"{served:,.0f} requests were served over the wire and none failed.")


def _index(summary: Mapping[str, Any]) -> Iterator[Finding]:
    recall = number(summary, "index.recall")
    if _all(recall):
        good = recall >= 0.95
        yield Finding(
            "good" if good else "bad",
            f"The index finds {100 * recall:.1f}% of what exact search finds"
            + ("." if good else ": raise index.recall_target, which costs time per query."),
        )


def _ranker(summary: Mapping[str, Any]) -> Iterator[Finding]:
    tree = summary.get("ranker", {})
    newest = tree.get(max((name for name in tree if name.startswith("cycle")), default=""), tree)
    errors = {name: value for name, value in flat(newest).items() if name.endswith("ece") and _all(value)}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        good = errors[worst] <= 0.05
        yield Finding(
            "good" if good else "bad",
            f"The ranker's probabilities are at worst {100 * errors[worst]:.1f} points off on average ({worst})"
            + ("." if good else "; a utility that adds up such probabilities misleads."),
        )


def _latency(summary: Mapping[str, Any]) -> Iterator[Finding]:
    medians = {name: number(summary, f"latency_ms.{name}.p50") for name in summary.get("latency_ms", {})}
    parts = {name: p50 for name, p50 in medians.items() if name not in CALLS and _all(p50)}
    if len(parts) > 1 and sum(parts.values()) > 0:
        slowest = max(parts, key=lambda name: parts[name])
        share = 100 * parts[slowest] / sum(parts.values())
        yield Finding("note", f"Of the stages, {slowest} takes most of a request's time ({share:.0f}% of the medians).")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _all(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _more(value: float, than: float) -> str:
    """ "12% more", or the difference where a percentage means nothing."""
    return f"{100 * (value / than - 1):.0f}% more" if than > 0 else f"{value - than:.3g} more per request"


def utc(time_ms: int) -> str:
    """A time for people, to the minute."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M}"
