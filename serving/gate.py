"""The gate before the services: where more calls come than can be read, it turns them away unread."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from serving.admission import Admission, Overloaded
from serving.observability.telemetry import Telemetry
from serving.rpc import Handlers

SPARE_THREADS = 16
"""For refusals, health and reflection, which must not wait behind slates."""
_Made = TypeVar("_Made")


class Gate(grpc.ServerInterceptor):
    """Refuses calls by their names while their room has no time to read them, and tells when to come back.

    Needs handlers that are `counted`.

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

        _have_done_by(self._here, refuse)
        return grpc.stream_unary_rpc_method_handler(refuse)  # of a stream nothing is waited for


def counted(handlers: Handlers, room: Admission) -> Handlers:
    """The same handlers, with threads of their own for their calls: the room learns of each, before it is read."""
    threads = _RoomThreads(room)
    for each in handlers.values():
        _have_done_by(threads, each.unary_unary or each.stream_unary)
    return handlers


def _have_done_by(threads: ThreadPoolExecutor, behaviour: Any) -> None:
    """gRPC looks for this name, and takes its own threads where it knows it no longer."""
    behaviour.experimental_thread_pool = threads


class _RoomThreads(ThreadPoolExecutor):
    """Tells a room of every call that is taken in, and of its end."""

    def __init__(self, room: Admission) -> None:
        super().__init__(room.places + SPARE_THREADS, "rpc")
        self._room = room

    def submit(self, fn: Callable[..., _Made], /, *args: Any, **kwargs: Any) -> "Future[_Made]":
        self._room.take_in()
        call = super().submit(fn, *args, **kwargs)
        call.add_done_callback(lambda _: self._room.let_out())
        return call


class _CallersThread(ThreadPoolExecutor):
    """Has no threads: what is submitted is done when `submit` returns."""

    def submit(self, fn: Callable[..., _Made], /, *args: Any, **kwargs: Any) -> "Future[_Made]":
        done: Future[_Made] = Future()
        done.set_result(fn(*args, **kwargs))
        return done
