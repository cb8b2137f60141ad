"""Several server processes on one port: started, told from each other, started again, stopped together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from serving_cases import NOW_MS, call, publish, settings

from index.generations import GenerationStore
from protos.admin_pb2 import ActivateRequest, GetStatusResponse
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse
from serving.front import serve
from training.log.impression_log import read_impressions

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
import pytest
from serving.front import serve
from serving_cases import Switch, load_fakes, settings

folder, processes, sleep_s, port, log = Path(sys.argv[1]), *sys.argv[2:]
load_fakes(pytest.MonkeyPatch(), Switch(sleep_s=float(sleep_s)))
chosen = replace(
    settings(folder), processes=int(processes), port=int(port), lame_duck_s=0.2, log=folder / log,
    ready_file=folder / "ready.json",
)
try:
    serve(chosen, on_ready=lambda address: print(address.target, flush=True))
except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@dataclass(frozen=True, slots=True)
class Front:
    """Two processes and who looks after them."""

    supervisor: subprocess.Popen[str]
    target: str
    admin_targets: tuple[str, ...]

    def statuses(self) -> list[GetStatusResponse]:
        return [status(target) for target in self.admin_targets]


def begun(folder: Path, *, sleep_s: float = 0.0, port: int = 0, log: str = "log") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), "2", str(sleep_s), str(port), log],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@contextmanager
def front(folder: Path, *, sleep_s: float = 0.0) -> Iterator[Front]:
    store = GenerationStore(folder / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    supervisor = begun(folder, sleep_s=sleep_s)
    try:
        assert supervisor.stdout is not None
        target = supervisor.stdout.readline().strip()
        told = json.loads((folder / "ready.json").read_text())
        assert (told["target"], told["pid"]) == (target, supervisor.pid)
        yield Front(supervisor, target, (told["admin_target"], *told["other_admin_targets"]))
    finally:
        supervisor.kill()
        supervisor.communicate()


def status(admin_target: str) -> GetStatusResponse:
    with grpc.insecure_channel(admin_target) as admin:
        return GetStatusResponse.FromString(call(admin, "Admin/GetStatus", b""))


def new_channel(target: str) -> grpc.Channel:
    """With a connection of its own, which any of the processes may be given."""
    return grpc.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),))


def recommend(target: str, request_id: str) -> RecommendResponse:
    wire = RecommendRequest(context=Context(client_time_ms=NOW_MS, user_id="u1"), request_id=request_id)
    with new_channel(target) as data:
        return RecommendResponse.FromString(call(data, "Recommender/Recommend", wire.SerializeToString()))


def until(holds: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def answers(target: str) -> bool:
    try:
        recommend(target, "")
    except grpc.RpcError:
        return False
    return True


def test_one_port_is_served_by_all_and_what_one_activates_all_take_up(tmp_path: Path) -> None:
    with front(tmp_path) as both:
        first, second = both.statuses()
        assert first.pid != second.pid
        assert {first.ready, second.ready} == {True}
        ids = [f"r{number}" for number in range(40)]
        assert [recommend(both.target, each).request_id for each in ids] == ids
        served = [each.logged for each in both.statuses()]
        assert sum(served) == len(ids)
        assert min(served) > 0, "40 connections, all given to one process"

        store = GenerationStore(tmp_path / "generations")
        new = publish(store, 2)
        with grpc.insecure_channel(both.admin_targets[0]) as admin:
            wire = ActivateRequest(generation=new, expected=first.generation).SerializeToString()
            call(admin, "Admin/Activate", wire)
        assert until(lambda: [each.generation for each in both.statuses()] == [new, new])

        both.supervisor.send_signal(signal.SIGTERM)
        assert both.supervisor.wait(20) == 0
        assert gone(first.pid)
        assert gone(second.pid)
    assert sorted(each.request_id for each in read_impressions(tmp_path / "log")) == sorted(ids)
    assert not (tmp_path / "ready.json").exists()


def test_all_finish_what_they_began(tmp_path: Path) -> None:
    with front(tmp_path, sleep_s=0.3) as both:
        channels = [new_channel(both.target) for _ in range(8)]
        calls = []
        for at, data in enumerate(channels):
            multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = data.unary_unary("/cascade.v1.Recommender/Recommend")
            wire = RecommendRequest(context=Context(client_time_ms=NOW_MS), request_id=f"r{at}").SerializeToString()
            calls.append(multi.future(wire, timeout=20))
        assert until(lambda: sum(each.in_flight for each in both.statuses()) == len(calls))
        both.supervisor.send_signal(signal.SIGINT)
        assert [RecommendResponse.FromString(each.result()).request_id for each in calls] == [
            f"r{at}" for at in range(8)
        ]
        assert both.supervisor.wait(20) == 0
        assert both.supervisor.stderr is not None
        assert "Traceback" not in both.supervisor.stderr.read()
        for data in channels:
            data.close()


def test_one_that_is_killed_is_started_again_and_none_outlives_the_supervisor(tmp_path: Path) -> None:
    with front(tmp_path) as both:
        victim, other = both.statuses()
        for pid in (victim.pid, None):
            before = pid or status(both.admin_targets[0]).pid
            os.kill(before, signal.SIGKILL)
            # A connection that the dead one had accepted is lost; what is asked anew is answered.
            assert until(lambda: answers(both.target), within_s=5)
            assert until(partial(_replaced, both.admin_targets[0], before))
        assert status(both.admin_targets[1]).pid == other.pid
        assert status(both.admin_targets[0]).pid != victim.pid
        assert json.loads((tmp_path / "ready.json").read_text())["pid"] == both.supervisor.pid

        pids = [each.pid for each in both.statuses()]
        both.supervisor.kill()
        assert until(lambda: all(gone(pid) for pid in pids))


def _replaced(admin_target: str, pid: int) -> bool:
    """Whether another process listens there."""
    try:
        return int(status(admin_target).pid) != pid
    except grpc.RpcError:
        return False


def test_nothing_serves_where_one_cannot(tmp_path: Path) -> None:
    """Where the log should be lies a file."""
    (tmp_path / "log").touch()
    supervisor = begun(tmp_path)
    told, error = supervisor.communicate(timeout=30)
    assert (supervisor.returncode, told) == (1, "")
    assert len(error.strip().splitlines()) == 1, error
    assert str(tmp_path / "log") in error
    assert not (tmp_path / "ready.json").exists()


@pytest.mark.parametrize("shared", [0, 1])
def test_a_port_that_somebody_has_is_not_shared(tmp_path: Path, shared: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        chosen = replace(settings(tmp_path), processes=2, port=taken.getsockname()[1])
        with pytest.raises(ValueError, match=r"^port: \d+ given, which is taken on 127.0.0.1"):
            serve(chosen, on_ready=lambda _: pytest.fail("it serves"))


@pytest.mark.parametrize(("name", "value"), [("processes", 0), ("processes", 257), ("admin_port", 65_535)])
def test_a_number_of_processes_has_bounds(tmp_path: Path, name: str, value: int) -> None:
    changes: dict[str, Any] = {"processes": 2, name: value}
    with pytest.raises(ValueError, match=rf"^{name}: {value} given, allowed: "):
        replace(settings(tmp_path), **changes)
