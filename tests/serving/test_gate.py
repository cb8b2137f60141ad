"""A real gRPC server whose gate turns calls away by their names."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos import recommender_pb2
from serving.admission import Admission, Overloaded
from serving.gate import Gate, counted
from serving.observability.telemetry import Telemetry
from serving.rpc import handlers

SERVICE = recommender_pb2.DESCRIPTOR.services_by_name["Recommender"]


class ClosedRoom(Admission):
    """Has no time to read."""

    @property
    def unread(self) -> Overloaded | None:
        return Overloaded("unread", after_s=0.25)


@contextmanager
def gated(room: Admission, telemetry: Telemetry) -> Iterator[tuple[grpc.Channel, list[bytes]]]:
    """A channel to a server behind a gate, and what it has read."""
    read: list[bytes] = []

    def answer(wire: bytes, _context: grpc.ServicerContext) -> bytes:
        read.append(wire)
        return wire

    gate = Gate({SERVICE.full_name: room}, telemetry)
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[gate])
    methods = {method.name: answer for method in SERVICE.methods}
    server.add_registered_method_handlers(
        SERVICE.full_name, counted(handlers(SERVICE, telemetry, methods=methods), room)
    )
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, read
    finally:
        server.stop(0).wait()


def test_a_room_with_time_to_read_reads() -> None:
    with gated(Admission(running=1, waiting=1), Telemetry()) as (channel, read):
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE.full_name}/Recommend")
        assert method(b"asked", timeout=20) == b"asked"
    assert read == [b"asked"]


def test_what_is_turned_away_is_not_read_and_is_told_when_to_come_back() -> None:
    telemetry = Telemetry()
    with gated(ClosedRoom(running=1, waiting=1), telemetry) as (channel, read):
        for _ in range(20):
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE.full_name}/Search")
            with pytest.raises(grpc.RpcError) as caught:
                method(b"asked", timeout=20)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "come back in 250 ms" in error.details()
            assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
    assert not read
    assert telemetry.counts("shed") == {"unread": 20}
    assert telemetry.codes() == {"RESOURCE_EXHAUSTED": 20}


def test_a_room_learns_of_every_call_and_of_its_end() -> None:
    room = Admission(running=1, waiting=0)
    with gated(room, Telemetry()) as (channel, _):
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE.full_name}/Search")
        for _ in range(200):
            assert method(b"asked", timeout=20) == b"asked"
        taken_in = 0
        while not room.unread and taken_in < 200:
            room.take_in()
            taken_in += 1
        assert taken_in > 4, "of those before none is at hand"


def test_health_is_asked_past_a_closed_gate() -> None:
    with gated(ClosedRoom(running=1, waiting=1), Telemetry()) as (channel, _):
        checked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
