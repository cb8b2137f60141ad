"""One process at a time has a job; whoever lost it, however it lost it, changes nothing any more."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from index.generations import GenerationStore
from index.leases import Lease, LeaseHeld, LeaseLost

ROOT = Path(__file__).parents[2]
_JOB = """
import sys
from pathlib import Path
from index.generations import GenerationStore
from index.leases import LeaseHeld, LeaseLost

store, name, ttl_s = GenerationStore(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
try:
    with store.job("rebuild", holder=name, ttl_s=ttl_s) as job, store.stage() as folder:
        print("has it", flush=True)
        (folder / "file").write_text(name)
        sys.stdin.readline()
        generation = store.publish(folder, fingerprints={"by": name}, parent=None, config={}, data_window=(0, 1),
                                   metrics={}, created_ms=1, job=job)
        store.activate(generation, time_ms=1, expected=None, job=job)
    print("published", flush=True)
except (LeaseHeld, LeaseLost) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Worker:
    """A process that asks for the job, and publishes once it is let go."""

    def __init__(self, root: Path, name: str, *, ttl_s: float = 60.0) -> None:
        command = [sys.executable, "-c", _JOB, str(root), name, str(ttl_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def store(tmp_path: Path) -> GenerationStore:
    return GenerationStore(tmp_path / "generations")


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, store: GenerationStore, name: str, *, ttl_s: float = 60.0) -> Worker:
    worker = Worker(store.root, name, ttl_s=ttl_s)
    stack.callback(worker.end)
    return worker


def publish(store: GenerationStore, job: Lease | None) -> str:
    with store.stage() as folder:
        (folder / "file").touch()
        return store.publish(
            folder,
            fingerprints={},
            parent=None,
            config={},
            data_window=(0, 1),
            metrics={},
            created_ms=1,
            job=job,
        )


def test_of_eight_at_once_one_has_the_job_and_the_others_are_told_who(
    store: GenerationStore, processes: ExitStack
) -> None:
    workers = {name: started(processes, store, name) for name in "abcdefgh"}
    said = {name: worker.says() for name, worker in workers.items()}
    (holder,) = (name for name, line in said.items() if line == "has it")
    told = [line for name, line in said.items() if name != holder]
    assert all(line.startswith(f"LeaseHeld: {store.root}/.job-rebuild is held by {holder} since ") for line in told)
    workers[holder].let_go()
    assert workers[holder].says() == "published"
    assert len(store.ids()) == 1
    assert store.manifest(store.ids()[0]).fingerprints == {"by": holder}
    assert store.current() == store.ids()[0]


def test_a_killed_holder_is_followed_at_once(store: GenerationStore, processes: ExitStack) -> None:
    first = started(processes, store, "first", ttl_s=3600.0)
    assert first.says() == "has it"
    first.signal(signal.SIGKILL)
    first.process.wait()
    second = started(processes, store, "second", ttl_s=3600.0)
    assert second.says() == "has it"
    second.let_go()
    assert second.says() == "published"
    assert len(store.ids()) == 1
    assert not list(store.root.glob(".staging-*"))


def test_a_stopped_holder_is_followed_after_its_time_and_publishes_nothing_when_it_wakes(
    store: GenerationStore, processes: ExitStack
) -> None:
    zombie = started(processes, store, "zombie", ttl_s=0.8)
    assert zombie.says() == "has it"
    zombie.signal(signal.SIGSTOP)
    early = started(processes, store, "early", ttl_s=30.0)
    assert early.says().startswith("LeaseHeld")
    time.sleep(1.0)
    heir = started(processes, store, "heir", ttl_s=0.8)
    assert heir.says() == "has it"
    zombie.signal(signal.SIGCONT)
    zombie.let_go()
    said = zombie.says()
    assert said.startswith(f"LeaseLost: zombie lost {store.root}/.job-rebuild (token 1): it was not renewed in time")
    assert "heir has it since" in said
    assert store.ids() == []
    heir.let_go()
    assert heir.says() == "published"
    assert [store.manifest(each).fingerprints["by"] for each in store.ids()] == ["heir"]


def test_a_lease_is_renewed_while_its_holder_works(store: GenerationStore) -> None:
    clock = Clock()
    path = store.root / ".job-rebuild"
    with store.job("rebuild", holder="a", ttl_s=0.04, clock=clock):
        clock.now_s += 1000
        deadline_s = time.monotonic() + 10
        while path.stat().st_mtime != clock.now_s and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert path.stat().st_mtime == clock.now_s
        with (
            pytest.raises(LeaseHeld, match=r"is held by a since 1970-01-12 13:46:40 UTC \(renewed 0 s ago\)"),
            store.job("rebuild", holder="b", ttl_s=0.04, clock=clock),
        ):
            pass
    assert not [each for each in threading.enumerate() if each.name.startswith("renews")]


def test_a_job_that_ended_leaves_the_way_free_and_every_lease_has_a_higher_token(store: GenerationStore) -> None:
    tokens = []
    for _ in range(3):
        with store.job("rebuild", holder="a") as job:
            tokens.append(job.token)
    with pytest.raises(KeyError), store.job("rebuild", holder="a") as job:
        raise KeyError
    tokens.append(job.token)
    assert tokens == [1, 2, 3, 4]


def test_jobs_of_other_names_and_stores_do_not_meet(store: GenerationStore, tmp_path: Path) -> None:
    other = GenerationStore(tmp_path / "other")
    with (
        store.job("rebuild", holder="a"),
        store.job("nightly", holder="b") as second,
        other.job("rebuild", holder="c") as third,
    ):
        assert (second.token, third.token) == (1, 1)


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_a_day_may_cost_a_lease_but_never_grants_two(store: GenerationStore, jump_s: float) -> None:
    clock = Clock()
    with store.job("rebuild", holder="a", clock=clock) as first:
        clock.now_s += jump_s
        with store.job("rebuild", holder="b", clock=clock) as second:
            with pytest.raises(LeaseLost, match=r"a lost .* \(token 1\): .* b has it since .* \(token 2\)"):
                publish(store, first)
            generation = publish(store, second)
        with pytest.raises(LeaseLost):
            store.activate(generation, time_ms=1, job=first)
    assert store.ids() == [generation]
    assert store.current() is None


def test_whatever_a_job_fails_with_after_it_lost_its_lease_is_said_to_be_that(store: GenerationStore) -> None:
    def fail() -> None:
        with store.job("rebuild", holder="a") as job:
            job.path.unlink()
            raise FileNotFoundError("what the next holder tidied up")

    with pytest.raises(LeaseLost, match="it was removed"):
        fail()


def test_what_is_no_lease_and_no_name_is_said(store: GenerationStore) -> None:
    with pytest.raises(ValueError, match=r"a job's name is lower-case letters, not '\.\./x'"):
        store.job("../x", holder="a")
    store.root.mkdir()
    (store.root / ".job-rebuild").write_text("[]")
    with pytest.raises(ValueError, match=r"\.job-rebuild is no lease: .*; remove it once nothing runs"):
        store.job("rebuild", holder="a").__enter__()
