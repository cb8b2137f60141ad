"""One call: bytes in, bytes out, exceptions to status codes, and the same answer to the same request id.

Handlers take raw bytes and parse them themselves, because a deserialiser that fails inside gRPC tells the caller
UNKNOWN or INTERNAL where INVALID_ARGUMENT is meant.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from index.generations import CorruptGeneration, StaleExpected, UnknownGeneration
from serving.admission import CallerGone, DeadlinePassed, Overloaded
from serving.codec import InvalidRequest, Unsupported
from serving.experiments.traffic import StaleTraffic
from serving.generation import GenerationMismatch
from serving.log.catalog_log import UnknownChange
from serving.log.impression_log import CorruptLog, LogUnavailable
from serving.observability.telemetry import Call, Telemetry

Method = Callable[[bytes, grpc.ServicerContext], bytes]
StreamMethod = Callable[[Iterator[bytes], grpc.ServicerContext], bytes]
Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]

_Wire = TypeVar("_Wire", bytes, Iterator[bytes])

_LOGGER = logging.getLogger("cascade.serving")


class Unavailable(RuntimeError):
    """Nothing can answer now; trying again later, or elsewhere, may help."""


class UnknownRequest(RuntimeError):
    """The log holds no impression of this request id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id: {request_id!r} given, which the impression log does not hold")


class StaleRules(RuntimeError):
    """Somebody else put rules first."""

    def __init__(self, etag: str, now: str) -> None:
        super().__init__(f"etag: {etag!r} given, the rules in force have {now!r}; read them with GetRules, try again")


class StalePage(RuntimeError):
    """The generation of the first page is gone."""

    def __init__(self, generation: str) -> None:
        super().__init__(
            f"page_token: of an answer by generation {generation}, which is no longer kept; begin anew without a token"
        )


class CatalogFull(RuntimeError):
    """So much has changed since the last generation that the next one must be built first."""


_STATUS_OF: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (DeadlinePassed, grpc.StatusCode.DEADLINE_EXCEEDED),
    (CallerGone, grpc.StatusCode.CANCELLED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (grpc.RpcError, grpc.StatusCode.CANCELLED),  # the caller of a stream is gone
    (UnknownGeneration, grpc.StatusCode.NOT_FOUND),
    (UnknownRequest, grpc.StatusCode.NOT_FOUND),
    (StaleExpected, grpc.StatusCode.FAILED_PRECONDITION),
    (StaleRules, grpc.StatusCode.FAILED_PRECONDITION),
    (StaleTraffic, grpc.StatusCode.FAILED_PRECONDITION),
    (StalePage, grpc.StatusCode.FAILED_PRECONDITION),
    (CorruptGeneration, grpc.StatusCode.FAILED_PRECONDITION),
    (GenerationMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (CatalogFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LogUnavailable, grpc.StatusCode.UNAVAILABLE),
    (CorruptLog, grpc.StatusCode.FAILED_PRECONDITION),
    (UnknownChange, grpc.StatusCode.FAILED_PRECONDITION),
)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the caller learns of an exception; of a defect only an opaque id, under which the log has the rest."""
    for kind, code in _STATUS_OF:
        if isinstance(error, kind):
            return code, str(error)
    defect = uuid.uuid4().hex[:12]
    _LOGGER.error("defect %s", defect, exc_info=error, extra={"defect": defect})
    return grpc.StatusCode.INTERNAL, f"internal error {defect}"


def handlers(
    service: ServiceDescriptor,
    telemetry: Telemetry,
    *,
    methods: Mapping[str, Method],
    streams: Mapping[str, StreamMethod] | None = None,
) -> Handlers:
    """Every method of a service as a handler of raw bytes, by its name.

    Args:
        streams: methods that take a stream.

    Raises:
        ValueError: where a method of the service is in none of them, or in two.
    """
    taken = [*methods, *(streams or {})]
    if sorted(taken) != sorted(method.name for method in service.methods):
        raise ValueError(f"{service.full_name} has {[m.name for m in service.methods]}, handlers are for {taken}")

    made: Handlers = {
        name: grpc.unary_unary_rpc_method_handler(_guarded(name, method, telemetry)) for name, method in methods.items()
    }
    for name, stream in (streams or {}).items():
        made[name] = grpc.stream_unary_rpc_method_handler(_guarded(name, stream, telemetry))
    return made


def _guarded(
    name: str, method: Callable[[_Wire, grpc.ServicerContext], bytes], telemetry: Telemetry
) -> Callable[[_Wire, grpc.ServicerContext], bytes]:
    def handle(wire: _Wire, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        call = Call(name, context, time.time_ns())
        telemetry.begin(call)
        try:
            return method(wire, context)
        except Exception as error:
            code, message = status_of(error)
            call.code = code.name
            if isinstance(error, Overloaded):
                telemetry.add("shed", error.why)
                context.set_trailing_metadata(error.metadata)
            context.abort(code, message)
        finally:
            call.ms = 1000 * (time.perf_counter() - started)
            telemetry.end(call)

    return handle
