"""How calls that are taken directly are counted, and what is sent, when they end late or before their answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gr2._core import Call
from gr2.serving.access import calls as calls_module
from gr2.serving.access import direct
from gr2.serving.access.calls import WAY_BACK, time_to_answer
from gr2.serving.models.outcomes import Outcome
from gr2.serving.server import Server
from gr2.serving.services.servicer import METHOD, Looked
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
AwaitIdle = Callable[[Server], None]
CodesAfter = Callable[[Server, int], dict[str, int]]
KNOWN = [1000 + 7 * item for item in range(300)]
REQUEST = pb.RerankRequest(candidates=pb.ItemIds(ints=KNOWN[:3])).SerializeToString()
# A field that nobody knows, of more bytes than are always looked at.
LONG = b"\xc2\x3e\xa0\x9c\x01" + bytes(20_000)


@pytest.fixture
def server(direct_server: Server) -> Server:
    return direct_server


def status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), error.details()


@pytest.mark.parametrize("private", [True, False], ids=["direct", "handlers"])
def test_an_answer_that_is_late_is_not_sent(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, codes_after: CodesAfter, *, private: bool
) -> None:
    monkeypatch.setattr(direct, "PRIVATE", private)
    server = Server(make_bundle(), port=0)
    server.start()
    answer = server._servicer.answer

    def slow(data: bytes, seconds: float | None = None, call: Call | None = None) -> bytes:
        reply = answer(data, seconds, call)
        time.sleep(0.5)
        return reply

    # The core does not look at what is as long as this, by a field that nobody knows.
    monkeypatch.setattr(server._servicer, "answer", slow)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as late:
        channel.unary_unary(METHOD)(REQUEST + LONG, timeout=0.2)
    assert status(late.value)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert codes_after(server, 1) == {"OK": 0, "DEADLINE_EXCEEDED": 1}
    server.stop(5)


@pytest.mark.parametrize("private", [True, False], ids=["direct", "handlers"])
def test_an_answer_has_time_for_its_way_back(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, *, private: bool
) -> None:
    monkeypatch.setattr(direct, "PRIVATE", private)
    server = Server(make_bundle(), port=0)
    server.start()
    answer, left = server._servicer.answer, []

    def watched(data: bytes, seconds: float, call: Call | None = None) -> bytes:
        left.append(seconds)
        return answer(data, seconds, call)

    monkeypatch.setattr(server._servicer, "answer", watched)
    with monkeypatch.context() as slow, grpc.insecure_channel(server.address) as channel:
        slow.setattr(calls_module, "WAY_BACK", 1.0)
        channel.unary_unary(METHOD)(REQUEST + LONG, timeout=5)
    assert 1 < left[0] < 4.6
    assert [time_to_answer(seconds) for seconds in (0.0, 0.02, 2.0)] == pytest.approx([0, 0.018, 2 - WAY_BACK])
    server.stop(5)


@pytest.mark.parametrize("private", [True, False], ids=["direct", "handlers"])
def test_a_call_that_ends_before_its_message_is_counted_by_how_it_ended(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, codes_after: CodesAfter, *, private: bool
) -> None:
    monkeypatch.setattr(direct, "PRIVATE", private)
    server = Server(make_bundle(), port=0, threads=1, queue=4)
    server.start()
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(30)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        stream = channel.stream_unary(METHOD)
        # The server takes it for cancelled if it has come late.
        late = 0
        while "DEADLINE_EXCEEDED" not in server._observer.codes and late < 10:
            with pytest.raises(grpc.RpcError):
                stream(silence(), timeout=0.2)
            late += 1
            codes_after(server, late)
        before = server._observer.codes
        assert before["DEADLINE_EXCEEDED"] == 1
        assert before.keys() <= {"OK", "DEADLINE_EXCEEDED", "CANCELLED"}
        gone = stream.future(silence(), timeout=30)
        deadline = time.monotonic() + 30
        while not server._admission.unread and time.monotonic() < deadline:
            time.sleep(0.005)
        with pytest.raises(grpc.RpcError):
            stream(iter(()), timeout=30)
        assert codes_after(server, late + 1) == {**before, "UNIMPLEMENTED": 1}
        gone.cancel()
        # A handler cannot always tell.
        cancelled = codes_after(server, late + 2).get("CANCELLED", 0)
        assert cancelled == before.get("CANCELLED", 0) + 1 or not private
        over.set()
    server.stop(5)


@pytest.mark.parametrize("private", [True, False], ids=["direct", "handlers"])
def test_a_call_whose_time_is_over_before_it_is_begun_is_counted_as_late(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, codes_after: CodesAfter, *, private: bool
) -> None:
    monkeypatch.setattr(direct, "PRIVATE", private)
    server = Server(make_bundle(), port=0)
    server.start()
    begin = server._servicer._begin

    def slow(*arguments: Any) -> Call | None:
        time.sleep(0.3)
        return begin(*arguments)

    monkeypatch.setattr(server._servicer, "_begin", slow)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(METHOD)(REQUEST, timeout=0.1)
    assert codes_after(server, 1) == {"OK": 0, "DEADLINE_EXCEEDED": 1}
    server.stop(5)


def leave_amid(server: Server, reached: threading.Event, free: threading.Event) -> None:
    """A call whose caller goes once its request has `reached` a point; the server has heard of it when it is `free`."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD).future(REQUEST, timeout=30)
        assert reached.wait(30)
        call.cancel()
        deadline = time.monotonic() + 30
        while server._server._state.rpc_states and time.monotonic() < deadline:
            time.sleep(0.005)
        free.set()


def test_a_caller_that_goes_before_its_request_is_begun_is_counted_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, await_idle: AwaitIdle, codes_after: CodesAfter
) -> None:
    free, end = threading.Event(), server._servicer.end
    began = threading.Event()

    def slow(begun: Any, call: Any) -> None:
        began.set()
        assert free.wait(30)
        end(begun, call)

    monkeypatch.setattr(server._servicer, "end", slow)
    leave_amid(server, began, free)
    assert codes_after(server, 1) == {"OK": 0, "CANCELLED": 1}
    await_idle(server)
    assert server._admission.core.stats()["outcomes"][Outcome.CANCELLED] == 1


def test_an_answer_that_nobody_waits_for_is_not_counted_as_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, codes_after: CodesAfter
) -> None:
    answered, free, answer = threading.Event(), threading.Event(), Looked.reply

    def slow(looked: Looked) -> bytes:
        reply = answer(looked)
        answered.set()
        assert free.wait(30)
        return reply

    monkeypatch.setattr(Looked, "reply", slow)
    leave_amid(server, answered, free)
    assert codes_after(server, 1) == {"OK": 0, "CANCELLED": 1}
