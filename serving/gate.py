"""The gate before the services: where more calls come than can be read, it turns them away unread."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from serving.admission import Admission, Overloaded
from serving.observability.telemetry import Telemetry

_Made = TypeVar("_Made")


class Gate(grpc.ServerInterceptor):
    """Refuses a call by its name alone, on the one thread of gRPC that takes calls in: a third of what it costs to
    have a thread of the service read and refuse it, more where those wait for each other.

    Args:
        rooms: by full name of the service; calls of others pass.
    """

    def __init__(self, rooms: Mapping[str, Admission], telemetry: Telemetry) -> None:
        self._rooms = rooms
        self._telemetry = telemetry
        self._here = _CallersThread(1)

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        service = handler_call_details.method.lstrip("/").partition("/")[0]
        room = self._rooms.get(service)
        refused = room.unread if room is not None else None
        return continuation(handler_call_details) if refused is None else self._refusal(refused)

    def _refusal(self, error: Overloaded) -> "grpc.RpcMethodHandler[Any, Any]":
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        self._telemetry.add("shed", error.why)
        self._telemetry.add("failed", code.name)

        def refuse(_wires: object, context: grpc.ServicerContext) -> bytes:
            context.set_trailing_metadata(error.metadata)
            context.set_code(code)
            context.set_details(str(error))
            return b""

        # gRPC looks for this name, and takes its own threads where it knows it no longer.
        refuse.experimental_thread_pool = self._here  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(refuse)  # of a stream nothing is waited for


class _CallersThread(ThreadPoolExecutor):
    """Has no threads: what is submitted is done when `submit` returns."""

    def submit(self, fn: Callable[..., _Made], /, *args: Any, **kwargs: Any) -> "Future[_Made]":
        done: Future[_Made] = Future()
        done.set_result(fn(*args, **kwargs))
        return done
