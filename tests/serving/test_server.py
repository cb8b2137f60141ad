"""A server from start to exit: ports, health, generations taken up and swapped, draining."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from serving_cases import NOW_MS, MemoryLog, Switch, call, load_fakes, publish, refusal, running, serving, settings

from index.generations import GenerationStore
from protos import admin_pb2
from protos.admin_pb2 import ActivateRequest, GetStatusResponse, ListGenerationsResponse
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse
from serving.generations import Generations
from serving.server import LIVE, Address, Server
from serving.settings import ServerSettings
from training import cli
from training.log.impression_log import read_impressions

ROOT = Path(__file__).parents[2]
AT = Context(client_time_ms=NOW_MS, user_id="u1")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
WIRE = RecommendRequest(context=AT, page_size=5).SerializeToString()


def until(holds: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def health(channel: grpc.Channel, service: str = "") -> str:
    multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
    reply = multi(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=20)
    status = health_pb2.HealthCheckResponse.FromString(reply).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def status(channel: grpc.Channel) -> GetStatusResponse:
    return GetStatusResponse.FromString(call(channel, "Admin/GetStatus", b""))


def recommend(channel: grpc.Channel) -> RecommendResponse:
    return RecommendResponse.FromString(call(channel, "Recommender/Recommend", WIRE))


@contextmanager
def channels(address: Address) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
    with grpc.insecure_channel(address.target) as data, grpc.insecure_channel(address.admin_target) as admin:
        yield data, admin


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "0.0.0.0"),
        ("host", "192.168.1.7"),
        ("host", "::"),
        ("host", "example.org"),
        ("host", ""),
        ("port", -1),
        ("port", 65_536),
        ("admin_port", 65_536),
        ("watch_s", 0.0),
        ("watch_s", float("nan")),
        ("lame_duck_s", -1.0),
        ("grace_s", float("inf")),
        ("max_request_bytes", 10),
        ("max_request_bytes", 1 << 30),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .* allowed: "):
        replace(settings(tmp_path), **{name: value})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_is_allowed(tmp_path: Path, host: str) -> None:
    assert replace(settings(tmp_path), host=host).host == host


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as address:
        taken = replace(settings(tmp_path), port=int(address.target.rsplit(":", 1)[1]))
        generations = Generations(GenerationStore(tmp_path / "generations"))
        with pytest.raises(ValueError, match=r"^port: .*taken"), running(generations, taken):
            pass


def test_health_follows_the_generation_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    server = Server(Generations(store), state=None, log=None, settings=replace(settings(tmp_path), lame_duck_s=0.5))
    with channels(server.start()) as (data, admin):
        assert (health(data), health(data, LIVE)) == ("NOT_SERVING", "SERVING")
        assert (health(admin), health(admin, "cascade.v1.Admin")) == ("NOT_SERVING", "SERVING")
        assert health(data, "cascade.v1.Recommender") == "NOT_SERVING"
        assert not status(admin).ready
        store.activate(publish(store, 1), time_ms=NOW_MS)
        assert until(lambda: health(data) == "SERVING")
        assert health(data, "cascade.v1.Recommender") == "SERVING"
        assert health(admin) == "SERVING"
        assert status(admin).ready

        watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = data.unary_stream("/grpc.health.v1.Health/Watch")
        updates = watch(health_pb2.HealthCheckRequest().SerializeToString(), timeout=20)
        assert health_pb2.HealthCheckResponse.FromString(next(updates)).status == SERVING
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert health_pb2.HealthCheckResponse.FromString(next(updates)).status == NOT_SERVING
        assert not status(admin).ready
        assert recommend(data).items, "a lame duck still answers"
        stopper.join()
        assert refusal(data, "Recommender/Recommend", WIRE, timeout=1)[0] != "OK"


def test_a_probe_ends_as_health_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    with running(Generations(store), settings(tmp_path)) as address:
        probe = ["call", "ready", "--target", address.target]
        assert cli.main([*probe, "--service", LIVE]) == 0
        assert cli.main(probe) == cli.MISUSE
        assert capsys.readouterr().err == f"cascade: error: {address.target} is not ready\n"
        store.activate(publish(store, 1), time_ms=NOW_MS)
        assert until(lambda: cli.main(probe) == 0)
        assert cli.main([*probe, "--service", "no.such.service"]) == cli.MISUSE
    assert cli.main(probe) == cli.MISUSE


def test_reflection_lists_the_services_of_each_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(channel: grpc.Channel) -> set[str]:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        multi: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
        ask = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        reply = reflection_pb2.ServerReflectionResponse.FromString(next(multi(iter([ask]), timeout=20)))
        return {service.name for service in reply.list_services_response.service}

    with serving(tmp_path, monkeypatch) as address, channels(address) as (data, admin):
        assert {"cascade.v1.Recommender", "cascade.v1.Events", "cascade.v1.Catalog"} <= listed(data)
        assert "cascade.v1.Admin" not in listed(data)
        assert "cascade.v1.Admin" in listed(admin)
        assert refusal(data, "Admin/GetStatus", b"")[0] == "UNIMPLEMENTED"


def test_callers_without_a_deadline_have_the_servers_while_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slate is made at a time, and the last of four would take longer than the server lets anybody wait."""
    slow: dict[str, Any] = {"switch": Switch(sleep_s=0.3), "running": 1, "deadline_s": 0.8}
    with serving(tmp_path, monkeypatch, **slow) as address, channels(address) as (data, _):
        multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = data.unary_unary("/cascade.v1.Recommender/Recommend")
        codes = Counter(each.code().name for each in [multi.future(WIRE) for _ in range(4)])
    assert codes.keys() == {"OK", "DEADLINE_EXCEEDED"}


def activate(admin: grpc.Channel, generation: str, expected: str) -> tuple[str, str]:
    return refusal(
        admin, "Admin/Activate", ActivateRequest(generation=generation, expected=expected).SerializeToString()
    )


def test_generations_are_listed_prepared_activated_and_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as address, channels(address) as (data, admin):
        store = GenerationStore(tmp_path / "generations")
        first, second = store.ids()[0], publish(store, 2)
        prepare = admin_pb2.PrepareRequest(generation=second).SerializeToString()
        prepared = admin_pb2.PrepareResponse.FromString(call(admin, "Admin/Prepare", prepare)).generation
        assert (prepared.id, prepared.active) == (second, False)
        assert recommend(data).generation == first

        code, message = activate(admin, second, expected=second)
        assert code == "FAILED_PRECONDITION"
        assert first in message
        assert activate(admin, second, expected="")[0] == "FAILED_PRECONDITION"
        assert activate(admin, "000009-00000000", expected=first)[0] == "NOT_FOUND"
        assert activate(admin, "../../etc", expected=first)[0] == "INVALID_ARGUMENT"
        assert recommend(data).generation == first

        assert activate(admin, second, expected=first)[0] == "OK"
        assert recommend(data).generation == second
        listed = ListGenerationsResponse.FromString(call(admin, "Admin/ListGenerations", b""))
        assert [each.id for each in listed.generations] == [first, second]
        assert [each.active for each in listed.generations] == [False, True]
        assert listed.generations[1].metrics == {"ranker.auc": 0.52}
        assert (listed.active, listed.current) == (second, second)

        call(admin, "Admin/Rollback", b"")
        assert recommend(data).generation == first
        assert store.current() == first
        assert refusal(admin, "Admin/Rollback", b"")[0] == "NOT_FOUND"
        assert refusal(admin, "Admin/Activate", b"\xff")[0] == "INVALID_ARGUMENT"


def damage(store: GenerationStore, generation: str, how: str) -> None:
    path = store.folder(generation) / "weights.safetensors"
    if how == "flip":
        content = bytearray(path.read_bytes())
        content[17] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "missing":
        path.unlink()
    else:
        (store.folder(generation) / "manifest.json").write_text("{}")


@pytest.mark.parametrize("how", ["flip", "cut", "missing", "manifest"])
def test_a_corrupt_generation_is_refused_and_the_good_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with serving(tmp_path, monkeypatch) as address, channels(address) as (data, admin):
        store = GenerationStore(tmp_path / "generations")
        first, second = store.ids()[0], publish(store, 2)
        damage(store, second, how)
        code, message = activate(admin, second, expected=first)
        assert code == "FAILED_PRECONDITION"
        assert "\n" not in message
        assert recommend(data).generation == first
        assert health(data) == "SERVING"
        assert store.current() == first


def test_what_another_process_activates_is_taken_up_and_what_does_not_load_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch()
    with serving(tmp_path, monkeypatch, switch=switch) as address, channels(address) as (data, admin):
        store = GenerationStore(tmp_path / "generations")
        second, bad, third = [publish(store, number) for number in (2, 3, 4)]
        switch.fail = frozenset({bad})
        store.activate(second, time_ms=NOW_MS)
        assert until(lambda: recommend(data).generation == second)
        assert status(admin).follow_error == ""

        store.activate(bad, time_ms=NOW_MS)
        assert until(lambda: bad in status(admin).follow_error)
        assert recommend(data).generation == second
        assert health(data) == "SERVING"
        loads = switch.loads
        time.sleep(0.5)
        assert switch.loads - loads < 8, "what does not load is tried ever more seldom"

        store.activate(third, time_ms=NOW_MS)
        assert until(lambda: recommend(data).generation == third)
        assert until(lambda: status(admin).follow_error == "")


def test_a_pointer_to_nothing_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as address, channels(address) as (data, admin):
        store = GenerationStore(tmp_path / "generations")
        first = store.ids()[0]
        (tmp_path / "generations" / "CURRENT").write_text("000099-00000000\n")
        assert until(lambda: "000099" in status(admin).follow_error)
        assert recommend(data).generation == first
        assert (status(admin).generation, status(admin).ready) == (first, True)


def test_swapping_under_load_fails_nothing_and_mixes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch()
    with (
        serving(tmp_path, monkeypatch, switch=switch, log=MemoryLog(), waiting=100) as address,
        channels(address) as (data, admin),
    ):
        store = GenerationStore(tmp_path / "generations")
        ids = [store.ids()[0], *[publish(store, number) for number in range(2, 5)]]
        stop = threading.Event()
        seen: Counter[str] = Counter()
        wrong: list[str] = []

        def load() -> None:
            while not stop.is_set():
                response = recommend(data)
                seen[response.generation] += 1
                if not response.items or any(not item.title.startswith(response.generation) for item in response.items):
                    wrong.append(str(response))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        swaps = 0
        end = time.monotonic() + 3
        current = ids[0]
        while time.monotonic() < end or swaps < 10:
            following = ids[(ids.index(current) + 1) % len(ids)]
            assert activate(admin, following, expected=current)[0] == "OK"
            current, swaps = following, swaps + 1
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert set(seen) == set(ids)
        assert dict(status(admin).failed) == {}


CHILD = """
import sys
from pathlib import Path
import pytest
from serving.server import serve
from serving_cases import Switch, load_fakes, settings
from dataclasses import replace

folder = Path(sys.argv[1])
load_fakes(pytest.MonkeyPatch(), Switch(sleep_s=float(sys.argv[2])))
serve(
    replace(settings(folder), lame_duck_s=0.2, ready_file=folder / "ready.json"),
    on_ready=lambda address: print(address.target, flush=True),
)
"""


@contextmanager
def process(folder: Path, *, sleep_s: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and where it listens."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(sleep_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert server.stdout is not None
        yield server, server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def test_a_terminated_server_finishes_what_it_began_flushes_its_log_and_exits_cleanly(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    with process(tmp_path, sleep_s=0.3) as (server, target), grpc.insecure_channel(target) as data:
        told = json.loads((tmp_path / "ready.json").read_text())
        assert (told["target"], told["pid"]) == (target, server.pid)
        multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = data.unary_unary("/cascade.v1.Recommender/Recommend")
        calls = []
        for number in range(4):
            request = RecommendRequest(context=AT, request_id=f"r{number}")
            calls.append(multi.future(request.SerializeToString(), timeout=20))
        time.sleep(0.1)
        server.send_signal(signal.SIGTERM)
        answers = [RecommendResponse.FromString(each.result()) for each in calls]
        assert server.wait(20) == 0
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()
    assert [answer.request_id for answer in answers] == [f"r{number}" for number in range(4)]
    assert {each.request_id for each in read_impressions(tmp_path / "log")} == {f"r{n}" for n in range(4)}
    assert not (tmp_path / "ready.json").exists()


def test_settings_need_only_the_two_paths(tmp_path: Path) -> None:
    chosen = ServerSettings(generations=tmp_path / "g", log=tmp_path / "l.sqlite")
    assert (chosen.host, chosen.redis, chosen.service.clock) == ("127.0.0.1", "", "system")
