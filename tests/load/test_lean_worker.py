"""The worker that writes HTTP/2 itself: what becomes of its calls, by real servers."""

from __future__ import annotations

import contextlib
import resource
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
from gr2.load.http2 import UNPROCESSED, Connection
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
    """The target of a server that answers bytes with bytes; `options` are those of grpc."""
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
    return sent(LeanSender(job, requests))


def sent(sender: LeanSender) -> LeanSender:
    """The sender of an open loop, once it has sent all."""
    sender.begin(time.monotonic_ns())
    sender.threads[0].join(60)
    assert len(sender.rows) == len(sender.job.due())
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
        connect(sender)
        yield sender
        over.set()
        for each in sender._connections:
            if each is not None:
                each.close()


def connect(sender: LeanSender) -> Connection:
    """A connection whose settings are there, so that calls go out at once."""
    connection = sender._connection(0)
    assert connection is not None
    while not connection._settled:
        sender._receive(1.0)
    return connection


def later(sender: LeanSender, seconds: int) -> None:
    """Let so much time pass for the sender."""
    sender.start -= 10**9 * seconds


def test_a_call_keeps_its_time_though_a_lost_connection_had_one_of_its_stream() -> None:
    with waiting(20.0) as sender:
        sender._send(0, sender._now())
        sender._drop(connect(sender))
        assert [row[3] for row in sender.rows] == [grpc.StatusCode.UNAVAILABLE.value[0]]
        connect(sender)
        later(sender, 10)
        sender._send(0, sender._now())
        later(sender, 11)
        sender._give_up_late()
        assert len(sender.rows) == 1
        later(sender, 10)
        sender._give_up_late()
        assert [row[3] for row in sender.rows[1:]] == [grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]


def test_calls_are_noted_though_they_cannot_be_cancelled() -> None:
    with waiting(20.0) as sender:
        for _ in range(3):
            sender._send(0, sender._now())
        connect(sender).socket.shutdown(socket.SHUT_WR)
        later(sender, 21)
        # What the server says to the end of the connection is not looked at.
        sender._give_up_late()
        codes = [row[3] for row in sender.rows]
    late, lost = grpc.StatusCode.DEADLINE_EXCEEDED.value[0], grpc.StatusCode.UNAVAILABLE.value[0]
    assert codes == [late, lost, lost]


def test_no_more_calls_are_open_than_the_server_allows() -> None:
    most, open_now, lock = 0, 0, threading.Lock()

    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        nonlocal most, open_now
        with lock:
            open_now += 1
            most = max(most, open_now)
        time.sleep(0.03)
        with lock:
            open_now -= 1
        return request

    with answering(answer, max_concurrent_streams=2) as target:
        found = send(target, [b"request"], connections=1)
    assert {row[3] for row in found.rows} == {0}
    assert most == 2


def test_a_server_that_lets_connections_go_loses_no_call() -> None:
    peers = set()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        peers.add(context.peer())
        time.sleep(0.05)
        return request

    with answering(answer, max_connection_age_ms=100, max_connection_age_grace_ms=5000) as target:
        found = send(target, [b"request"], connections=1)
    assert {row[3] for row in found.rows} == {0}
    assert len(peers) > 1
    assert not found._leaving


def test_answers_are_read_whatever_the_number_of_their_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("this machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        with answering(lambda request, _: request) as target, contextlib.ExitStack() as taken:
            sender = LeanSender(Job(target, "", 0, 1, 100.0, 8, 2, 0.0, 0.5, 5.0, [], 1, 0), [b"request"])
            while taken.enter_context(Path("/dev/null").open("rb")).fileno() < 1024:
                pass
            found = sent(sender)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {row[3] for row in found.rows} == {0}


def test_what_a_server_has_not_looked_at_is_sent_four_times() -> None:
    with waiting(5.0) as sender:
        sender._send(0, sender._now())
        for _ in range(4):
            assert not sender.rows
            while not sender._open:
                sender._receive(0.01)
            assert sender._busy == [1]
            ((number, (_, connection, stream)),) = sender._open.items()
            connection.cancel(stream)
            sender._ended(number, UNPROCESSED, b"")
        assert [row[3] for row in sender.rows] == [grpc.StatusCode.UNAVAILABLE.value[0]]
        assert sender._busy == [0]


@pytest.mark.parametrize("length", [40, 126, 400])
def test_calls_carry_the_token(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        return str(dict(context.invocation_metadata()).get("authorization")).encode()

    with answering(answer) as target:
        monkeypatch.delenv("GR2_TOKEN", raising=False)
        assert set(send(target, [b""]).replies) == {b"None"}
        monkeypatch.setenv("GR2_TOKEN", length * "t")
        assert set(send(target, [b""]).replies) == {b"Bearer " + length * b"t"}


def test_callers_of_a_closed_loop_ask_again_once_there_is_a_server() -> None:
    with answering(lambda request, _: request) as target:
        pass
    sender = LeanSender(Job(target, "", 0, 1, None, 4, 2, 0.0, 1.5, 5.0, [], 1, 0), [b"request"])
    sender.begin(time.monotonic_ns())
    while not sender.rows:
        time.sleep(0.01)
    server = grpc.server(ThreadPoolExecutor(4))
    service, name = METHOD.lstrip("/").split("/")
    handlers = {name: grpc.unary_unary_rpc_method_handler(lambda request, _: request)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(target)
    server.start()
    sender.threads[0].join(30)
    server.stop(None).wait()
    codes = [row[3] for row in sender.rows]
    assert codes[0] == grpc.StatusCode.UNAVAILABLE.value[0]
    assert codes[-1] == 0
    assert codes.count(0) > 20


def test_a_response_can_be_read(make_bundle: MakeBundle) -> None:
    bundle = Bundle.load(make_bundle(width=2))
    server = Server(bundle, port=0)
    server.start()
    found = send(server.address, draw_requests(bundle, 10, history=5, candidates=8), connections=1)
    server.stop(5)
    assert len(found.replies) == len(found.rows)
    assert all(len(reranker_pb2.RerankResponse.FromString(each).ranking) == 8 for each in found.replies)
