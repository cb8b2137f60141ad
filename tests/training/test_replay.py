"""The served path is the replayed path: what was logged comes out again, and what was tampered with is found."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import SLATE_SIZE, Loop
from numpy.typing import NDArray

from candidate_gen.types import Candidates, HydratedQuery
from index.generations import GenerationStore
from index.strings import keys64
from index.types import Hits
from policy.selector import SlatePolicy
from protos.impression_pb2 import Degraded, Impression, Kind
from ranking.types import Scored
from serving.again import Snapshots, recorded_again
from serving.answers import record
from serving.client import CascadeClient, ItemChange, ItemEntry
from serving.codec import query_of
from serving.generation import Generation
from serving.generations import Generations
from serving.live import Live
from serving.log.catalog_log import FILE, CatalogLog
from serving.log.impression_log import ImpressionLog
from serving.server import Server
from serving.settings import ServerSettings, ServiceSettings
from training.log.impression_log import read_impressions
from training.off_policy.estimate import estimate, examination, outcome_rewards
from training.off_policy.replay import Counterfactual, Divergence, counterfactual, verify

EVERYBODY_LOOKS = np.ones(1)


def by_id(loop: Loop) -> dict[str, Generation]:
    return {each.id: each for each in loop.generations}


def of_first(loop: Loop, most: int = 60) -> list[Impression]:
    return [each for each in loop.everything.impressions if each.generation == loop.first.id][:most]


def copy_of(logged: Impression) -> Impression:
    return Impression.FromString(logged.SerializeToString())


def tampered(logged: Impression, change: Callable[[Impression], None]) -> Impression:
    made = copy_of(logged)
    change(made)
    return made


def with_settings(generation: Generation, **changes: float) -> Generation:
    """The same generation with another policy."""
    settings = replace(generation.settings, **changes)  # type: ignore[arg-type]  # its numbers
    policy = SlatePolicy(settings, generation.items, generation.id)
    return replace(generation, settings=settings, pipeline=replace(generation.pipeline, selector=policy))


def compare(loop: Loop, logged: list[Impression], target: Generation) -> Counterfactual:
    rewards = outcome_rewards(loop.everything.events, loop.world.weights)
    return counterfactual(logged, target, rewards=rewards, examination_K=EVERYBODY_LOOKS)


@pytest.fixture(scope="module")
def own(loop: Loop) -> Counterfactual:
    """The first generation beside its own log."""
    return compare(loop, of_first(loop, 400), loop.generations[0])


def test_everything_that_was_served_gives_the_same_answer_again(loop: Loop) -> None:
    logged = loop.everything.impressions
    verified = verify(logged, by_id(loop))
    assert verified.divergences == ()
    assert (verified.requests, verified.skipped) == (len(logged), 0)
    assert {each.generation for each in logged} == {loop.first.id, loop.second.id}
    assert {each.kind for each in logged} == {Kind.KIND_RECOMMEND, Kind.KIND_SEARCH}
    assert any(each.history_item_key for each in logged), "otherwise the histories prove nothing"
    live = [each for each in logged if each.live_hits]
    assert verified.recalled == len(live) > 0.9 * len(logged), "otherwise the live sources prove nothing"
    assert {hits.source for each in live for hits in each.live_hits} == {"covisitation", "trending"}


def test_what_live_sources_said_is_taken_from_the_log_and_decides(loop: Loop) -> None:
    logged = next(
        each
        for each in loop.everything.impressions
        if each.generation == loop.second.id and each.kind == Kind.KIND_RECOMMEND and len(each.live_hits) == 2
    )
    generation = loop.generations[1]
    names = list(recorded_again(logged, generation).source_names)
    rank_NS = generation.pipeline.run(query_of(logged, generation)).scored.candidates.rank_NS
    for hits in logged.live_hits:
        found = generation.items.ids.rows(np.array(hits.item_key, np.uint64))
        assert len(found) == (rank_NS[:, names.index(hits.source)] >= 0).sum() > 0
    silent = tampered(logged, lambda each: each.ClearField("live_hits"))
    (divergence,) = verify([silent], by_id(loop)).divergences
    assert divergence.stage in ("retrieve", "features")


def test_the_swap_lost_no_live_event(loop: Loop) -> None:
    """The second generation answers with what it carries and what came after; the first request sees both."""
    first = min(
        (each for each in loop.everything.impressions if each.generation == loop.second.id),
        key=lambda each: each.time_ms,
    )
    trending = next(hits for hits in first.live_hits if hits.source == "trending")
    generation = loop.generations[1]
    live = Live(lambda: generation)
    known = loop.everything.events.filter(pl.col("time_ms") > loop.served_end_ms, pl.col("visible_ms") < first.time_ms)
    assert known.height == 0, "nothing came between, so the generation's own events say it all"
    hits = live.named(replace(query_of(first, generation), live={}), generation, generation.items.allowed)["trending"]
    assert keys64(generation.items.ids.ids.take(hits.row_K)).tolist() == list(trending.item_key)
    assert hits.score_K.tolist() == list(trending.score)


def test_asking_again_reads_nothing_but_the_question(loop: Loop) -> None:
    logged = of_first(loop, 1)[0]
    question = copy_of(logged)
    for name in ("item_id", "propensity", "utility", "query_row", "item_rows", "pair_rows", "probability"):
        question.ClearField(name)
    again = recorded_again(question, loop.generations[0])
    assert list(again.item_id) == list(logged.item_id)
    assert list(again.propensity) == list(logged.propensity)
    assert again.pair_rows == logged.pair_rows


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def change_propensity(logged: Impression) -> None:
    logged.propensity[0] = math.nextafter(logged.propensity[0], 1.0)


def change_candidate(logged: Impression) -> None:
    logged.eligible_item_key[0] ^= 1


def lose_candidate(logged: Impression) -> None:
    del logged.eligible_item_key[-1]


def change_query_row(logged: Impression) -> None:
    logged.query_row = flip(logged.query_row)


def change_item_rows(logged: Impression) -> None:
    logged.item_rows = flip(logged.item_rows)


def change_pair_rows(logged: Impression) -> None:
    logged.pair_rows = flip(logged.pair_rows)


def change_utility(logged: Impression) -> None:
    logged.eligible_utility[3] += 1e-6


def swap_items(logged: Impression) -> None:
    logged.item_id[0], logged.item_id[1] = logged.item_id[1], logged.item_id[0]


def change_seed(logged: Impression) -> None:
    logged.policy.seed ^= 1


def change_history(logged: Impression) -> None:
    """The question itself was tampered with: the first thing made of it differs."""
    logged.history_item_key[:] = logged.history_item_key[::-1]


@pytest.mark.parametrize(
    ("change", "stage", "field"),
    [
        (change_candidate, "retrieve", "eligible_item_key"),
        (lose_candidate, "retrieve", "eligible_item_key"),
        (change_query_row, "features", "query_row"),
        (change_item_rows, "features", "item_rows"),
        (change_pair_rows, "features", "pair_rows"),
        (change_utility, "score", "eligible_utility"),
        (change_propensity, "select", "propensity"),
        (swap_items, "select", "item_id"),
        (change_seed, "select", "policy"),
    ],
)
def test_what_was_tampered_with_is_found_and_the_first_stage_that_differs_named(
    loop: Loop, change: Callable[[Impression], None], stage: str, field: str
) -> None:
    clean, victim, other = of_first(loop, 3)
    verified = verify([clean, tampered(victim, change), other], by_id(loop))
    assert verified.requests == 3
    assert verified.divergences == (Divergence(victim.request_id, stage, field),)


def test_of_two_changes_the_earlier_stage_is_named(loop: Loop) -> None:
    def change(logged: Impression) -> None:
        change_propensity(logged)
        change_pair_rows(logged)

    (divergence,) = verify([tampered(of_first(loop, 1)[0], change)], by_id(loop)).divergences
    assert divergence.stage == "features"


def test_a_question_that_was_tampered_with_gives_another_answer(loop: Loop) -> None:
    victim = next(each for each in of_first(loop, 400) if len(set(each.history_item_key)) > 3)
    (divergence,) = verify([tampered(victim, change_history)], by_id(loop)).divergences
    assert divergence.stage in ("retrieve", "features")


def test_a_generation_that_answers_for_another_is_found(loop: Loop) -> None:
    swapped = {loop.first.id: loop.generations[1], loop.second.id: loop.generations[0]}
    logged = of_first(loop, 5)
    assert len(verify(logged, swapped).divergences) == len(logged)


def test_a_generation_that_is_not_at_hand_is_named(loop: Loop) -> None:
    with pytest.raises(ValueError, match=f"by generation {loop.first.id}, which is not among {loop.second.id}"):
        verify(of_first(loop, 1), {loop.second.id: loop.generations[1]})


@dataclass(frozen=True)
class FailingSource:
    name: str

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        raise OSError("gone")


class FailingScorer:
    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:  # noqa: ARG002
        raise OSError("gone")


def asked_again_of(logged: Impression, generation: Generation, pipeline_of: Generation) -> Impression:
    """The same question, answered by another pipeline and logged as `generation`'s."""
    question = copy_of(logged)
    keep = {"request_id", "time_ms", "kind", "surface", "user_id", "text", "size"}
    for field, _ in logged.ListFields():
        if field.name not in keep and not field.name.startswith("history_"):
            question.ClearField(field.name)
    query = query_of(question, generation)
    answer = pipeline_of.pipeline.run(query)
    return record(question, query=query, answer=answer, generation=generation, eligible=True)


def test_a_source_that_failed_then_is_left_out_again(loop: Loop) -> None:
    generation = loop.generations[0]
    sources = [(FailingSource("ann") if each.name == "ann" else each, k) for each, k in generation.pipeline.sources]
    lame = replace(generation, pipeline=replace(generation.pipeline, sources=sources))
    logged = [asked_again_of(each, generation, lame) for each in of_first(loop, 10)]
    assert all(list(each.skipped_sources) == ["ann"] for each in logged)

    verified = verify(logged, by_id(loop))

    assert (verified.requests, verified.divergences) == (10, ())
    for each in logged:
        each.ClearField("skipped_sources")
    assert len(verify(logged, by_id(loop)).divergences) == 10, "with the source the candidates are others"


def test_what_the_ranker_did_not_answer_is_counted_and_not_compared(loop: Loop) -> None:
    generation = loop.generations[0]
    lame = replace(generation, pipeline=replace(generation.pipeline, scorer=FailingScorer()))
    skipped = [asked_again_of(each, generation, lame) for each in of_first(loop, 4)]
    assert all(each.degraded == Degraded.DEGRADED_RANKER_SKIPPED for each in skipped)
    verified = verify([*skipped, *of_first(loop, 3)], by_id(loop))
    assert (verified.requests, verified.skipped, verified.divergences) == (3, 4, ())


def test_a_policy_would_have_drawn_its_own_log_with_the_logged_probability(loop: Loop, own: Counterfactual) -> None:
    logged, compared = of_first(loop, 400), own

    np.testing.assert_allclose(compared.target_prefix_MK, compared.logged_prefix_MK, rtol=1e-12, atol=0)
    np.testing.assert_allclose(
        compared.logged_prefix_MK, [np.cumprod(each.propensity) for each in logged], rtol=1e-12, atol=0
    )
    assert compared.request_ids == tuple(each.request_id for each in logged)
    assert (compared.inside_M == 1).all()
    assert compared.target_item_ids == tuple(tuple(each.item_id) for each in logged)
    estimates = estimate(compared)
    assert estimates.depth == SLATE_SIZE
    assert estimates.overlap.effective_sample_size == pytest.approx(len(logged))
    mean = compared.reward_MK.sum(axis=1).mean()
    for name in ("sips", "sn_sips", "rips", "sn_rips"):
        assert estimates.by_name[name].value == pytest.approx(mean, rel=1e-9)


def test_rewards_are_those_of_the_outcomes_of_each_slot(loop: Loop, own: Counterfactual) -> None:
    logged, compared = of_first(loop, 400), own
    happened = loop.everything.events.select("request_id", "item_id", "action").unique().iter_rows()
    weight = {(request, item, action): loop.world.weights[action] for request, item, action in happened}
    for each, reward_K in zip(logged, compared.reward_MK, strict=True):
        expected_K = [
            sum(weight.get((each.request_id, item, action), 0.0) for action in loop.world.actions)
            for item in each.item_id
        ]
        assert reward_K.tolist() == expected_K
    assert compared.reward_MK.any()


def test_a_greedy_target_has_no_weight_on_what_it_would_not_draw(loop: Loop) -> None:
    logged = of_first(loop, 400)
    greedy = with_settings(loop.generations[0], temperature=0.0, epsilon=0.0, diversity=0.0)
    compared = compare(loop, logged, greedy)
    for each, prefix_K, wanted in zip(logged, compared.target_prefix_MK, compared.target_item_ids, strict=True):
        best_K = np.argsort(-np.array(each.eligible_utility), kind="stable")[:SLATE_SIZE]
        keys = np.array(each.eligible_item_key, np.uint64)[best_K]
        ids = loop.generations[0].items.ids
        assert wanted == tuple(ids.ids[row] for row in ids.rows(keys).tolist()), "best utility first"
        agrees_K = np.cumprod([shown == best for shown, best in zip(each.item_id, wanted, strict=True)])
        assert prefix_K.tolist() == agrees_K.tolist()
    assert set(compared.target_prefix_MK[:, 0]) == {0.0, 1.0}, "the log holds both"


def test_what_a_target_expects_of_a_slot_is_the_mean_over_its_draws(loop: Loop) -> None:
    logged = of_first(loop, 20)
    seen_K = np.array([1.0, 0.5, 0.25])
    greedy = with_settings(loop.generations[0], temperature=0.0, epsilon=0.0, diversity=0.0)
    uniform = with_settings(loop.generations[0], temperature=0.0, epsilon=1.0)
    by_greedy, by_uniform = (
        counterfactual(logged, target, rewards={}, examination_K=seen_K) for target in (greedy, uniform)
    )
    curve_K: NDArray[np.float64] = np.array([1.0, 0.5, 0.25, 0.25, 0.25, 0.25])
    for m, each in enumerate(logged):
        utility_N, utility_K = np.array(each.eligible_utility), np.array(each.utility)
        before_K = np.concatenate([[0.0], np.cumsum(utility_K)[:-1]])
        left_K = len(utility_N) - np.arange(len(utility_K))
        expected_K = curve_K * (utility_N.sum() - before_K) / left_K
        np.testing.assert_allclose(by_uniform.target_predicted_MK[m], expected_K, rtol=1e-6)
        assert by_greedy.target_predicted_MK[m, 0] == pytest.approx(utility_N.max())
        np.testing.assert_allclose(by_greedy.predicted_reward_MK[m], curve_K * utility_K)


def test_an_item_that_the_target_does_not_hold_has_weight_0_from_there_on(loop: Loop) -> None:
    """The first generation cannot show what was published after it was made."""
    first, second = loop.generations
    new = [
        each
        for each in loop.everything.impressions
        if each.generation == second.id and -1 in first.items.ids.rows_of(each.item_id)
    ]
    assert new, "some slate holds a new item"
    compared = compare(loop, new, first)
    for each, prefix_K in zip(new, compared.target_prefix_MK, strict=True):
        missing_K = first.items.ids.rows_of(each.item_id) < 0
        k = int(missing_K.argmax())
        assert (prefix_K[k:] == 0).all()
    assert np.isfinite(compared.target_predicted_MK).all()


def test_what_the_log_could_not_have_shown_is_told_and_left_out(loop: Loop) -> None:
    """A log of the five best candidates only: the target's slate is confined to them."""
    kept = 8

    def confine(logged: Impression) -> None:
        rows = sorted(zip(logged.eligible_item_key, logged.eligible_utility, strict=True), key=lambda each: -each[1])
        shown = set(loop.generations[0].items.ids.rows_of(logged.item_id).tolist())
        held = loop.generations[0].items.ids.rows(np.array([key for key, _ in rows], np.uint64)).tolist()
        chosen = [each for each, row in zip(rows, held, strict=True) if row in shown]
        chosen += [each for each, row in zip(rows, held, strict=True) if row not in shown][: kept - len(chosen)]
        logged.eligible_item_key[:] = [key for key, _ in chosen]
        logged.eligible_utility[:] = [utility for _, utility in chosen]

    logged = [tampered(each, confine) for each in of_first(loop, 20)]
    uniform = with_settings(loop.generations[0], temperature=0.0, epsilon=1.0)
    compared = compare(loop, logged, uniform)

    assert 0 <= compared.inside_M.mean() < 1
    for each, wanted, prefix_K in zip(logged, compared.target_item_ids, compared.target_prefix_MK, strict=True):
        held = loop.generations[0].items.ids.rows(np.array(each.eligible_item_key, np.uint64)).tolist()
        assert set(loop.generations[0].items.ids.rows_of(wanted).tolist()) <= set(held)
        np.testing.assert_allclose(prefix_K, np.cumprod(1 / (kept - np.arange(SLATE_SIZE))))


def test_short_slates_are_padded_with_slots_that_change_nothing(loop: Loop) -> None:
    generation = loop.generations[0]

    def shorten(logged: Impression) -> None:
        logged.size = 2

    long, short = of_first(loop, 2)
    short = asked_again_of(tampered(short, shorten), generation, generation)
    assert len(short.item_id) == 2

    alone, together = compare(loop, [short], generation), compare(loop, [long, short], generation)

    assert alone.reward_MK.shape == (1, 2)
    assert together.reward_MK.shape == (2, SLATE_SIZE)
    for name in ("reward_MK", "predicted_reward_MK", "target_predicted_MK"):
        assert getattr(together, name)[1, :2].tolist() == getattr(alone, name)[0].tolist()
        assert not getattr(together, name)[1, 2:].any()
    for name in ("logged_prefix_MK", "target_prefix_MK"):
        row_K = getattr(together, name)[1]
        assert row_K[:2].tolist() == getattr(alone, name)[0].tolist()
        assert (row_K[2:] == row_K[1]).all()


def test_impressions_without_their_candidates_are_left_out_and_none_at_all_is_an_error(loop: Loop) -> None:
    def forget(logged: Impression) -> None:
        logged.ClearField("eligible_item_key")
        logged.ClearField("eligible_utility")

    whole, other = of_first(loop, 2)
    bare = tampered(other, forget)
    assert compare(loop, [bare, whole], loop.generations[0]).request_ids == (whole.request_id,)
    assert verify([bare], by_id(loop)).divergences == (), "it can still be replayed"
    with pytest.raises(ValueError, match="none of 1 impressions holds the candidates"):
        compare(loop, [bare], loop.generations[0])


def test_the_other_generations_estimate_rests_on_weights_of_mean_1(loop: Loop) -> None:
    compared = compare(loop, of_first(loop, 200), loop.generations[1])
    weight_M = compared.target_prefix_MK[:, 0] / compared.logged_prefix_MK[:, 0]
    error = weight_M.std(ddof=1) / np.sqrt(len(weight_M))
    assert abs(weight_M.mean() - 1) < 4 * error
    assert 0 < compared.inside_M.mean() <= 1
    assert len(set(map(tuple, compared.target_prefix_MK.tolist()))) > 100


def test_examination_is_read_from_the_metrics_of_a_training(loop: Loop) -> None:
    curve_K = examination(loop.first.metrics)
    assert len(curve_K) == SLATE_SIZE
    assert curve_K.max() == pytest.approx(1.0)
    assert ((curve_K > 0) & (curve_K <= 1)).all()
    assert examination({}).tolist() == [1.0]


@dataclass(frozen=True)
class Changed:
    """A store that served while its catalogue changed, and whose generation was swapped in between."""

    store: GenerationStore
    impressions: list[Impression]
    catalog: CatalogLog

    def loaded(self) -> dict[str, Generation]:
        return {each: Generation.load(self.store, each) for each in self.store.ids()}


@pytest.fixture(scope="module")
def changed(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(loop.store.root, folder / "generations")
    store = GenerationStore(folder / "generations")
    store.activate(loop.first.id, time_ms=loop.served_end_ms)
    now_ms = loop.served_end_ms + 1
    settings = ServerSettings(
        generations=store.root,
        log=folder / "log",
        port=0,
        admin_port=0,
        lame_duck_s=0.0,
        service=ServiceSettings(clock="request", deadline_s=60.0, eligible_share=1.0),
    )
    generations = Generations(store)
    shown: list[str] = []
    with ImpressionLog(folder / "log", durability="os") as log:
        server = Server(generations, state=None, log=log, settings=settings)
        address = server.start()
        with CascadeClient(address.target, admin_target=address.admin_target, deadline_s=60.0) as client:

            def ask(name: str) -> None:
                slates = [
                    client.recommend("1", recent_item_ids=shown[:4], size=8, time_ms=now_ms, request_id=f"{name}/home"),
                    client.search("moon of paper", size=8, time_ms=now_ms, request_id=f"{name}/search"),
                    client.recommend("2", filter="available = true", time_ms=now_ms, request_id=f"{name}/filter"),
                ]
                shown[:0] = [item.item_id for slate in slates for item in slate.items[:2]]

            def new(number: int) -> ItemEntry:
                return ItemEntry(f"n{number}", f"paper moon {number}", category="drama", published_ms=now_ms - number)

            ask("before")
            client.upsert_items([new(number) for number in range(9)])
            ask("upserted")
            client.upsert_items([ItemEntry(shown[0], "a paper moon, again"), new(9)])
            client.delete_items([shown[1], "n3"])
            ask("deleted")
            client.activate(loop.second.id)
            ask("swapped")
            client.patch_items([ItemChange("n4", available=False), ItemChange(shown[0], available=False)])
            ask("hidden")
            client.upsert_items([new(3)])
            ask("back")
        server.stop()
        generations.close()
    return Changed(store, list(read_impressions(folder / "log")), CatalogLog(store.root / FILE))


def test_what_was_served_while_the_catalogue_changed_gives_the_same_answer_again(changed: Changed, loop: Loop) -> None:
    logged = changed.impressions
    assert {(each.generation, each.catalog_seq) for each in logged} == {
        *((loop.first.id, seq) for seq in (0, 1, 3)),
        *((loop.second.id, seq) for seq in (3, 4, 5)),
    }
    assert any(item.startswith("n") for each in logged for item in each.item_id), "something new was shown"
    assert any(each.filter for each in logged)
    verified = verify(logged, changed.loaded(), changed.catalog)
    assert verified.divergences == ()
    assert (verified.requests, verified.skipped) == (18, 0)
    assert verify(logged[::-1], changed.loaded(), changed.catalog).divergences == (), "in any order"


def test_a_snapshot_is_made_again_where_the_order_goes_back(changed: Changed, loop: Loop) -> None:
    snapshots = Snapshots(changed.loaded(), changed.catalog)
    of_first = sorted((each for each in changed.impressions if each.generation == loop.first.id), key=by_seq)
    seqs = [snapshots.answered(each).catalog_seq for each in (of_first[-1], of_first[0], of_first[-1])]
    assert seqs == [3, 0, 3]


def by_seq(logged: Impression) -> int:
    return logged.catalog_seq


def test_without_the_changes_it_knew_of_an_impression_is_not_replayed(changed: Changed, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"knew of change 1 of the catalogue; the log of changes is not given"):
        verify(changed.impressions, changed.loaded())
    missing = CatalogLog(tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"knew of change 1 .* at {missing.path} ends with 0"):
        verify(changed.impressions, changed.loaded(), missing)


def test_another_generation_is_asked_with_the_catalogue_as_it_was_then(changed: Changed, loop: Loop) -> None:
    of_first = [each for each in changed.impressions if each.generation == loop.first.id]
    targets = changed.loaded()
    own = counterfactual(
        of_first, targets[loop.first.id], rewards={}, examination_K=EVERYBODY_LOOKS, catalog=changed.catalog
    )
    ordered = sorted(of_first, key=by_seq)
    assert own.request_ids == tuple(each.request_id for each in ordered)
    assert own.target_item_ids == tuple(tuple(each.item_id) for each in ordered)
    other = counterfactual(
        of_first, targets[loop.second.id], rewards={}, examination_K=EVERYBODY_LOOKS, catalog=changed.catalog
    )
    deleted = next(each for each in changed.impressions if each.request_id == "deleted/search")
    at = own.request_ids.index(deleted.request_id)
    assert "n3" not in own.target_item_ids[at] + other.target_item_ids[at]
