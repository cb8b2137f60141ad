"""The right to do a job: one process at a time, and nothing to be done by one that has lost it.

A lease is a file. It holds a token, one higher than that of the lease before; its holder keeps it locked (flock) as
long as it lives, and renews it by touching it. Whoever finds it unlocked (the holder is done or dead) or not renewed
(stopped, hung) puts a new file with the next token in its place. From then on `Lease.check` fails for the old holder,
who must call it under the lock that guards what the job changes: the token fences it off
(Kleppmann, "How to do distributed locking", 2016).

For a local POSIX file system and one machine's processes.
"""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from index.on_disk import is_locked, sync

_RENEWALS = 4
"""In the time after which a lease that was not renewed is lost: some may come late."""


class LeaseHeld(ValueError):
    """Another process does this job."""


class LeaseLost(ValueError):
    """This process was stopped for too long, and another does its job now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a holder shows before it changes anything."""

    path: Path
    token: int
    holder: str
    descriptor: int
    """Of the locked file."""

    def check(self) -> None:
        """
        Raises:
            LeaseLost: somebody else has it, or somebody removed it.
        """
        try:
            found, ours = self.path.stat(), os.fstat(self.descriptor)
            if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                return
            token, holder, since_s = _read(self.path)
        except FileNotFoundError:
            raise LeaseLost(f"{self.holder} lost {self.path} (token {self.token}): it was removed") from None
        raise LeaseLost(
            f"{self.holder} lost {self.path} (token {self.token}): it was not renewed in time, and {holder} has it "
            f"since {_utc(since_s)} (token {token})"
        )


@contextmanager
def leased(
    path: Path,
    *,
    holder: str,
    ttl_s: float,
    clock: Callable[[], float],
    locked: Callable[[], AbstractContextManager[None]],
) -> Iterator[Lease]:
    """Hold the lease for the block, renewed by a thread. Whatever a block fails with that lost it is `LeaseLost`.

    Args:
        holder: who asks, for the message that others get.
        ttl_s: a lease not renewed for so long may be taken over.
        clock: seconds since 1970; one that jumped by more than `ttl_s` loses a lease, and never grants two.
        locked: excludes others who take this lease or change what it guards.

    Raises:
        LeaseHeld: naming who holds it and since when.
        LeaseLost: on the way out.
    """
    with locked():
        lease = _taken(path, holder=holder, ttl_s=ttl_s, clock=clock)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(ttl_s / _RENEWALS):
            _touch(lease.descriptor, clock())

    renewing = threading.Thread(target=renew, name=f"renews {path.name}", daemon=True)
    renewing.start()
    try:
        yield lease
    except LeaseLost:
        raise
    except Exception:
        lease.check()
        raise
    finally:
        done.set()
        renewing.join()
        os.close(lease.descriptor)


def _taken(path: Path, *, holder: str, ttl_s: float, clock: Callable[[], float]) -> Lease:
    token = 1
    if path.exists():
        before, by, since_s = _read(path)
        token = before + 1
        if is_locked(path):
            age_s = clock() - path.stat().st_mtime
            # A clock set back leaves times in the future; those say no more than old ones.
            if abs(age_s) <= ttl_s:
                raise LeaseHeld(
                    f"{path} is held by {by} since {_utc(since_s)} (renewed {max(age_s, 0):.0f} s ago); "
                    "only one does this at a time"
                )
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps({"token": token, "holder": holder, "since_s": clock()}).encode())
        _touch(descriptor, clock())
        os.fsync(descriptor)
        fresh.replace(path)
        sync(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return Lease(path, token, holder, descriptor)


def _read(path: Path) -> tuple[int, str, float]:
    try:
        stored = json.loads(path.read_text())
        return int(stored["token"]), str(stored["holder"]), float(stored["since_s"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no lease: {error!r}; remove it once nothing runs") from error


def _touch(descriptor: int, now_s: float) -> None:
    os.utime(descriptor, ns=(int(now_s * 1e9), int(now_s * 1e9)))


def _utc(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
