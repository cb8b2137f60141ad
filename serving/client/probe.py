"""Whether a server is well, asked as a probe asks: once, without waiting for it to become so."""

import grpc
from grpc_health.v1 import health_pb2

from serving.client.channels import Access


def is_serving(target: str, service: str = "", *, access: Access | None = None, deadline_s: float = 2.0) -> bool:
    """Whether the health of this name is SERVING; false too where nobody answers in time, or knows the name."""
    credentials = (access or Access()).channel_credentials(target)
    with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            reply = check(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=deadline_s)
        except grpc.RpcError:
            return False
    return bool(health_pb2.HealthCheckResponse.FromString(reply).status == health_pb2.HealthCheckResponse.SERVING)
