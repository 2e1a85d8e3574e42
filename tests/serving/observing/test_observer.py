"""Calls are counted by their status, timed, and put into the caller's trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gr2.serving.access import direct
from gr2.serving.observing.tracing import Tracing, exporting_provider, parent_of
from gr2.serving.server import Server
from gr2.v1 import reranker_pb2

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=KNOWN[:8])).SerializeToString()


@pytest.fixture
def spans() -> list:
    return []


@pytest.fixture
def traced(make_bundle: MakeBundle, spans: list) -> Iterator[Server]:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")

    class Kept(export.SpanExporter):
        def export(self, batch: object) -> object:
            spans.extend(batch)
            return export.SpanExportResult.SUCCESS

    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(Kept()))
    server = Server(make_bundle(), port=0, tracing=Tracing(provider))
    server.start()
    yield server
    server.stop(5)


def call(server: Server, request: bytes, *, metadata: tuple = ()) -> reranker_pb2.RerankResponse:
    with grpc.insecure_channel(server.address) as channel:
        rerank = channel.unary_unary(
            "/gr2.v1.Reranker/Rerank", response_deserializer=reranker_pb2.RerankResponse.FromString
        )
        return rerank(request, timeout=10, metadata=metadata)


def test_spans_join_the_callers_trace(traced: Server, spans: list) -> None:
    reply = call(traced, REQUEST, metadata=(("traceparent", f"00-{TRACE}-{SPAN}-01"),))
    traced.stop(5)
    root = next(span for span in spans if span.name == "gr2.v1.Reranker/Rerank")
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == SPAN
    assert root.attributes["gr2.status"] == "OK"
    assert root.attributes["gr2.bundle.version"] == reply.bundle_version
    phases = {span.name: span for span in spans if span is not root}
    assert [name for name in phases if name != "queue"] == ["parse", "lookup", "trie", "model", "rank"]
    assert phases["model"].end_time - phases["model"].start_time == reply.timings.model_ns
    for span in phases.values():
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time


@pytest.mark.parametrize("private", [True, False], ids=["direct", "handlers"])
def test_a_trace_that_fails_leaves_the_call_its_answer(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, *, private: bool
) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")

    class Failing(sdk.SpanProcessor):
        def on_end(self, span: object) -> None:
            raise ValueError(span)

    provider = sdk.TracerProvider()
    provider.add_span_processor(Failing())
    monkeypatch.setattr(direct, "PRIVATE", private)
    server = Server(make_bundle(), port=0, tracing=Tracing(provider))
    server.start()
    reply = call(server, REQUEST, metadata=(("traceparent", f"00-{TRACE}-{SPAN}-01"),))
    assert len(reply.ranking) == 8
    server.stop(5)
    assert server._observer.codes == {"OK": 1}


def test_a_refused_request_has_a_span_without_its_content(traced: Server, spans: list) -> None:
    request = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(strings=["secret item"])).SerializeToString()
    with pytest.raises(grpc.RpcError):
        call(traced, request, metadata=(("traceparent", f"00-{TRACE}-{SPAN}-01"),))
    traced.stop(5)
    (span,) = spans
    assert span.attributes["gr2.status"] == "INVALID_ARGUMENT"
    assert span.status.is_ok or span.status.is_unset
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{SPAN}-00",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        "",
        "0" * 10_000,
    ],
)
def test_no_parent_that_is_not_sampled_or_not_valid(value: str) -> None:
    pytest.importorskip("opentelemetry.trace")
    assert parent_of([("traceparent", value)]) is None
    assert parent_of([("traceparent", f"00-{TRACE}-{SPAN}-01")]) is not None


def test_untraced_calls_make_no_spans(traced: Server, spans: list) -> None:
    call(traced, REQUEST)
    traced.stop(5)
    assert spans == []


def test_an_exporting_provider_closes_without_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-ranker")
    provider = exporting_provider()
    assert provider.resource.attributes["service.name"] == "shop-ranker"
    Tracing(provider).close()
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    provider = exporting_provider()
    assert provider.resource.attributes["service.name"] == "gr2"
    provider.shutdown()
