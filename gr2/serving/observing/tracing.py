"""OpenTelemetry spans of requests, in the caller's trace. Needs the extra `trace`.

The caller's context comes as `traceparent` in the call's metadata (W3C Trace Context). Spans are made once a call has
ended, from times that were taken anyway: a request whose trace is not sampled costs a look at its metadata.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gr2.errors import MissingExtraError
from gr2.serving.observing.phases import PHASES
from gr2.v1 import reranker_pb2
from gr2.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext

__all__ = ["Tracing", "exporting_provider", "parent_of"]

LONGEST = 256
SERVER_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


def exporting_provider() -> TracerProvider:
    """A provider that exports over OTLP/gRPC, as the OTEL_* environment variables say; raises MissingExtraError."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("gr2 serve --traces", "trace", error) from error
    named = {"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"} & set(os.environ)
    resource = Resource.create(None if named else {"service.name": "gr2"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def parent_of(metadata: Iterable[tuple[str, str | bytes]]) -> SpanContext | None:
    """The caller's span, if its trace is sampled; None without a valid `traceparent`."""
    from opentelemetry.trace import SpanContext, TraceFlags

    for key, value in metadata:
        if key != "traceparent" or not isinstance(value, str) or len(value) > LONGEST:
            continue
        parts = value.strip().split("-")
        if [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff" or (parts[0] == "00" and parts[4:]):
            return None
        try:
            trace, span, flags = (int(part, 16) for part in parts[1:4])
        except ValueError:
            return None
        context = SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(flags))
        return context if context.is_valid and context.trace_flags.sampled else None
    return None


class Tracing:
    """Makes the spans: one of the whole call, and one of each phase below it. They hold no request content."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Any = provider.get_tracer("gr2", __version__)

    def record(
        self,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]],
        code: str,
        duration: int,
        reply: bytes | None,
    ) -> None:
        """The spans of a call that has just ended after `duration` nanoseconds with the status `code`.

        `reply` are the bytes of a `RerankResponse`, whose phases get spans; None if there is none.
        """
        from opentelemetry import trace

        parent = parent_of(metadata or ())
        if parent is None:
            return
        end = time.time_ns()
        service, _, name = method.lstrip("/").partition("/")
        span = self._tracer.start_span(
            method.lstrip("/"),
            context=trace.set_span_in_context(trace.NonRecordingSpan(parent)),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "gr2.status": code},
            start_time=end - duration,
        )
        if code in SERVER_FAULTS:
            span.set_status(trace.StatusCode.ERROR)
        if reply is not None:
            self._phases(trace.set_span_in_context(span), span, reply, end)
        span.end(end)

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()

    def _phases(self, context: Any, span: Any, reply: bytes, end: int) -> None:
        response = reranker_pb2.RerankResponse.FromString(reply)
        span.set_attribute("gr2.bundle.version", response.bundle_version)
        span.set_attribute("gr2.ranked", len(response.ranking))
        at = end - response.timings.total_ns
        for name in PHASES:
            spent = getattr(response.timings, f"{name}_ns")
            if name == "queue" and not spent:
                continue
            phase = self._tracer.start_span(name, context=context, start_time=at)
            at += spent
            phase.end(at)
