"""Every decoder of bytes from outside, fed with damaged ones: it takes them or says what is wrong, and nothing else."""

import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serving_cases import NOW_MS, MemoryLog, MemoryState, generation, publish, refusal, serving

from candidate_gen.predicates import FilterError, parse
from index.generations import CorruptGeneration, GenerationStore
from protos import admin_pb2, catalog_pb2, events_pb2, recommender_pb2
from protos.impression_pb2 import FeatureValue, Impression, Outcome
from protos.recommender_pb2 import Context
from serving import admin, catalog, codec, events
from serving.log.catalog_log import CatalogLog, UnknownChange
from serving.log.impression_log import SPOOLS, CorruptLog, ImpressionLog
from serving.log.spool import Spool, checksum
from serving.rules import rule_book
from serving.security import Tokens, new_token
from serving.state.user_state import _EVENT, _unpacked
from training.log.archive import StoredRow, parsed

GENERATION = generation()
CONTEXT = Context(client_time_ms=NOW_MS, user_id="u1", recent_item_ids=["i1"], features={"age": FeatureValue(number=3)})
OUTCOME = Outcome(event_id="e", request_id="r", item_id="i1", action="click", time_ms=NOW_MS, value=1.0, position=2)
ITEM = catalog_pb2.CatalogItem(item_id="i1", title="Paper", category="music", published_ms=NOW_MS, available=True)
RULE = admin_pb2.Rule(id="r", kind=admin_pb2.RULE_BOOST, strength=1.0, condition='category = "music"')
SHARED: Mapping[str, Any] = {"context": CONTEXT, "request_id": "r", "page_size": 5, "labels": {"a": "b"}}
WIRES: Mapping[str, bytes] = {
    "Recommender/Recommend": recommender_pb2.RecommendRequest(**SHARED, seed_item_ids=["i1"]).SerializeToString(),
    "Recommender/Search": recommender_pb2.SearchRequest(
        **SHARED, query="title", filter="available = true AND published_ms > 3"
    ).SerializeToString(),
    "Recommender/Rank": recommender_pb2.RankRequest(**SHARED, item_ids=["i1", "i2"]).SerializeToString(),
    "Recommender/Explain": recommender_pb2.ExplainRequest(request_id="r", item_ids=["i1"]).SerializeToString(),
    "Events/Write": events_pb2.WriteEventsRequest(events=[OUTCOME, OUTCOME]).SerializeToString(),
    "Admin/PutRules": admin_pb2.PutRulesRequest(rules=[RULE], etag="1").SerializeToString(),
    "Admin/Activate": admin_pb2.ActivateRequest(generation="000001-00000000", expected="1").SerializeToString(),
}
ROW = np.array([(1, 7, 8, NOW_MS)], _EVENT)


@dataclass(frozen=True, slots=True)
class Decoder:
    """What reads bytes, a good example of them, and how it may refuse others."""

    example: bytes
    decode: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (codec.InvalidRequest, codec.Unsupported)
    share: float = 1.0
    """Of the inputs: files take longer."""


def asked(kind: Callable[[], Any]) -> Callable[[bytes], object]:
    def decode(wire: bytes) -> None:
        request = kind()
        codec.parse(request, wire)
        made = codec.asked(request, server_time_ms=None, new_request_id=str)
        codec.check_against(made, GENERATION)
        made.SerializeToString()

    return decode


def explained(wire: bytes) -> None:
    request = recommender_pb2.ExplainRequest()
    codec.parse(request, wire)
    codec.explained(request)


def happened(wire: bytes) -> None:
    request = events_pb2.WriteEventsRequest()
    codec.parse(request, wire)
    events.check_events(request)
    for event in request.events:
        events.kept(event, server_time_ms=NOW_MS)


def upserted(wire: bytes) -> None:
    item = catalog_pb2.CatalogItem()
    codec.parse(item, wire)
    catalog.check_item(item, GENERATION.table)


def patched(wire: bytes) -> None:
    patch = catalog_pb2.ItemPatch()
    codec.parse(patch, wire)
    catalog.check_patch(patch, GENERATION.table)


def ruled(wire: bytes) -> None:
    request = admin_pb2.PutRulesRequest()
    codec.parse(request, wire)
    rule_book(request, "1")


def activated(wire: bytes) -> None:
    request = admin_pb2.ActivateRequest()
    codec.parse(request, wire)
    admin._check_id("generation", request.generation)


def logged(wire: bytes) -> None:
    """Behind a checksum that agrees: a bug or an attacker wrote it so."""
    row = StoredRow(NOW_MS, "r", checksum("impressions", "r", NOW_MS, wire), wire)
    parsed(row, Impression, where=Path("log"))


def changed(wire: bytes) -> None:
    kind, payload = ("upsert_items", wire) if wire[:1] > b"\x09" else ("patch_items", wire[1:])
    crc = zlib.crc32(payload, zlib.crc32(f"1\0{NOW_MS}\0{kind}".encode()))
    CatalogLog(Path("catalog.db"))._entry(1, NOW_MS, kind, crc, payload)


def remembered(wire: bytes) -> None:
    cut = ROW.itemsize
    _unpacked([wire[at : at + cut] for at in range(0, len(wire), cut)], _EVENT)


def filtered(wire: bytes) -> None:
    parse(wire.decode("utf-8", "surrogateescape"))


def decoders(folder: Path) -> dict[str, Decoder]:
    store = GenerationStore(folder / "generations")
    name = publish(store, 1)
    manifest, tokens = store.folder(name) / "manifest.json", folder / "tokens"
    new_token(tokens, name="one", roles=("read",))

    def sealed(content: bytes) -> None:
        manifest.write_bytes(content)
        store.manifest(name)

    with ImpressionLog(folder / "log") as log:
        log.append(Impression(request_id="r", time_ms=NOW_MS, item_id=["i1"], query_row=b"1234"))
    spool = max((folder / "log" / SPOOLS).iterdir(), key=lambda path: path.stat().st_size)

    def opened(content: bytes) -> None:
        spool.write_bytes(content)
        made = Spool(spool)
        try:
            made.rows()
        finally:
            made.close()

    def listed(content: bytes) -> None:
        tokens.write_bytes(content)
        Tokens(tokens).roles("x")

    item = catalog_pb2.UpsertItemsRequest(items=[ITEM]).SerializeToString()
    impression = Impression(request_id="r", time_ms=NOW_MS, item_id=["i1"], propensity=[0.5], query_row=b"1234")
    return {
        "recommend": Decoder(WIRES["Recommender/Recommend"], asked(recommender_pb2.RecommendRequest)),
        "search": Decoder(WIRES["Recommender/Search"], asked(recommender_pb2.SearchRequest)),
        "rank": Decoder(WIRES["Recommender/Rank"], asked(recommender_pb2.RankRequest)),
        "explain": Decoder(WIRES["Recommender/Explain"], explained),
        "events": Decoder(WIRES["Events/Write"], happened),
        "item": Decoder(ITEM.SerializeToString(), upserted),
        "patch": Decoder(catalog_pb2.ItemPatch(item_id="i1", available=True).SerializeToString(), patched),
        "rules": Decoder(WIRES["Admin/PutRules"], ruled, (ValueError,)),
        "activate": Decoder(WIRES["Admin/Activate"], activated),
        "log row": Decoder(impression.SerializeToString(), logged, (CorruptLog,)),
        "catalogue row": Decoder(item, changed, (CorruptLog, UnknownChange)),
        "state row": Decoder(ROW.tobytes() * 3, remembered),
        "manifest": Decoder(manifest.read_bytes(), sealed, (CorruptGeneration,), 0.1),
        "spool": Decoder(spool.read_bytes(), opened, (CorruptLog,), 0.1),
        "tokens": Decoder(tokens.read_bytes(), listed, (ValueError,), 0.1),
        "filter": Decoder(
            b'category IN ("music", "jazz") AND NOT (price < -2.5e3 OR open = true)', filtered, (FilterError,)
        ),
    }


def damaged(example: bytes, chance: random.Random) -> bytes:
    """One to four of: a bit flipped, a byte set, a part cut out, doubled, moved, or put in."""
    content = bytearray(example)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        size = chance.choice((1, 1, 2, 4, 8, 32))
        match chance.randrange(7):
            case 0 if content:
                content[at % len(content)] ^= 1 << chance.randrange(8)
            case 1 if content:
                content[at % len(content)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                del content[at : at + size]
            case 3:
                content[at:at] = content[at : at + size]
            case 4:
                part = content[at : at + size]
                del content[at : at + size]
                to = chance.randrange(len(content) + 1)
                content[to:to] = part
            case 5:
                content[at:at] = chance.choice(
                    (b"\xff" * 10, b"\x00", b"\x80" * 11, b"\xc3\x28", chance.randbytes(size))
                )
            case _:
                del content[at:]
    return bytes(content)


def fuzzed(made: Decoder, times: int, *, seed: int) -> tuple[int, int]:
    """How many were taken and refused; anything else escapes, with the bytes."""
    chance = random.Random(seed)
    said: list[str] = []
    times = math.ceil(times * made.share)
    for _ in range(times):
        wire = damaged(made.example, chance)
        try:
            made.decode(wire)
        except made.refusals as error:
            said.append(str(error))
        except Exception as error:
            raise AssertionError(f"{wire!r} is answered with {error!r}") from error
    assert max(map(len, said), default=0) < 2000
    return times - len(said), len(said)


NAMES = (
    *("recommend", "search", "rank", "explain", "events", "item", "patch", "rules", "activate"),
    *("log row", "catalogue row", "state row", "manifest", "spool", "tokens", "filter"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_takes_or_refuses_whatever_it_is_given(tmp_path: Path, name: str) -> None:
    made = decoders(tmp_path)[name]
    made.decode(made.example)
    taken, refused = fuzzed(made, 1_600, seed=1)
    assert refused or name == "state row", "what another version wrote is passed over"
    assert taken or name in ("manifest", "spool"), "damage that goes unnoticed reaches the code behind the parser"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_million_damaged_inputs_crash_no_decoder(tmp_path: Path, name: str) -> None:
    made = decoders(tmp_path)
    fuzzed(made[name], math.ceil(1_000_000 / sum(each.share for each in made.values())), seed=2)


def test_every_decoder_is_fuzzed(tmp_path: Path) -> None:
    assert set(decoders(tmp_path)) == set(NAMES)


def _on_the_wire(folder: Path, patch: pytest.MonkeyPatch, times: int) -> Counter[str]:
    chance = random.Random(3)
    with (
        serving(folder, patch, log=MemoryLog(), state=MemoryState(), waiting=100) as address,
        grpc.insecure_channel(address.target) as data,
        grpc.insecure_channel(address.admin_target) as operators,
        ThreadPoolExecutor(8) as pool,
    ):

        def code(path: str, wire: bytes) -> str:
            return refusal(operators if path.startswith("Admin") else data, path, wire)[0]

        paths = [chance.choice(list(WIRES)) for _ in range(times)]
        found = Counter(pool.map(code, paths, [damaged(WIRES[path], chance) for path in paths]))
        assert code("Recommender/Recommend", WIRES["Recommender/Recommend"].replace(b"\x12\x01r", b"")) == "OK"
    return found


def test_damaged_requests_on_the_wire_are_answered_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _on_the_wire(tmp_path, monkeypatch, 1500)
    assert found["INVALID_ARGUMENT"] > 100
    assert not {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"} & set(found), found


@pytest.mark.slow
def test_a_hundred_thousand_damaged_requests_crash_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _on_the_wire(tmp_path, monkeypatch, 100_000)
    assert not {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"} & set(found), found
