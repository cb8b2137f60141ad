"""Items come, change and go while requests are answered: at once, for every server, for good; nothing else moves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from catalog_cases import (
    COUNT,
    NOW_MS,
    TABLE,
    catalogue,
    loaded,
    publish,
    running,
    settings,
    shown,
    store_of,
    towers,
)
from serving_cases import refusal

from candidate_gen.features import item_rows
from index.generations import GenerationStore
from index.strings import key64
from protos.catalog_pb2 import (
    CatalogItem,
    CatalogStatus,
    DeleteItemsRequest,
    ItemPatch,
    PatchItemsRequest,
    UpsertItemsRequest,
)
from protos.impression_pb2 import FeatureValue
from serving import catalog
from serving.catalog import accepted_ids, accepted_items, accepted_patches, check_item, check_patch
from serving.changes import defaulted
from serving.client import CallFailed, CascadeClient, CatalogAnswer, ItemChange, ItemEntry, ShownSlate
from serving.codec import InvalidRequest
from serving.generation import Generation
from serving.generations import Generations
from serving.log.catalog_log import FILE, CatalogLog, Change, Entry
from serving.log.impression_log import CorruptLog, LogUnavailable

ROOT = Path(__file__).parents[2]
DONE, UNKNOWN, REJECTED = "DONE", "UNKNOWN", "REJECTED"
NEW = ItemEntry(
    "new",
    "Paper Moons",
    category="jazz",
    creator="c1",
    published_ms=NOW_MS - 1,
    description="a story of lanterns",
    price=3.5,
    attributes={"format": "film"},
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one generation; copied by tests that change it."""
    folder = tmp_path_factory.mktemp("catalog")
    store_of(folder)
    return folder


@pytest.fixture(scope="module")
def generation(built: Path) -> Generation:
    return loaded(GenerationStore(built / "generations"))


@pytest.fixture
def site(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "generations", tmp_path / "generations")
    return tmp_path


def statuses(answers: list[CatalogAnswer]) -> list[str]:
    return [answer.status for answer in answers]


def entries(*changes: Change) -> list[Entry]:
    return [Entry(seq, NOW_MS + seq, change) for seq, change in enumerate(changes, start=1)]


def upsert(*items: CatalogItem) -> UpsertItemsRequest:
    return UpsertItemsRequest(items=items)


def row_of(generation: Generation, item_id: str) -> int:
    return int(generation.items.ids.rows_of([item_id])[0])


# -- What is taken and what is not.


def text(value: str) -> FeatureValue:
    return FeatureValue(text=value)


def number(value: float) -> FeatureValue:
    return FeatureValue(number=value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (CatalogItem(), "item_id: 'an id of 0 characters' given, allowed: 1 to 256"),
        (CatalogItem(item_id="x" * 257), "item_id: .* allowed: 1 to 256"),
        (CatalogItem(item_id="a", title="x" * 513), "title: '513 characters' given, allowed: at most 512"),
        (CatalogItem(item_id="a", category="x" * 257), "category: .* at most 256"),
        (CatalogItem(item_id="a", creator="x" * 257), "creator: .* at most 256"),
        (CatalogItem(item_id="a", description="x" * 10_001), "description: .* at most 10000"),
        (CatalogItem(item_id="a", published_ms=-1), "published_ms: -1 given, allowed: 0 to"),
        (CatalogItem(item_id="a", published_ms=1 << 50), "published_ms: .* allowed: 0 to"),
        (CatalogItem(item_id="a", price=float("nan")), "price: nan given"),
        (CatalogItem(item_id="a", price=float("inf")), "price: inf given"),
        (CatalogItem(item_id="a", price=1, attributes={"price": number(1)}), "price: 1.0 given, allowed: once"),
        (
            CatalogItem(item_id="a", attributes={"colour": text("red")}),
            "attributes: 'colour' given, allowed: format, pr",
        ),
        (CatalogItem(item_id="a", attributes={"category": text("art")}), "attributes: 'category' given"),
        (CatalogItem(item_id="a", attributes={"format": number(1)}), r"attributes\['format'\]: 1.0 .* a text"),
        (CatalogItem(item_id="a", attributes={"price": text("1")}), r"attributes\['price'\]: '1' .* a number"),
        (CatalogItem(item_id="a", attributes={"price": number(float("-inf"))}), r"attributes\['price'\]: -inf"),
        (CatalogItem(item_id="a", attributes={"format": FeatureValue()}), r"attributes\['format'\]: None"),
    ],
)
def test_an_item_out_of_bounds_is_refused_by_field_value_and_what_is_allowed(item: CatalogItem, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_item(item, TABLE)


def test_a_price_needs_a_column_that_holds_it() -> None:
    without = replace(TABLE, features=tuple(each for each in TABLE.features if each.name != "price"))
    with pytest.raises(InvalidRequest, match=r"price: 1\.0 given, allowed: unset"):
        check_item(CatalogItem(item_id="a", price=1), without)


def test_a_patch_must_change_something() -> None:
    with pytest.raises(InvalidRequest, match="patch: 'nothing' given, allowed: available, price or attributes"):
        check_patch(ItemPatch(item_id="a"), TABLE)
    check_patch(ItemPatch(item_id="a", available=False), TABLE)


def test_each_entry_has_its_answer_and_of_an_id_given_twice_the_last_counts(generation: Generation) -> None:
    request = upsert(
        CatalogItem(item_id="a", title="first"),
        CatalogItem(item_id="b", price=float("nan")),
        CatalogItem(item_id="a", title="second"),
        CatalogItem(item_id="a", title="x" * 600),
    )
    change, results = accepted_items(request, generation)
    assert change == upsert(CatalogItem(item_id="a", title="second"))
    assert [CatalogStatus.Name(each.status)[len("CATALOG_STATUS_") :] for each in results] == [
        DONE,
        REJECTED,
        DONE,
        REJECTED,
    ]
    assert [each.id for each in results] == ["a", "b", "a", "a"]
    assert [bool(each.reason) for each in results] == [False, True, False, True]


def test_patches_of_one_item_are_merged_in_their_order(generation: Generation) -> None:
    patches = [
        ItemPatch(item_id="i1", price=1, attributes={"format": text("book")}),
        ItemPatch(item_id="gone", price=1),
        ItemPatch(item_id="i1", price=2, available=False),
    ]
    change, results = accepted_patches(PatchItemsRequest(patches=patches), generation)
    assert change == PatchItemsRequest(
        patches=[ItemPatch(item_id="i1", price=2, available=False, attributes={"format": text("book")})]
    )
    assert [CatalogStatus.Name(each.status)[len("CATALOG_STATUS_") :] for each in results] == [DONE, UNKNOWN, DONE]


def test_what_is_not_there_cannot_be_deleted_and_nothing_is_logged_of_nothing(generation: Generation) -> None:
    change, results = accepted_ids(DeleteItemsRequest(item_ids=["i3", "gone", "i3", ""]), generation)
    assert change == DeleteItemsRequest(item_ids=["i3"])
    assert [CatalogStatus.Name(each.status)[len("CATALOG_STATUS_") :] for each in results] == [
        DONE,
        UNKNOWN,
        DONE,
        REJECTED,
    ]
    assert accepted_ids(DeleteItemsRequest(item_ids=["gone"]), generation)[0] is None
    assert accepted_items(upsert(CatalogItem()), generation)[0] is None
    assert accepted_patches(PatchItemsRequest(patches=[ItemPatch(item_id="gone", price=1)]), generation)[0] is None


def test_an_item_whose_vector_no_index_can_hold_is_refused(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = generation.towers.encode_items

    def poisoned(rows: np.ndarray) -> np.ndarray:
        vector_ND = encode(rows)
        vector_ND[rows["item_id"][:, 0] == TABLE.encode("item_id", ["bad"])[0, 0]] = np.nan
        return vector_ND

    monkeypatch.setattr(generation.towers, "encode_items", poisoned)
    request = upsert(CatalogItem(item_id="bad"), CatalogItem(item_id="good"))
    change, results = accepted_items(request, generation)
    assert change == upsert(CatalogItem(item_id="good"))
    assert "vector" in results[0].reason
    after = generation.changed(entries(request))
    assert row_of(after, "bad") == -1, "a tower that embeds it badly later passes it over"
    assert row_of(after, "good") == COUNT


# -- What a change makes of the items.


def test_an_upsert_adds_a_row_like_those_of_training_and_leaves_the_rest(generation: Generation) -> None:
    item = CatalogItem(item_id="new", title="Paper Moons", category="jazz", creator="c1", price=3.5)
    after = generation.changed(entries(upsert(item))).items
    assert len(after) == COUNT + 1
    (row,) = item_rows(
        TABLE,
        ids=["new"],
        categories=["jazz"],
        creators=["c1"],
        titles=["Paper Moons"],
        columns={"price": [3.5], "format": [None]},
    )
    assert after.row_I[COUNT] == row
    assert after.titles[COUNT] == "Paper Moons"
    assert after.published_ms_I[COUNT] == NOW_MS + 1, "the time of the call, for it says none"
    assert bool(after.available_I[COUNT])
    assert after.popularity_I[COUNT] == 0
    assert after.attributes["category"][COUNT] == key64("jazz")
    assert after.attributes["price"][COUNT] == 3.5
    assert after.attributes["format"][COUNT] == 0
    assert after.take(np.arange(COUNT)).fingerprint == generation.items.fingerprint
    assert len(generation.items) == COUNT, "the value before is as it was"


def test_values_of_items_that_no_feature_can_hold_are_counted_by_feature() -> None:
    unseen = CatalogItem(item_id="a", category="opera")
    told = CatalogItem(item_id="b", category="jazz", price=2.0)
    odd = CatalogItem(item_id="c", category="jazz", attributes={"format": FeatureValue(text="stone")})
    assert defaulted(upsert(unseen, told, odd, unseen), TABLE) == {"category": 2, "format": 1}
    patch = ItemPatch(item_id="b", attributes={"format": FeatureValue(text="stone")})
    assert defaulted(PatchItemsRequest(patches=[patch]), TABLE) == {"format": 1}
    assert not defaulted(DeleteItemsRequest(item_ids=["a"]), TABLE)
    assert not defaulted(None, TABLE)


def test_who_replaces_an_item_inherits_what_it_earned_and_its_time(generation: Generation) -> None:
    before, row = generation.items, 5
    items = generation.changed(entries(upsert(CatalogItem(item_id="i5", title="Another", category="art")))).items
    new = int(items.ids.rows_of(["i5"])[0])
    assert new == COUNT
    assert bool(items.gone_I[row])
    assert not items.available_I[row]
    for name, count in TABLE.counters:
        earned = before.row_I[row][name]
        assert earned != 0
        assert items.row_I[new][name] == (earned if count.by == "item" else 0), "it has another category and creator"
    assert items.popularity_I[new] == before.popularity_I[row]
    assert items.published_ms_I[new] == before.published_ms_I[row]
    assert items.row_I[new]["category"] != before.row_I[row]["category"]
    later = CatalogItem(item_id="i5", title="Another", published_ms=NOW_MS)
    assert generation.changed(entries(upsert(later))).items.published_ms_I[COUNT] == NOW_MS


def test_an_item_that_comes_back_after_its_deletion_is_new(generation: Generation) -> None:
    changes = DeleteItemsRequest(item_ids=["i5"]), upsert(CatalogItem(item_id="i5", title="Again"))
    items = generation.changed(entries(*changes)).items
    assert items.popularity_I[COUNT] == 0
    assert items.published_ms_I[COUNT] == NOW_MS + 2
    assert bool(items.available_I[COUNT])


def test_a_patch_of_attributes_keeps_the_vector_and_one_of_availability_the_row(generation: Generation) -> None:
    hidden = generation.changed(entries(PatchItemsRequest(patches=[ItemPatch(item_id="i5", available=False)])))
    assert len(hidden.items) == COUNT
    assert not hidden.items.available_I[5]
    assert not hidden.items.gone_I[5]

    patch = ItemPatch(item_id="i5", price=7, attributes={"format": text("film")})
    items = generation.changed(entries(PatchItemsRequest(patches=[patch]))).items
    assert (len(items), int(items.ids.rows_of(["i5"])[0])) == (COUNT + 1, COUNT)
    assert items.embedding_ID[COUNT].tolist() == items.embedding_ID[5].tolist()
    assert items.titles[COUNT] == items.titles[5]
    assert items.row_I[COUNT]["price"] == 7
    assert items.row_I[COUNT]["format"] == TABLE.encode("format", ["film"])[0]
    assert items.attributes["price"][COUNT] == 7
    assert items.attributes["format"][COUNT] == key64("film")
    for name in set(items.row_I.dtype.names or ()) - {"price", "format"}:
        assert (items.row_I[COUNT][name] == items.row_I[5][name]).all()

    both = entries(
        PatchItemsRequest(patches=[ItemPatch(item_id="i5", available=False)]), PatchItemsRequest(patches=[patch])
    )
    assert not generation.changed(both).items.available_I[COUNT], "what was hidden stays hidden"


CHANGES: tuple[Change, ...] = (
    upsert(*(CatalogItem(item_id=f"n{n}", title=f"volume {n} of jazz", category="jazz") for n in range(7))),
    PatchItemsRequest(patches=[ItemPatch(item_id="n3", price=2), ItemPatch(item_id="i9", available=False)]),
    DeleteItemsRequest(item_ids=["n2", "i4"]),
    upsert(CatalogItem(item_id="i7", title="new volume of math"), CatalogItem(item_id="n9", title="moons of jazz")),
    PatchItemsRequest(patches=[ItemPatch(item_id="i9", available=True, price=4), ItemPatch(item_id="none", price=2)]),
    upsert(CatalogItem(item_id="i4", title="volume that is back")),
)


def test_changes_one_by_one_and_all_at_once_give_the_same_to_the_last_bit(generation: Generation) -> None:
    at_once = generation.changed(entries(*CHANGES))
    one_by_one = generation
    for entry in entries(*CHANGES):
        one_by_one = one_by_one.changed([entry])
    assert at_once.items.fingerprint == one_by_one.items.fingerprint
    assert at_once.items.current().tolist() == one_by_one.items.current().tolist()
    assert at_once.catalog_seq == one_by_one.catalog_seq == len(CHANGES)
    assert at_once.tail == one_by_one.tail == len(at_once.items) - COUNT
    for typed in ("", "volume of jazz", "moons"):
        slates = [each.search(typed) for each in (Asked(at_once), Asked(one_by_one))]
        assert slates[0] == slates[1]


class Asked:
    """A generation that is asked without a server."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    def search(self, typed: str) -> tuple[list[int], list[float], bytes]:
        from candidate_gen.types import Query

        answer = self.generation.pipeline.run(Query("r", NOW_MS + 99, "search", 300, user_id="u1", text=typed))
        slate, scored = answer.slate, answer.scored
        assert answer.trace.degraded == 0
        return (
            scored.candidates.row_N[slate.index_K].tolist(),
            slate.propensity_K.tolist(),
            scored.pair_row_N.tobytes() + scored.probability_NA.tobytes(),
        )


def test_only_the_next_entry_is_taken(generation: Generation) -> None:
    assert generation.changed([]) is generation
    for wrong in (entries(*CHANGES)[1:], entries(*CHANGES)[:1] * 2):
        with pytest.raises(ValueError, match=r"entry \d was given, change \d of the catalogue is next"):
            generation.changed(wrong)


# -- Over the wire.


def test_an_upserted_item_is_found_by_every_source_from_the_next_request_on(site: Path) -> None:
    with running(site) as (client, generations, _):
        assert "new" not in shown(client)
        assert statuses(client.upsert_items([NEW])) == [DONE]
        assert {"ann", "fresh"} <= set(shown(client)["new"])
        for typed in ("paper moons", "lanterns"):
            assert {"ann", "lexical"} == set(shown(client, typed)["new"])
        near = client.recommend("", seed_item_ids=["i3"], size=500, time_ms=NOW_MS)
        assert "similar" in next(item for item in near.items if item.item_id == "new").sources
        ranked = client.rank(["i5", "new"], time_ms=NOW_MS)
        assert sorted(item.item_id for item in ranked.items) == ["i5", "new"]
        (item,) = [item for item in ranked.items if item.item_id == "new"]
        assert (item.title, item.category) == ("Paper Moons", "jazz")
        assert generations.active is not None
        assert generations.active.catalog_seq == 1


def test_replaced_it_is_shown_once_and_as_it_is_now(site: Path) -> None:
    with running(site) as (client, _, _):
        client.upsert_items([NEW])
        client.upsert_items([replace(NEW, title="Iron Suns", description="")])
        slate = client.search("iron suns", size=500, time_ms=NOW_MS)
        assert [item.title for item in slate.items if item.item_id == "new"] == ["Iron Suns"]
        assert "lexical" not in shown(client, "paper moons")["new"]


def test_deleted_or_hidden_it_is_not_shown_again(site: Path) -> None:
    with running(site) as (client, _, _):
        client.upsert_items([NEW])
        assert statuses(client.delete_items(["new", "i5", "never"])) == [DONE, DONE, UNKNOWN]
        assert statuses(client.patch_items([ItemChange("i6", available=False)])) == [DONE]
        for typed in ("", "paper moons", "volume"):
            assert not {"new", "i5", "i6"} & set(shown(client, typed))
        ranked = client.rank(["i5", "i6", "i7", "new"], time_ms=NOW_MS)
        assert [item.item_id for item in ranked.items] == ["i7"]
        assert set(ranked.missing_ids) == {"i5", "new"}, "what is hidden is still there"
        assert statuses(client.delete_items(["i5"])) == [UNKNOWN]
        assert statuses(client.patch_items([ItemChange("i5", price=1), ItemChange("i6", available=True)])) == [
            UNKNOWN,
            DONE,
        ]
        assert "i6" in shown(client)
        assert statuses(client.upsert_items([replace(NEW, item_id="i5", title="back again")])) == [DONE]
        assert "lexical" in shown(client, "back again")["i5"]


@pytest.mark.parametrize("columns", [False, True])
def test_an_answer_that_is_repeated_leaves_out_what_was_deleted_since(site: Path, columns: bool) -> None:
    def ask(client: CascadeClient) -> list[str]:
        slate = client.recommend(
            "u1",
            seed_item_ids=["i9"],
            size=40,
            time_ms=NOW_MS,
            request_id="again",
            columns=columns,
            include_scores=True,
        )
        for item in slate.items:
            assert set(item.actions) == {"click", "like"}
        return [f"{item.item_id} {item.propensity} {item.score}" for item in slate.items]

    with running(site, log=site / "log") as (client, _, _):
        first = ask(client)
        assert ask(client) == first
        gone = [each.split()[0] for each in first[3:6]]
        client.delete_items(gone[:2])
        client.patch_items([ItemChange(gone[2], available=False)])
        left = first[:3] + first[6:]
        assert ask(client) == left
    with running(site, log=site / "log") as (client, _, _):
        assert ask(client) == left, "from the log, after a restart"


def test_a_reason_does_not_name_what_was_deleted(site: Path) -> None:
    def reasons(client: CascadeClient, **asked: str) -> set[str]:
        slate = client.recommend("", recent_item_ids=["i9"], size=30, time_ms=NOW_MS, **asked)  # type: ignore[arg-type]
        return {reason for item in slate.items for reason in item.reasons}

    with running(site, log=site / "log") as (client, _, _):
        assert "SIMILAR_TO:i9" in reasons(client, request_id="again")
        client.delete_items(["i9"])
        assert not any("i9" in reason for reason in reasons(client) | reasons(client, request_id="again"))


def test_refused_entries_say_why_and_the_others_are_taken(site: Path) -> None:
    with running(site) as (client, _, _):
        answers = client.upsert_items([NEW, replace(NEW, item_id="bad", attributes={"colour": "red"})])
        assert statuses(answers) == [DONE, REJECTED]
        assert answers[1].reason == "attributes: 'colour' given, allowed: format, price"
        for send in (client.upsert_items, client.delete_items, client.patch_items):
            with pytest.raises(CallFailed, match=r"INVALID_ARGUMENT.*0 given, allowed: 1 to 1000"):
                send([])
        with pytest.raises(CallFailed, match=r"INVALID_ARGUMENT.*1001 given, allowed: 1 to 1000"):
            client.delete_items([f"x{n}" for n in range(1001)])
        log = CatalogLog(site / "generations" / FILE)
        (entry,) = log.since(0)
        assert isinstance(entry.request, UpsertItemsRequest)
        assert [item.item_id for item in entry.request.items] == ["new"], "nothing else is logged"


def test_more_than_the_tail_holds_is_refused_with_what_to_do(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_TAIL", 3)
    with running(site) as (client, _, _):
        client.upsert_items([replace(NEW, item_id=f"n{n}") for n in range(2)])
        with pytest.raises(CallFailed, match=r"RESOURCE_EXHAUSTED: 2 rows were added .*cascade rebuild"):
            client.upsert_items([replace(NEW, item_id=f"m{n}") for n in range(2)])
        with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
            client.patch_items([ItemChange("i1", price=1), ItemChange("i2", price=1)])
        assert statuses(client.patch_items([ItemChange("i1", available=False)])) == [DONE], "it needs no row"
        assert statuses(client.delete_items(["n0"])) == [DONE]
        assert statuses(client.upsert_items([replace(NEW, item_id="m0")])) == [DONE]


def test_without_a_generation_there_is_nothing_to_change(tmp_path: Path) -> None:
    with running(tmp_path) as (_, _, address), grpc.insecure_channel(address.target) as channel:
        wire = DeleteItemsRequest(item_ids=["i1"]).SerializeToString()
        code, message = refusal(channel, "Catalog/DeleteItems", wire)
    assert code == "UNAVAILABLE"
    assert "no generation is active" in message


def test_a_catalogue_of_which_everything_was_deleted_answers_with_nothing_and_takes_new_items(site: Path) -> None:
    with running(site) as (client, _, _):
        assert set(statuses(client.delete_items([f"i{row}" for row in range(COUNT)]))) == {DONE}
        for slate in (
            client.recommend("u1", seed_item_ids=["i5"], time_ms=NOW_MS),
            client.search("volume", time_ms=NOW_MS),
            client.rank(["i5"], time_ms=NOW_MS),
        ):
            assert (slate.items, slate.degraded) == ((), ("EMPTY",))
        client.upsert_items([NEW])
        assert list(shown(client)) == ["new"]


def test_a_change_that_cannot_be_applied_never_reaches_the_log(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Generation:
        raise OSError("/secret/path")

    with running(site) as (client, generations, _):
        with monkeypatch.context() as broken:
            broken.setattr(Generation, "changed", fail)
            with pytest.raises(CallFailed, match=r"INTERNAL: internal error [0-9a-f]{12}$"):
                client.upsert_items([NEW])
        assert generations.catalog.head() == 0
        assert statuses(client.upsert_items([NEW])) == [DONE]


# -- For every server, for good.


def test_servers_of_one_store_see_each_others_changes_on_the_next_request(site: Path) -> None:
    with running(site) as (one, _, _), running(site) as (other, _, _):
        for n in range(5):
            here, there = (one, other) if n % 2 else (other, one)
            here.upsert_items([replace(NEW, item_id=f"n{n}")])
            assert f"n{n}" in shown(there)
            there.delete_items([f"n{n}"])
            assert f"n{n}" not in shown(here)
        threads = [
            threading.Thread(target=client.upsert_items, args=([replace(NEW, item_id=f"{name}{n}")],))
            for n in range(8)
            for name, client in (("a", one), ("b", other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = {f"{name}{n}" for n in range(8) for name in "ab"}
        assert wanted <= set(shown(one))
        assert shown(one) == shown(other)
    assert [entry.seq for entry in CatalogLog(site / "generations" / FILE).since(0)] == list(range(1, 27))


CHILD = """
import sys
from pathlib import Path
from catalog_cases import settings
from dataclasses import replace
from serving.server import serve

folder = Path(sys.argv[1])
serve(replace(settings(folder), ready_file=folder / "ready.json"), on_ready=lambda address: print("up", flush=True))
"""


def process(folder: Path) -> tuple[subprocess.Popen[str], str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n", server.communicate()[1]
    return server, json.loads((folder / "ready.json").read_text())["target"]


def test_what_was_acknowledged_is_there_after_a_kill(site: Path) -> None:
    server, target = process(site)
    with CascadeClient(target, deadline_s=20.0) as client:
        assert statuses(client.upsert_items([NEW])) == [DONE]
        assert statuses(client.delete_items(["i5"])) == [DONE]
        server.send_signal(signal.SIGKILL)
    server.communicate()
    server, target = process(site)
    try:
        with CascadeClient(target, deadline_s=20.0) as client:
            found = shown(client)
            assert "new" in found
            assert "i5" not in found
    finally:
        server.terminate()
        server.communicate()


def test_under_load_nothing_is_shown_after_its_deletion_was_acknowledged(site: Path) -> None:
    with running(site) as (client, _, address):
        stop = threading.Event()
        deleted: set[str] = set()
        wrong: list[str] = []
        asked = [0]

        def ask() -> None:
            with CascadeClient(address.target, deadline_s=20.0) as own:
                while not stop.is_set():
                    acknowledged = set(deleted)
                    found = shown(own, size=60) if asked[0] % 2 else shown(own, "volume", size=60)
                    wrong.extend(acknowledged & set(found))
                    asked[0] += 1

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for row in range(1, 60):
            client.delete_items([f"i{row}"])
            deleted.add(f"i{row}")
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert asked[0] > 20


def compacted(store: GenerationStore, seq: int) -> str:
    """The store's newest generation with the changes up to one of them folded in."""
    old = loaded(store)
    now = old.changed(CatalogLog(store.root / FILE).since(old.catalog_seq, until=seq))
    return publish(store, items=now.items.take(now.items.current()), catalog_seq=seq, seed=0)


def test_a_generation_that_holds_some_changes_gets_the_others_and_no_item_twice(site: Path) -> None:
    store = GenerationStore(site / "generations")
    first = store.ids()[0]
    with running(site) as (client, generations, _):
        client.upsert_items([replace(NEW, item_id=f"n{n}", title=f"moon {n}") for n in range(4)])
        client.delete_items(["i5", "n1"])
        folded = compacted(store, 2)
        client.delete_items(["i6", "n2"])
        client.upsert_items([replace(NEW, item_id="n3", title="moon three")])
        before = shown(client)
        client.activate(folded)
        active = generations.active
        assert active is not None
        assert (active.id, active.catalog_seq, active.manifest.catalog_seq, active.tail) == (folded, 4, 2, 1)
        slate = client.search("moon", size=500, time_ms=NOW_MS)
        assert len({item.item_id for item in slate.items}) == len(slate.items)
        assert set(shown(client)) == set(before)
        assert [item.title for item in slate.items if item.item_id == "n3"] == ["moon three"]
        client.delete_items(["n0"])
        client.rollback()
        active = generations.active
        assert active is not None
        assert (active.id, active.catalog_seq) == (first, 5)
        assert set(shown(client)) == set(before) - {"n0"}, "rolled back, nothing that was deleted is back"


def test_a_swap_by_another_process_takes_the_changes_along(site: Path) -> None:
    store = GenerationStore(site / "generations")
    with running(site) as (client, generations, _):
        client.delete_items(["i5"])
        client.upsert_items([NEW])
        other = publish(store, seed=1)
        store.activate(other, time_ms=NOW_MS)
        end = threading.Event()
        while generations.active is not None and generations.active.id != other:
            assert not end.wait(0.05)
        assert "i5" not in shown(client)
        assert "new" in shown(client)


def test_a_request_does_not_wait_for_a_generation_that_loads(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = GenerationStore(site / "generations")
    other = publish(store, seed=1)
    go, begun = threading.Event(), threading.Event()
    load = Generation.load

    def slowly(*given: object, **named: object) -> Generation:
        begun.set()
        assert go.wait(20)
        return load(*given, **named)  # type: ignore[arg-type]

    with running(site) as (client, generations, _):
        monkeypatch.setattr(Generation, "load", staticmethod(slowly))
        preparing = threading.Thread(target=generations.prepare, args=(other,))
        preparing.start()
        assert begun.wait(20)
        client.upsert_items([NEW])
        client.delete_items(["i5"])
        assert "new" in shown(client)
        go.set()
        preparing.join()
        client.activate(other)
        found = shown(client)
        assert "new" in found
        assert "i5" not in found


# -- When the log fails.


def spoil(path: Path) -> None:
    """What another process would make of a file that it takes for its own."""
    for each in path.parent.glob(f"{path.name}-*"):
        each.unlink()
    path.write_bytes(b"this is no catalogue log" * 400)


def test_a_log_that_cannot_be_read_refuses_changes_and_swaps_but_not_requests(site: Path) -> None:
    store = GenerationStore(site / "generations")
    other = publish(store, seed=1)
    with running(site) as (client, generations, _):
        client.delete_items(["i5"])
        generations.catalog.close()
        spoil(store.root / FILE)
        found = shown(client)
        assert found
        assert "i5" not in found
        for change in (lambda: client.upsert_items([NEW]), lambda: client.activate(other)):
            with pytest.raises(CallFailed, match=r"FAILED_PRECONDITION.*catalog.db"):
                change()
        assert client.recommend("u1", time_ms=NOW_MS).generation != other
    with running(site) as (client, generations, _):
        assert generations.active is None, "what was deleted cannot be known, so nothing is shown"


def test_a_log_that_has_lost_what_a_generation_holds_is_refused(site: Path) -> None:
    store = GenerationStore(site / "generations")
    with running(site) as (client, _, _):
        client.delete_items(["i5"])
        folded = compacted(store, 1)
    for each in store.root.glob(f"{FILE}*"):
        each.unlink()
    generations = Generations(store)
    with pytest.raises(CorruptLog, match=r"ends with change 0 of the catalogue, generation .* holds all up to 1"):
        generations.prepare(folded)


def test_a_disk_that_refuses_leaves_everything_as_it_was(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Entry:
        raise LogUnavailable("catalog.db: database or disk is full")

    with running(site) as (client, generations, _):
        client.upsert_items([NEW])
        with monkeypatch.context() as broken:
            broken.setattr(CatalogLog, "append", refuse)
            with pytest.raises(CallFailed, match=r"UNAVAILABLE.*full"):
                client.upsert_items([replace(NEW, item_id="n1")])
        assert "n1" not in shown(client)
        assert generations.active is not None
        assert generations.active.catalog_seq == 1
        assert statuses(client.upsert_items([replace(NEW, item_id="n1")])) == [DONE]
        assert "n1" in shown(client)


# -- Filters.


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('category = "jazz"', lambda row: row % 3 == 1),
        ('price < 20 AND NOT creator = "c3"', lambda row: row / 2 < 20 and row % 7 != 3),
        ('format IN ("book") OR price >= 95', lambda row: row % 3 == 0 or row / 2 >= 95),
    ],
)
def test_every_item_shown_satisfies_the_filter(site: Path, condition: str, holds: Callable[[int], bool]) -> None:
    with running(site) as (client, _, _):
        wanted = {f"i{row}" for row in range(1, COUNT) if holds(row)}
        assert set(shown(client, filter=condition)) == wanted
        assert set(shown(client, "volume", filter=condition)) == wanted
        ranked = client.rank([f"i{row}" for row in range(COUNT)], filter=condition, time_ms=NOW_MS)
        assert {item.item_id for item in ranked.items} == wanted
        assert ranked.missing_ids == ()
        client.upsert_items([replace(NEW, item_id="n1", price=1, attributes={"format": "book"})])
        client.patch_items([ItemChange("i3", price=99, attributes={"format": "book"})])
        assert set(shown(client, filter=condition)) >= {"n1"}
        assert ("i3" in shown(client, filter=condition)) == ("format" in condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("price <", "filter: .*expected"),
        ("colour = 3", "filter: .*colour"),
        ('price = "cheap"', "filter: .*price"),
        ("price < 1 " * 200, "filter: .*characters"),
    ],
)
def test_a_filter_that_cannot_be_judged_is_refused_in_the_parsers_words(
    site: Path, condition: str, message: str
) -> None:
    with running(site) as (client, _, _):
        asks: list[Callable[[], ShownSlate]] = [
            lambda: client.recommend("u1", filter=condition, time_ms=NOW_MS),
            lambda: client.search("volume", filter=condition, time_ms=NOW_MS),
            lambda: client.rank(["i1"], filter=condition, time_ms=NOW_MS),
        ]
        for ask in asks:
            with pytest.raises(CallFailed, match=message) as refused:
                ask()
            assert refused.value.code == "INVALID_ARGUMENT"


def test_a_filter_that_nothing_satisfies_gives_an_empty_answer_that_says_so(site: Path) -> None:
    with running(site) as (client, _, _):
        slate = client.recommend("u1", filter="price > 1000", time_ms=NOW_MS)
        assert (slate.items, slate.degraded) == ((), ("EMPTY",))


def test_the_catalogue_of_the_cases_is_what_the_tests_take_it_for() -> None:
    items = catalogue(towers())
    assert len(items) == COUNT
    assert not items.available_I[0]
    assert settings(Path("x")).service.clock == "request"
