"""Callers that stay silent, hang up or only look around leave the others alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gr2.client import Client
from gr2.errors import Gr2Error, OverloadError
from gr2.serving import server as server_module
from gr2.serving.access import calls as calls_module
from gr2.serving.engine import Answer, Engine
from gr2.serving.request import Slate
from gr2.serving.server import Server
from gr2.serving.services import servicer as servicer_module
from gr2.serving.services import standard

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


class Silence:
    """Requests that never come, until the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self.over.wait(60)
        return iter(())


class Holding:
    """Holds every request at work until it is freed; `at_work` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.at_work = threading.Semaphore(0)
        rank = Engine.rank

        def held(engine: Engine, slate: Slate, start: int, wanted: Callable[[], bool]) -> Answer:
            self.at_work.release()
            assert self.free.wait(30)
            return rank(engine, slate, start, wanted)

        monkeypatch.setattr(Engine, "rank", held)


@pytest.fixture
def silence() -> Iterator[Silence]:
    silence = Silence()
    yield silence
    silence.over.set()


@pytest.fixture
def start(make_bundle: MakeBundle) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**options: int) -> Server:
        servers.append(Server(make_bundle(), port=0, native=False, **options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(5)


def assert_serves(server: Server) -> None:
    with Client(server.address) as client:
        client.wait_ready(5)
        assert len(client.rerank([], KNOWN[:3], timeout=5).items) == 3


def waiting(server: Server) -> int:
    return sum(server._admission.core.stats()["waiting"])


def messages(silence: Silence, *first: Any) -> Iterator[Any]:
    yield from first
    yield from silence


def test_idle_reflection_streams_hold_up_nobody(start: Callable[..., Server], silence: Silence) -> None:
    server = start(threads=1, queue=0)
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = [stub.ServerReflectionInfo(messages(silence, listing), timeout=60) for _ in range(3)]
        for stream in streams:
            next(stream)
        assert_serves(server)


def test_idle_reflection_stream_does_not_delay_the_stop(start: Callable[..., Server], silence: Silence) -> None:
    server = start()
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server.address) as channel:
        next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(messages(silence, listing)))
        begin = time.monotonic()
        server.stop(20)
        assert time.monotonic() - begin < 5


def test_silent_reflection_stream_is_ended(
    start: Callable[..., Server], silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard, "REFLECTION_WAIT", 0.1)
    with grpc.insecure_channel(start().address) as channel:
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(messages(silence), timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.CANCELLED


def silent_calls(channel: grpc.Channel, method: str, silence: Silence, count: int) -> list[Any]:
    call = channel.stream_unary(method)
    return [call.future(messages(silence), timeout=60) for _ in range(count)]


def test_silent_calls_that_fill_the_server_give_way_to_others(
    start: Callable[..., Server], silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "MOST_UNREAD", 30)
    server = start(threads=1, queue=4)
    with grpc.insecure_channel(server.address) as channel, Client(server.address) as client:
        client.wait_ready(5)
        calls = silent_calls(channel, "/gr2.v1.Reranker/Rerank", silence, 40)
        begin, answered = time.monotonic(), False
        while not answered and time.monotonic() - begin < 8:
            try:
                answered = len(client.rerank([], KNOWN[:3], timeout=5).items) == 3
            except OverloadError:
                time.sleep(0.02)
        assert answered
        assert time.monotonic() - begin < 5
        codes = [call.code() for call in calls if call.done()]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 10
        assert grpc.StatusCode.CANCELLED in codes


def test_silent_calls_take_no_room_from_others(start: Callable[..., Server], silence: Silence) -> None:
    server = start(threads=1, queue=4)
    with grpc.insecure_channel(server.address) as channel, Client(server.address) as client:
        client.wait_ready(5)
        calls = []
        for _ in range(40):
            calls += silent_calls(channel, "/gr2.v1.Reranker/Rerank", silence, 1)
            time.sleep(0.02)
            assert len(client.rerank([], KNOWN[:3], timeout=5).items) == 3
        assert not any(call.done() for call in calls)


def test_calls_without_a_message_hold_up_nobody(start: Callable[..., Server], silence: Silence) -> None:
    server = start(threads=1, queue=8)
    with grpc.insecure_channel(server.address) as channel:
        calls = silent_calls(channel, "/gr2.v1.Reranker/Rerank", silence, 4)
        health = silent_calls(channel, "/grpc.health.v1.Health/Check", silence, 4)
        assert_serves(server)
        assert not any(call.done() for call in calls + health)


def test_calls_without_a_message_are_ended_and_give_their_place_back(
    start: Callable[..., Server], silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer_module, "MESSAGE_WAIT", 0.1)
    monkeypatch.setattr(server_module, "MESSAGE_WAIT", 0.1)
    server = start(threads=1, queue=1)
    with grpc.insecure_channel(server.address) as channel:
        calls = silent_calls(channel, "/gr2.v1.Reranker/Rerank", silence, 2)
        for call in calls:
            assert call.exception(30).code() is grpc.StatusCode.CANCELLED
        assert_serves(server)


def test_call_without_a_message_does_not_delay_the_stop(start: Callable[..., Server], silence: Silence) -> None:
    server = start()
    with grpc.insecure_channel(server.address) as channel:
        silent_calls(channel, "/gr2.v1.Reranker/Rerank", silence, 2)
        assert_serves(server)
        begin = time.monotonic()
        server.stop(20)
        assert time.monotonic() - begin < 5


def test_call_that_ends_without_a_message_gets_an_error(start: Callable[..., Server]) -> None:
    with grpc.insecure_channel(start().address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary("/gr2.v1.Reranker/Rerank")(iter(()), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_expired_call_gives_its_place_back_while_others_work(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = Holding(monkeypatch)
    server = start(threads=1, queue=1)
    with Client(server.address) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.rerank, [], KNOWN[:2], timeout=30)
        assert holding.at_work.acquire(timeout=30)
        for _ in range(3):
            with pytest.raises(Gr2Error, match=r"no answer within 0\.1 s"):
                client.rerank([], KNOWN[:3], timeout=0.1)
            deadline = time.monotonic() + 10
            while waiting(server) and time.monotonic() < deadline:
                time.sleep(0.01)
        second = pool.submit(client.rerank, [], KNOWN[:4], timeout=30)
        while not waiting(server):
            time.sleep(0.01)
        with pytest.raises(OverloadError, match="2 requests are at work or wait already"):
            client.rerank([], KNOWN[:5], timeout=30)
        holding.free.set()
        assert [len(call.result().items) for call in (first, second)] == [2, 4]


def test_health_is_answered_while_the_queue_is_full(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = Holding(monkeypatch)
    server = start(threads=1, queue=0)
    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.rerank, [], KNOWN[:2], timeout=30)
        assert holding.at_work.acquire(timeout=30)
        with grpc.insecure_channel(server.address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        holding.free.set()
        assert len(first.result().items) == 2


def test_no_more_requests_work_at_once_than_there_are_threads(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = Holding(monkeypatch)
    server = start(threads=2, queue=8)
    with Client(server.address) as client, ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(client.rerank, [], KNOWN[:2], timeout=30) for _ in range(6)]
        for _ in range(2):
            assert holding.at_work.acquire(timeout=30)
        assert not holding.at_work.acquire(timeout=0.3)
        holding.free.set()
        assert all(len(call.result().items) == 2 for call in calls)


def test_stop_may_follow_stop(start: Callable[..., Server]) -> None:
    server = start()
    server.stop(5)
    server.stop(5)


def test_a_pool_runs_what_nobody_waits_for_and_ends_once_that_is_done() -> None:
    pool = calls_module.CallPool(3, "test")
    meet, done = threading.Barrier(3, timeout=30), []

    def work(at: int) -> None:
        meet.wait()
        done.append(at)

    for at in range(30):
        pool.run(work, at)
    pool.shutdown()
    assert sorted(done) == list(range(30))
    assert (pool.taken, pool.pending) == (30, 0)
    with pytest.raises(calls_module.PoolClosedError):
        pool.run(work, 0)


def test_a_pool_that_gets_no_more_threads_takes_as_many_calls_as_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = calls_module.CallPool(3, "test")
    go, done = threading.Semaphore(0), []

    def work(at: int) -> None:
        assert go.acquire(timeout=30)
        done.append(at)

    def exhausted(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", exhausted)
        with pytest.raises(calls_module.NoThreadError):
            pool.run(work, 0)
    assert (pool.taken, pool.pending) == (0, 0)
    pool.run(work, 1)
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", exhausted)
        with pytest.raises(calls_module.NoThreadError):
            pool.run(work, 2)
    pool.run(work, 3)
    go.release(2)
    pool.shutdown()
    assert sorted(done) == [1, 3]
    assert pool.pending == 0


def test_a_pool_goes_on_after_a_call_that_raises() -> None:
    pool = calls_module.CallPool(1, "test")
    done = threading.Event()

    def fails() -> None:
        raise ValueError("not as it should be")

    pool.run(fails)
    pool.run(done.set)
    assert done.wait(30)
    pool.shutdown()
    assert pool.pending == 0


class Silent:
    """A call that can be cancelled, or not."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.cancelled, self._failure = threading.Event(), failure

    def cancel(self) -> None:
        if self._failure is not None:
            raise self._failure
        self.cancelled.set()


def test_silent_calls_are_ended_though_one_cannot_be_and_a_look_has_failed() -> None:
    looks: list[int] = []

    def pressed() -> bool:
        looks.append(0)
        if len(looks) == 1:
            raise RuntimeError("dictionary changed size during iteration")
        return False

    patience = calls_module.Patience(pressed)
    stuck, other = Silent(ValueError("over already")), Silent()
    with patience.waiting(stuck, 0.0), patience.waiting(other, 0.0):
        patience.start()
        assert other.cancelled.wait(30)
    patience.close()
    assert len(looks) > 1
