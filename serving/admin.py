"""The control plane, on its own port: which generation serves, and how the server is."""

import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

import grpc

from index.generations import Activation, CorruptGeneration, Manifest, UnknownGeneration
from policy.rules import RulesInForce
from protos import admin_pb2
from serving import codec
from serving.clock import now_ms
from serving.experiments.arms import Experiments
from serving.generation import Generation, GenerationMismatch
from serving.generations import Generations
from serving.log.impression_log import CorruptLog
from serving.observability.telemetry import Reading, Telemetry
from serving.rpc import Handlers, StaleRules, Unavailable, handlers
from serving.rules import rule_book

_TOLD = 50
"""Lines of the store's audit log."""


class InvalidRules(codec.InvalidRequest):
    """Rules that cannot be followed, or contradict each other; what is wrong with them is the reason."""

    def __init__(self, why: ValueError) -> None:
        ValueError.__init__(self, f"rules: {why}")


class InvalidTraffic(codec.InvalidRequest):
    """Experiments that cannot be run, or not together; what is wrong with them is the reason."""

    def __init__(self, why: ValueError) -> None:
        ValueError.__init__(self, f"experiments: {why}")


class AdminService:
    """
    Args:
        in_flight: calls running or waiting now.
        changed: told after every change of the active generation.
        caller: who made a call, for the audit log.
        experiments: of this server.
    """

    def __init__(
        self,
        generations: Generations,
        *,
        telemetry: Telemetry,
        in_flight: Callable[[], int],
        changed: Callable[[], None],
        experiments: Experiments,
        caller: Callable[[grpc.ServicerContext], str],
    ) -> None:
        self._generations = generations
        self._telemetry = telemetry
        self._in_flight = in_flight
        self._changed = changed
        self._caller = caller
        self._experiments = experiments
        self._started_ms = now_ms()
        self.follow_error = ""
        """Why the store's current generation could not be taken up; empty where it was."""
        self.stopping = False

    @property
    def ready(self) -> bool:
        """A generation is active and the server is not stopping."""
        return self._generations.active is not None and not self.stopping

    def handlers(self) -> Handlers:
        return handlers(
            admin_pb2.DESCRIPTOR.services_by_name["Admin"],
            self._telemetry,
            methods={
                "ListGenerations": self.list_generations,
                "Prepare": self.prepare,
                "Activate": self.activate,
                "Rollback": self.rollback,
                "PutRules": self.put_rules,
                "GetRules": self.get_rules,
                "SetTraffic": self.set_traffic,
                "GetTraffic": self.get_traffic,
                "GetStatus": self.get_status,
            },
        )

    def list_generations(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        codec.parse(admin_pb2.ListGenerationsRequest(), wire)
        store = self._generations.store
        return admin_pb2.ListGenerationsResponse(
            generations=[self._info(store.manifest(each)) for each in store.ids()],
            active=self._active_id(),
            current=self._current(),
            history=[_line(each) for each in store.history()[: -_TOLD - 1 : -1]],
        ).SerializeToString()

    def prepare(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        request = admin_pb2.PrepareRequest()
        codec.parse(request, wire)
        _check_id("generation", request.generation)
        prepared = self._generations.prepare(request.generation)
        return admin_pb2.PrepareResponse(generation=self._info(prepared.manifest)).SerializeToString()

    def activate(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        request = admin_pb2.ActivateRequest()
        codec.parse(request, wire)
        _check_id("generation", request.generation)
        if request.expected:
            _check_id("expected", request.expected)
        check_reason(request)
        active = self._generations.activate(
            request.generation, request.expected or None, reason=request.reason, by=self._caller(context)
        )
        self._changed()
        return admin_pb2.ActivateResponse(generation=self._info(active.manifest)).SerializeToString()

    def rollback(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        request = admin_pb2.RollbackRequest()
        codec.parse(request, wire)
        check_reason(request)
        if self._generations.active is None:
            raise Unavailable("no generation is active, so there is none to go back from")
        active = self._generations.roll_back(reason=request.reason, by=self._caller(context))
        self._changed()
        return admin_pb2.RollbackResponse(generation=self._info(active.manifest)).SerializeToString()

    def put_rules(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        """On disk, and in force for every server of the store, when it returns."""
        request = admin_pb2.PutRulesRequest()
        codec.parse(request, wire)
        codec.check_string("etag", request.etag, codec.MAX_ID_CHARS)
        if any(rule.kind == admin_pb2.RULE_REDIRECT for rule in request.rules):
            raise codec.Unsupported("REDIRECT rules are not supported yet; meanwhile the caller has to redirect")
        response = admin_pb2.PutRulesResponse(rules=request.rules)

        def plan(generation: Generation) -> admin_pb2.PutRulesRequest:
            if request.etag != generation.rules_etag:
                raise StaleRules(request.etag, generation.rules_etag)
            response.etag = str(generation.catalog_seq + 1)
            try:
                RulesInForce(rule_book(request, response.etag), generation.items, generation.attributes).check()
            except ValueError as error:
                raise InvalidRules(error) from None
            return admin_pb2.PutRulesRequest(rules=request.rules)

        if self._generations.active is None:
            raise Unavailable("no generation is active, so there is nothing that rules could be checked against")
        self._generations.change(plan, time_ms=now_ms())
        return response.SerializeToString()

    def get_rules(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        codec.parse(admin_pb2.GetRulesRequest(), wire)
        head = self._generations.catalog.head()
        put = self._generations.catalog.rules(until=head)
        response = admin_pb2.GetRulesResponse()
        if put is not None and isinstance(put.request, admin_pb2.PutRulesRequest):
            response.rules.extend(put.request.rules)
            response.etag = str(put.seq)
        return response.SerializeToString()

    def set_traffic(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        """Loaded, on disk and in force when it returns."""
        request = admin_pb2.SetTrafficRequest()
        codec.parse(request, wire)
        for arm in (arm for experiment in request.experiments for arm in experiment.arms):
            if arm.generation:
                _check_id("generation", arm.generation)
        check_reason(request)
        if self._generations.active is None:
            raise Unavailable("no generation is active, so there is nothing that arms could be checked against")
        try:
            traffic = self._experiments.router.set(request, time_ms=now_ms())
        except (UnknownGeneration, CorruptGeneration, GenerationMismatch, CorruptLog):
            raise
        except ValueError as error:
            raise InvalidTraffic(error) from None
        return admin_pb2.SetTrafficResponse(experiments=request.experiments, etag=traffic.etag).SerializeToString()

    def get_traffic(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        codec.parse(admin_pb2.GetTrafficRequest(), wire)
        router = self._experiments.router
        response = admin_pb2.GetTrafficResponse(
            arms=self._experiments.canaries.status(), follow_error=router.follow_error
        )
        entry = router.entry()
        if entry is not None and isinstance(entry.request, admin_pb2.SetTrafficRequest):
            response.experiments.extend(entry.request.experiments)
            response.etag, response.set_ms, response.reason = str(entry.seq), entry.time_ms, entry.request.reason
        return response.SerializeToString()

    def get_status(self, wire: bytes, _context: grpc.ServicerContext) -> bytes:
        codec.parse(admin_pb2.GetStatusRequest(), wire)
        logged = self._telemetry.counts("log")
        failed = self._telemetry.codes()
        served = failed.pop("OK", 0)
        active = self._active_id()
        return admin_pb2.GetStatusResponse(
            generation=active,
            current=self._current(),
            started_ms=self._started_ms,
            now_ms=now_ms(),
            pid=os.getpid(),
            version=_version(),
            ready=self.ready,
            served=served,
            failed=failed,
            degraded=self._telemetry.counts("degraded"),
            in_flight=self._in_flight(),
            stages=[
                admin_pb2.StageLatency(
                    stage=each.stage,
                    count=each.count,
                    p50_ms=each.p50_ms,
                    p90_ms=each.p90_ms,
                    p99_ms=each.p99_ms,
                    max_ms=each.max_ms,
                )
                for each in self._telemetry.latencies()
            ],
            follow_error=self.follow_error,
            calls=self._telemetry.counts("calls"),
            logged=logged.get("stored", 0),
            log_failures=logged.get("failed", 0),
            defaulted=self._telemetry.counts("defaulted"),
            standing={_key(each): each.value for each in self._telemetry.readings()},
        ).SerializeToString()

    def _active_id(self) -> str:
        active = self._generations.active
        return active.id if active is not None else ""

    def _current(self) -> str:
        try:
            return self._generations.store.current() or ""
        except CorruptGeneration:
            return ""  # `follow_error` tells why

    def _info(self, manifest: Manifest) -> admin_pb2.GenerationInfo:
        return admin_pb2.GenerationInfo(
            id=manifest.id,
            active=manifest.id == self._active_id(),
            created_ms=manifest.created_ms,
            data_from_ms=manifest.data_window[0],
            data_to_ms=manifest.data_window[1],
            fingerprints=manifest.fingerprints,
            parent=manifest.parent or "",
            metrics=dict(_numbers(manifest.metrics)),
        )


def _numbers(metrics: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested metrics by dotted names; what is no number is left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def _line(activation: Activation) -> admin_pb2.Activation:
    return admin_pb2.Activation(
        generation=activation.id,
        previous=activation.previous or "",
        time_ms=activation.time_ms,
        reason=activation.reason,
        by=activation.by,
    )


def _key(reading: Reading) -> str:
    return f"{reading.name}{{{reading.label[1]}}}" if reading.label else reading.name


def _check_id(field: str, value: str) -> None:
    if not 1 <= len(value) <= codec.MAX_ID_CHARS or "/" in value or value.startswith("."):
        raise codec.InvalidRequest(field, value, "the id of a generation, as ListGenerations shows it")


def check_reason(
    request: admin_pb2.ActivateRequest | admin_pb2.RollbackRequest | admin_pb2.SetTrafficRequest,
) -> None:
    """
    Raises:
        InvalidRequest: for one that is too long.
    """
    codec.check_string("reason", request.reason, codec.MAX_TEXT_CHARS)


def _version() -> str:
    try:
        return version("cascade-ranking")
    except PackageNotFoundError:
        return "source"
