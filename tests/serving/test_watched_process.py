"""`gr2 serve` as a process, watched from outside: its log, its metrics, its spans at a collector."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from gr2.v1 import reranker_pb2

MakeBundle = Callable[..., Path]
SILENT = (
    "/grpc.health.v1.Health/Check",
    "/gr2.v1.Management/GetServerInfo",
    "/inference.GRPCInferenceService/ServerReady",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=[1000, 1007, 1014])).SerializeToString()


def serve(bundle: Path, *options: str, **environment: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    command = [sys.executable, "-m", "gr2.cli", "serve", "--bundle", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, json.loads(line)


def stopped(process: subprocess.Popen[str]) -> str:
    """What the process wrote to standard error, after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return errors


def ask(address: str, *metadata: tuple[str, str]) -> None:
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary("/gr2.v1.Reranker/Rerank")(REQUEST, timeout=10, metadata=metadata)


def test_the_ready_line_names_the_metrics_and_the_log_is_json(make_bundle: MakeBundle) -> None:
    process, ready = serve(make_bundle(), "--metrics-port", "0", "--log-format", "json", "--log-level", "info")
    ask(ready["address"])
    with urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    assert f'version="{ready["bundle"]}"' in text
    lines = [json.loads(line) for line in stopped(process).splitlines()]
    events = [line["message"] for line in lines]
    assert events[0] == "ready"
    assert events[-1] == "stopped"
    assert lines[0]["bundle"] == ready["bundle"]
    assert not any("1007" in json.dumps(line["message"]) for line in lines)


def test_silent_and_slow_clients_do_not_delay_the_end(
    make_bundle: MakeBundle,
    silent_calls: Callable[[str, str, int], socket.socket],
    dribble: Callable[[str, int], list[socket.socket]],
) -> None:
    process, ready = serve(make_bundle(), "--metrics-port", "0", "--grace", "8")
    for method in SILENT:
        silent_calls(ready["address"], method, 300)
    dribble(ready["metrics"], 4)
    ask(ready["address"])
    begin = time.monotonic()
    assert stopped(process) == ""
    assert time.monotonic() - begin < 8


def test_spans_reach_a_collector(make_bundle: MakeBundle) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[object] = []
    arrived = threading.Event()

    def export(request: object, _: grpc.ServicerContext) -> object:
        received.append(request)
        arrived.set()
        return service.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=service.ExportTraceServiceRequest.FromString,
        response_serializer=service.ExportTraceServiceResponse.SerializeToString,
    )
    collector = grpc.server(ThreadPoolExecutor(1))
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    collector.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    process, ready = serve(make_bundle(), "--traces", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    ask(ready["address"], ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    ask(ready["address"], ("traceparent", f"00-{TRACE}-{SPAN}-00"))
    stopped(process)
    assert arrived.wait(10)
    collector.stop(0).wait()
    spans = [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    roots = [span for span in spans if span.name == "gr2.v1.Reranker/Rerank"]
    assert len(roots) == 1
    assert (roots[0].trace_id.hex(), roots[0].parent_span_id.hex()) == (TRACE, SPAN)
    assert {"parse", "model", "rank"} <= {span.name for span in spans}
