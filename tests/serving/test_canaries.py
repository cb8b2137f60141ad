"""What a generation is asked before it may serve, and what happens to one that does not know."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from serving_cases import NOW_MS, MemoryLog, Switch, call, generation, publish, refusal, running, settings

from index.certificates import Certificate
from index.generations import GenerationStore
from index.placement import Placement
from index.strings import IdMap
from index.types import Hits
from index.vectors import VectorIndex
from protos.admin_pb2 import ActivateRequest
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse
from serving.canaries import FAULTS, NOT_OF_A_CANARY, Unfit, canaries, check_answers, check_recall
from serving.generation import Generation
from serving.generations import Generations

WIRE = RecommendRequest(context=Context(client_time_ms=NOW_MS, user_id="u1"), page_size=5).SerializeToString()


def vectors(count: int = 600, d: int = 16) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, d)).astype(np.float32)


@dataclass(frozen=True)
class Damaged:
    """An index that does something else with the rows that it finds."""

    whole: VectorIndex
    change: Callable[[NDArray[np.int64]], NDArray[np.int64]]

    @property
    def vector_ID(self) -> NDArray[np.float32]:
        return self.whole.vector_ID

    @property
    def quarantined_Q(self) -> NDArray[np.int64]:
        return self.whole.quarantined_Q

    @property
    def metric(self) -> str:
        return self.whole.metric

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        return self.whole.certificates

    def search(self, query_D: NDArray[np.float32], k: int) -> Hits:
        hits = self.whole.search(query_D, k)
        return Hits(self.change(hits.row_K), hits.score_K)


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_an_index_that_finds_what_it_was_certified_for_passes(metric: str) -> None:
    poisoned_ID = vectors(2000)
    poisoned_ID[0] = np.nan
    index = VectorIndex.build(poisoned_ID, towers="t", kind="ivf", metric=metric)  # type: ignore[arg-type]
    assert index.quarantined == 1
    check_recall(index, vectors()[1:20])
    check_recall(VectorIndex.build(vectors()[:0], towers="t"), vectors()[:3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row_K: (row_K + 1) % 600, "it is certified for"),
        (lambda row_K: row_K + 600, "rows that are none"),
        (lambda row_K: row_K - 600, "rows that are none"),
    ],
    ids=["other rows", "behind the last", "before the first"],
)
def test_an_index_that_finds_something_else_is_refused(
    change: Callable[[NDArray[np.int64]], NDArray[np.int64]], says: str
) -> None:
    index = VectorIndex.build(vectors(), towers="t")
    with pytest.raises(Unfit, match=says):
        check_recall(Damaged(index, change), vectors()[:20])


def test_the_canaries_are_a_stranger_who_types_a_stranger_and_some_users() -> None:
    asked = canaries(IdMap.of([f"u{number}" for number in range(100)]), ["", "a title"], at_ms=NOW_MS)
    assert [(each.user_id, each.text) for each in asked[:3]] == [("", "a title"), ("", ""), ("u0", "")]
    assert len({each.user_id for each in asked}) == 17
    assert len(canaries(IdMap.of([]), [], at_ms=NOW_MS)) == 2


@pytest.mark.parametrize("part", ["ranker", "lexical"])
def test_a_generation_that_answers_without_a_part_is_refused(part: str) -> None:
    asked = canaries(IdMap.of(["u1"]), ["title"], at_ms=NOW_MS)
    check_answers(generation().pipeline, asked, wrong=NOT_OF_A_CANARY)
    with pytest.raises(Unfit, match="degraded bits"):
        check_answers(generation(switch=Switch(fail=frozenset({part}))).pipeline, asked, wrong=FAULTS)


def test_a_generation_of_nothing_is_refused() -> None:
    whole = generation()
    nothing = replace(whole.pipeline, sources=[(whole.pipeline.sources[-1][0], 0)])
    asked = canaries(IdMap.of(["u1"]), ["title"], at_ms=NOW_MS)
    with pytest.raises(Unfit, match="answered with 0 items"):
        check_answers(nothing, asked, wrong=NOT_OF_A_CANARY)


def test_a_generation_that_fails_the_latest_requests_is_refused_and_the_old_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_of: dict[str, Switch] = {}

    def load(store: GenerationStore, name: str, *, placement: Placement | None = None) -> Generation:
        return generation(name, about=store.verify(name), switch=switch_of.setdefault(name, Switch()))

    monkeypatch.setattr(Generation, "load", staticmethod(load))
    store = GenerationStore(tmp_path / "generations")
    first, second = publish(store, 1), publish(store, 2)
    store.activate(first, time_ms=NOW_MS)
    with (
        running(Generations(store), settings(tmp_path), log=MemoryLog()) as address,
        grpc.insecure_channel(address.target) as data,
        grpc.insecure_channel(address.admin_target) as admin,
    ):

        def served() -> str:
            return RecommendResponse.FromString(call(data, "Recommender/Recommend", WIRE)).generation

        wanted = ActivateRequest(generation=second, expected=first).SerializeToString()
        assert served() == first
        for part in ("ranker", "hydrate"):
            switch_of[second] = Switch(fail=frozenset({part}))
            code, message = refusal(admin, "Admin/Activate", wanted)
            assert (code, second in message) == ("FAILED_PRECONDITION", True)
            assert (served(), store.current()) == (first, first)
        switch_of[second] = Switch()
        assert refusal(admin, "Admin/Activate", wanted)[0] == "OK"
        assert switch_of[second].calls == 3, "it has answered what was asked of the first"
        assert served() == second
