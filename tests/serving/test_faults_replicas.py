"""Servers that stop, die and come back while callers go on; connections that mean no good."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from serving_cases import NOW_MS, Switch, call, load_fakes, publish, refusal, running, serving, settings

from index.generations import GenerationStore
from protos.admin_pb2 import ActivateRequest
from protos.recommender_pb2 import Context, RecommendRequest
from serving.client import CallFailed, CascadeClient, Event
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.server import Server
from training.log.impression_log import read_impressions, read_outcomes

ROOT = Path(__file__).parents[2]
WIRE = RecommendRequest(context=Context(client_time_ms=NOW_MS, user_id="u1"), page_size=5).SerializeToString()


def in_a_while(true: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.001)
    return done


def reached(listed: Sequence[str], count: int) -> bool:
    return len(listed) >= count


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def asking(target: str, *, clients: int = 2) -> Iterator[tuple[list[str], list[str]]]:
    """Clients that each ask again as soon as they are answered: request ids that were answered, and what failed."""
    answered: list[str] = []
    failed: list[str] = []
    done = threading.Event()

    def ask(number: int) -> None:
        with CascadeClient(target, deadline_s=10.0) as client:
            turn = 0
            while not done.is_set():
                turn += 1
                try:
                    slate = client.recommend("u1", size=3, request_id=f"r{number}-{turn}", time_ms=NOW_MS)
                    answered.append(slate.request_id)
                except CallFailed as error:
                    failed.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for each in threads:
        each.start()
    try:
        yield answered, failed
    finally:
        done.set()
        for each in threads:
            each.join()


def test_two_replicas_are_restarted_one_after_the_other_and_no_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    ports = [free_port(), free_port()]

    def started(number: int) -> tuple[Server, ImpressionLog]:
        log = ImpressionLog(tmp_path / f"log{number}")
        chosen = replace(settings(tmp_path), port=ports[number], lame_duck_s=0.5)
        server = Server(Generations(store), state=None, log=log, settings=chosen)
        server.start()
        return server, log

    replicas = [started(0), started(1)]
    with asking(f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}") as (answered, failed):
        for number in (0, 1):
            server, log = replicas[number]
            enough = len(answered) + 50
            server.stop()
            log.close()
            replicas[number] = started(number)
            assert in_a_while(partial(reached, answered, enough))
    for server, log in replicas:
        server.stop()
        log.close()
    logged = [each.request_id for number in (0, 1) for each in read_impressions(tmp_path / f"log{number}")]
    assert failed == []
    assert set(answered) <= set(logged), "every answer is in a log"


CHILD = """
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
import pytest
from serving.server import serve
from serving_cases import load_fakes, settings

folder = Path(sys.argv[1])
load_fakes(pytest.MonkeyPatch())
serve(replace(settings(folder), port=int(sys.argv[2])), on_ready=lambda address: print("up", flush=True))
"""


@contextmanager
def child(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(port)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_of_a_server_that_is_killed_nothing_acknowledged_is_lost_and_callers_go_on_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    port = free_port()
    acknowledged: list[str] = []
    failed: list[str] = []
    done = threading.Event()

    def write(client: CascadeClient, number: int) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            event = Event("i5", "click", NOW_MS, user_id="u1", event_id=f"e{number}-{turn}")
            try:
                answers = client.write_events([event], deadline_s=10.0)
                acknowledged.extend(each.event_id for each in answers if each.status in ("STORED", "DUPLICATE"))
            except CallFailed as error:
                failed.append(str(error))

    with ExitStack() as stack:
        log = stack.enter_context(ImpressionLog(tmp_path / "other"))
        other = stack.enter_context(running(Generations(store), settings(tmp_path), state=None, log=log))
        process = stack.enter_context(child(tmp_path, port))
        client = stack.enter_context(CascadeClient(f"ipv4:127.0.0.1:{port},{other.target}", deadline_s=10.0))
        writers = [threading.Thread(target=write, args=(client, number)) for number in range(4)]
        for each in writers:
            each.start()
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        at_death = len(acknowledged)
        assert in_a_while(lambda: len(acknowledged) >= at_death + 20 or bool(failed))
        done.set()
        for each in writers:
            each.join()
    with ImpressionLog(tmp_path / "log"):
        pass  # opening it again must be all that a restart needs
    stored = [[each.event_id for each in read_outcomes(tmp_path / name)] for name in ("log", "other")]
    assert failed == []
    assert set(acknowledged) <= set(stored[0]) | set(stored[1])
    assert all(stored), "both had served"
    assert all(len(each) == len(set(each)) for each in stored)


def test_health_is_pushed_to_who_watches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    generation = publish(store, 1)
    chosen = replace(settings(tmp_path), watch_s=3600.0)
    server = Server(Generations(store), state=None, log=None, settings=chosen)
    address = server.start()
    seen: list[tuple[float, int]] = []

    def watch(channel: grpc.Channel) -> None:
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        try:
            for reply in stream(health_pb2.HealthCheckRequest().SerializeToString(), timeout=30):
                seen.append((time.monotonic(), health_pb2.HealthCheckResponse.FromString(reply).status))
        except grpc.RpcError:
            pass  # the server has stopped

    def wait_for(count: int) -> float:
        assert in_a_while(lambda: len(seen) >= count)
        return seen[count - 1][0]

    with grpc.insecure_channel(address.target) as data, grpc.insecure_channel(address.admin_target) as admin:
        watcher = threading.Thread(target=watch, args=(data,))
        watcher.start()
        wait_for(1)
        call(admin, "Admin/Activate", ActivateRequest(generation=generation).SerializeToString())
        activated = time.monotonic()
        assert wait_for(2) - activated < 1
        stopping = time.monotonic()
        server.stop()
        assert wait_for(3) - stopping < 1
        watcher.join()
    status = health_pb2.HealthCheckResponse
    assert [each for _, each in seen[:3]] == [status.NOT_SERVING, status.SERVING, status.NOT_SERVING]


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING, GOAWAY = 6, 7


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def connected(target: str, *, initial_window: int = 65_535) -> socket.socket:
    """A connection that has said no more than what it must."""
    host, port = target.rsplit(":", 1)
    made = socket.create_connection((host, int(port)), timeout=20)
    made.sendall(PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, initial_window)))
    return made


def request_frames(stream: int, wire: bytes) -> bytes:
    """A call of Recommend, its headers uncompressed."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/cascade.v1.Recommender/Recommend",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(each[0])]) + each[0].encode() + bytes([len(each[1])]) + each[1].encode()
        for each in headers.items()
    )
    message = b"\x00" + struct.pack(">I", len(wire)) + wire
    return frame(1, 4, stream, block) + frame(0, 1, stream, message)


def test_a_flood_of_pings_ends_its_own_connection_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as address, grpc.insecure_channel(address.target) as channel:
        flood = connected(address.target)
        received = b""
        try:
            for _ in range(10_000):
                flood.sendall(frame(PING, 0, 0, b"flooding"))
        except OSError:
            pass
        try:
            while part := flood.recv(65_536):
                received += part
        except OSError:
            pass
        flood.close()
        assert b"too_many_pings" in received
        assert refusal(channel, "Recommender/Recommend", WIRE)[0] == "OK"


def test_connections_that_say_nothing_or_read_nothing_hold_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch()
    with (
        serving(tmp_path, monkeypatch, switch=switch, running=1, waiting=16) as address,
        grpc.insecure_channel(address.target) as channel,
        ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", int(address.target.rsplit(":", 1)[1]))))

        def made(slates: int) -> bool:
            return switch.calls >= slates

        for number in range(40):
            deaf = stack.enter_context(connected(address.target, initial_window=0))
            deaf.sendall(request_frames(1, WIRE))
            in_a_while(partial(made, number + 1))
        assert switch.calls == 40, "their slates were made, and wait to be read"
        for _ in range(20):
            assert refusal(channel, "Recommender/Recommend", WIRE)[0] == "OK"


def test_a_thousand_calls_leave_no_thread_and_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as address, grpc.insecure_channel(address.target) as channel:

        def held() -> tuple[int, int]:
            return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

        for _ in range(300):
            call(channel, "Recommender/Recommend", WIRE)
        before = held()
        for _ in range(1000):
            call(channel, "Recommender/Recommend", WIRE)
        assert max(held()[0] - before[0], held()[1] - before[1]) <= 2
