"""The worker that writes HTTP/2 itself: what becomes of its calls, by real servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from gr2.bundle import Bundle
from gr2.load.http2 import Connection
from gr2.load.job import Job
from gr2.load.lean_worker import LeanSender
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.load.worker import METHOD
from gr2.serving.server import Server
from gr2.v1 import reranker_pb2

MakeBundle = Callable[..., Path]
Answer = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def answering(answer: Answer, **options: int) -> Iterator[str]:
    """The target of a server that answers bytes with bytes."""
    server = grpc.server(ThreadPoolExecutor(8), options=[(f"grpc.{name}", value) for name, value in options.items()])
    service, name = METHOD.lstrip("/").split("/")
    handlers = {name: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_open_and_closed_loops_of_our_server(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(width=2))
    requests = draw_requests(bundle, 300, history=5, candidates=8)
    server = Server(bundle, port=0)
    server.start()
    for load in ({"rate": 100.0}, {"concurrency": 3}):
        step = Step(seconds=1.0, warmup=0.2, **load)  # type: ignore[arg-type]
        found = run_step(server.address, requests, step, generator=Generator(2, 2), worker="gr2.load.lean_worker")
        assert found.codes == {"OK": found.calls}
        assert 0 < found.latency["p50"] <= found.latency["max"] < 1000
        assert sum(found.phases.values()) == pytest.approx(1, abs=0.01)
    assert found.calls > 100
    server.stop(5)


def send(target: str, requests: list[bytes], *, deadline: float = 5.0, connections: int = 2) -> LeanSender:
    """A sender that has sent about 50 requests in half a second."""
    job = Job(target, "", 0, 1, 100.0, 8, connections, 0.0, 0.5, deadline, [], 1, 0)
    sender = LeanSender(job, requests)
    sender.begin(time.monotonic_ns())
    sender.threads[0].join(60)
    assert len(sender.rows) == len(job.due())
    return sender


def test_replies_are_those_of_the_server_whatever_their_size() -> None:
    sizes = [0, 1, 100, 20_000, 300_000]
    with answering(lambda request, _: request[::-1]) as target:
        requests = [bytes([at]) * size + b"end" for at, size in enumerate(sizes)]
        found = send(target, requests)
    assert {row[3] for row in found.rows} == {0}
    assert set(found.replies) == {each[::-1] for each in requests}


def test_a_status_is_told() -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("key-bin", b"\x00grpc-status"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        raise AssertionError

    with answering(refuse) as target:
        found = send(target, [b"request"])
    assert {row[3] for row in found.rows} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert not found.replies


def test_what_is_late_is_given_up_and_the_server_told() -> None:
    left, cancelled = [], threading.Semaphore(0)

    def wait(request: bytes, context: grpc.ServicerContext) -> bytes:
        left.append(context.time_remaining())
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(30)
        cancelled.release()
        return request

    with answering(wait) as target:
        found = send(target, [b"request"], deadline=0.1)
        assert all(cancelled.acquire(timeout=30) for _ in left)
    assert {row[3] for row in found.rows} == {grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}
    assert max(done - due for due, _, done, _, _ in found.rows) >= 0.1e9
    assert 0 < max(left) <= 0.1


def test_a_server_that_is_gone_is_unavailable() -> None:
    with answering(lambda request, _: request) as target:
        pass
    found = send(target, [b"request"])
    assert {row[3] for row in found.rows} == {grpc.StatusCode.UNAVAILABLE.value[0]}


def test_a_lost_connection_ends_its_calls() -> None:
    ended: list[tuple[int, int, bytes]] = []
    over = threading.Event()

    def wait(request: bytes, _: grpc.ServicerContext) -> bytes:
        over.wait(30)
        return request

    with answering(wait) as target:
        host, port = target.split(":")
        connection = Connection((host, int(port)), METHOD, lambda *end: ended.append(end))
        connection.start(b"one", 30.0)
        connection.close()
        over.set()
    assert ended == [(1, grpc.StatusCode.UNAVAILABLE.value[0], b"")]


@contextmanager
def waiting(deadline: float) -> Iterator[LeanSender]:
    """A sender to a server that answers nothing."""
    over = threading.Event()

    def wait(request: bytes, _: grpc.ServicerContext) -> bytes:
        over.wait(30)
        return request

    with answering(wait) as target:
        sender = LeanSender(Job(target, "", 0, 1, 100.0, 8, 1, 0.0, 0.5, deadline, [], 1, 0), [b"request"])
        sender.start = time.monotonic_ns()
        yield sender
        sender._drop(0)
        over.set()


def test_a_call_keeps_its_time_though_a_lost_connection_had_one_of_its_stream() -> None:
    with waiting(0.2) as sender:
        sender._send(0, sender._now())
        sender._drop(0)
        assert [row[3] for row in sender.rows] == [grpc.StatusCode.UNAVAILABLE.value[0]]
        time.sleep(0.1)
        sender._send(0, sender._now())
        time.sleep(0.12)
        sender._receive(0)
        assert len(sender.rows) == 1
        time.sleep(0.1)
        sender._receive(0)
        assert [row[3] for row in sender.rows[1:]] == [grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]


def test_calls_are_noted_though_they_cannot_be_cancelled() -> None:
    with waiting(0.1) as sender:
        for _ in range(3):
            sender._send(0, sender._now())
        connection = sender._connections[0]
        assert connection is not None
        connection.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.15)
        # What the server says to the end of the connection is not looked at.
        sender._give_up_late()
        codes = [row[3] for row in sender.rows]
    late, lost = grpc.StatusCode.DEADLINE_EXCEEDED.value[0], grpc.StatusCode.UNAVAILABLE.value[0]
    assert codes == [late, lost, lost]


def test_a_response_can_be_read(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(width=2))
    server = Server(bundle, port=0)
    server.start()
    found = send(server.address, draw_requests(bundle, 10, history=5, candidates=8), connections=1)
    server.stop(5)
    assert len(found.replies) == len(found.rows)
    assert all(len(reranker_pb2.RerankResponse.FromString(each).ranking) == 8 for each in found.replies)
