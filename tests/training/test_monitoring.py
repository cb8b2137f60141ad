"""Days of a log against days before: what is planted sounds an alarm, what is drawn from the same does not."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Loop
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import ks_2samp, wasserstein_distance

from index.strings import key64
from protos.impression_pb2 import Impression, Outcome
from serving.again import Snapshots
from serving.generation import Generation
from serving.log.impression_log import ImpressionLog
from training import cli
from training.gates import GateSettings, skew_gates
from training.monitoring import distance, page
from training.monitoring.again import as_answered_by
from training.monitoring.answerers import Answerers
from training.monitoring.checks import Check, checks
from training.monitoring.days import DAY_MS, Day, summarised
from training.monitoring.gauges import gauges
from training.monitoring.job import skew_check
from training.monitoring.labels import Exposures, Labels
from training.monitoring.limits import Limits
from training.monitoring.rate import Rate
from training.monitoring.stored import unlike
from training.monitoring.verdict import AlarmsRaised, RetrainAdvised, Verdict

FIRST_DAY = 20_200
"""By when everything in the world is published."""
FIRST_MS = FIRST_DAY * DAY_MS
HOUR_MS = 3_600_000
REQUESTS = 300
REFERENCE = 6
BEFORE = str(np.datetime64(FIRST_DAY + REFERENCE - 1, "D"))
"""The last day of the reference."""
OLD = Limits(generation_days=1e6)
"""Generations of the world are years older than these days."""

Rows = tuple[list[Impression], list[Outcome]]


def drawn(loop: Loop, day: int, *, seed: int = 0, requests: int = REQUESTS, by: str = "") -> Rows:
    """A day whose requests are drawn from those that one generation answered (the first), with what followed."""
    answered = [each for each in loop.everything.impressions if each.generation == (by or loop.first.id)]
    rng = np.random.default_rng([seed, day])
    followed: dict[str, list[dict[str, Any]]] = {}
    for row in loop.everything.events.iter_rows(named=True):
        followed.setdefault(row["request_id"], []).append(row)
    impressions, outcomes = [], []
    for number, at in enumerate(rng.integers(len(answered), size=requests).tolist()):
        was = answered[at]
        one = Impression.FromString(was.SerializeToString())
        one.request_id = f"{seed}-{day}-{number:05d}"
        shift_ms = FIRST_MS + (day - was.time_ms // DAY_MS) * DAY_MS
        one.time_ms += shift_ms
        for stage in one.stages:
            stage.milliseconds = float(rng.lognormal(0, 0.3))
        impressions.append(one)
        for row in followed.get(was.request_id, ()):
            event = Outcome(**row)
            event.event_id, event.request_id = f"{one.request_id}{event.event_id}", one.request_id
            event.time_ms, event.visible_ms = event.time_ms + shift_ms, event.visible_ms + shift_ms
            outcomes.append(event)
    return sorted(impressions, key=lambda each: each.time_ms), sorted(outcomes, key=lambda each: each.visible_ms)


def read(rows: Rows, answerers: Answerers, day: int, *, sample: int = REQUESTS) -> Day:
    start_ms = FIRST_MS + day * DAY_MS
    within = [each for each in rows[1] if start_ms <= each.visible_ms < start_ms + DAY_MS]
    return summarised(rows[0], within, answerers, start_ms=start_ms, label_ms=HOUR_MS, sample=sample)


@pytest.fixture(scope="module")
def answerers(loop: Loop) -> Answerers:
    return Answerers.load(loop.store)


@pytest.fixture(scope="module")
def reference(loop: Loop, answerers: Answerers) -> list[Day]:
    return [read(drawn(loop, day), answerers, day) for day in range(REFERENCE)]


def alarms(found: Sequence[Check]) -> dict[str, set[str]]:
    """What sounds an alarm, by section."""
    by_section: dict[str, set[str]] = {}
    for each in found:
        if each.alarm:
            by_section.setdefault(each.section, set()).add(each.name)
    return by_section


# -- What goes wrong


def one_segment(loop: Loop, rows: Rows) -> Rows:
    """Requests of others than one segment are asked by those of that segment, in six of ten cases."""
    table = loop.generations[0].table
    segments = {
        each.request_id: int(np.frombuffer(each.query_row, table.dtype("query"))["segment"][0]) for each in rows[0]
    }
    wanted = max(set(segments.values()), key=list(segments.values()).count)
    rich = [each.query_row for each in rows[0] if segments[each.request_id] == wanted]
    for number, each in enumerate(rows[0]):
        if key64(each.request_id) % 10 < 6:
            each.query_row = rich[number % len(rich)]
    return rows


def lost_column(loop: Loop, rows: Rows) -> Rows:
    table = loop.generations[0].table
    for each in rows[0]:
        if key64(each.request_id) % 10 < 4:
            query = np.frombuffer(each.query_row, table.dtype("query")).copy()
            query["segment"] = 0
            each.query_row = query.tobytes()
    return rows


def few_items(loop: Loop, rows: Rows) -> Rows:
    """Everybody is shown the same in the first three slots."""
    now: dict[tuple[str, str], str] = {}
    for each in rows[0]:
        for k, item_id in enumerate(list(each.item_id)[:3]):
            if (popular := f"i{k:05d}") not in each.item_id:
                now[each.request_id, item_id] = each.item_id[k] = popular
    for event in rows[1]:
        event.item_id = now.get((event.request_id, event.item_id), event.item_id)
    return rows


def fewer_outcomes(loop: Loop, rows: Rows) -> Rows:
    return rows[0], [each for each in rows[1] if key64(f"{each.request_id}/{each.item_id}") % 2]


def scaled_tower(loop: Loop, rows: Rows) -> Rows:
    table = loop.generations[0].table
    for each in rows[0]:
        pairs = np.frombuffer(each.pair_rows, table.dtype("pair")).copy()
        pairs["tower_score"] *= 2
        each.pair_rows = pairs.tobytes()
    return rows


def late_outcomes(loop: Loop, rows: Rows) -> Rows:
    for each in rows[1]:
        each.visible_ms += 2 * HOUR_MS * (key64(each.event_id) % 3 == 0)
    return rows[0], sorted(rows[1], key=lambda each: each.visible_ms)


def repeated_outcomes(loop: Loop, rows: Rows) -> Rows:
    again = []
    for each in rows[1]:
        if key64(each.event_id) % 4 == 0:
            again.append(Outcome.FromString(each.SerializeToString()))
            again[-1].event_id += "again"
    return rows[0], sorted([*rows[1], *again], key=lambda each: each.visible_ms)


def broken_numbers(loop: Loop, rows: Rows) -> Rows:
    for each in rows[0]:
        if key64(each.request_id) % 5 == 0:
            each.utility[0] = math.nan
    return rows


def lost_requests(loop: Loop, rows: Rows) -> Rows:
    return [each for each in rows[0] if key64(each.request_id) % 3 == 0], rows[1]


Planted = tuple[Callable[[Loop, Rows], Rows], str, str, bool]
PLANTED: tuple[Planted, ...] = (
    (one_segment, "features", "segment", True),
    (lost_column, "quality", "segment at its default", False),
    (few_items, "popularity", "exposures of the head", True),
    (fewer_outcomes, "outcomes", "click", True),
    (scaled_tower, "scores", "tower_score", True),
    (late_outcomes, "quality", "outcomes too late for a label", False),
    (repeated_outcomes, "quality", "outcomes said twice", False),
    (broken_numbers, "quality", "numbers out of range", False),
    (lost_requests, "quality", "outcomes of nothing shown", False),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: each[0].__name__)
def test_what_is_planted_is_found_on_its_first_day(
    loop: Loop, answerers: Answerers, reference: list[Day], planted: Planted
) -> None:
    plant, section, name, retrain = planted
    spoilt = read(plant(loop, drawn(loop, REFERENCE)), answerers, REFERENCE)
    found = checks([spoilt], reference, answerers, OLD)
    assert name in alarms(found).get(section, set())
    assert Verdict.of(found, OLD).retrain == retrain, "what is broken must be mended before it is learned from"


def test_days_that_are_drawn_from_the_same_sound_no_alarm(
    loop: Loop, answerers: Answerers, reference: list[Day]
) -> None:
    for seed in (1, 2, 3):
        day = read(drawn(loop, REFERENCE, seed=seed), answerers, REFERENCE)
        assert not alarms(checks([day], reference, answerers, OLD))


def test_a_small_difference_is_no_alarm_however_certain(loop: Loop, answerers: Answerers, reference: list[Day]) -> None:
    day = read(drawn(loop, REFERENCE), answerers, REFERENCE)
    for each in checks([day], reference, answerers, OLD):
        least = {"psi": OLD.psi, "ks": OLD.ks, "wasserstein": OLD.wasserstein}.get(each.statistic, 0.0)
        assert each.limit >= least
        assert each.section != "quality" or each.limit >= OLD.share


def test_what_the_days_of_the_reference_do_themselves_is_no_alarm(answerers: Answerers, reference: list[Day]) -> None:
    """As where generations are trained every night: each day's scores are on a scale of their own."""
    name = "scores/tower_score"
    scaled = [
        replace(day, columns={**day.columns, name: np.float32(factor) * day.columns[name].astype(np.float32)})
        for day, factor in zip([*reference, reference[0]], (1.0, 1.6, 0.7, 1.3, 2.0, 0.8, 1.9), strict=True)
    ]
    moved = {each.name for each in checks(scaled[-1:], scaled[:-1], answerers, OLD) if each.alarm}
    still = {each.name for each in checks(scaled[-1:], reference, answerers, OLD) if each.alarm}
    assert "tower_score" not in moved
    assert "tower_score" in still


def test_a_launch_is_held_against_what_the_same_generation_would_have_answered_before(
    loop: Loop, answerers: Answerers, reference: list[Day], tmp_path: Path
) -> None:
    with ImpressionLog(tmp_path, durability="os") as log:
        for day in range(4):
            for each in drawn(loop, day)[0]:
                log.append(each)
    before = reference[:3]
    *again, launched = as_answered_by(
        loop.second.id, reference[:4], log=tmp_path, store=loop.store, answerers=answerers
    )

    def moved(held_against: list[Day]) -> set[str]:
        return alarms(checks([launched], held_against, answerers, OLD)).get("scores", set())

    assert "tower_score" in moved(before), "two generations have two scales"
    assert not moved(again)
    assert all(day.asked_again == REQUESTS for day in again)
    assert again[1].rates["outcomes/click"] == before[1].rates["outcomes/click"], "what people did stays as it was"


def test_days_of_the_same_generation_and_those_of_one_that_is_gone_stay_as_they_are(
    loop: Loop, answerers: Answerers, reference: list[Day], tmp_path: Path
) -> None:
    for generation in (loop.first.id, "000009-aaaaaaaa"):
        days = as_answered_by(generation, reference, log=tmp_path, store=loop.store, answerers=answerers)
        assert all(one is other for one, other in zip(days, reference, strict=True))


def test_counters_are_those_of_items_that_have_some(loop: Loop, answerers: Answerers) -> None:
    """An item that came after the generation was published has none, and that is no defect."""
    rows = drawn(loop, 0, requests=60)
    table = loop.generations[0].table
    new = "not-there-when-it-was-published"
    for each in rows[0]:
        items = np.frombuffer(each.item_rows, table.dtype("item")).copy()
        items["click_rate"][0] = 0.0
        each.item_rows, each.item_id[0] = items.tobytes(), new
    day = read(rows, answerers, 0)
    shown = sum(len(each.item_id) for each in rows[0])
    assert day.rates["quality/click_rate at its default"].rows == shown - 60
    assert len(day.columns["features/click_rate"]) == shown - 60
    assert len(day.columns["features/category"]) == shown


def scaled_by(factor: float, generation: Generation) -> Generation:
    """The generation with a query tower whose vectors are longer: as a server has it that is not as its store is."""
    return replace(generation, encode_query=lambda row: np.float32(factor) * generation.encode_query(row))


@pytest.mark.parametrize("what", ["as in the store", "another tower", "another ranker", "rounding"])
def test_what_a_server_says_is_what_its_generation_in_the_store_says(loop: Loop, what: str) -> None:
    logged = [each for each in loop.everything.impressions if each.generation == loop.second.id][:30]
    first, second = loop.generations
    stored = {
        "as in the store": second,
        "another tower": scaled_by(1.5, second),
        "another ranker": replace(second, scorer=first.scorer),
        "rounding": scaled_by(1.01, second),
    }[what]
    found = unlike(logged, Snapshots({loop.second.id: stored}, None), OLD)
    told = {each.name: each.value for each in found if each.alarm}
    assert len(found) == 1 + len(second.table.actions)
    assert (
        set(told)
        == {
            "as in the store": set(),
            "another tower": {"tower_score of the store's towers"},
            "another ranker": {f"P({action}) of the store's ranker" for action in second.table.actions},
            "rounding": set(),
        }[what]
    )
    assert all(0.5 < share <= 1 for share in told.values())


def test_a_day_is_the_same_whenever_and_in_whatever_pieces_it_is_read(
    loop: Loop, answerers: Answerers, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = drawn(loop, 0, requests=100)
    at_once = read(rows, answerers, 0, sample=40)
    monkeypatch.setattr("training.monitoring.days._CHUNK", 7)
    in_pieces = read(rows, answerers, 0, sample=40)
    assert len(at_once.sampled) == 40
    assert at_once.sampled == in_pieces.sampled
    assert at_once.levels == pytest.approx(in_pieces.levels)
    assert {name: rate.value for name, rate in at_once.rates.items()} == pytest.approx(
        {name: rate.value for name, rate in in_pieces.rates.items()}, nan_ok=True
    )
    for name, column in at_once.columns.items():
        np.testing.assert_array_equal(column, in_pieces.columns[name])


def test_impressions_whose_feature_table_is_gone_are_told_of_and_the_rest_is_compared(
    loop: Loop, answerers: Answerers
) -> None:
    rows = drawn(loop, 0, requests=60)
    for each in rows[0][:20]:
        each.schema = "0" * 16
    day = read(rows, answerers, 0)
    assert day.unreadable == 20
    assert day.requests == 60
    assert day.rates["quality/segment at its default"].rows == 40


def test_too_few_days_of_reference_are_refused(answerers: Answerers, reference: list[Day]) -> None:
    with pytest.raises(ValueError, match="the reference has 2 days with requests; at least 3 are needed"):
        checks(reference[:1], reference[1:3], answerers, OLD)


# -- Parts


def test_distances_are_those_of_scipy_where_the_grid_holds_every_value() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 40, 700) / 7, rng.integers(5, 60, 900) / 7
    grid = distance.grid([one, other])
    now, then = distance.counted(one, grid), distance.counted(other, grid)
    assert distance.ks(now, then) == pytest.approx(ks_2samp(one, other).statistic)
    expected = wasserstein_distance(one, other) / other.std()
    assert distance.wasserstein(now, then, grid) == pytest.approx(expected)


def test_distances_on_quantiles_are_near_those_of_all_values() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(0.4, 1, 20_000), rng.normal(0, 1.2, 20_000)
    grid = distance.grid([one, other])
    now, then = distance.counted(one, grid), distance.counted(other, grid)
    assert distance.ks(now, then) == pytest.approx(ks_2samp(one, other).statistic, abs=0.01)
    expected = wasserstein_distance(one, other) / other.std()
    assert distance.wasserstein(now, then, grid) == pytest.approx(expected, rel=0.1)


def test_psi_is_its_sum_and_bins_hold_about_as_much_each() -> None:
    then, now = np.array([400.0, 300.0, 300.0]), np.array([100.0, 500.0, 400.0])
    p, q = now / 1000, then / 1000
    assert distance.psi(now, then) == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=0.01)
    spiked = np.array([900.0, *[5.0] * 20])
    first = distance.bins(spiked)
    assert first.tolist()[:2] == [0, 1]
    assert len(distance.bins(np.full(200, 7.0))) == 10


def test_chance_gives_small_p_values_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    small = 0
    for _ in range(400):
        one, other = rng.normal(size=300), rng.normal(size=900)
        grid = distance.grid([one, other])
        now, then = distance.counted(one, grid), distance.counted(other, grid)
        first = distance.bins(then)
        psi = distance.psi(np.add.reduceat(now, first), np.add.reduceat(then, first))
        small += distance.psi_by_chance(psi, len(first), 300, 900) < 0.05
    assert 5 <= small <= 40


def test_the_error_of_a_rate_knows_that_what_is_in_one_request_belongs_together() -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(1, 12, (500, 200))
    share = rng.beta(1, 9, (500, 200))
    hits = rng.binomial(rows, share)
    rates = [Rate.of(h, r) for h, r in zip(hits, rows, strict=True)]
    assert np.mean([each.error for each in rates]) == pytest.approx(np.std([each.value for each in rates]), rel=0.1)
    assert sum(rates, Rate()).value == pytest.approx(hits.sum() / rows.sum())
    assert math.isnan(Rate().value)


def test_an_outcome_counts_where_its_first_word_came_in_time() -> None:
    logged = [Impression(request_id="r", time_ms=HOUR_MS, item_id=["a", "b", "c"])]

    def event(item_id: str, after_ms: int, number: int = 0) -> Outcome:
        at_ms = HOUR_MS + after_ms
        key = f"{item_id}{number}"
        return Outcome(event_id=key, request_id="r", item_id=item_id, action="click", time_ms=at_ms, visible_ms=at_ms)

    told = [event("a", 5), event("a", 9, 1), event("b", HOUR_MS + 1), event("stranger", 7)]
    labels = Labels.of(told, start_ms=0, end_ms=DAY_MS, label_ms=HOUR_MS)
    exposures = Exposures.of(logged)
    assert labels.followed(exposures, "click").tolist() == [True, False, False]
    assert not labels.followed(exposures, "like").any()
    assert labels.rates["quality/outcomes said twice"].value == 0.25
    labels.unmatched.difference_update(exposures.pair_N.tolist())
    assert labels.of_nothing_shown().value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"psi": 0.0}, "psi is 0.0; it must be above 0"),
        ({"alpha": 1.0}, "alpha is 1.0; it must be below 1"),
        ({"retrain_on": ("fetures",)}, "retrain_on names 'fetures'"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Limits(**changes)  # type: ignore[arg-type]


# -- The report


@dataclass(frozen=True)
class Logged:
    """A log of a week and the last day of another kind."""

    log: Path
    store: Path


def written(loop: Loop, folder: Path, plant: Callable[[Loop, Rows], Rows]) -> Logged:
    """Days as before, then one that is planted, then the beginning of another."""
    with ImpressionLog(folder, durability="os") as log:
        for day in range(REFERENCE + 2):
            rows = drawn(loop, day, requests=REQUESTS if day <= REFERENCE else 1)
            impressions, outcomes = plant(loop, rows) if day == REFERENCE else rows
            for each in impressions:
                log.append(each)
            log.flush()
            log.write_outcomes(outcomes)
    return Logged(folder, loop.store.root)


def asked(logged: Logged, output: Path, *more: str) -> list[str]:
    return [
        *("report", "monitor", f"log={logged.log}", f"generations={logged.store}", f"output={output}"),
        *("history=null", "skew=0", f"reference_days={REFERENCE}", "limits.generation_days=1e6", *more),
    ]


@pytest.fixture(scope="module")
def scaled(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    return written(loop, tmp_path_factory.mktemp("scaled") / "log", scaled_tower)


def test_the_command_tells_of_drift_asks_for_training_and_writes_page_json_and_gauges(
    scaled: Logged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prom = tmp_path / "collector" / "cascade.prom"
    assert cli.main(asked(scaled, tmp_path, f"textfile={prom}")) == cli.RETRAIN
    (line,) = capsys.readouterr().err.splitlines()
    assert "train again" in line
    assert "tower_score" in line
    made = json.loads((tmp_path / "monitor.json").read_text())
    assert made["verdict"]["retrain"] is True
    assert made["window"]["from"] == made["window"]["until"] == str(np.datetime64(FIRST_DAY + REFERENCE, "D"))
    text = (tmp_path / "monitor.html").read_text()
    assert text.count("<svg") == text.count("<figure") > 10
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="[^#]', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    told = {each.name: each.samples for each in text_string_to_metric_families(prom.read_text())}
    assert [each.value for each in told["cascade_monitor_retrain"]] == [1.0]
    (value,) = [
        each.value
        for each in told["cascade_monitor_value"]
        if (each.labels["name"], each.labels["statistic"]) == ("tower_score", "wasserstein")
    ]
    assert value > OLD.wasserstein
    assert {each.labels["section"]: each.value for each in told["cascade_monitor_alarms"]}["scores"] == 1


def test_a_day_like_those_before_ends_with_code_0(
    scaled: Logged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(asked(scaled, tmp_path, f"until={BEFORE}", "reference_days=5")) == 0
    out = capsys.readouterr().out
    assert "train again" in out
    assert "monitor.html" in out


def test_skew_is_computed_for_some_requests_holds_training_back_and_ends_with_code_3(
    scaled: Logged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The drawn days are of another year than the events that their histories are made of."""
    given = asked(scaled, tmp_path, f"until={BEFORE}", "reference_days=3", "sample=100", "skew=20")
    assert cli.main(given) == cli.REFUSED
    assert "skew: " in capsys.readouterr().err
    made = json.loads((tmp_path / "monitor.json").read_text())
    assert made["alarms"]["skew"] > 0
    assert made["verdict"]["held_back_by"]
    assert made["verdict"]["retrain"] is False


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("until=yesterday",), "until is 'yesterday'; a day is needed, as in 2026-11-21"),
        (("until=2001-01-01",), "the log holds no impression of the days that are to be looked at"),
        (("reference_days=2",), "reference_days is 2; it must be at least 3"),
        (("reference_until=2001-01-01",), "the reference has 0 days with requests; at least 3 are needed"),
        (("log=no/such/log",), "no impression log at no/such/log"),
        (("generations=no/such/store",), "no/such/store holds no generations"),
        (("limits.psy=1",), "the nearest is 'limits.psi'"),
    ],
)
def test_misuse_is_one_line_and_code_2(
    scaled: Logged, tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(asked(scaled, tmp_path, *more)) == cli.MISUSE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_the_verdict_raises_what_the_exit_code_is_made_of(reference: list[Day]) -> None:
    def check(section: str) -> Check:
        return Check(section, "x", "psi", 1.0, 0.2, 0.1, 1.0, alarm=True, p=0.0)

    with pytest.raises(RetrainAdvised, match="features: x has moved, PSI 1 "):
        Verdict.of([check("features")], OLD).require(where="page")
    with pytest.raises(AlarmsRaised, match="2 alarms: quality: x"):
        Verdict.of([check("features"), check("quality")], OLD).require(where="page")
    with pytest.raises(AlarmsRaised, match="1 alarm; see page"):
        Verdict.of([check("serving")], OLD).require(where="page")
    Verdict.of([], OLD).require(where="page")


def test_a_page_without_anything_to_compare_is_still_a_page(
    answerers: Answerers, reference: list[Day], tmp_path: Path
) -> None:
    bare = [replace(day, columns={}, reliability={}, rates={}, levels={}) for day in reference]
    found = checks(bare[-1:], bare[:-1], answerers, OLD)
    made = page.report(bare[-1:], bare[:-1], found, Verdict.of(found, OLD), table=None, log=tmp_path)
    assert "Nothing has changed" in page.html(made)
    assert "cascade_monitor_retrain 0.0" in gauges(made)


@pytest.mark.parametrize(
    ("name", "share", "requests", "alarm"),
    [
        ("skew.state.history_item", 0.06, 50, False),
        ("skew.state.history_item", 0.06, 5000, True),
        ("skew.state.history_item", 0.2, 50, True),
        ("skew.category", 0.001, 50, True),
    ],
)
def test_skew_of_a_sample_is_an_alarm_only_beyond_chance(name: str, share: float, requests: int, alarm: bool) -> None:
    (gate,) = skew_gates(GateSettings(skew=0.0, skew_state=0.05), {name: share})
    assert not gate.passed
    assert skew_check(gate, requests=requests, alpha=0.01).alarm is alarm
