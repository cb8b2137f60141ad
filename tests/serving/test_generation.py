"""A generation answers as one thing or not at all: mixed parts, flipped bytes, cold starts, swaps."""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import SLATE_SIZE, Loop

from candidate_gen.compiled_tower import CompiledQueryTower
from candidate_gen.features import FeatureTable
from candidate_gen.types import History, HydratedQuery, Query
from index.generations import CorruptGeneration, GenerationStore, StaleExpected, UnknownGeneration
from index.strings import keys64
from index.types import Hits
from protos.impression_pb2 import Degraded
from ranking.scorer import RankerScorer
from serving.generation import Generation, GenerationMismatch, action_key
from serving.generations import Generations
from serving.live import Live
from serving.pipeline import Answer
from serving.retrieval import RetrievalSettings
from training.examples.events import known_events

NOTHING = (np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.int64))


@pytest.fixture
def store(loop: Loop, tmp_path: Path) -> GenerationStore:
    """A copy of the store that a test may change: both generations, the first is current."""
    shutil.copytree(loop.store.root, tmp_path / "generations")
    copied = GenerationStore(tmp_path / "generations")
    copied.rollback(time_ms=loop.served_end_ms)
    return copied


def change_nothing(folder: Path) -> None:
    pass


def forged(
    store: GenerationStore,
    whole: str,
    *,
    files: Sequence[str] = (),
    of: str = "",
    fingerprints: Sequence[str] = (),
    change: Callable[[Path], None] = change_nothing,
) -> str:
    """`whole` with some files and fingerprints of another generation, changed and sealed anew: it verifies."""
    manifest = store.manifest(whole)
    bound = dict(manifest.fingerprints)
    with store.stage() as folder:
        shutil.copytree(store.folder(whole), folder, dirs_exist_ok=True)
        for pattern in files:
            for path in store.folder(of).glob(pattern):
                shutil.copy(path, folder / path.name)
        change(folder)
        bound |= {name: store.manifest(of).fingerprints[name] for name in fingerprints}
        made = store.publish(
            folder,
            fingerprints=bound,
            parent=whole,
            config=manifest.config,
            data_window=manifest.data_window,
            metrics=manifest.metrics,
            created_ms=manifest.created_ms,
        )
    store.verify(made)
    return made


def query_at(loop: Loop, **changes: object) -> Query:
    """An anonymous request just after the second cycle."""
    asked = Query("r1", loop.served_end_ms + 1, "home", SLATE_SIZE)
    return replace(asked, **changes)  # type: ignore[arg-type]  # fields of a query


def shown(answer: Answer) -> list[int]:
    rows: list[int] = answer.scored.candidates.row_N[answer.slate.index_K].tolist()
    return rows


def test_what_was_published_is_what_loads(loop: Loop) -> None:
    for published, generation in zip((loop.first, loop.second), loop.generations, strict=True):
        fingerprints = generation.manifest.fingerprints
        assert generation.id == published.id
        assert generation.table.fingerprint == fingerprints["schema"]
        assert generation.towers.fingerprint == generation.vectors.towers == fingerprints["towers"]
        assert generation.settings.fingerprint == fingerprints["policy"]
        assert isinstance(generation.pipeline.scorer, RankerScorer)
        assert generation.pipeline.scorer.fingerprint == fingerprints["ranker"]
        assert len(generation.items) == len(generation.vectors) == published.metrics["index.items"]
    first, second = (generation.manifest.fingerprints for generation in loop.generations)
    assert first["schema"] == second["schema"]
    assert first["towers"] != second["towers"]
    assert first["ranker"] != second["ranker"]


def test_stored_vectors_are_those_of_the_loaded_towers(loop: Loop) -> None:
    generation = loop.generations[1]
    again_ID = generation.towers.encode_items(np.asarray(generation.items.row_I))
    np.testing.assert_allclose(again_ID, generation.items.embedding_ID, atol=1e-5)


def test_a_query_has_the_vector_of_the_loaded_towers_and_always_the_same_bits(loop: Loop) -> None:
    generation = loop.generations[1]
    assert isinstance(generation.encode_query, CompiledQueryTower)
    for row in range(5):
        user_id = generation.profiles.users.ids[row]
        history = History(np.arange(row), np.ones(row, np.int32), np.full(row, loop.served_end_ms - 1))
        query = Query("r", loop.served_end_ms, "home", 5, user_id=user_id, text="jazz" * (row % 2), history=history)
        hydrated = generation.pipeline.hydrate(query)
        assert hydrated.vector_D.tobytes() == generation.encode_query(hydrated.row).tobytes()
        expected_D = generation.towers.encode_queries(hydrated.row)[0]
        np.testing.assert_allclose(hydrated.vector_D, expected_D, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("files", "part"), [("towers.*", "towers"), ("ranker.*", "ranker")])
def test_a_part_of_another_training_is_refused_with_both_fingerprints(
    loop: Loop, store: GenerationStore, files: str, part: str
) -> None:
    mixed = forged(store, loop.second.id, files=[files], of=loop.first.id)
    with pytest.raises(GenerationMismatch) as refused:
        Generation.load(store, mixed)
    for each in (loop.first.id, loop.second.id):
        assert store.manifest(each).fingerprints[part] in str(refused.value)


def test_an_index_of_other_items_is_refused_with_both_shapes(loop: Loop, store: GenerationStore) -> None:
    mixed = forged(store, loop.second.id, files=["vectors.*"], of=loop.first.id)
    with pytest.raises(GenerationMismatch, match=rf"generation {mixed} cannot be read") as refused:
        Generation.load(store, mixed)
    for each in loop.generations:
        assert str(np.shape(each.items.embedding_ID)) in str(refused.value)


def test_an_index_of_other_towers_is_refused_even_where_the_manifest_agrees_with_the_towers(
    loop: Loop, store: GenerationStore
) -> None:
    mixed = forged(store, loop.second.id, files=["towers.*"], of=loop.first.id, fingerprints=["towers"])
    with pytest.raises(GenerationMismatch, match="index built from towers") as refused:
        Generation.load(store, mixed)
    assert loop.generations[0].towers.fingerprint in str(refused.value)
    assert loop.generations[1].towers.fingerprint in str(refused.value)


def test_a_catalogue_of_another_generation_is_refused_with_both_fingerprints(
    loop: Loop, store: GenerationStore
) -> None:
    files = ["item_id.*", "title.*", "row_I.*", "published_ms_I.*", "available_I.*", "popularity_I.*", "embedding_ID.*"]
    mixed = forged(store, loop.second.id, files=files, of=loop.first.id)
    items, rows = len(loop.generations[0].items), len(loop.generations[1].vectors)
    assert items < rows
    with pytest.raises(GenerationMismatch, match=r"items \([0-9a-f]{16}\) and manifest \([0-9a-f]{16}\)"):
        Generation.load(store, mixed)


def retold(folder: Path) -> None:
    """Another feature table with rows of the same bytes: what code 1 of a category means has changed."""
    told = json.loads((folder / "schema.json").read_text())
    for feature in told["features"]:
        if feature["name"] == "category":
            feature["vocabulary"] = feature["vocabulary"][::-1]
    (folder / "schema.json").write_text(json.dumps(told))


def test_a_schema_of_another_training_is_refused_with_both_fingerprints(loop: Loop, store: GenerationStore) -> None:
    mixed = forged(store, loop.second.id, change=retold)
    other = FeatureTable.from_json((store.folder(mixed) / "schema.json").read_text()).fingerprint
    with pytest.raises(GenerationMismatch) as refused:
        Generation.load(store, mixed)
    assert other in str(refused.value)
    assert loop.generations[1].table.fingerprint in str(refused.value)


def test_towers_of_another_schema_are_refused_even_where_the_manifest_agrees_with_the_schema(
    loop: Loop, store: GenerationStore
) -> None:
    mixed = forged(store, loop.second.id, change=retold)
    manifest = store.manifest(mixed)
    other = FeatureTable.from_json((store.folder(mixed) / "schema.json").read_text()).fingerprint
    with store.stage() as folder:
        shutil.copytree(store.folder(mixed), folder, dirs_exist_ok=True)
        agreed = store.publish(
            folder,
            fingerprints={**manifest.fingerprints, "schema": other},
            parent=None,
            config=manifest.config,
            data_window=manifest.data_window,
            metrics={},
            created_ms=0,
        )
    with pytest.raises(ValueError, match=other) as refused:
        Generation.load(store, agreed)
    assert loop.generations[1].table.fingerprint in str(refused.value)


def test_a_policy_that_was_not_published_is_refused(loop: Loop, store: GenerationStore) -> None:
    greedy = replace(loop.generations[1].settings, temperature=0.0, epsilon=0.0)

    def say(folder: Path) -> None:
        (folder / "policy.json").write_text(greedy.to_json())

    mixed = forged(store, loop.second.id, change=say)
    with pytest.raises(GenerationMismatch, match="policy") as refused:
        Generation.load(store, mixed)
    assert greedy.fingerprint in str(refused.value)
    assert loop.generations[1].settings.fingerprint in str(refused.value)


@pytest.mark.parametrize(
    "name", ["towers.safetensors", "vectors.faiss", "ranker.safetensors", "profile_U.npy", "manifest.json"]
)
def test_a_flipped_byte_anywhere_is_refused(loop: Loop, store: GenerationStore, name: str) -> None:
    path = store.folder(loop.second.id) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptGeneration, match=name):
        Generation.load(store, loop.second.id)


def test_a_ranker_whose_answers_are_not_numbers_does_not_pass_the_canary(loop: Loop, store: GenerationStore) -> None:
    generation = Generation.load(store, loop.second.id)
    scorer = generation.pipeline.scorer
    assert isinstance(scorer, RankerScorer)
    with torch.no_grad():
        for weight in scorer.ranker.parameters():
            weight.fill_(torch.nan)
    scorer = RankerScorer(scorer.ranker, scorer.calibration, generation.table, generation.items)
    manifest = store.manifest(loop.second.id)
    with store.stage() as folder:
        shutil.copytree(store.folder(loop.second.id), folder, dirs_exist_ok=True)
        scorer.save(folder)
        broken = store.publish(
            folder,
            fingerprints={**manifest.fingerprints, "ranker": scorer.fingerprint},
            parent=None,
            config={},
            data_window=manifest.data_window,
            metrics={},
            created_ms=0,
        )
    with pytest.raises(GenerationMismatch, match="canary") as refused:
        Generation.load(store, broken)
    assert broken in str(refused.value)
    assert f"degraded bits {int(Degraded.DEGRADED_RANKER_SKIPPED)}" in str(refused.value)


@dataclass(frozen=True)
class Failing:
    name: str

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        raise OSError("no such file")


def test_a_source_that_fails_does_not_pass_the_canary(loop: Loop) -> None:
    generation = loop.generations[1]
    sources = [(Failing("lexical") if each.name == "lexical" else each, k) for each, k in generation.pipeline.sources]
    broken = replace(generation, pipeline=replace(generation.pipeline, sources=sources))
    with pytest.raises(GenerationMismatch, match="lexical"):
        broken.warm_up()
    generation.warm_up()


def test_history_drops_items_that_the_generation_does_not_hold_and_keeps_the_order(loop: Loop) -> None:
    first, second = loop.generations
    new = second.items.ids.ids[len(second.items) - 1]
    old = [first.items.ids.ids[row] for row in (5, 3, 8)]
    keys = keys64([old[0], new, old[1], "no-such-item", old[2]])
    actions = np.array([action_key(name) for name in ("like", "click", "share", "hide", "hide")], np.uint32)
    times = np.array([50, 40, 30, 20, 10], np.int64)

    before, after = first.history(keys, actions, times), second.history(keys, actions, times)

    assert first.items.ids.rows_of([new]).tolist() == [-1]
    assert before.row_L.tolist() == [5, 3, 8]
    assert before.action_L.tolist() == [2, 0, 3], "0 is an action that the table does not know"
    assert before.time_ms_L.tolist() == [50, 30, 10]
    assert [second.items.ids.ids[row] for row in after.row_L.tolist()] == [old[0], new, old[1], old[2]]
    assert len(first.history(*NOTHING)) == 0


def test_an_unknown_user_gets_the_answer_of_a_stranger(loop: Loop) -> None:
    generation = loop.generations[1]
    known = loop.dataset.users["user_id"][0]
    vector_of = {
        user_id: generation.pipeline.hydrate(query_at(loop, user_id=user_id)) for user_id in ("", "nobody", known)
    }
    for feature in generation.table.profile:
        assert vector_of["nobody"].row[feature.name] == vector_of[""].row[feature.name] == feature.default
        assert vector_of[known].row[feature.name] == generation.profiles.profile_U[0][feature.name] > 0
    assert generation.pipeline.run(query_at(loop, user_id="")).trace.degraded == 0
    answer = generation.pipeline.run(query_at(loop, user_id="nobody"))
    assert answer.trace.degraded == Degraded.DEGRADED_DEFAULT_FEATURES, "it has no row of features"
    assert answer.trace.defaulted == tuple(sorted(feature.name for feature in generation.table.profile))
    assert len(answer.slate) == SLATE_SIZE
    assert np.isfinite(vector_of["nobody"].vector_D).all()


@pytest.mark.parametrize("value", ["atlantis", math.nan, math.inf, 1e300])
def test_a_value_that_no_feature_can_hold_becomes_the_default_and_is_flagged(loop: Loop, value: str | float) -> None:
    generation = loop.generations[1]
    known = loop.dataset.users["user_id"][0]
    query = query_at(loop, user_id=known, features={"segment": value})
    hydrated = generation.pipeline.hydrate(query)
    assert hydrated.row["segment"] == generation.table["segment"].default
    assert hydrated.defaulted == ("segment",)
    answer = generation.pipeline.run(query)
    assert answer.trace.degraded == Degraded.DEGRADED_DEFAULT_FEATURES
    assert np.isfinite(answer.scored.probability_NA).all()
    told = query_at(loop, user_id="nobody", features={"segment": "fan", "age_band": "25_34"})
    assert generation.pipeline.run(told).trace.degraded == 0, "all that the row would say is said"


def test_what_a_caller_says_of_a_user_goes_before_the_stored_profile(loop: Loop) -> None:
    generation = loop.generations[1]
    known = loop.dataset.users["user_id"][0]
    table = generation.table
    for value in table["segment"].vocabulary:
        row = generation.pipeline.hydrate(query_at(loop, user_id=known, features={"segment": value})).row
        assert row["segment"] == table.encode("segment", [value])
        assert row["age_band"] == generation.profiles.profile_U[0]["age_band"]


def test_an_item_nobody_has_seen_yet_can_be_shown(loop: Loop) -> None:
    second = loop.generations[1]
    unseen = np.flatnonzero(np.asarray(second.items.row_I["log_shown"]) == 0)
    assert len(unseen), "some item was published after the last request"
    answer = second.pipeline.run(query_at(loop, only_row_N=unseen, size=len(unseen)))
    assert sorted(shown(answer)) == unseen.tolist()
    assert answer.trace.degraded == 0
    assert (answer.slate.propensity_K > 0).all()


@pytest.mark.parametrize("hide_seen", [True, False])
def test_what_a_user_knows_is_hidden_only_where_the_generation_says_so(
    loop: Loop, store: GenerationStore, hide_seen: bool
) -> None:
    def say(folder: Path) -> None:
        told = json.loads((folder / "retrieval.json").read_text())
        (folder / "retrieval.json").write_text(json.dumps({**told, "hide_seen": hide_seen}))

    generation = Generation.load(store, forged(store, loop.second.id, change=say))
    candidates = generation.pipeline.run(query_at(loop)).scored.candidates
    known = candidates.row_N[:10]
    history = History(known, np.ones(10, np.int32), np.full(10, loop.served_end_ms, np.int64))

    answer = generation.pipeline.run(query_at(loop, history=history))

    assert np.isin(known, answer.scored.candidates.row_N).any() != hide_seen
    assert (len(answer.trace.removed.get("seen", ())) > 0) == hide_seen


def test_a_source_without_a_quota_is_not_part_of_the_pipeline(loop: Loop, store: GenerationStore) -> None:
    def say(folder: Path) -> None:
        told = json.loads((folder / "retrieval.json").read_text())
        (folder / "retrieval.json").write_text(json.dumps({**told, "quotas": {"ann": 5, "fresh": 0, "popular": 2}}))

    generation = Generation.load(store, forged(store, loop.second.id, change=say))
    candidates = generation.pipeline.run(query_at(loop)).scored.candidates
    assert candidates.source_names == ("ann", "popular")
    assert (candidates.rank_NS >= 0).sum(axis=0).tolist() == [5, 2]


@pytest.mark.parametrize(
    "quotas", [{"ann": 10}, {"ann": 10, "popular": 0}, {"ann": -1, "popular": 5}], ids=["none", "zero", "negative"]
)
def test_quotas_without_a_floor_are_refused(quotas: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"popular's at least 1, got \{"):
        RetrievalSettings(quotas=quotas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quotas": {"ann": 1, "trendy": 2, "popular": 1}}, "quotas names trendy; there are the sources ann, lexical"),
        ({"most": 0}, "most is 0; it must be at least 1, or null"),
        ({"patience_ms": 0.0}, "patience_ms must be positive, got 0.0"),
        ({"visit_minutes": float("inf")}, "visit_minutes must be positive, got inf"),
        ({"trending_half_life_hours": float("nan")}, "trending_half_life_hours must be positive, got nan"),
        ({"fresh_explored": 1.5}, "fresh_explored is 1.5; it must be from 0 to 1"),
        ({"recent_events": -1}, "recent_events is -1; it must not be negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RetrievalSettings(**changes)


def test_what_live_sources_begin_with_belongs_to_one_training(loop: Loop, store: GenerationStore) -> None:
    mixed = forged(store, loop.second.id, files=["recent_events.npy"], of=loop.first.id)
    with pytest.raises(GenerationMismatch, match="activity"):
        Generation.load(store, mixed)


def test_a_generation_of_before_there_was_activity_serves_without(loop: Loop, store: GenerationStore) -> None:
    def forget(folder: Path) -> None:
        for name in ("recent_events.npy", "segment_popularity.npy"):
            (folder / name).unlink()

    bound = dict(store.manifest(loop.second.id).fingerprints)
    del bound["activity"]
    with store.stage() as folder:
        shutil.copytree(store.folder(loop.second.id), folder, dirs_exist_ok=True)
        forget(folder)
        manifest = store.manifest(loop.second.id)
        made = store.publish(
            folder,
            fingerprints=bound,
            parent=None,
            config={},
            data_window=manifest.data_window,
            metrics={},
            created_ms=manifest.created_ms,
        )
    assert len(shown(Generation.load(store, made).pipeline.run(query_at(loop)))) == SLATE_SIZE


def test_a_generation_carries_the_newest_clicks_and_its_live_sources_begin_with_them(loop: Loop) -> None:
    generation = loop.generations[1]
    clicks = known_events(loop.history.filter(pl.col("visible_ms") <= loop.served_end_ms, pl.col("action") == "click"))
    recent_E = generation.activity.recent_E
    assert recent_E["item_key"].tolist() == keys64(clicks["item_id"]).tolist()
    assert recent_E["visitor_key"].tolist() == keys64(clicks["user_id"]).tolist()
    live = Live(lambda: generation)
    named = live.named(query_at(loop, seed_row_S=np.array([0], np.int64)), generation, generation.items.allowed)
    assert len(named["trending"]) == generation.retrieval.quotas["trending"]
    row_K = named["trending"].row_K
    count_I = np.bincount(generation.items.ids.rows_of(clicks["item_id"]), minlength=len(generation.items))
    assert count_I[row_K].mean() > 2 * count_I.mean()


def test_the_floor_goes_by_the_users_segment(loop: Loop) -> None:
    generation = loop.generations[1]
    assert generation.retrieval.popular_by == "segment"
    assert set(generation.activity.segment_P["segment"].tolist()) == set(range(1, 9))
    popular = next(source for source, _ in generation.pipeline.sources if source.name == "popular")
    named = {}
    for value in ("", *generation.table["segment"].vocabulary):
        hydrated = generation.pipeline.hydrate(query_at(loop, features={"segment": value}))
        named[value] = tuple(popular.retrieve(hydrated, 15).row_K.tolist())
        assert len(set(named[value])) == 15
    assert len(set(named.values())) == 9, "everybody and each segment has a list of its own"


@pytest.mark.parametrize("days", [0.0, -1.0])
def test_a_horizon_of_no_days_is_refused(days: float) -> None:
    with pytest.raises(ValueError, match=f"fresh_days must be positive, got {days}"):
        RetrievalSettings(fresh_days=days)


def test_a_hot_swap_leaves_the_pinned_generation_as_it_was_and_rolls_back_without_loading(
    loop: Loop, store: GenerationStore
) -> None:
    generations = Generations(store)
    first = generations.follow()
    assert first is not None
    assert first.id == loop.first.id
    before = shown(first.pipeline.run(query_at(loop)))

    second = generations.prepare(loop.second.id)
    assert generations.active is first, "preparing changes nothing"
    assert generations.activate(loop.second.id, expected=loop.first.id) is second
    assert generations.active is second
    assert store.current() == loop.second.id
    assert shown(first.pipeline.run(query_at(loop))) == before, "a request that holds the first one goes on with it"

    assert generations.roll_back() is first
    assert generations.active is first
    assert store.current() == loop.first.id
    with pytest.raises(UnknownGeneration):
        generations.roll_back()
    assert generations.active is first


def test_who_is_wrong_about_what_is_current_activates_nothing(loop: Loop, store: GenerationStore) -> None:
    generations = Generations(store)
    first = generations.follow()
    for believed in (loop.second.id, None):
        with pytest.raises(StaleExpected, match=loop.first.id):
            generations.activate(loop.second.id, expected=believed)
    assert generations.active is first
    assert store.current() == loop.first.id


def test_following_takes_up_what_another_process_activated(loop: Loop, store: GenerationStore) -> None:
    generations = Generations(store)
    first = generations.follow()
    assert generations.follow() is first, "nothing changed, nothing is loaded"
    store.activate(loop.second.id, time_ms=1)
    second = generations.follow()
    assert second is not None
    assert second.id == loop.second.id
    assert generations.active is second


def test_the_last_good_generation_stays_where_the_next_is_broken(loop: Loop, store: GenerationStore) -> None:
    mixed = forged(store, loop.second.id, files=["ranker.*"], of=loop.first.id)
    generations = Generations(store)
    first = generations.follow()
    with pytest.raises(GenerationMismatch):
        generations.prepare(mixed)
    with pytest.raises(GenerationMismatch):
        generations.activate(mixed, expected=loop.first.id)
    assert store.current() == loop.first.id
    store.activate(mixed, time_ms=1)  # another process, which does not load what it activates
    with pytest.raises(GenerationMismatch):
        generations.follow()
    assert generations.active is first


def test_an_empty_store_has_nothing_to_follow(tmp_path: Path) -> None:
    generations = Generations(GenerationStore(tmp_path / "none"))
    assert generations.follow() is None
    assert generations.active is None
