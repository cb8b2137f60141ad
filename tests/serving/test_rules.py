"""Rules of the business: put while servers run, in force at once and everywhere, kept, and replayed as they were."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest
from catalog_cases import NOW_MS, loaded, publish, running, store_of
from google.protobuf.json_format import MessageToDict
from serving_cases import call, refusal

from index.generations import GenerationStore
from policy.rules import RuleKind
from policy.types import SlotFlag
from protos import admin_pb2
from protos.admin_pb2 import GetRulesResponse, PutRulesRequest, PutRulesResponse, Rule
from serving.client import CallFailed, CascadeClient, ItemChange
from serving.codec import query_of
from serving.log.catalog_log import FILE, CatalogLog, Entry, UnknownChange
from serving.rules import rule_book
from training.cli import MISUSE, main
from training.log.impression_log import read_impressions

PIN = Rule(id="pin", kind="RULE_PIN", item_ids=["i42"], position=2)
BLOCK = Rule(id="block", kind="RULE_BLOCK", condition='category = "jazz"')
BOOST = Rule(id="boost", kind="RULE_BOOST", item_ids=["i77"], strength=50)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    store_of(folder)
    return folder


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "site"))


@contextmanager
def admin(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def put(channel: grpc.Channel, *rules: Rule, etag: str = "") -> PutRulesResponse:
    wire = PutRulesRequest(rules=rules, etag=etag).SerializeToString()
    return PutRulesResponse.FromString(call(channel, "Admin/PutRules", wire))


def get(channel: grpc.Channel) -> GetRulesResponse:
    return GetRulesResponse.FromString(call(channel, "Admin/GetRules", b""))


def top(client: CascadeClient, request_id: str, size: int = 5, surface: str = "home") -> list[str]:
    slate = client.recommend("u1", size=size, time_ms=NOW_MS, request_id=request_id, surface=surface)
    return [item.item_id for item in slate.items]


def test_rules_are_in_force_from_the_next_answer_on_and_in_the_impression(site: Path) -> None:
    log = site / "log"
    with running(site, log=log) as (client, _, address), admin(address.admin_target) as channel:
        before = top(client, "before")
        assert get(channel) == GetRulesResponse()
        answer = put(channel, PIN, BOOST, BLOCK)
        assert (list(answer.rules), answer.etag) == ([PIN, BOOST, BLOCK], "1")
        assert get(channel) == GetRulesResponse(rules=answer.rules, etag=answer.etag)
        after = top(client, "after", size=60)
        assert after[2] == "i42"
        assert "i77" in after[:2]
        assert not any(int(item[1:]) % 3 == 1 for item in after), "every third item is of jazz"
        put(channel, etag="1")
        top(client, "without")
    logged = {each.request_id: each for each in read_impressions(log)}
    assert [logged[each].policy.rules for each in ("before", "after", "without")] == ["", "1", "2"]
    assert [logged[each].catalog_seq for each in ("before", "after", "without")] == [0, 1, 2]
    assert logged["after"].slot_flags[2] == SlotFlag.PINNED
    assert logged["after"].propensity[2] == 1
    assert list(logged["before"].item_id) == before


def test_what_is_pinned_is_shown_even_if_nothing_retrieves_it(site: Path) -> None:
    with running(site) as (client, generations, address), admin(address.admin_target) as channel:
        put(channel, PIN)
        active = generations.active
        assert active is not None
        popular = [source for source in active.pipeline.sources if source[0].name == "popular"]
        object.__setattr__(active.pipeline, "sources", [(popular[0][0], 3)])
        slate = client.recommend("u1", size=5, time_ms=NOW_MS)
        assert [item.item_id for item in slate.items][2] == "i42"
        assert slate.items[2].sources == ()
        assert "PINNED" in slate.items[2].reasons
        client.patch_items([ItemChange("i42", available=False)])
        degraded = client.recommend("u1", size=5, time_ms=NOW_MS)
        assert "i42" not in [item.item_id for item in degraded.items]
        assert "POLICY_RELAXED" in degraded.degraded


def test_who_was_not_first_is_refused_and_told_what_is_in_force(site: Path) -> None:
    with (
        running(site) as (_, _, one),
        running(site) as (client, _, two),
        admin(one.admin_target) as here,
        admin(two.admin_target) as there,
    ):
        assert put(here, BOOST).etag == "1"
        wire = PutRulesRequest(rules=[BLOCK], etag="").SerializeToString()
        code, message = refusal(there, "Admin/PutRules", wire)
        assert code == "FAILED_PRECONDITION"
        assert "etag: '' given, the rules in force have '1'" in message
        assert get(there).rules[0] == BOOST
        client.patch_items([ItemChange("i9", available=False)])
        assert put(there, BLOCK, etag="1").etag == "3", "a change of an item is no change of the rules"
        assert refusal(here, "Admin/PutRules", PutRulesRequest(etag="1").SerializeToString())[0] != "OK"


def test_rules_survive_a_restart_and_the_next_generation(site: Path) -> None:
    with running(site) as (client, _, address), admin(address.admin_target) as channel:
        put(channel, PIN)
        client.patch_items([ItemChange("i9", available=False)])
    with running(site) as (client, generations, address), admin(address.admin_target) as channel:
        assert top(client, "again")[2] == "i42"
        assert get(channel).etag == "1"
        store = GenerationStore(site / "generations")
        for folded in (0, 1, 2):
            following = publish(store, catalog_seq=folded, seed=folded)
            client.activate(following)
            assert top(client, f"in {folded}")[2] == "i42", "whether the generation holds the change or not"
            assert generations.active is not None
            assert (generations.active.rules_etag, generations.active.catalog_seq) == ("1", 2)
        assert loaded(store).rules_etag == "1"


def test_a_logged_answer_is_given_again_with_the_rules_of_its_time(site: Path) -> None:
    log = site / "log"
    with running(site, log=log) as (client, _, address), admin(address.admin_target) as channel:
        top(client, "before")
        put(channel, PIN, BOOST)
        top(client, "pinned")
        put(channel, BLOCK, etag="1")
        top(client, "blocked")
    generation = loaded(GenerationStore(site / "generations"))
    with closing(CatalogLog(site / "generations" / FILE)) as changes:
        for logged in read_impressions(log):
            then = generation.changed(changes.since(0, until=logged.catalog_seq))
            slate = then.pipeline.run(query_of(logged, then)).slate
            assert slate.propensity_K.tolist() == list(logged.propensity)
            assert then.rules_etag == logged.policy.rules


def test_a_rule_applies_where_and_when_it_says(site: Path) -> None:
    here = Rule(id="pin", kind="RULE_PIN", item_ids=["i42"], surfaces=["cart"], from_ms=NOW_MS, until_ms=NOW_MS + 1)
    typed = Rule(id="typed", kind="RULE_PIN", item_ids=["i44"], surfaces=["search"], queries=["Volume  ONE"])
    with running(site) as (client, _, address), admin(address.admin_target) as channel:
        put(channel, here, typed)
        assert top(client, "a", surface="cart")[0] == "i42"
        assert top(client, "b")[0] not in ("i42", "i44")
        late = client.recommend("u1", size=3, time_ms=NOW_MS + 1, surface="cart")
        assert late.items[0].item_id != "i42"
        assert client.search("volume one ", time_ms=NOW_MS).items[0].item_id == "i44"
        ranked = client.rank(["i3", "i5"], time_ms=NOW_MS, query="volume one", surface="search")
        assert {item.item_id for item in ranked.items} == {"i3", "i5"}, "nothing is added to the caller's own list"
        assert "POLICY_RELAXED" not in ranked.degraded


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule(id="a", kind="RULE_BLOCK")], "rule 'a': item_ids are [] and condition is ''; one of the two"),
        ([BLOCK, BLOCK], "two rules have the id 'block'"),
        (
            [Rule(id="x", kind="RULE_BLOCK", condition="colour = 1")],
            "rule 'x': condition: at character 1: no attribute",
        ),
        ([Rule(id="x", kind="RULE_BLOCK", condition="(")], "rule 'x': condition: at character 2: found the end"),
        (
            [PIN, Rule(id="q", kind="RULE_PIN", item_ids=["i1"], position=2)],
            "rules 'pin' and 'q' contradict each other",
        ),
        ([PIN, Rule(id="no", kind="RULE_BLOCK", item_ids=["i42"])], "'i42' is pinned by one and blocked by the other"),
        ([Rule(id="x", item_ids=["i1"])], "rule 'x': kind is RULE_UNSPECIFIED; allowed: RULE_PIN, RULE_BOOST"),
        ([Rule(id="x" * 600, kind="RULE_PIN", item_ids=["i1"])], "id: allowed are texts of 1 to 512 characters"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_and_the_others_stay(
    site: Path, rules: list[Rule], message: str
) -> None:
    with running(site) as (_, generations, address), admin(address.admin_target) as channel:
        put(channel, BOOST)
        code, reason = refusal(channel, "Admin/PutRules", PutRulesRequest(rules=rules, etag="1").SerializeToString())
        assert code == "INVALID_ARGUMENT"
        assert reason.startswith("rules: ")
        assert message in reason
        assert list(get(channel).rules) == [BOOST]
        assert generations.catalog.head() == 1


def test_redirects_are_said_to_be_missing(site: Path) -> None:
    redirect = Rule(id="r", kind="RULE_REDIRECT", redirect_uri="https://elsewhere")
    with running(site) as (_, _, address), admin(address.admin_target) as channel:
        wire = PutRulesRequest(rules=[redirect]).SerializeToString()
        assert refusal(channel, "Admin/PutRules", wire)[0] == "UNIMPLEMENTED"
        assert refusal(channel, "Admin/PutRules", b"\xff")[0] == "INVALID_ARGUMENT"


def test_rules_that_a_generation_cannot_judge_by_are_not_passed_over(site: Path) -> None:
    generation = loaded(GenerationStore(site / "generations"))
    unknown = PutRulesRequest(rules=[Rule(id="x", kind="RULE_BLOCK", condition="colour = 1")])
    with pytest.raises(UnknownChange, match=r"change 1 .* rule 'x': condition: at character 1: no attribute 'colour'"):
        generation.changed([Entry(1, NOW_MS, unknown)])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (PutRulesRequest(rules=[BLOCK] * 1001), "1001 rules given, allowed: at most 1000"),
        (PutRulesRequest(rules=[Rule(id="x", kind="RULE_PIN", surfaces=["s"] * 101)]), "surfaces are 101; allowed: at"),
        (PutRulesRequest(rules=[Rule(id="x", kind="RULE_PIN", redirect_uri="u")]), "redirects are not supported yet"),
    ],
)
def test_too_much_is_refused(request_: PutRulesRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_book(request_, "1")


def test_every_kind_of_rule_that_there_is_on_the_wire_has_one_here_or_says_so() -> None:
    named = {name.removeprefix("RULE_").lower() for name in dict(admin_pb2.RuleKind.items())}
    assert named - {"unspecified", "redirect"} == set(RuleKind.__args__)  # type: ignore[attr-defined]


def test_rules_are_printed_and_put_by_the_command_and_a_stale_etag_is_refused(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(site) as (client, _, address):
        where = ["--target", address.target, "--admin", address.admin_target]
        assert main(["call", "rules", *where]) == 0
        assert json.loads(capsys.readouterr().out) == {}
        file = tmp_path / "rules.json"
        file.write_text(json.dumps({"rules": [MessageToDict(PIN, preserving_proto_field_name=True)]}))
        assert main(["call", "rules", str(file), *where]) == 0
        assert capsys.readouterr().out.startswith("1 rules are in force, etag ")
        assert top(client, "pinned")[2] == "i42"
        assert main(["call", "rules", str(file), *where]) == MISUSE
        assert "read them with GetRules" in capsys.readouterr().err
        assert main(["call", "rules", *where]) == 0
        file.write_text(capsys.readouterr().out)
        assert main(["call", "rules", str(file), *where]) == 0, "what is printed can be put"
        file.write_text('{"rules": [{"colour": "red"}]}')
        assert main(["call", "rules", str(file), *where]) == MISUSE
        assert 'no field named "colour"' in capsys.readouterr().err


def test_a_slate_is_explained_as_its_rules_and_its_catalogue_were(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = site / "log"
    with running(site, log=log) as (client, _, address), admin(address.admin_target) as channel:
        put(channel, PIN, BLOCK, BOOST)
        shown = top(client, "before")
        other = next(each for each in ("i3", "i4", "i5", "i6", "i7", "i8") if each not in shown)
        put(channel, etag=get(channel).etag)
        client.patch_items([ItemChange(shown[0], available=False)])
        told = client.explain("before", item_ids=[*shown, other])
        assert told.reproduced, "the active generation knows more by now, and is not who is asked"
        assert [each.item_id for each in told.items[: len(shown)]] == shown
        assert told.items[2].flags & SlotFlag.PINNED
        assert {each.item_id: each.terms["rules"] for each in told.items if each.terms}["i77"] == 50
        assert told.items[-1].position == -1
        with pytest.raises(CallFailed, match="NOT_FOUND: request_id: 'nobody' given, which the impression log"):
            client.explain("nobody")
        with pytest.raises(CallFailed, match="INVALID_ARGUMENT: request_id"):
            client.explain("")
    words = ["explain", "before", "--log", str(log), "--generations", str(site / "generations")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "asked again, it gives the same slate, bit by bit" in out
    assert "pinned" in out
    assert main([*words, "--json", "--item", "i42", "--features"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["items"]
    assert (item["item_id"], item["position"], item["propensity"]) == ("i42", 2, 1.0)
    assert item["features"]
    words[1] = "nobody"
    assert main(words) == MISUSE
    assert "holds no request 'nobody'" in capsys.readouterr().err
