"""The report says what the numbers say, draws what there is, and needs nothing from outside."""

import io
import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from training.reports import report
from training.reports.figures import Calibrated, Curve, Estimated, Figures, SampleSlate, ShownItem, Slice
from training.reports.findings import findings


def a_summary(**changes: Any) -> dict[str, Any]:
    return {
        "data": "world",
        "seed": 1,
        "seconds": 200.0,
        "reward": {"random": 0.2, "popularity": 0.5, "cycle1": 0.8, "cycle2": 1.0, "oracle": 1.6},
        "search_reward": {"bm25": 0.9, "cycle2": 1.2},
        "requests": {"served": 8000, "failed": 0},
        "replay": {"requests": 400, "mismatches": 0},
        "ope": {"estimate": 1.04, "low": 0.9, "high": 1.2, "truth": 1.0, "effective_sample_size": 500.0},
        "retrieval": {"cycle1": {"recall@10": 0.1}, "cycle2": {"recall@10": 0.2}},
        "ranker": {"click.auc": 0.7, "click.ece": 0.01},
        "index": {"recall": 0.99},
        "latency_ms": {"score": {"p50": 3.0, "p99": 6.0}, "total": {"p50": 4.0, "p99": 9.0}},
        **changes,
    }


def some_figures() -> Figures:
    item = ShownItem("<Paper & Moons>", "drama", 0.9, 0.25, ["ann"], ["popular"])
    return Figures(
        reliability=[Calibrated("click", [0.1, 0.2], [0.1, 0.25], [50, 50], 0.02)],
        slices=[
            Slice("all", "", 100, 0.7, 0.6, 0.8, 0.02, 0.03),
            Slice("history", "none", 10, math.nan, math.nan, math.nan, 0.05, 0.04),
        ],
        examination=[Curve("true", [1, 2], [1.0, 0.5]), Curve("learned", [1, 2], [1.0, 0.6])],
        estimates=[Estimated("SNIPS", 1.04, 0.9, 1.2)],
        recall=[Curve("cycle 1", [10, 100], [0.1, 0.4])],
        training=[Curve("training", [1, 2], [0.5, 0.4])],
        slate_metrics={"coverage": {"cycle 1": 0.5, "cycle 2": 0.6}},
        slates=[SampleSlate("for user u1", "cycle 1", [item]), SampleSlate("for user u1", "cycle 2", [])],
    )


class Page(HTMLParser):
    """Addresses that a page would fetch, and how often each id occurs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img"), tag
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset") and value and not value.startswith("#"):
                self.fetched.append(value)
            if name == "id" and value:
                self.ids.append(value)


def test_the_page_fetches_nothing_and_repeats_no_id() -> None:
    text = report.html(a_summary(), some_figures())
    page = Page(text)
    assert page.fetched == []
    assert "url(http" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))


def test_everything_that_is_given_is_drawn() -> None:
    text = report.html(a_summary(), some_figures())
    assert text.count("<svg") == 10
    assert text.count("<figure") == 10
    assert "history none (10)" in text
    assert "&lt;Paper &amp; Moons&gt;" in text
    assert "nothing was shown" in text


def test_figures_take_their_colours_from_the_page() -> None:
    text = report.html(a_summary(), some_figures())
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) == set()
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", drawn))
    light, dark = text.split("prefers-color-scheme: dark")
    for variable in used - {"--sans"}:
        assert f"{variable}:" in light
        assert f"{variable}:" in dark.partition("}\n}")[0]


def test_what_is_missing_is_left_out() -> None:
    text = report.html({"data": "ml-1m", "seed": 0}, Figures())
    assert "<svg" not in text
    assert "cascade call recommend" in text


def test_files_hold_the_same_numbers_and_can_be_drawn_again(tmp_path: Path) -> None:
    figures = Figures(recall=[Curve("cycle 1", np.array([10, 100]).tolist(), range(2))])
    page = report.write(a_summary(index={"recall": np.float32(0.5), "nan": math.nan}), figures, tmp_path / "run")
    assert sorted(path.name for path in page.parent.iterdir()) == ["figures.json", "report.html", "summary.json"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["index"] == {"recall": 0.5, "nan": None}
    assert summary["reward"] == a_summary()["reward"]
    before = page.read_text()
    again = report.write(*report.read(tmp_path / "run"), tmp_path / "run")
    assert again.read_text() == before


def test_figures_survive_json_with_what_is_undefined() -> None:
    figures = some_figures()
    again = Figures.from_json(json.loads(json.dumps(report.plain(asdict(figures)))))
    assert report.html(a_summary(), again) == report.html(a_summary(), figures)
    assert math.isnan(again.slices[1].auc)
    older = {name: each for name, each in asdict(figures).items() if name != "slices"}
    assert Figures.from_json(older).slices == []


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no summary\.json"):
        report.read(tmp_path)


def test_the_terminal_table_holds_every_number() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.terminal_table(a_summary()))
    text = console.export_text()
    for number in ("0.2", "0.5", "0.8", "1.6", "8,000", "400", "1.04", "0.99", "p99", "cycle 2"):
        assert number in text


def verdicts(**changes: Any) -> dict[str, str]:
    return {finding.text: finding.verdict for finding in findings(a_summary(**changes))}


def test_a_good_run_has_no_bad_finding() -> None:
    assert "bad" not in verdicts().values()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": {"popularity": 0.5, "cycle1": 0.8, "cycle2": 0.7}}, "Cycle 2 does not beat cycle 1"),
        ({"reward": {"popularity": 0.9, "cycle1": 0.8}}, "does not beat showing what is popular"),
        ({"replay": {"requests": 400, "mismatches": 3}}, "3 of 400 replayed requests gave another answer"),
        ({"replay": {"requests": 0, "mismatches": 0}}, "No request was replayed"),
        ({"requests": {"served": 10, "failed": 2}}, "2 requests failed"),
        ({"ope": {"estimate": 2.0, "low": 1.9, "high": 2.1, "truth": 1.0}}, "misses the truth"),
        ({"index": {"recall": 0.8}}, "finds 80.0%"),
        ({"ranker": {"cycle1": {"click.ece": 0.0}, "cycle2": {"click.ece": 0.2}}}, "20.0 points off"),
    ],
)
def test_a_bad_number_is_said_to_be_bad(changes: dict[str, Any], words: str) -> None:
    found = {verdict for text, verdict in verdicts(**changes).items() if words in text}
    assert found == {"bad"}


def test_an_estimate_that_is_refused_is_told_as_that_whether_it_would_have_held_or_not() -> None:
    refused = {"low": 1.9, "high": 2.1, "truth": 1.0, "refused": "effective sample size 9.0"}
    (told,) = (text for text in verdicts(ope={"estimate": 2.0, **refused}) if "2 with a 95%" in text)
    assert verdicts(ope={"estimate": 2.0, **refused})[told] == "note"
    assert "says too little about it: effective sample size 9.0" in told
    assert told.endswith("the truth is 1.")


def test_progress_is_told_against_the_oracle() -> None:
    assert any("25% more than cycle 1 and closes 25% of its distance to the oracle" in text for text in verdicts())


def test_the_slowest_stage_is_told_among_stages_and_not_among_whole_calls() -> None:
    times = {"score": 3.0, "select": 1.0, "activate": 900.0, "recommend": 4.0, "client": 5.0}
    found = verdicts(latency_ms={name: {"p50": p50, "p99": p50} for name, p50 in times.items()})
    assert found["Of the stages, score takes most of a request's time (75% of the medians)."] == "note"


NUMBERS = st.one_of(st.none(), st.just(math.nan), st.just(math.inf), st.floats(-1e6, 1e6), st.integers(-10, 10_000))


@settings(max_examples=30)
@given(values=st.lists(NUMBERS, min_size=12, max_size=12))
def test_no_number_breaks_the_report(values: list[float | None]) -> None:
    r = iter(values)
    summary = a_summary(
        reward={name: next(r) for name in ("random", "popularity", "cycle1", "cycle2", "oracle")},
        ope={name: next(r) for name in ("estimate", "low", "high", "truth")},
        replay={"requests": next(r), "mismatches": next(r)},
        index={"recall": next(r)},
    )
    report.html(report.plain(summary), Figures())
