"""The health service of gRPC, for a server whose callers come and go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from grpc_health.v1 import health


class HealthService(health.HealthServicer):  # type: ignore[misc]
    """The library's, but for what it does when a watcher goes: there the thread that serves all calls would wait for a
    lock whose holder may wait for that thread."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__(experimental_non_blocking=True, experimental_thread_pool=pool)
        self._pool = pool

    def _on_close_callback(
        self, send_response_callback: Callable[[object], None], service: str
    ) -> Callable[[], object]:
        close = super()._on_close_callback(send_response_callback, service)
        return lambda: self._pool.submit(close)
