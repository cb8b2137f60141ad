"""A cycle publishes what passes its gates and nothing else, from what was known and nothing later, reproducibly."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import FIRST_DAYS, OPEN_GATES, SMALL, SMALL_RANKER, Loop

from candidate_gen.sources import SOURCES
from index.generations import GenerationStore
from index.lexical import joined
from protos.catalog_pb2 import CatalogItem, DeleteItemsRequest, ItemPatch, PatchItemsRequest, UpsertItemsRequest
from ranking.model import Ranker
from ranking.scorer import RankerScorer
from serving.generation import Generation, GenerationMismatch
from serving.log.catalog_log import Change, Entry
from training import cycle
from training.cycle import Prepared
from training.datasets.dataset import searchable
from training.examples.exposures import ATTRIBUTION_MS, Examples
from training.gates import Gate, GateFailed
from training.publish import Built, Published, build_index
from training.simulation.world import World

RED = {
    "ranker_auc": (1.0, "ranker.click.auc", ">= 1"),
    "ranker_ece": (0.0, "ranker.click.ece", "<= 0"),
}


@pytest.fixture(scope="module")
def second(loop: Loop) -> Prepared:
    """What the second cycle read."""
    return cycle.prepare(
        loop.dataset,
        as_of_ms=loop.served_end_ms,
        tower_positives=SMALL.tower_positives,
        served=loop.served,
        table=loop.generations[0].table,
    )


@pytest.fixture(scope="module")
def first(loop: Loop) -> Prepared:
    """What the first cycle read."""
    return cycle.prepare(loop.dataset, as_of_ms=loop.first_end_ms, tower_positives=SMALL.tower_positives)


def exported(loop: Loop, prepared: Prepared, store: GenerationStore, **changes: Any) -> Published:
    """The first cycle's models, exported anew under other settings."""
    generation = loop.generations[0]
    scorer = generation.pipeline.scorer
    assert isinstance(scorer, RankerScorer)
    metrics, judges = changes.pop("metrics", loop.first.metrics), changes.pop("judges", ())
    return cycle.export(
        prepared,
        generation.towers,
        scorer.ranker,
        scorer.calibration,
        settings=replace(SMALL, **changes),
        metrics=metrics,
        store=store,
        now_ms=loop.first_end_ms,
        judges=judges,
    )


def test_a_warm_start_learns_only_from_what_the_ranker_in_force_has_not_learned_from(
    loop: Loop, second: Prepared, tmp_path: Path
) -> None:
    store = loop.store
    warm = replace(SMALL, ranker=replace(SMALL_RANKER, warm_start=True))
    table, earlier = cycle.in_force(store, warm)
    assert earlier is not None
    assert earlier.learned_until_ms == store.manifest(loop.second.id).metrics["ranker.learned_until_ms"]
    prepared = cycle.prepare(
        loop.dataset,
        as_of_ms=loop.served_end_ms,
        tower_positives=50,
        served=loop.served,
        table=table,
        earlier=earlier,
    )
    new_N = second.examples.time_ms_N > earlier.learned_until_ms
    assert 0 < new_N.sum() < len(new_N)
    expected = second.examples.take(new_N)
    assert prepared.examples.query_row_R.tobytes() == expected.query_row_R.tobytes()
    np.testing.assert_array_equal(prepared.examples.label_NA, expected.label_NA)
    ranker, _, metrics = cycle.fit_ranker(prepared, warm, seed=0, folder=tmp_path)
    assert isinstance(ranker, Ranker)
    assert metrics["warm_start"] == 1
    assert metrics["examples"] + metrics["held_out"] == len(expected)
    weights = dict(ranker.named_parameters())
    for name, before in earlier.ranker.named_parameters():
        assert (weights[name] - before).abs().max() < 0.5, "some steps away from where it stood"


def test_without_a_ranker_to_go_on_from_training_begins_anew(loop: Loop, tmp_path: Path) -> None:
    warm = replace(SMALL_RANKER, warm_start=True)
    larger = replace(warm, shape=replace(warm.shape, dim=16))
    assert cycle.in_force(GenerationStore(tmp_path), replace(SMALL, ranker=warm)) == (None, None)
    for ranker in (SMALL_RANKER, larger):
        table, earlier = cycle.in_force(loop.store, replace(SMALL, ranker=ranker))
        assert table is not None
        assert table.fingerprint == loop.generations[1].table.fingerprint
        assert earlier is None


def trained(loop: Loop, folder: Path, *, seed: int) -> tuple[GenerationStore, Published]:
    """The first cycle once more, from the start."""
    world = World(0, users=120, items=250, days=12)
    asked = world.requests(world.start_ms, world.day_ms(FIRST_DAYS), 800)
    store = GenerationStore(folder / "generations")
    published = cycle.run(
        world.dataset(*world.first_log(asked, slate_size=6)),
        settings=SMALL,
        store=store,
        folder=folder / "work",
        as_of_ms=loop.first_end_ms,
        seed=seed,
        now_ms=loop.first_end_ms,
    )
    return store, published


def bytes_of(examples: Examples) -> dict[str, bytes]:
    return {name: getattr(examples, name).tobytes() for name in Examples.__slots__}


def test_the_same_seed_gives_the_same_generation_to_the_byte(loop: Loop, tmp_path: Path) -> None:
    store, again = trained(loop, tmp_path, seed=0)
    assert again.id == loop.first.id
    mine, theirs = store.manifest(again.id), loop.store.manifest(loop.first.id)
    assert mine.fingerprints == theirs.fingerprints
    same = [name for name in mine.files if not name.startswith("lexical/")]
    assert len(same) > 10
    for name in same:  # tantivy names its files by chance
        assert mine.files[name] == theirs.files[name], name
    seconds = {name for name in again.metrics if name.endswith("examples_per_s") or "latency_ms" in name}
    assert {name: value for name, value in again.metrics.items() if name not in seconds} == {
        name: value for name, value in loop.first.metrics.items() if name not in seconds
    }


def test_another_seed_gives_another_generation(loop: Loop, tmp_path: Path) -> None:
    store, other = trained(loop, tmp_path, seed=1)
    mine, theirs = store.manifest(other.id).fingerprints, loop.store.manifest(loop.first.id).fingerprints
    assert other.id != loop.first.id
    assert mine["towers"] != theirs["towers"]
    assert mine["ranker"] != theirs["ranker"]
    assert mine["schema"] == theirs["schema"]


def test_a_generation_is_judged_last_of_all_and_a_red_verdict_publishes_nothing(
    loop: Loop, first: Prepared, tmp_path: Path
) -> None:
    asked: list[str] = []

    def judge(generation: Generation, *, passed: bool) -> tuple[Gate, dict[str, float]]:
        asked.append(generation.id)
        return Gate("uplift.low_share", -0.2, ">= -0.05", passed), {"uplift.low": -0.4}

    store = GenerationStore(tmp_path)
    with pytest.raises(GateFailed, match=r"uplift.low_share is -0.2, must be >= -0.05"):
        exported(loop, first, store, judges=[partial(judge, passed=False)])
    assert store.ids() == []
    published = exported(loop, first, store, judges=[partial(judge, passed=True)])
    assert asked == [published.id, published.id]
    assert published.metrics["uplift.low"] == -0.4
    assert published.gates[-1].name == "uplift.low_share"


def test_the_models_of_a_generation_export_to_the_same_generation(loop: Loop, first: Prepared, tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    assert exported(loop, first, store).id == loop.first.id
    assert store.current() is None, "publishing does not activate"


def test_the_second_cycle_keeps_the_table_of_the_first_and_names_its_parent(loop: Loop) -> None:
    before, after = (loop.store.manifest(each.id) for each in (loop.first, loop.second))
    assert before.fingerprints["schema"] == after.fingerprints["schema"]
    assert (before.parent, after.parent) == (None, loop.first.id)
    assert before.data_window[1] == loop.first_end_ms
    assert after.data_window[1] == loop.served_end_ms


def test_the_second_cycle_trains_on_the_bytes_that_were_logged(loop: Loop, second: Prepared) -> None:
    mature = [each for each in loop.served.impressions if each.time_ms <= loop.served_end_ms - ATTRIBUTION_MS]
    exposures = sum(len(each.item_id) for each in mature)
    examples = second.examples
    assert 0 < len(mature) < len(loop.served.impressions), "the last ones may still get an outcome"
    assert examples.query_row_R[-len(mature) :].tobytes() == b"".join(each.query_row for each in mature)
    assert examples.item_row_N[-exposures:].tobytes() == b"".join(each.item_rows for each in mature)
    assert examples.pair_row_N[-exposures:].tobytes() == b"".join(each.pair_rows for each in mature)
    assert examples.propensity_N[-exposures:].tolist() == [p for each in mature for p in each.propensity]
    happened = set(loop.served.events.select("request_id", "item_id", "action").iter_rows())
    shown = [(each.request_id, item_id) for each in mature for item_id in each.item_id]
    label_NA = examples.label_NA[-exposures:]
    wrong = [
        (request, item, action)
        for (request, item), label_A in zip(shown, label_NA.tolist(), strict=True)
        for action, label in zip(loop.world.actions, label_A, strict=True)
        if label and (request, item, action) not in happened
    ]
    assert wrong == []
    assert label_NA[:, 0].sum() > 10


def test_the_second_cycle_learns_from_both_logs(first: Prepared, second: Prepared, loop: Loop) -> None:
    rows = len(first.examples)
    assert len(second.examples) > rows
    shown = {"first": first, "second": second}
    served = {item for each in loop.served.impressions for item in each.item_id}
    times = {name: np.expm1(each.item_row_I["log_shown"]).sum() for name, each in shown.items()}
    exposures = sum(len(each.item_id) for each in loop.served.impressions)
    assert times["second"] == pytest.approx(times["first"] + exposures, rel=1e-3)
    assert served <= set(second.items["item_id"])
    assert len(second.tower_positive_N) > len(first.tower_positive_N)


def test_nothing_later_than_the_moment_is_read(loop: Loop) -> None:
    at_ms = loop.world.day_ms(4)
    dataset = loop.dataset
    known = replace(
        dataset,
        impressions=dataset.impressions.filter(pl.col("time_ms") <= at_ms),
        events=dataset.events.filter(pl.col("visible_ms") <= at_ms),
    )
    assert known.events.height < dataset.events.height
    everything, only = (cycle.prepare(each, as_of_ms=at_ms, tower_positives=10_000) for each in (dataset, known))

    assert everything.items["published_ms"].to_numpy().max() <= at_ms
    assert everything.items.equals(only.items)
    for name in ("item_row_I", "popularity_I", "profile_U", "tower_query_N", "tower_positive_N"):
        assert getattr(everything, name).tobytes() == getattr(only, name).tobytes(), name
    assert bytes_of(everything.examples) == bytes_of(only.examples)
    assert (everything.examples.time_ms_R <= at_ms - ATTRIBUTION_MS).all()
    assert everything.window == only.window
    assert everything.window[1] == at_ms


def test_no_more_positives_than_told_are_taken_and_they_span_the_log(loop: Loop, first: Prepared) -> None:
    few = cycle.prepare(loop.dataset, as_of_ms=loop.first_end_ms, tower_positives=50)
    every = math.ceil(len(first.tower_positive_N) / 50)
    assert every > 1
    assert few.tower_positive_N.tolist() == first.tower_positive_N[::every].tolist()
    assert few.tower_query_N.tobytes() == first.tower_query_N[::every].tobytes()


def test_the_towers_are_told_what_was_shown_and_not_taken(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def recorded(*_: object, **given: Any) -> None:
        told.update(given)

    prepared = cycle.prepare(loop.dataset, as_of_ms=loop.first_end_ms, tower_positives=50, tower_hard_negatives=3)
    monkeypatch.setattr(cycle, "train_towers", recorded)
    cycle.fit_towers(prepared, SMALL, seed=0, folder=tmp_path)
    assert told["hard_row_NH"] is prepared.tower_hard_NH
    assert prepared.tower_hard_NH.shape == (len(prepared.tower_positive_N), 3)
    assert (prepared.tower_hard_NH >= 0).mean() > 0.9
    assert not (prepared.tower_hard_NH == prepared.tower_positive_N[:, None]).any()


def test_the_table_is_declared_from_the_data(loop: Loop) -> None:
    table = cycle.declare(loop.dataset)
    assert table.actions == loop.world.actions
    assert table.sources == SOURCES
    assert set(table["category"].vocabulary) == set(loop.dataset.items["category"])
    assert {feature.name for feature in table.profile} >= set(loop.world.user_columns)
    assert table.fingerprint == loop.generations[0].table.fingerprint


@pytest.mark.parametrize("gate", RED)
def test_a_red_gate_publishes_nothing_and_names_figure_and_limit(
    loop: Loop, first: Prepared, tmp_path: Path, gate: str
) -> None:
    threshold, name, limit = RED[gate]
    store = GenerationStore(tmp_path / "generations")
    with pytest.raises(GateFailed) as failed:
        exported(loop, first, store, gates=replace(OPEN_GATES, **dict[str, Any]({gate: threshold})))
    value = loop.first.metrics[name]
    assert str(failed.value) == f"{name} is {value:.4g}, must be {limit}"
    assert store.ids() == []
    assert store.current() is None
    assert not store.root.exists() or list(store.root.iterdir()) == []


def test_every_red_gate_is_named_at_once(loop: Loop, first: Prepared, tmp_path: Path) -> None:
    gates = replace(OPEN_GATES, **dict[str, Any]({gate: threshold for gate, (threshold, _, _) in RED.items()}))
    with pytest.raises(GateFailed) as failed:
        exported(loop, first, GenerationStore(tmp_path), gates=gates)
    assert [each.split(" is ")[0] for each in str(failed.value).split("; ")] == [name for _, name, _ in RED.values()]


@pytest.mark.parametrize("name", ["ranker.click.auc", "ranker.click.ece"])
@pytest.mark.parametrize("how", ["nan", "missing"])
def test_an_undefined_figure_is_red_however_open_its_gate(
    loop: Loop, first: Prepared, tmp_path: Path, name: str, how: str
) -> None:
    metrics = {key: value for key, value in loop.first.metrics.items() if key != name}
    if how == "nan":
        metrics[name] = math.nan
    store = GenerationStore(tmp_path)
    with pytest.raises(GateFailed, match=f"{name} is nan, must be"):
        exported(loop, first, store, metrics=metrics)
    assert store.ids() == []


def test_a_red_cycle_leaves_what_is_current_as_it_was(loop: Loop, first: Prepared, tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    good = exported(loop, first, store)
    store.activate(good.id, time_ms=1)
    with pytest.raises(GateFailed):
        exported(loop, first, store, gates=replace(OPEN_GATES, ranker_auc=1.0))
    assert store.ids() == [good.id]
    assert store.current() == good.id


def test_what_servers_were_told_of_items_is_in_the_next_generation_once(loop: Loop, tmp_path: Path) -> None:
    first, second, third, *_ = loop.dataset.items["item_id"]
    later_ms = loop.world.day_ms(loop.world.days)
    changes: list[Change] = [
        UpsertItemsRequest(
            items=[CatalogItem(item_id="new", title="Brand New"), CatalogItem(item_id=first, title="Now")]
        ),
        UpsertItemsRequest(items=[CatalogItem(item_id="later", title="Not Yet", published_ms=later_ms)]),
        PatchItemsRequest(patches=[ItemPatch(item_id=second, available=False)]),
        DeleteItemsRequest(item_ids=[third]),
    ]
    entries = [Entry(seq, loop.first_end_ms, change) for seq, change in enumerate(changes, 1)]
    prepared = cycle.prepare(loop.dataset, as_of_ms=loop.first_end_ms, tower_positives=1000, changes=entries)
    store = GenerationStore(tmp_path)
    published = exported(loop, prepared, store)
    generation = Generation.load(store, published.id)
    assert generation.catalog_seq == store.manifest(published.id).catalog_seq == 4
    ids = list(generation.items.ids.ids)
    assert len(ids) == len(set(ids))
    without = cycle.prepare(loop.dataset, as_of_ms=loop.first_end_ms, tower_positives=1000)
    assert set(ids) == {*without.items["item_id"], "new", "later"} - {third}
    row = {item_id: row for row, item_id in enumerate(ids)}
    assert generation.items.titles[row[first]] == "Now"
    shown = dict(zip(ids, generation.items.available_I.tolist(), strict=True))
    assert (shown["new"], shown["later"], shown[second]) == (True, True, False)
    assert without.catalog_seq == 0
    assert generation.changed([]) is generation


def test_an_export_whose_parts_do_not_belong_together_is_not_published(
    loop: Loop, first: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(*given: Any, **named: Any) -> Built:
        return build_index(*given, **{**named, "towers": "those of another training"})

    monkeypatch.setattr(cycle, "build_index", strange)
    store = GenerationStore(tmp_path)
    with pytest.raises(GenerationMismatch, match="those of another training"):
        exported(loop, first, store)
    assert store.ids() == []


def test_only_weights_of_actions_that_the_data_has_are_published(loop: Loop, first: Prepared, tmp_path: Path) -> None:
    weights = {**SMALL.policy.weights, "purchase": 10.0}
    store = GenerationStore(tmp_path)
    published = exported(loop, first, store, policy=replace(SMALL.policy, weights=weights))
    assert dict(Generation.load(store, published.id).settings.weights) == dict(SMALL.policy.weights)


@pytest.mark.parametrize("repeats", [True, False])
def test_what_a_user_knows_is_hidden_as_suits_the_data(
    loop: Loop, first: Prepared, tmp_path: Path, repeats: bool
) -> None:
    store = GenerationStore(tmp_path)
    published = exported(loop, replace(first, repeats=repeats), store)
    told = json.loads((store.folder(published.id) / "retrieval.json").read_text())
    assert told["hide_seen"] is not repeats
    names = [each.name for each in Generation.load(store, published.id).pipeline.filters]
    assert ("seen" in names) is not repeats


def test_words_of_title_category_and_creator_find_an_item(loop: Loop) -> None:
    items = loop.dataset.items.head(3)
    texts = searchable(items)
    assert texts == [joined(fields) for fields in items.select("title", "category", "creator").iter_rows()]
    described = items.with_columns(description=pl.Series([None, "about a whale", ""]))
    assert "about a whale" in searchable(described)[1]
    assert searchable(described)[0] == texts[0]
