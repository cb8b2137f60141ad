"""What a request would have got otherwise: exactly what the code that serves makes of it, and nothing of it stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Loop
from serving_cases import NOW_MS, MemoryLog, MemoryState, Switch, publish, serving

from index.generations import GenerationStore
from protos.impression_pb2 import Impression, Variation
from protos.recommender_pb2 import Context, ExplainRequest, ExplainResponse, RecommendRequest, SearchRequest, WhatIf
from serving.again import Snapshots
from serving.client import CallFailed, CascadeClient
from serving.codec import query_of
from serving.what_if import InvalidWhatIf, explained


def told(loop: Loop, *what_ifs: WhatIf, lost: int = 0) -> tuple[Impression, ExplainResponse]:
    """A request of somebody with a history, which the second generation answered."""
    logged = next(
        each
        for each in loop.everything.impressions
        if each.generation == loop.second.id and each.history_item_key and not each.text
    )
    snapshots = Snapshots({each.id: each for each in loop.generations}, None)
    return logged, explained(ExplainRequest(what_ifs=what_ifs, lost=lost), logged, answered=snapshots.answered)


def test_what_changes_nothing_gives_the_logged_slate_bit_by_bit(loop: Loop) -> None:
    logged, plain = told(loop)
    _, beside = told(loop, WhatIf(), WhatIf(variation=plain.settings), WhatIf(generation=logged.generation))
    assert beside.impression == logged
    for each in beside.what_ifs:
        assert each.reproduced
        assert list(each.impression.item_id) == list(logged.item_id)
        assert list(each.impression.propensity) == list(logged.propensity)
        assert each.impression.query_row == logged.query_row


def test_another_generation_answers_as_it_does_when_it_is_asked(loop: Loop) -> None:
    logged, beside = told(loop, WhatIf(generation=loop.first.id))
    (other,) = beside.what_ifs
    first = loop.generations[0]
    answer = first.pipeline.run(query_of(logged, first))
    assert other.impression.generation == loop.first.id
    assert list(other.impression.item_id) == [
        first.items.ids.ids[int(row)] for row in answer.scored.candidates.row_N[answer.slate.index_K]
    ]
    assert list(other.impression.propensity) == answer.slate.propensity_K.tolist()
    assert other.reproduced
    assert not other.impression.experiment_arms


def test_weights_chance_diversity_and_sources_can_be_changed(loop: Loop) -> None:
    greedy = Variation(policy={"temperature": 0.0, "epsilon": 0.0, "diversity": 0.0}, action_weights={"click": 0.0})
    _, beside = told(loop, WhatIf(variation=greedy), WhatIf(variation=Variation(quotas={"ann": 0})))
    by_utility, without = beside.what_ifs
    assert set(by_utility.impression.propensity) == {1.0}
    assert list(by_utility.impression.utility) == sorted(by_utility.impression.utility, reverse=True)
    assert by_utility.settings.action_weights["click"] == 0
    assert "ann" not in without.trace.retrieved
    assert beside.trace.retrieved["ann"] > 0


def test_titles_history_and_items_lost_at_each_stage_are_told(loop: Loop) -> None:
    logged, plain = told(loop, lost=2)
    items = loop.generations[1].items
    title_of = dict(zip(items.ids.ids, items.titles, strict=True))
    assert all(each.title == title_of[each.item_id] and each.category for each in plain.items)
    assert all(each.title == title_of[each.item_id] and each.action for each in plain.history)
    assert [each.time_ms for each in plain.history] == list(logged.history_time_ms)
    stages = [each.lost.partition(":")[0] for each in plain.items if each.position < 0]
    assert stages.count("not drawn") == 2
    assert len(stages) == 2 + sum(min(2, count) for count in plain.trace.removed.values())
    assert [each.item_id for each in plain.items if each.position >= 0] == list(logged.item_id)


@pytest.mark.parametrize(
    ("variation", "message"),
    [
        (Variation(policy={"warmth": 1.0}), r"what_ifs\[1\]: policy: 'warmth' given, allowed: temperature"),
        (Variation(policy={"temperature": -1.0}), r"what_ifs\[1\]: temperature is -1"),
        (Variation(action_weights={"buy": 1.0}), r"what_ifs\[1\]: action_weights: 'buy' given"),
        (Variation(quotas={"oracle": 3}), r"what_ifs\[1\]: quotas: 'oracle' given"),
    ],
)
def test_what_cannot_be_is_refused_by_name(loop: Loop, variation: Variation, message: str) -> None:
    with pytest.raises(InvalidWhatIf, match=message):
        told(loop, WhatIf(), WhatIf(variation=variation))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[CascadeClient, MemoryLog, Switch]]:
    log, switch = MemoryLog(), Switch()
    with (
        serving(tmp_path, monkeypatch, state=MemoryState(), log=log, switch=switch) as address,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20.0) as client,
    ):
        yield client, log, switch


def context(user_id: str = "") -> Context:
    return Context(client_time_ms=NOW_MS, user_id=user_id)


def test_a_request_explained_now_is_answered_as_it_would_be_and_leaves_nothing(
    served: tuple[CascadeClient, MemoryLog, Switch],
) -> None:
    client, log, _ = served
    asked = RecommendRequest(context=context(user_id="u1"), request_id="r", page_size=5)
    explained_now = client.explain(asked, what_ifs=[WhatIf(variation=Variation(policy={"temperature": 0.0}))], lost=3)
    assert not log.impressions
    assert explained_now.reproduced
    shown = client.recommend("u1", size=5, request_id="r", time_ms=NOW_MS)
    assert [each.item_id for each in shown.items] == list(explained_now.impression.item_id)
    assert [each.propensity for each in shown.items] == list(explained_now.impression.propensity)
    assert set(log.impressions) == {"r"}
    assert explained_now.what_ifs[0].impression.policy.temperature == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("", "request_id: '' given, allowed: one of request_id, recommend and search"),
        (SearchRequest(context=context()), "query: '' given"),
        (RecommendRequest(context=context(), page_token="p"), "recommend.page_token: 'p' given"),
        (RecommendRequest(context=context(), page_size=0), "page_size: 0 given"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    served: tuple[CascadeClient, MemoryLog, Switch], asked: str | RecommendRequest | SearchRequest, message: str
) -> None:
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT") as refused:
        served[0].explain(asked)
    assert message in str(refused.value)


def test_a_what_if_of_a_generation_that_is_not_there_is_not_found(
    served: tuple[CascadeClient, MemoryLog, Switch],
) -> None:
    asked = RecommendRequest(context=context())
    with pytest.raises(CallFailed, match="NOT_FOUND"):
        served[0].explain(asked, what_ifs=[WhatIf(generation="000009-00000000")])


def test_the_audit_log_holds_why_a_generation_was_made_current(
    served: tuple[CascadeClient, MemoryLog, Switch], tmp_path: Path
) -> None:

    client, _, _ = served
    second = publish(GenerationStore(tmp_path / "generations"), 2)
    client.activate(second, reason="more clicks")
    client.rollback(reason="fewer clicks")
    history = client.generations().history
    assert [each.reason for each in history][:2] == ["fewer clicks", "more clicks"]
    assert history[0].previous == second
    assert history[0].by == "the admin port"
