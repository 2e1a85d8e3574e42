"""The callers of `make server-faults`: as many at once as are said, and every call counted."""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

CONNECTIONS = 50


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks.server.faults_callers`, which is not installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    return importlib.import_module("benchmarks.server.faults_callers")


def test_malformed_requests_come_over_all_connections_at_once_and_each_status_is_counted(callers: Any) -> None:
    assert callers.SENDERS == CONNECTIONS
    gate, peers = threading.Barrier(CONNECTIONS), set()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        peers.add(context.peer())
        # Only if all of them are there at the same time does anybody go on.
        gate.wait(20)
        if request == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return request

    server = grpc.server(ThreadPoolExecutor(CONNECTIONS))
    service, name = callers.METHOD.lstrip("/").split("/")
    handlers = {name: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found = callers.statuses(f"127.0.0.1:{port}", [b"bad"] * CONNECTIONS + [b"good"] * CONNECTIONS, CONNECTIONS)
    server.stop(None).wait()
    assert found == Counter({"INVALID_ARGUMENT": CONNECTIONS, "OK": CONNECTIONS})
    assert len(peers) == CONNECTIONS
