"""Calls are read before they take a thread: refusals, replies in the incoming order and silence take none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from gr2._core import Call
from gr2.client import Client
from gr2.errors import Gr2Error, OverloadError
from gr2.serving.access import arrivals, direct
from gr2.serving.models.outcomes import Outcome
from gr2.serving.server import Server
from gr2.serving.services.servicer import METHOD
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


class Busy:
    """A server whose only worker is taken until `leave`."""

    def __init__(self, bundle: Path, queue: int) -> None:
        self.server = Server(bundle, port=0, threads=1, queue=queue)
        self.server.start()
        self._core, self._call = self.server._admission.core, Call()
        assert self._core.enter(self._call) is None

    def leave(self) -> None:
        self._core.leave(self._call, done=False)

    def waiting(self) -> tuple[int, int]:
        found: tuple[int, int] = self._core.stats()["waiting"]
        return found

    def outcomes(self, outcome: Outcome) -> int:
        return int(self._core.stats()["outcomes"][outcome])

    def await_waiting(self, high: int, low: int) -> None:
        deadline = time.monotonic() + 30
        while self.waiting() != (high, low) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.waiting() == (high, low)


@pytest.fixture
def busy(make_bundle: MakeBundle) -> Iterator[Callable[[int], Busy]]:
    servers: list[Busy] = []

    def start(queue: int) -> Busy:
        servers.append(Busy(make_bundle(), queue))
        return servers[-1]

    yield start
    for each in servers:
        each.server.stop(5)


def test_refusals_take_no_thread(busy: Callable[[int], Busy]) -> None:
    each = busy(0)
    with Client(each.server.address) as client:
        for _ in range(5):
            with pytest.raises(OverloadError, match="1 requests are at work or wait already"):
                client.rerank([], KNOWN[:3], timeout=30)
        assert each.server._admission.pool.taken == 0
        each.leave()
        assert len(client.rerank([], KNOWN[:3], timeout=30).items) == 3
        assert each.server._admission.pool.taken == 1
    assert each.outcomes(Outcome.FULL) == 5


def test_the_incoming_order_takes_no_thread(busy: Callable[[int], Busy]) -> None:
    each = busy(0)
    with Client(each.server.address) as client:
        ranking = client.rerank([], KNOWN[:3], timeout=30, fallback=True)
    assert ranking.fallback
    assert [item.item_id for item in ranking.items] == KNOWN[:3]
    assert each.server._admission.pool.taken == 0
    each.leave()


def test_an_urgent_request_takes_the_place_of_another_that_waits(busy: Callable[[int], Busy]) -> None:
    each = busy(1)
    with Client(each.server.address) as client, ThreadPoolExecutor(2) as pool:
        low = pool.submit(client.rerank, [], KNOWN[:2], timeout=30, urgent=False)
        each.await_waiting(0, 1)
        high = pool.submit(client.rerank, [], KNOWN[:3], timeout=30)
        with pytest.raises(OverloadError):
            low.result()
        each.await_waiting(1, 0)
        with pytest.raises(OverloadError):
            client.rerank([], KNOWN[:4], timeout=30)
        each.leave()
        assert len(high.result().items) == 3


def test_what_was_cancelled_while_it_waited_never_runs(busy: Callable[[int], Busy]) -> None:
    each = busy(2)
    data = pb.RerankRequest(candidates=pb.ItemIds(ints=KNOWN[:3])).SerializeToString()
    with grpc.insecure_channel(each.server.address) as channel:
        call = channel.unary_unary(METHOD).future(data, timeout=30)
        each.await_waiting(1, 0)
        call.cancel()
        each.await_waiting(0, 0)
    each.leave()
    assert (each.outcomes(Outcome.CANCELLED), each.outcomes(Outcome.ANSWERED)) == (1, 0)


def test_what_expires_while_it_waits_never_runs(busy: Callable[[int], Busy]) -> None:
    each = busy(2)
    with Client(each.server.address) as client, pytest.raises(Gr2Error, match=r"no answer within 0\.1 s"):
        client.rerank([], KNOWN[:3], timeout=0.1)
    each.await_waiting(0, 0)
    each.leave()
    assert each.outcomes(Outcome.ANSWERED) == 0


def test_silent_calls_hold_no_thread(busy: Callable[[int], Busy]) -> None:
    each = busy(0)
    admission, over = each.server._admission, threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(each.server.address) as channel:
        calls = [channel.stream_unary(METHOD).future(silence(), timeout=60) for _ in range(20)]
        deadline = time.monotonic() + 30
        while admission.unread < len(calls) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (admission.unread, admission.pool.taken, admission.pending) == (20, 0, 20)
        for call in calls:
            call.cancel()
        while admission.unread and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (admission.unread, admission.pending) == (0, 0)
        over.set()
    each.leave()


def test_calls_are_read_by_their_threads_where_grpc_is_another(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_unary_response_in_pool", None)
    monkeypatch.setattr(direct, "PRIVATE", False)
    server = Server(make_bundle(), port=0, threads=1, queue=0)
    server.start()
    core, call = server._admission.core, Call()
    with Client(server.address) as client:
        assert len(client.rerank([], KNOWN[:3], timeout=30).items) == 3
        assert core.enter(call) is None
        with pytest.raises(OverloadError, match="1 requests are at work or wait already"):
            client.rerank([], KNOWN[:3], timeout=30)
        assert client.rerank([], KNOWN[:3], timeout=30, fallback=True).fallback
        core.leave(call, done=False)
    assert server._admission.pool.taken == 3
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        calls = [channel.stream_unary(METHOD).future(silence(), timeout=60) for _ in range(9)]
        codes = {call.exception(30).code() for call in calls}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
        over.set()
    server.stop(5)


def test_a_request_that_is_dropped_gives_its_place_back(make_bundle: MakeBundle) -> None:
    server = Server(make_bundle(), port=0, threads=1, queue=1)
    data = pb.RerankRequest(candidates=pb.ItemIds(ints=KNOWN[:3])).SerializeToString()
    at_work, waits = (server._servicer.look(data, 30.0) for _ in range(2))
    assert at_work is not None
    assert waits is not None
    core = server._admission.core
    assert (core.stats()["working"], core.stats()["waiting"]) == (1, (1, 0))
    waits.abandon()
    assert core.stats()["waiting"] == (0, 0)
    at_work.abandon()
    assert core.stats()["working"] == 0
    assert core.stats()["outcomes"][Outcome.CANCELLED] == 2
    server.stop(1)
