"""Calls as OpenTelemetry spans, made of the times that were taken anyway, after the answer was.

A call is one span; its stages are spans below it, laid end to end in the order in which they ended, up to the end of
the call: how long each took is exact, when it began is so up to what lay between.
"""

from typing import TYPE_CHECKING

from protos.impression_pb2 import Degraded
from serving.observability.telemetry import Call

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ValueError(
        "traces need OpenTelemetry, which is not installed; install the extra: pip install 'cascade-ranking[otel]'"
    ) from error

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_SERVICE = "cascade"
_W3C = TraceContextTextMapPropagator()


def otlp(endpoint: str) -> "SpanExporter":
    """Sends spans over OTLP/gRPC to `http://host:port`, or with TLS to `https://host:port`."""
    return OTLPSpanExporter(endpoint=endpoint)


class Spans:
    """Exports spans in batches, on a thread of its own, from when it is made until `close`.

    Args:
        share: of the calls that come without a trace of their caller's, whose decision is followed.
    """

    def __init__(self, exporter: "SpanExporter", *, share: float) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": _SERVICE}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("cascade.serving")

    def record(self, call: Call) -> None:
        """A listener of `Telemetry`."""
        metadata = call.context.invocation_metadata() if call.context is not None else ()
        carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
        span = self._tracer.start_span(call.method, _W3C.extract(carrier), SpanKind.SERVER, start_time=call.started_ns)
        if not span.is_recording():
            return
        end_ns = call.started_ns + _nanoseconds(call.ms)
        trace = call.trace
        bits = trace.degraded if trace is not None else 0
        span.set_attributes(
            {
                "rpc.system": "grpc",
                "rpc.method": call.method,
                "rpc.response.status_code": call.code,
                "cascade.request_id": call.request_id,
                "cascade.generation": call.generation,
                "cascade.degraded": [name for name, bit in Degraded.items() if bit & bits],
            }
        )
        if call.code != "OK":
            span.set_status(StatusCode.ERROR, call.code)
        if trace is not None:
            within = set_span_in_context(span)
            began_ns = end_ns - _nanoseconds(sum(trace.stage_ms.values()))
            for stage, ms in trace.stage_ms.items():
                child = self._tracer.start_span(stage, within, start_time=began_ns)
                began_ns += _nanoseconds(ms)
                child.end(began_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Export what waits."""
        self._provider.shutdown()


def _nanoseconds(ms: float) -> int:
    return int(1e6 * ms)
