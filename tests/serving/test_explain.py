"""Why a slate holds what it holds, told from the log of a real loop."""

import math

import numpy as np
import pytest
from conftest import Loop

from policy.value import utility
from protos.impression_pb2 import Impression
from serving.explain import contributions, explain
from serving.generation import Generation


def of_second(loop: Loop) -> tuple[Impression, Generation]:
    """A request with a history, and who answered it."""
    logged = next(
        each
        for each in loop.everything.impressions
        if each.generation == loop.second.id and each.history_item_key and not each.text
    )
    return logged, loop.generations[1]


def test_what_was_shown_is_told_as_it_was_logged_and_given_again(loop: Loop) -> None:
    logged, generation = of_second(loop)
    told = explain(logged, generation)
    assert told.reproduced
    assert told.diverged == ""
    assert told.impression == logged
    assert [each.item_id for each in told.items] == list(logged.item_id)
    assert [each.position for each in told.items] == list(range(len(logged.item_id)))
    assert [each.propensity for each in told.items] == list(logged.propensity)
    assert [each.flags for each in told.items] == list(logged.slot_flags)
    sources, actions = len(logged.source_names), len(logged.action_names)
    for k, each in enumerate(told.items):
        rank_S = logged.source_rank[k * sources : (k + 1) * sources]
        assert each.ranks == {name: rank for name, rank in zip(logged.source_names, rank_S, strict=True) if rank >= 0}
        assert [each.actions[name] for name in logged.action_names] == logged.probability[k * actions :][:actions]
        assert each.terms["utility"] == pytest.approx(logged.utility[k])
        assert not each.lost


def test_a_rival_could_have_stood_in_the_slot_and_did_not_stand_before_it(loop: Loop) -> None:
    logged, generation = of_second(loop)
    told = explain(logged, generation)
    assert any(each.rivals for each in told.items)
    for each in told.items:
        rivals = [rival.item_id for rival in each.rivals]
        assert each.item_id not in rivals
        assert not set(rivals) & set(logged.item_id[: each.position])
        chances = [rival.propensity for rival in each.rivals]
        assert chances == sorted(chances, reverse=True)
        assert each.propensity + math.fsum(chances) <= 1 + 1e-9


def test_every_other_item_is_lost_somewhere(loop: Loop) -> None:
    logged, generation = of_second(loop)
    others = [item_id for item_id in generation.items.ids.ids if item_id not in logged.item_id]
    told = explain(logged, generation, item_ids=[*others, "nobody"])
    lost = {each.item_id: each for each in told.items}
    assert all(each.position == -1 and each.lost for each in told.items)
    assert lost["nobody"].lost == f"generation {generation.id} does not hold it"
    kinds = [each.lost.partition(":")[0].partition(" by")[0] for each in told.items]
    assert kinds.count("not drawn") == told.trace.eligible - len(logged.item_id)
    assert kinds.count("removed") + kinds.count("not scored") == sum(told.trace.removed.values())
    for each in told.items:
        assert bool(each.actions) == each.lost.startswith("not drawn")


def test_a_contribution_is_what_the_utility_loses_without_the_feature(loop: Loop) -> None:
    logged, generation = of_second(loop)
    told = explain(logged, generation, item_ids=list(logged.item_id[:1]), features=True)
    (first,) = told.items
    table = generation.table
    rows = [
        np.frombuffer(each, table.dtype(kind))[:1].copy()  # type: ignore[arg-type]
        for each, kind in ((logged.query_row, "query"), (logged.item_rows, "item"), (logged.pair_rows, "pair"))
    ]
    assert set(first.features) == {feature.name for feature in table.features}
    assert first.features == pytest.approx(contributions(generation, *rows))

    def worth() -> float:
        probability_NA = generation.scorer.probabilities(*rows)
        weights = generation.settings.weights
        return float(utility(probability_NA, action_names=table.actions, weights=weights)[0])

    whole = worth()
    name = max(first.features, key=lambda each: abs(first.features[each]))
    tower_score = float(rows[2]["tower_score"][0])  # maybe the very feature that is taken away
    kind = next(k for k, row in enumerate(("query", "item", "pair")) if name in table.dtype(row).names)  # type: ignore[arg-type,operator]
    rows[kind][name] = table.empty(("query", "item", "pair")[kind], 1)[name]
    assert whole - worth() == pytest.approx(first.features[name], abs=1e-6)
    assert first.features[name] != 0
    assert first.values["category"].text in table["category"].vocabulary
    assert first.values["tower_score"].number == pytest.approx(tower_score)
    assert told.query_values["history_log_length"].number > 0


def test_an_answer_that_comes_out_otherwise_is_said_to_and_still_told(loop: Loop) -> None:
    logged, generation = of_second(loop)
    changed = Impression.FromString(logged.SerializeToString())
    changed.propensity[0] /= 2
    told = explain(changed, generation)
    assert not told.reproduced
    assert told.diverged == "select.propensity"
    assert told.items[0].propensity == changed.propensity[0]


def test_rows_of_another_feature_table_are_refused(loop: Loop) -> None:
    logged, generation = of_second(loop)
    changed = Impression.FromString(logged.SerializeToString())
    changed.schema = "another"
    with pytest.raises(ValueError, match="was made with feature table another, generation"):
        explain(changed, generation)
