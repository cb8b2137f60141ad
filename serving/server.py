"""The composition root: settings in, a server that listens out."""

import gc
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from index.generations import GenerationStore
from protos import admin_pb2, catalog_pb2, events_pb2, recommender_pb2
from serving.admin import AdminService
from serving.again import Past
from serving.catalog import CatalogService
from serving.clock import now_ms
from serving.events import EventsService
from serving.experiments.arms import Experiments
from serving.experiments.canary import CanaryWatch
from serving.experiments.shadow import ShadowRunner
from serving.experiments.traffic import TrafficRouter
from serving.gate import SPARE_THREADS, Gate, counted
from serving.generation import Generation
from serving.generations import Generations
from serving.health import HealthService
from serving.live import Live
from serving.log.impression_log import ImpressionLog
from serving.observability import standing
from serving.observability.log_lines import SlowCalls
from serving.observability.metrics import MetricsEndpoint
from serving.observability.telemetry import Telemetry
from serving.parts import Log, State, warn
from serving.security import Doorkeeper, Tokens, server_credentials
from serving.service import RecommenderService
from serving.settings import ServerSettings
from serving.state.exchange import EventExchange
from serving.state.user_state import UserState

LIVE = "live"
"""Health name of liveness: SERVING until the server is told to stop, as that of Admin. All others tell whether a slate
can be had."""
_SERVICES = tuple(
    service.full_name
    for file in (recommender_pb2, events_pb2, catalog_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
_ADMIN_PORT = "the admin port"
"""Who did it, where callers need not say who they are."""
_MAX_BACKOFF_S = 60.0
_LAST_WORDS_S = 0.05
"""For answers on their way."""
_LOGGER = logging.getLogger("cascade.serving")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    target: str
    admin_target: str
    pid: int
    """Of the process to stop."""
    metrics_target: str = ""
    """Empty where there are no metrics."""
    other_admin_targets: tuple[str, ...] = ()
    """Of several processes, those of all but the first."""


class Server:
    """A server of parts made elsewhere; `serve` makes the real ones.

    Calls of `start` and `stop` come from one thread, each once.
    """

    def __init__(
        self, generations: Generations, *, state: State | None, log: Log | None, settings: ServerSettings
    ) -> None:
        self._generations = generations
        self._settings = settings
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="generation-watch", daemon=True)
        self._health = HealthService(ThreadPoolExecutor(2, "health"))
        self._announced: bool | None = None
        self._served = ""
        self._metrics: MetricsEndpoint | None = None
        self.telemetry = telemetry = Telemetry()
        telemetry.listeners.append(SlowCalls(settings.slow_ms))
        self.live = Live(lambda: generations.active)
        self._router = TrafficRouter(generations)
        self._canaries = CanaryWatch(self._router)
        shadows = ShadowRunner(telemetry, budget_s=settings.service.deadline_s)
        experiments = Experiments(self._router, self._canaries, shadows)
        recommender = RecommenderService(
            generations,
            state=state,
            log=log,
            telemetry=telemetry,
            settings=settings.service,
            live=self.live,
            answered=Past(generations).answered,
            experiments=experiments,
        )

        def on_ready(generation: Generation) -> None:
            self.live.prepare(generation)
            recommender.rehearse(generation)

        generations.on_ready = on_ready
        events = EventsService(state=state, log=log, telemetry=telemetry, settings=settings.service, live=self.live)
        catalog = CatalogService(generations, telemetry=telemetry, settings=settings.service, state=state)
        services = (recommender, events, catalog)
        tokens = settings.security.tokens
        doorkeeper = Doorkeeper(Tokens(tokens), telemetry) if tokens is not None else None
        self.admin = AdminService(
            generations,
            telemetry=telemetry,
            in_flight=lambda: sum(each.admission.inside for each in services),
            changed=self._announce,
            experiments=experiments,
            caller=doorkeeper.caller if doorkeeper else lambda _: _ADMIN_PORT,
        )
        rooms = {"recommender": recommender.admission, "events": events.admission, "catalog": catalog.admission}
        telemetry.readers += (
            lambda: standing.of_server(self.admin, log),
            lambda: standing.of_generation(generations),
            lambda: standing.of_rooms(rooms),
        )
        self._interceptors: list[grpc.ServerInterceptor] = [
            Gate(dict(zip(_SERVICES, rooms.values(), strict=True)), telemetry),
            *([doorkeeper] if doorkeeper else []),
        ]
        places = sum(each.admission.places for each in services)
        self._server = self._listener(places, _SERVICES, shared=settings.processes > 1)
        for name, taken, room in zip(_SERVICES, (each.handlers() for each in services), rooms.values(), strict=True):
            self._server.add_registered_method_handlers(name, counted(taken, room))
        self._admin_server = self._listener(1, (_ADMIN,), shared=False)
        self._admin_server.add_registered_method_handlers(_ADMIN, self.admin.handlers())

    def start(self) -> Address:
        """Listen, take up the current generation, then follow the store.

        Raises:
            ValueError: where a port cannot be had.
        """
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        port = self._bind(self._server, host, "port")
        admin_port = self._bind(self._admin_server, host, "admin_port")
        if settings.metrics_port is not None:
            self._metrics = MetricsEndpoint(
                self.telemetry, host=settings.host, port=settings.metrics_port, tls=settings.security.tls
            )
        for name in (LIVE, _ADMIN):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._announce()
        self._server.start()
        self._admin_server.start()
        self._follow()
        self._watcher.start()
        metrics_target = f"{host}:{self._metrics.port}" if self._metrics is not None else ""
        return Address(f"{host}:{port}", f"{host}:{admin_port}", os.getpid(), metrics_target)

    def stop(self) -> None:
        """Say that the end is near, answer for a while, finish what is at work.

        Health becomes NOT_SERVING first, and only after the lame-duck time are new calls refused: a caller that is
        cut off in between would lose calls.
        """
        self._stopping.set()
        self.admin.stopping = True
        self._health.enter_graceful_shutdown()
        if self._watcher.is_alive():
            self._watcher.join()
        time.sleep(self._settings.lame_duck_s)
        servers = self._server, self._admin_server
        until = time.monotonic() + self._settings.grace_s
        for server in servers:
            server.stop(self._settings.grace_s)
        while self.telemetry.at_work and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(_LAST_WORDS_S)
        for ended in [server.stop(0) for server in servers]:  # whoever watches its health would wait for the end
            ended.wait()
        if self._metrics is not None:
            self._metrics.close()

    def _listener(self, places: int, services: tuple[str, ...], *, shared: bool) -> grpc.Server:
        threads = places + SPARE_THREADS
        server = grpc.server(
            ThreadPoolExecutor(threads, "rpc"),
            interceptors=self._interceptors,
            maximum_concurrent_rpcs=4 * threads,
            options=(
                ("grpc.so_reuseport", int(shared)),
                ("grpc.max_receive_message_length", self._settings.max_request_bytes),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _bind(self, server: grpc.Server, host: str, name: Literal["port", "admin_port"]) -> int:
        port: int = getattr(self._settings, name)
        credentials = server_credentials(self._settings.security)
        try:
            if credentials is None:
                bound = server.add_insecure_port(f"{host}:{port}")
            else:
                bound = server.add_secure_port(f"{host}:{port}", credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise ValueError(
                f"{name}: {port} given, which is taken on {host}; allowed: a free port, or 0 to choose one"
            )
        return bound

    def _watch(self) -> None:
        """Follow the store until the server stops; what fails is tried again, ever more seldom."""
        failures = 0
        failed_id: str | None = None
        again_at = 0.0
        while not self._stopping.wait(self._settings.watch_s):
            self._watch_traffic()
            current = self._pointer()
            if current == failed_id and time.monotonic() < again_at:
                continue
            if self._follow():
                failures, failed_id = 0, None
            else:
                failures = failures + 1 if current == failed_id else 1
                failed_id = current
                again_at = time.monotonic() + min(self._settings.watch_s * 2.0**failures, _MAX_BACKOFF_S)

    def _watch_traffic(self) -> None:
        """Take up what other servers set, and take back canaries that harm."""
        self._router.follow()
        try:
            self._canaries.look(time_ms=now_ms())
        except Exception as error:
            warn(error, "canaries cannot be judged or taken back")

    def _pointer(self) -> str | None:
        try:
            return self._generations.store.current()
        except Exception:
            return None  # `_follow` meets the same and reports it

    def _follow(self) -> bool:
        """Take up the store's current generation; whether that did not fail."""
        try:
            before = self._generations.active
            active = self._generations.follow()
            if active is not None and (before is None or active.id != before.id):
                _LOGGER.info("generation %s is active", active.id)
            self.admin.follow_error = ""
        except Exception as error:
            message = str(error) or type(error).__name__
            if message != self.admin.follow_error:
                unexpected = not isinstance(error, ValueError | OSError)
                _LOGGER.error("the current generation cannot be taken up: %s", message, exc_info=unexpected)
            self.admin.follow_error = message
            self.telemetry.add("generations", "refused")
        self._router.follow()
        self._announce()
        return not self.admin.follow_error

    def _announce(self) -> None:
        """Tell health whether a slate can be had."""
        active = self._generations.active
        ready = active is not None
        if active is not None and active.id != self._served:
            self._served = active.id
            self.telemetry.add("generations", "activated")
        if ready != self._announced:
            self._announced = ready
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in ("", *_SERVICES):
                self._health.set(name, status)


def serve(settings: ServerSettings, *, on_ready: Callable[[Address], None]) -> None:
    """Serve by this process until SIGTERM or SIGINT, then drain. Must be called from the main thread.

    Args:
        on_ready: told where the server listens, after the first generation was taken up or found missing.

    Raises:
        ValueError: for a port that cannot be had, a store that cannot be read, a log that is none.
    """
    torch.set_num_threads(1)
    asked_to_stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: asked_to_stop.set())
    with ExitStack() as stack:
        log = stack.enter_context(
            ImpressionLog(
                settings.log,
                durability=settings.durability,
                rotate_bytes=settings.rotate_bytes,
                rotate_s=settings.rotate_s,
            )
        )
        state = UserState(settings.redis) if settings.redis else None
        if state is not None:
            stack.callback(state.close)
        generations = Generations(GenerationStore(settings.generations), placement=settings.index)
        stack.callback(generations.close)
        server = Server(generations, state=state, log=log, settings=settings)
        server.telemetry.readers.append(lambda: standing.of_writer(log))
        if state is not None:
            server.telemetry.readers.append(lambda: standing.of_user_state(state, server.live))
        if settings.traces:
            from serving.observability.tracing import Spans, otlp

            spans = Spans(otlp(settings.traces), share=settings.traces_share)
            stack.callback(spans.close)
            server.telemetry.listeners.append(spans.record)
        address = server.start()
        gc.freeze()  # what was imported and loaded stays: to pass over it takes 0.2 s, in the middle of a request
        if settings.redis:
            exchange = EventExchange(server.live, settings.redis)
            exchange.start()
            stack.callback(exchange.close)
        stack.callback(server.stop)
        stack.enter_context(told_in(settings.ready_file, address))
        on_ready(address)
        asked_to_stop.wait()


@contextmanager
def told_in(ready_file: Path | None, address: Address) -> Iterator[None]:
    """The address as JSON in the file, if there is to be one, while the `with` lasts."""
    if ready_file is None:
        yield
        return
    _write_whole(ready_file, json.dumps(asdict(address)))
    try:
        yield
    finally:
        ready_file.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """Readers see nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
