"""What a caller gets, on the wire of a real server, when all is well and when parts fail."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import numpy as np
import pytest
from serving_cases import (
    NOW_MS,
    Fixed,
    MemoryLog,
    MemoryState,
    Switch,
    call,
    generation,
    refusal,
    running,
    serving,
    settings,
)

from index.generations import GenerationStore
from index.strings import key64
from protos import admin_pb2, events_pb2
from protos.events_pb2 import EventStatus, StreamEventsResponse, WriteEventsRequest, WriteEventsResponse
from protos.impression_pb2 import Degraded, FeatureValue, Outcome
from protos.recommender_pb2 import (
    Context,
    RankRequest,
    RankResponse,
    ReasonKind,
    RecommendRequest,
    RecommendResponse,
    SearchRequest,
    SearchResponse,
)
from serving import codec
from serving.events import LATE_MS
from serving.generation import action_key
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.observability.telemetry import Histogram, Telemetry
from serving.rpc import handlers
from serving.service import RecommenderService
from serving.settings import ServiceSettings
from serving.state.replies import Answered, Replies
from training.log.impression_log import read_impressions

AT = Context(client_time_ms=NOW_MS, user_id="u1")


@dataclass(slots=True)
class Site:
    channel: grpc.Channel
    log: MemoryLog
    state: MemoryState
    switch: Switch
    admin: grpc.Channel

    def recommend(self, request: RecommendRequest, *, timeout: float = 20.0) -> RecommendResponse:
        if not request.HasField("context"):
            request.context.CopyFrom(AT)
        wire = call(self.channel, "Recommender/Recommend", request.SerializeToString(), timeout=timeout)
        return RecommendResponse.FromString(wire)

    def status(self) -> admin_pb2.GetStatusResponse:
        return admin_pb2.GetStatusResponse.FromString(call(self.admin, "Admin/GetStatus", b""))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    log, state, switch = MemoryLog(), MemoryState(), Switch()
    with (
        serving(tmp_path, monkeypatch, switch=switch, state=state, log=log) as address,
        grpc.insecure_channel(address.target) as channel,
        grpc.insecure_channel(address.admin_target) as admin,
    ):
        yield Site(channel, log, state, switch, admin)


def test_recommend_answers_and_logs_the_same_slate(site: Site) -> None:
    response = site.recommend(RecommendRequest(request_id="r1", page_size=7, include_scores=True))
    assert len(response.items) == 7
    assert response.generation.startswith("000001-")
    assert response.degradation.bits == 0
    stages = [stage.stage for stage in response.degradation.stages]
    assert stages == ["wait", "lookup", "state", "hydrate", "retrieve", "filter", "score", "select"]
    logged = site.log.impressions["r1"]
    assert list(logged.item_id) == [item.item_id for item in response.items]
    assert list(logged.propensity) == [item.propensity for item in response.items]
    assert response.policy == logged.policy
    assert len(logged.eligible_item_key) > 7
    assert response.attribution_token


def test_search_and_rank_share_the_pipeline_and_the_log(site: Site) -> None:
    wire = SearchRequest(context=AT, query="title", request_id="s1", page_size=5).SerializeToString()
    found = SearchResponse.FromString(call(site.channel, "Recommender/Search", wire))
    assert len(found.items) == 5
    assert any(reason.kind == ReasonKind.REASON_SEARCH_MATCH for item in found.items for reason in item.reasons)
    wire = RankRequest(context=AT, item_ids=["i7", "gone", "i3", "i0", "i5"], request_id="k1").SerializeToString()
    ranked = RankResponse.FromString(call(site.channel, "Recommender/Rank", wire))
    assert {item.item_id for item in ranked.items} == {"i7", "i3", "i5"}
    assert list(ranked.missing_ids) == ["gone"]
    assert [site.log.impressions[name].surface for name in ("s1", "k1")] == ["search", "home"]


@pytest.mark.parametrize("user", ["", "nobody-knows-me"])
def test_an_unknown_user_is_no_error(site: Site, user: str) -> None:
    request = RecommendRequest(context=Context(client_time_ms=NOW_MS, user_id=user), seed_item_ids=["gone"])
    response = site.recommend(request)
    assert len(response.items) == 20
    assert response.degradation.bits == 0
    assert list(response.missing_ids) == ["gone"]
    for item in response.items:
        assert ReasonKind.REASON_COLD_START in [reason.kind for reason in item.reasons]


def test_nothing_eligible_is_an_empty_answer_that_says_so(site: Site) -> None:
    response = site.recommend(RecommendRequest(exclude_item_ids=[f"i{row}" for row in range(60)]))
    assert not response.items
    assert response.degradation.bits == Degraded.DEGRADED_EMPTY


def test_sent_again_a_request_gets_the_same_bytes_and_is_logged_once(site: Site) -> None:
    request = RecommendRequest(context=AT, request_id="again", page_size=9)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: site.recommend(request).SerializeToString(), range(24)))
    assert len(set(replies)) == 1
    assert site.switch.calls == 1
    assert list(site.log.impressions) == ["again"]


def test_a_request_id_that_another_request_has_used_is_refused(site: Site) -> None:
    site.recommend(RecommendRequest(context=AT, request_id="mine", page_size=9))
    other = RecommendRequest(context=AT, request_id="mine", page_size=8).SerializeToString()
    code, message = refusal(site.channel, "Recommender/Recommend", other)
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("request_id")


def test_after_a_restart_a_retry_is_answered_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def request(user: str) -> bytes:
        context = Context(client_time_ms=NOW_MS, user_id=user)
        return RecommendRequest(context=context, request_id="again", page_size=9).SerializeToString()

    answers = []
    for start in range(2):
        switch = Switch()
        with (
            ImpressionLog(tmp_path / "log") as log,
            serving(tmp_path / str(start), monkeypatch, log=log, switch=switch) as address,
            grpc.insecure_channel(address.target) as channel,
        ):
            answers.append(RecommendResponse.FromString(call(channel, "Recommender/Recommend", request("u1"))))
            assert switch.calls == (1 if start == 0 else 0)
            if start:
                assert refusal(channel, "Recommender/Recommend", request("u2"))[0] == "INVALID_ARGUMENT"
    assert [item.item_id for item in answers[0].items] == [item.item_id for item in answers[1].items]
    assert answers[0].policy == answers[1].policy
    assert len(list(read_impressions(tmp_path / "log"))) == 1


def test_the_same_request_of_a_trusting_server_depends_on_nothing_but_itself(site: Site) -> None:
    request = RecommendRequest(context=AT, request_id="fixed", no_log=True)
    first = site.recommend(request)
    assert [item.item_id for item in first.items] == [item.item_id for item in site.recommend(request).items]
    assert site.switch.calls == 2
    assert not site.log.impressions


def test_a_request_is_only_checked_where_only_that_is_asked_for(site: Site) -> None:
    response = site.recommend(RecommendRequest(validate_only=True))
    assert not response.items
    assert response.generation
    assert not site.log.impressions
    wrong = Context(client_time_ms=NOW_MS, features={"shoe_size": FeatureValue(number=1)})
    wire = RecommendRequest(validate_only=True, context=wrong).SerializeToString()
    assert refusal(site.channel, "Recommender/Recommend", wire)[0] == "INVALID_ARGUMENT"


def test_debug_summary_fills_the_trace(site: Site) -> None:
    response = site.recommend(RecommendRequest(debug="DEBUG_LEVEL_SUMMARY"))
    assert response.trace.retrieved["ann"] == 20
    assert response.trace.removed["disallowed"] == 1
    assert response.trace.eligible >= 20
    assert not site.recommend(RecommendRequest()).HasField("trace")


@pytest.mark.parametrize("part", ["ann", "lexical", "similar", "fresh"])
def test_a_source_that_fails_degrades_the_answer(site: Site, part: str) -> None:
    site.switch.fail = frozenset({part})
    response = site.recommend(RecommendRequest(request_id="r", page_size=10))
    assert len(response.items) == 10
    assert response.degradation.bits == Degraded.DEGRADED_SOURCE_ERROR
    assert ("retrieve." + part, "error") in [(each.stage, each.status) for each in response.degradation.stages]
    assert list(site.log.impressions["r"].skipped_sources) == [part]


def test_a_ranker_that_fails_degrades_the_answer(site: Site) -> None:
    site.switch.fail = frozenset({"ranker"})
    response = site.recommend(RecommendRequest(request_id="r"))
    assert len(response.items) == 20
    assert response.degradation.bits == Degraded.DEGRADED_RANKER_SKIPPED
    assert site.log.impressions["r"].degraded == Degraded.DEGRADED_RANKER_SKIPPED


def test_a_value_that_no_feature_knows_gets_the_default_and_is_flagged_and_counted(site: Site) -> None:
    for country, degraded in (("de", 0), ("atlantis", Degraded.DEGRADED_DEFAULT_FEATURES)):
        context = Context(client_time_ms=NOW_MS, user_id="u1", features={"country": FeatureValue(text=country)})
        response = site.recommend(RecommendRequest(context=context, request_id=country))
        assert len(response.items) == 20
        assert response.degradation.bits == site.log.impressions[country].degraded == degraded
    assert site.status().defaulted == {"country": 1}
    site.state.down = True
    site.recommend(RecommendRequest())
    assert site.status().defaulted == {"country": 1, "history": 1}


def test_user_state_that_is_down_degrades_answers_and_events(site: Site) -> None:
    site.state.down = True
    assert site.recommend(RecommendRequest()).degradation.bits == Degraded.DEGRADED_DEFAULT_FEATURES
    response = write(site, [event("e1")])
    assert [result.status for result in response.results] == [EventStatus.EVENT_STATUS_STORED]
    assert response.degraded == Degraded.DEGRADED_DEFAULT_FEATURES
    assert "e1" in site.log.outcomes


def test_a_log_that_refuses_turns_exploration_off_and_says_so(site: Site) -> None:
    assert site.recommend(RecommendRequest(request_id="before")).policy.temperature == pytest.approx(0.3)
    site.log.available = False
    response = site.recommend(RecommendRequest(request_id="during"))
    assert response.degradation.bits == Degraded.DEGRADED_LOG_UNAVAILABLE
    assert [item.propensity for item in response.items] == [1.0] * 20
    assert (response.policy.temperature, response.policy.epsilon) == (0, 0)
    code, _ = refusal(site.channel, "Events/Write", WriteEventsRequest(events=[event("e1")]).SerializeToString())
    assert code == "UNAVAILABLE"
    site.log.available = True
    assert site.recommend(RecommendRequest(request_id="after")).degradation.bits == 0
    assert set(site.log.impressions) == {"before", "after"}


def test_a_defect_is_told_as_an_opaque_id(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.switch.fail = frozenset({"hydrate"})
    with caplog.at_level(logging.ERROR, "cascade.serving"):
        code, message = refusal(site.channel, "Recommender/Recommend", RecommendRequest(context=AT).SerializeToString())
    assert code == "INTERNAL"
    defect = message.removeprefix("internal error ")
    assert len(defect) == 12
    assert "secret" not in message
    assert defect in caplog.text
    assert "/secret/path of hydration" in caplog.text


def test_a_failed_request_can_be_sent_again(site: Site) -> None:
    wire = RecommendRequest(context=AT, request_id="r").SerializeToString()
    site.switch.fail = frozenset({"hydrate"})
    assert refusal(site.channel, "Recommender/Recommend", wire)[0] == "INTERNAL"
    site.switch.fail = frozenset()
    assert refusal(site.channel, "Recommender/Recommend", wire)[0] == "OK"


def test_without_a_generation_a_server_is_unavailable(tmp_path: Path) -> None:
    generations = Generations(GenerationStore(tmp_path / "generations"))
    with (
        running(generations, settings(tmp_path)) as address,
        grpc.insecure_channel(address.target) as channel,
    ):
        code, message = refusal(channel, "Recommender/Recommend", RecommendRequest(context=AT).SerializeToString())
    assert code == "UNAVAILABLE"
    assert "no generation is active" in message


def test_a_deadline_that_passes_is_told_and_leaves_no_impression(site: Site) -> None:
    site.switch.sleep_s = 0.3
    wire = RecommendRequest(context=AT, request_id="late").SerializeToString()
    code, _ = refusal(site.channel, "Recommender/Recommend", wire, timeout=0.1)
    assert code == "DEADLINE_EXCEEDED"
    deadline = time.monotonic() + 10
    while site.status().in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert site.status().failed["DEADLINE_EXCEEDED"] == 1
    assert "late" not in site.log.impressions
    site.switch.sleep_s = 0.0
    assert refusal(site.channel, "Recommender/Recommend", wire)[0] == "OK"


def test_more_calls_than_fit_are_turned_away_at_once_with_a_time_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch(sleep_s=0.2)
    refused: list[grpc.RpcError] = []
    with (
        serving(tmp_path, monkeypatch, switch=switch, running=1, waiting=2) as address,
        grpc.insecure_channel(address.target) as channel,
    ):

        def ask(_: int) -> str:
            try:
                call(channel, "Recommender/Recommend", RecommendRequest(context=AT).SerializeToString())
            except grpc.RpcError as error:
                refused.append(error)
                return error.code().name
            return "OK"

        with ThreadPoolExecutor(10) as pool:
            codes = list(pool.map(ask, range(10)))
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") >= 3
    for error in refused:
        pushback = dict(cast(grpc.Call, error).trailing_metadata())["grpc-retry-pushback-ms"]
        assert int(pushback) >= 10


def event(event_id: str, **changes: object) -> Outcome:
    fields: dict[str, object] = {
        "event_id": event_id,
        "item_id": "i5",
        "user_id": "u1",
        "action": "click",
        "value": 1.0,
        "time_ms": NOW_MS - 1000,
        "visible_ms": NOW_MS - 1000,
    }
    return Outcome(**{**fields, **changes})  # type: ignore[arg-type]


def write(site: Site, events: list[Outcome]) -> WriteEventsResponse:
    wire = WriteEventsRequest(events=events).SerializeToString()
    return WriteEventsResponse.FromString(call(site.channel, "Events/Write", wire))


def test_each_event_has_a_status_of_its_own(site: Site) -> None:
    late = event("late", time_ms=NOW_MS - 2 * LATE_MS, visible_ms=NOW_MS)
    response = write(site, [event("e1"), event("e1"), event("bad", value=float("nan")), late, event("e2", user_id="")])
    status = [EventStatus.Name(result.status).removeprefix("EVENT_STATUS_") for result in response.results]
    assert status == ["STORED", "DUPLICATE", "REJECTED", "LATE", "STORED"]
    assert [result.event_id for result in response.results] == ["e1", "e1", "bad", "late", "e2"]
    assert response.results[2].reason.startswith("value: nan")
    assert set(site.log.outcomes) == {"e1", "late", "e2"}
    assert site.state.events == {"u1": [(key64("i5"), action_key("click"), NOW_MS - 1000)]}


def test_the_next_request_of_the_user_sees_the_event(site: Site) -> None:
    write(site, [event("e1", item_id="i5"), event("e2", item_id="i8", action="like", time_ms=NOW_MS - 500)])
    site.recommend(RecommendRequest(request_id="r", debug="DEBUG_LEVEL_SUMMARY"))
    logged = site.log.impressions["r"]
    assert list(logged.history_item_key) == [key64("i8"), key64("i5")]
    assert list(logged.history_action_key) == [action_key("like"), action_key("click")]
    history = codec.query_of(logged, generation()).history
    assert (history.row_L.tolist(), history.action_L.tolist()) == ([8, 5], [2, 1])


def test_a_stream_of_events_is_counted(site: Site) -> None:
    events = [event(f"e{k % 500}") for k in range(600)] + [event("bad", action="")]
    stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = site.channel.stream_unary("/cascade.v1.Events/Stream")
    response = StreamEventsResponse.FromString(stream(iter([each.SerializeToString() for each in events]), timeout=20))
    assert (response.stored, response.duplicate, response.rejected, response.late) == (500, 100, 1, 0)
    assert [result.event_id for result in response.rejections] == ["bad"]
    assert len(site.log.outcomes) == 500


def test_a_malformed_event_in_a_stream_is_an_invalid_argument(site: Site) -> None:
    stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = site.channel.stream_unary("/cascade.v1.Events/Stream")
    with pytest.raises(grpc.RpcError) as caught:
        stream(iter([event("e").SerializeToString(), b"\xff\xff"]), timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_caller_who_leaves_in_the_middle_of_a_stream_is_no_defect(site: Site) -> None:
    leaving = threading.Event()

    def events() -> Iterator[bytes]:
        yield event("e1").SerializeToString()
        leaving.wait(20)

    stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = site.channel.stream_unary("/cascade.v1.Events/Stream")
    call_made = stream.future(events(), timeout=20)
    while not site.status().calls.get("Stream"):
        time.sleep(0.01)
    call_made.cancel()
    end = time.monotonic() + 20
    while not site.status().failed and time.monotonic() < end:
        time.sleep(0.01)
    leaving.set()
    assert dict(site.status().failed) == {"CANCELLED": 1}


def mutants(seed: bytes, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Bytes flipped, cut, repeated and replaced."""
    for _ in range(count):
        wire = bytearray(seed)
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.integers(0, len(wire) + 1))
            match int(rng.integers(0, 4)):
                case 0 if at < len(wire):
                    wire[at] ^= 1 << int(rng.integers(0, 8))
                case 1:
                    del wire[at:]
                case 2:
                    wire[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case _:
                    wire[at:at] = wire[: int(rng.integers(0, 20))]
        yield bytes(wire)


def seeds() -> dict[str, bytes]:
    context = Context(
        client_time_ms=NOW_MS, user_id="u1", recent_item_ids=["i1"], features={"age": FeatureValue(number=3)}
    )
    return {
        "Recommender/Recommend": RecommendRequest(
            context=context, request_id="r", page_size=3, seed_item_ids=["i2"], labels={"a": "b"}, columns=True
        ).SerializeToString(),
        "Recommender/Search": SearchRequest(context=context, query="title", page_size=3).SerializeToString(),
        "Recommender/Rank": RankRequest(context=context, item_ids=["i1", "i2"], no_log=True).SerializeToString(),
        "Events/Write": WriteEventsRequest(events=[event("e1"), event("e2")]).SerializeToString(),
    }


def test_no_mutated_message_is_answered_with_internal_or_unknown(site: Site) -> None:
    rng = np.random.default_rng(7)
    codes: dict[str, int] = {}
    for method, seed in seeds().items():
        multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = site.channel.unary_unary(f"/cascade.v1.{method}")
        futures = []
        for wire in mutants(seed, 750, rng):
            futures.append((wire, multi.future(wire, timeout=20)))
            if len(futures) == 50:
                for sent, future in futures:
                    code = future.code().name
                    assert code in ("OK", "INVALID_ARGUMENT", "UNIMPLEMENTED"), (method, sent, future.details())
                    codes[code] = codes.get(code, 0) + 1
                futures = []
    assert codes["INVALID_ARGUMENT"] > 500
    assert codes["OK"] > 100


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_too_large_is_refused_before_it_is_read(site: Site, compression: grpc.Compression) -> None:
    multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = site.channel.unary_unary("/cascade.v1.Recommender/Recommend")
    with pytest.raises(grpc.RpcError) as caught:
        multi(bytes(8 << 20), timeout=20, compression=compression)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert site.recommend(RecommendRequest()).items


def test_status_counts_and_times_everything(site: Site) -> None:
    for _ in range(5):
        site.recommend(RecommendRequest())
    refusal(site.channel, "Recommender/Recommend", RecommendRequest(page_size=0, context=AT).SerializeToString())
    write(site, [event("e1")])
    status = site.status()
    assert status.calls["Recommend"] == 6
    assert status.failed == {"INVALID_ARGUMENT": 1}
    assert status.served >= 6
    assert status.logged == 6
    assert status.ready
    latency = {each.stage: each for each in status.stages}
    assert {"recommend", "state", "hydrate", "retrieve", "filter", "score", "select", "record", "log", "encode"} <= set(
        latency
    )
    assert latency["score"].count == 5
    assert 0 < latency["recommend"].p50_ms <= latency["recommend"].p99_ms <= latency["recommend"].max_ms


def test_a_share_of_requests_logs_every_eligible_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    with (
        serving(tmp_path, monkeypatch, log=log, eligible_share=0.5) as address,
        grpc.insecure_channel(address.target) as channel,
    ):
        for number in range(60):
            request = RecommendRequest(context=AT, request_id=f"r{number}")
            call(channel, "Recommender/Recommend", request.SerializeToString())
    whole = {each.request_id for each in log.impressions.values() if each.eligible_item_key}
    assert whole == {f"r{number}" for number in range(60) if key64(f"r{number}") < 1 << 63}
    assert 15 < len(whole) < 45


def test_one_request_never_sees_two_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generation is read once: whoever swaps it in the middle of a request does not change its answer."""
    first, second = generation("000001-00000000"), generation("000002-00000000")
    holder = Fixed(first)
    service = RecommenderService(holder, state=None, log=None, telemetry=Telemetry(), settings=ServiceSettings())
    run = type(first.pipeline).run

    def swap_and_run(*args: object, **more: object) -> object:
        holder.active = second
        return run(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(first.pipeline), "run", swap_and_run)
    response = RecommendResponse.FromString(service.recommend(b"", cast(grpc.ServicerContext, Waits())))
    assert response.generation == first.id
    assert all(item.title.startswith(first.id) for item in response.items)


class Waits:
    """A caller without a deadline."""

    def time_remaining(self) -> float | None:
        return None

    def is_active(self) -> bool:
        return True


def test_replies_are_bounded_and_failures_are_not_kept() -> None:
    replies = Replies(most=2)
    until = time.monotonic() + 20
    first, second, third = (Answered(word, 1) for word in (b"first", b"second", b"third"))
    for name in ("a", "b", "c"):
        assert replies.answer(name, b"digest", until, lambda: first) == (first, False)
    assert replies.answer("c", b"digest", until, lambda: second) == (first, True)
    assert replies.answer("a", b"digest", until, lambda: second) == (second, False)

    def fail() -> Answered:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        replies.answer("d", b"digest", until, fail)
    assert replies.answer("d", b"digest", until, lambda: third) == (third, False)


def test_quantiles_are_exact_to_five_percent() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0
    samples = np.random.default_rng(0).lognormal(0, 2, 5000)
    histogram.observe(samples.tolist())
    for share in (0.5, 0.9, 0.99):
        exact = float(np.quantile(samples, share, method="inverted_cdf"))
        assert exact <= histogram.quantile(share) * 1.0001 <= exact * 1.06
    assert histogram.quantile(1.0) == histogram.max_ms == samples.max()


def test_a_method_without_a_handler_is_noticed_at_once() -> None:
    service = events_pb2.DESCRIPTOR.services_by_name["Events"]
    with pytest.raises(ValueError, match="Stream"):
        handlers(service, Telemetry(), methods={"Write": lambda wire, _: wire})
