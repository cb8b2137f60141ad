"""The page of an estimate draws what was estimated, says what follows in words, and refuses to where nothing does."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.ope import Estimate, diagnose, propensity_bins
from training.off_policy.estimate import HEADLINE, Estimates, SliceEstimate
from training.reports import estimate_report

NAMES = ("sips", "sn_sips", "rips", "sn_rips", "cascade_dr", "sn_cascade_dr", HEADLINE)


def around(value: float, half: float = 0.1, *, n: int = 900) -> Estimate:
    return Estimate(value, value - half, value + half, 400.0, 3.0, n)


UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0.0, 0.0, 900)


def estimates(**changes: Any) -> Estimates:
    half_N = np.full(900, 0.5)
    bins = propensity_bins(np.tile([0.2, 0.8], (900, 1)), (np.arange(900) % 5 > 0).astype(np.int64))
    overlap = diagnose(half_N, half_N, outside_support=0.02, actions_N=2, bins=bins)
    made = Estimates(
        depth=2,
        by_name=dict.fromkeys(NAMES, around(1.5)),
        logged=around(1.2),
        uplift=around(0.3),
        overlap=overlap,
        by_depth=(overlap, overlap, replace(overlap, effective_sample_size=90.0)),
        bins=bins,
        slices=(
            SliceEstimate("surface", "home", 2, around(1.6), around(1.2), around(0.4), ()),
            SliceEstimate("surface", "search", 2, around(1.1), around(1.2), around(-0.2), ()),
            SliceEstimate("users", "new", 1, around(1.1), around(1.2), around(-0.1), ("effective sample size 9.0",)),
        ),
    )
    return replace(made, **changes)


def a_report(**changes: Any) -> dict[str, Any]:
    return estimate_report.report(estimates(**changes), target="000002-b", logged="000001-a")


def sentences(**changes: Any) -> list[tuple[str, str]]:
    return [(each["verdict"], each["text"]) for each in a_report(**changes)["findings"]]


def test_everything_is_drawn_and_nothing_is_fetched() -> None:
    text = estimate_report.html(a_report())
    assert text.count("<svg") == text.count("<figure") == 4
    assert "<script" not in text
    assert "url(http" not in text
    assert not re.findall(r'(?:src|href)="[^#]', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}", drawn)
    for part in ("000002-b", "000001-a", "900 requests", "surface: home", "too little to say: effective", "SNIPS"):
        assert part in text, part


@pytest.mark.parametrize(
    ("uplift", "verdict", "told"),
    [
        (around(0.3), "good", "000002-b earns more than 000001-a: +0.3 a request (+25%), 95% interval +0.2 to +0.4"),
        (around(-0.3), "bad", "000002-b earns less than 000001-a: -0.3 a request (-25%)"),
        (around(0.05), "note", "No difference is shown"),
        (around(0.05), "note", "takes about 4.0 times as many requests"),
        (around(0.0), "note", "No difference is shown"),
    ],
)
def test_the_verdict_is_what_the_interval_of_the_uplift_says(uplift: Estimate, verdict: str, told: str) -> None:
    first, text = sentences(uplift=uplift)[0]
    assert first == verdict
    assert told in text
    assert "over the first 2 slots" in text


def test_a_log_that_is_too_thin_gets_no_verdict_however_good_the_figure() -> None:
    thin = replace(estimates().overlap, effective_sample_size=12.0)
    verdict, text = sentences(overlap=thin)[0]
    assert verdict == "bad"
    assert text.startswith("No verdict: the log of 000001-a says too little about 000002-b. effective sample size 12.0")
    assert not any("earns more" in each for _, each in sentences(overlap=thin)), "nor has any slice"
    assert "refused" in estimate_report.html(a_report(overlap=thin))


def test_what_stands_beside_the_verdict_is_told_only_where_it_is_so() -> None:
    texts = " ".join(text for _, text in sentences())
    assert "Of 3 slots the log reaches 2" in texts
    assert "It earns less for surface search (-0.2)." in texts
    assert "It earns more for surface home (+0.4)." in texts
    assert "disagree" not in texts
    assert "never came up" not in texts
    overlap = replace(estimates().overlap, outside_support=0.2)
    apart = {**estimates().by_name, "sips": around(9.0)}
    texts = " ".join(
        text for _, text in sentences(overlap=overlap, by_name=apart, by_depth=(overlap,), depth=1, slices=())
    )
    assert "outside the interval of IPS, whole slates" in texts
    assert "20% of what 000002-b would show never came up for 000001-a" in texts
    assert "the truth would be 0.3 lower, or higher" in texts
    assert "hardly ever" not in texts
    assert "slots the log reaches" not in texts
    assert "It earns" not in texts


def test_what_the_intervals_allow_for_is_told() -> None:
    thin = replace(estimates().overlap, thin_support=0.08)
    texts = " ".join(text for _, text in sentences(overlap=thin))
    assert "8% of the rest it would choose where 000001-a hardly ever did" in texts
    assert "allow for it, by 0.12 to either side" in texts
    assert a_report(overlap=thin)["least_sample_size"] == 100


@pytest.mark.parametrize(
    "changes",
    [
        {"bins": ()},
        {"slices": ()},
        {"by_depth": (estimates().overlap,), "depth": 1},
        {"uplift": UNDEFINED},
        {"by_name": dict.fromkeys(NAMES, UNDEFINED)},
        {"by_depth": (replace(estimates().overlap, effective_sample_size=0.0),) * 3},
        {"logged": around(0.0)},
    ],
)
def test_what_is_missing_breaks_nothing(changes: dict[str, Any]) -> None:
    report = a_report(**changes)
    assert "</html>" in estimate_report.html(report)
    assert len(estimate_report.told(report)) == 2 + len(NAMES)


def test_page_and_json_hold_the_same(tmp_path: Path) -> None:
    report = a_report()
    page = estimate_report.write(report, tmp_path / "deep" / "er")
    assert sorted(each.name for each in page.parent.iterdir()) == ["ope.html", "ope.json"]
    read = json.loads((page.parent / "ope.json").read_text())
    assert read == report
    assert estimate_report.html(read) == page.read_text()


def test_the_terminal_shows_every_estimator_with_the_same_columns() -> None:
    rows = estimate_report.told(a_report())
    assert {tuple(row) for row in rows.values()} == {("reward per request", "low", "high", "effective sample size")}
    assert next(iter(rows)) == "as logged"
    assert rows["uplift"]["reward per request"] == pytest.approx(0.3)
