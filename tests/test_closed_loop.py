"""The closed loop at a size of seconds, and what is made of its figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import closed_loop
from benchmarks.closed_loop import ARMS, CHANCES, LABELS, PAGE, QUICK, REFERENCES, Scale, results, tables
from benchmarks.in_process import Histories
from serving.state.user_state import UserEvent, Wanted
from training.reports import drawing, plots
from training.simulation.world import DAY_MS

TINY = replace(QUICK, users=40, items=100, first_requests=150, window_requests=60)


def nothing() -> None:
    pass


def made_up(seeds: int = 2) -> dict[str, Any]:
    """Figures whose tables are known."""
    scale = Scale(windows=2, wait_days=4.0)

    def policy(share: float, launches: list[dict[str, Any]]) -> dict[str, Any]:
        waits = [1.0, 2.0, 4.5, None]
        return {
            "reward": [8 * share, 10 * share],
            "waited_days": {str(count): waits for count in CHANCES},
            "slates": {"exposure Gini": share},
            "launches": launches,
        }

    launch = {"slots": 1, "estimate": 1.5, "low": 1.0, "high": 2.0, "same_requests": 2.5, "truth": 1.2, "faults": []}
    policies = {
        "explore+ips": policy(0.5, [launch]),
        "explore": policy(0.6, [launch, launch | {"truth": 0.9}]),
        "greedy": policy(0.4, [launch | {"faults": ["thin"]}]),
        "random": policy(0.1, []),
        "popularity": policy(0.3, []),
        "oracle": policy(1.0, []),
    }
    for each in REFERENCES:
        del policies[each]["launches"]
    return {"scale": scale.told, "seeds": {str(seed): policies for seed in range(seeds)}}


def cells(found: dict[str, Any], name: str, table: int) -> list[str]:
    """A row of one of the tables."""
    lines = tables(found).split("\n\n")[table].splitlines()
    (line,) = [each for each in lines if each.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_tables_give_shares_of_the_oracle_and_how_new_items_fared() -> None:
    found = made_up()
    share = "50.0 (50.0 to 50.0)"
    assert cells(found, LABELS["explore+ips"], 0) == [share] * 3 + ["50 (50 to 50)", "3.2 (3.2 to 3.2)"]
    assert cells(found, "oracle", 0)[0] == "100.0 (100.0 to 100.0)"
    assert cells(found, LABELS["greedy"], 1) == ["0.40 (0.40 to 0.40)"]


def test_tables_count_refused_estimates_and_intervals_that_hold_the_truth() -> None:
    found = made_up()
    assert cells(found, LABELS["explore"], 2) == ["4", "0", "0 of 4", "2 of 4", "+0.45"]
    assert cells(found, LABELS["greedy"], 2) == ["2", "2", "0 of 0", "0 of 0", "-"]
    assert "random" not in tables(found).split("\n\n")[2]


def test_the_picture_names_every_arm_and_brings_its_colours_for_light_and_dark() -> None:
    drawn = drawing.standing_alone(plots.closed_loop(made_up(), LABELS, count=CHANCES[-1]), title="A & B")
    ElementTree.fromstring(drawn)
    for part in (*LABELS.values(), "popularity", "random", "prefers-color-scheme: dark", "A &amp; B"):
        assert part in drawn
    assert "#0101" not in drawn
    assert "body {" not in drawn


def test_what_is_in_the_documentation_is_what_its_figures_say() -> None:
    found = json.loads(Path(f"{PAGE}.json").read_text())
    assert tables(found) in Path(f"{PAGE}.md").read_text()
    assert found["scale"] == Scale().told


def test_histories_are_read_as_the_online_store_gives_them() -> None:
    histories = Histories()
    histories.push([UserEvent(f"e{number}", "a", number, 7, 100 + number) for number in range(60)])
    histories.push([UserEvent(f"e{number}", "a", number, 8, 100 + number) for number in range(60, 70)])
    item_L, action_L, time_ms_L = histories.recall(Wanted("a")).history
    assert item_L.tolist() == list(range(69, 5, -1))
    assert action_L.tolist() == [8] * 10 + [7] * 54
    assert time_ms_L.tolist() == (100 + item_L.astype(np.int64)).tolist()
    assert [column.dtype.name for column in histories.recall(Wanted("a")).history] == ["uint64", "uint32", "int64"]
    assert [len(column) for column in histories.recall(Wanted("b")).history] == [0, 0, 0]


def test_random_earns_less_than_popularity_and_that_less_than_the_oracle() -> None:
    found = closed_loop.run_references(TINY, 0, nothing)
    random, popularity, oracle = (np.array(found[name]["reward"]) for name in REFERENCES)
    assert (random < popularity).all()
    assert (popularity < oracle).all()
    world = TINY.world(0)
    published_ms = world.items["published_ms"].to_numpy()
    new = (published_ms > world.day_ms(2)) & (published_ms <= world.day_ms(2 + 2 * 2 - TINY.wait_days))
    for policy in found.values():
        assert [len(days) for days in policy["waited_days"].values()] == [new.sum()] * len(CHANCES)
        assert policy["waited_days"].keys() == {str(count) for count in CHANCES}


def test_requests_of_a_window_are_cut_where_the_next_generation_stops_learning() -> None:
    world = TINY.world(0)
    before, after = TINY.requests(world, 1)
    assert len(before) + len(after) == TINY.window_requests
    cut_ms = world.day_ms(TINY.day(1)) + int(closed_loop.LEARNED * TINY.window_days * DAY_MS)
    assert before[-1].time_ms < cut_ms <= after[0].time_ms < world.day_ms(TINY.day(2))


def test_a_run_that_was_cut_off_goes_on_and_another_scale_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, int]] = []

    def one(scale: Scale, seed: int, arm: object, step: object) -> dict[str, Any]:
        if len(ran) == 2 + 1:
            raise KeyboardInterrupt
        ran.append((scale.users, seed))
        return {"cpu_s": 0, "policies": {f"{arm}": {"reward": [float(seed)]}}}

    monkeypatch.setattr(closed_loop, "one", one)
    monkeypatch.setattr(closed_loop, "ARMS", ARMS[:1])
    with pytest.raises(KeyboardInterrupt):
        results(TINY, 2, tmp_path)
    assert ran == [(40, 0), (40, 0), (40, 1)]
    ran.clear()
    found = results(TINY, 2, tmp_path)
    assert ran == [(40, 1)]
    assert [len(policies) for policies in found["seeds"].values()] == [2, 2]
    ran.clear()
    results(replace(TINY, users=41), 1, tmp_path)
    assert ran == [(41, 0), (41, 0)]


@pytest.mark.slow
def test_the_loop_closes_and_gives_the_same_figures_again(tmp_path: Path) -> None:
    explores, _, greedy = ARMS
    told = []
    for name, arm in (("first", explores), ("again", explores), ("best", greedy)):
        (tmp_path / name).mkdir()
        told.append(closed_loop.run_arm(TINY, 0, arm, tmp_path / name, nothing))
    first, again, best = told
    assert first == again
    assert first["reward"] != best["reward"]
    (launch,) = first["launches"]
    assert launch["low"] <= launch["estimate"] <= launch["high"]
    assert launch["truth"] > 0
    (blind,) = best["launches"]
    assert blind["faults"]
    random = closed_loop.run_references(TINY, 0, nothing)["random"]
    assert np.mean(first["reward"]) > np.mean(random["reward"])
    assert (tmp_path / "first" / "generations" / "catalog.db").exists()
