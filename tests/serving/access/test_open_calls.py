"""Answers that nobody takes, by a real server and callers that leave no window for them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gr2.load import http2
from gr2.load.header_block import call_headers
from gr2.serving.access import calls as calls_module
from gr2.serving.access import direct, open_calls
from gr2.serving.access.open_calls import OpenCalls
from gr2.serving.server import Server
from gr2.serving.services.inference import INFER
from gr2.serving.services.servicer import METHOD
from gr2.v1 import open_inference_pb2 as inference
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(3)]
REQUEST = pb.RerankRequest(candidates=pb.ItemIds(ints=KNOWN)).SerializeToString()


def infer_request() -> bytes:
    request = inference.ModelInferRequest()
    request.inputs.add(name="candidates", datatype="INT64", shape=[3]).contents.int64_contents.extend(KNOWN)
    return request.SerializeToString()


@pytest.fixture(params=["direct", "handlers", "inference"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bytes]:
    monkeypatch.setattr(direct, "PRIVATE", request.param == "direct")
    return (INFER, infer_request()) if request.param == "inference" else (METHOD, REQUEST)


@pytest.fixture
def server(make_bundle: MakeBundle, way: tuple[str, bytes]) -> Iterator[Server]:
    server = Server(make_bundle(), port=0, threads=1, queue=4)
    server.start()
    yield server
    server.stop(5)


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert holds()


def connect(server: Server, way: tuple[str, bytes], calls: int) -> socket.socket:
    """A connection with so many calls, one after the other, whose answers it leaves no window for."""
    host, _, port = server.address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    settings = http2._frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW, 0))
    connection.sendall(http2.PREFACE + settings)
    headers = call_headers(server.address, way[0])
    message = struct.pack(">BI", 0, len(way[1])) + way[1]
    for at in range(calls):
        stream = 2 * at + 1
        begin = http2._frame(http2.HEADERS, http2.END_HEADERS, stream, headers + b"99999999S")
        connection.sendall(begin + http2._frame(http2.DATA, http2.END_STREAM, stream, message))
        await_that(lambda: len(server._admission.open._untaken) == at + 1)  # noqa: B023
    return connection


def test_answers_that_nobody_takes_are_bounded_and_end(
    server: Server, way: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_calls, "MOST_UNTAKEN", 3)
    monkeypatch.setattr(open_calls, "PRESSED", 3600.0)
    with connect(server, way, 3), grpc.insecure_channel(server.address) as channel:
        assert "gr2_calls_open 3\n" in server.metrics.text()
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(way[0])(way[1], timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == "too many answers have not been taken by their callers yet"
        monkeypatch.setattr(open_calls, "PRESSED", 0.0)
        await_that(lambda: not server._admission.open)
        assert channel.unary_unary(way[0])(way[1], timeout=30)
    await_that(lambda: server._idle)


def test_calls_at_work_are_not_ended_and_those_that_end_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, ended = OpenCalls(), []
    for at in range(4):
        calls.begin(at, lambda at=at: ended.append(at))  # type: ignore[misc]
    for at in (1, 2):
        calls.answered(at)
    calls.end(2)
    calls.look()
    assert ended == []
    monkeypatch.setattr(open_calls, "LIMIT", -1.0)
    calls.look()
    assert ended == [1]
    for at in range(4):
        calls.end(at)
        calls.answered(at)
    assert (len(calls), calls._untaken) == (0, {})


def test_a_call_that_cannot_be_cancelled_costs_no_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise ValueError("not as it was")

    calls, ended = OpenCalls(), []
    calls.begin("bad", fails)
    calls.begin("good", lambda: ended.append("good"))
    calls.answered("bad")
    calls.answered("good")
    monkeypatch.setattr(open_calls, "LIMIT", -1.0)
    calls.look()
    assert ended == ["good"]
    assert "could not be cancelled" in caplog.text


def test_silent_calls_are_the_reason_that_others_hear(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "MOST_UNREAD", 0)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(METHOD)(REQUEST, timeout=30)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details() == "1024 calls have not sent their message yet"
