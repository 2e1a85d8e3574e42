"""Calls without what grpc's server builds for each: how they end, by a real server and real callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gr2._core import Call
from gr2.client import Client
from gr2.errors import Gr2Error
from gr2.serving import server as server_module
from gr2.serving.access import direct, direct_call
from gr2.serving.access.calls import SPARE, time_to_answer
from gr2.serving.access.direct_call import DirectCall
from gr2.serving.models.outcomes import Outcome
from gr2.serving.server import Server
from gr2.serving.services.inference import INFER
from gr2.serving.services.servicer import METHOD
from gr2.v1 import open_inference_pb2 as inference
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
AwaitIdle = Callable[[Server], None]
CodesAfter = Callable[[Server, int], dict[str, int]]
KNOWN = [1000 + 7 * item for item in range(300)]
REQUEST = pb.RerankRequest(candidates=pb.ItemIds(ints=KNOWN[:3])).SerializeToString()
# A field that nobody knows, of more bytes than are always looked at.
LONG = b"\xc2\x3e\xa0\x9c\x01" + bytes(20_000)
FALLBACK = pb.RerankRequest(fallback=True).SerializeToString()


@pytest.fixture
def server(direct_server: Server) -> Server:
    return direct_server


def status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), error.details()


def test_calls_that_have_ended_leave_nothing_behind(server: Server, await_idle: AwaitIdle) -> None:
    with grpc.insecure_channel(server.address) as channel:
        rerank = channel.unary_unary(METHOD)
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: rerank(REQUEST, timeout=30), range(64)))
        assert all(len(pb.RerankResponse.FromString(reply).ranking) == 3 for reply in replies)
        for bad in (b"\xff\xff", b""):
            with pytest.raises(grpc.RpcError) as refused:
                rerank(bad, timeout=30)
            assert status(refused.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
    await_idle(server)
    assert server.metrics is not None
    assert server._observer.codes == {"OK": 64, "INVALID_ARGUMENT": 2}


def test_a_call_needs_a_message_and_has_one(server: Server, await_idle: AwaitIdle) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stream = channel.stream_unary(METHOD)
        with pytest.raises(grpc.RpcError) as refused:
            stream(iter(()), timeout=30)
        assert status(refused.value) == (
            grpc.StatusCode.UNIMPLEMENTED, "exactly one request message is needed, uncompressed"
        )  # fmt: skip
        assert len(pb.RerankResponse.FromString(stream(iter([REQUEST, REQUEST]), timeout=30)).ranking) == 3
    await_idle(server)


def test_a_caller_that_goes_while_its_request_is_at_work_is_forgotten(server: Server, await_idle: AwaitIdle) -> None:
    core, held = server._admission.core, Call()
    assert core.enter(held) is None
    with grpc.insecure_channel(server.address) as channel:
        calls = [channel.unary_unary(METHOD).future(REQUEST, timeout=30) for _ in range(3)]
        deadline = time.monotonic() + 30
        while core.stats()["waiting"] != (3, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        calls[1].cancel()
        while core.stats()["waiting"] != (2, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        core.leave(held, done=False)
        assert all(len(pb.RerankResponse.FromString(calls[at].result(30)).ranking) == 3 for at in (0, 2))
    await_idle(server)


@pytest.mark.parametrize("way", ["direct", "handlers", "python", "inference"])
def test_a_server_without_a_thread_returns_the_incoming_order_to_those_who_ask(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(direct, "PRIVATE", way != "handlers")
    server = Server(make_bundle(), port=0, threads=1, queue=1, native=way != "python")
    server.start()
    core, held, waits = server._admission.core, Call(), Call()
    free = threading.Event()
    while not server._admission.full:
        server._admission.pool.run(free.wait, 30)
    assert core.enter(held) is None
    # The core's own queue is full as well.
    waiting = threading.Thread(target=core.enter, args=(waits,))
    waiting.start()
    deadline = time.monotonic() + 30
    while core.stats()["waiting"] != (1, 0) and time.monotonic() < deadline:
        time.sleep(0.005)
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(INFER if way == "inference" else METHOD)
        if way == "inference":
            wants = infer_request(fallback=True), infer_request(fallback=False)
        else:
            wants = REQUEST + FALLBACK + LONG, REQUEST + LONG
        reply = call(wants[0], timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            call(wants[1], timeout=30)
    assert status(refused.value) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "2 requests are at work or wait already")
    if way == "inference":
        assert inference.ModelInferResponse.FromString(reply).parameters["fallback"].bool_param
    else:
        answer = pb.RerankResponse.FromString(reply)
        assert (answer.fallback, [item.int_id for item in answer.ranking]) == (True, KNOWN[:3])
    outcomes = core.stats()["outcomes"]
    assert (outcomes[Outcome.FALLBACK], outcomes[Outcome.FULL]) == (1, 1)
    assert sum(outcomes) == 2
    core.cancel(waits)
    core.leave(held, done=False)
    waiting.join(30)
    free.set()
    server.stop(5)


def infer_request(*, fallback: bool) -> bytes:
    request = inference.ModelInferRequest()
    tensor = request.inputs.add(name="candidates", datatype="INT64", shape=[3])
    tensor.contents.int64_contents.extend(KNOWN[:3])
    request.parameters["fallback"].bool_param = fallback
    return request.SerializeToString()


def test_a_server_whose_parts_are_others_has_no_direct_calls(server: Server) -> None:
    class Another:
        _cy_server = server._server._cy_server
        _state = object()

    assert (
        direct.direct_calls(Another(), METHOD, server._admission, server._patience, wait=1.0, answerer=server._servicer)  # type: ignore[arg-type]
        is None
    )


def test_ends_that_cannot_be_noted_leave_calls_and_threads_alone(server: Server, await_idle: AwaitIdle) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("nobody to tell")

    server._servicer.ended = fails
    core, held = server._admission.core, Call()
    assert core.enter(held) is None
    with grpc.insecure_channel(server.address) as channel:
        calls = [channel.unary_unary(METHOD).future(REQUEST, timeout=30) for _ in range(4)]
        deadline = time.monotonic() + 30
        while core.stats()["waiting"] != (4, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        # In the thread that serves all calls.
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(METHOD)(REQUEST, timeout=30)
        assert status(refused.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        core.leave(held, done=False)
        assert all(len(pb.RerankResponse.FromString(call.result(30)).ranking) == 3 for call in calls)
    await_idle(server)


def test_requests_that_the_core_has_not_let_in_wait_within_the_bound(
    server: Server, monkeypatch: pytest.MonkeyPatch, await_idle: AwaitIdle
) -> None:
    free, end = threading.Event(), server._servicer.end

    def slow(begun: Any, call: Any) -> None:
        assert free.wait(30)
        end(begun, call)

    monkeypatch.setattr(server._servicer, "end", slow)
    most = server._admission.bound + SPARE
    with grpc.insecure_channel(server.address) as channel:
        calls = [channel.unary_unary(METHOD).future(b"", timeout=30) for _ in range(100)]
        deadline = time.monotonic() + 30
        while sum(call.done() for call in calls) < 100 - most and time.monotonic() < deadline:
            time.sleep(0.005)
        assert server._admission.pool.pending == most
        free.set()
        ended = [status(call.exception(30)) for call in calls]
    # As they are counted, whether or not there is a thread to word what is wrong.
    assert {code for code, _ in ended} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert sum("when fewer requests are at work" in details for _, details in ended) == 100 - most
    await_idle(server)
    assert server._admission.core.stats()["outcomes"][Outcome.INVALID] == 100


def test_calls_that_are_at_work_when_the_server_stops_are_answered(make_bundle: MakeBundle) -> None:
    server = Server(make_bundle(), port=0, threads=1, queue=4)
    server.start()
    core, held = server._admission.core, Call()
    assert core.enter(held) is None
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD).future(REQUEST, timeout=30)
        deadline = time.monotonic() + 30
        while core.stats()["waiting"] != (1, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        stopping = threading.Thread(target=server.stop, args=(20,))
        stopping.start()
        time.sleep(0.1)
        core.leave(held, done=False)
        assert len(pb.RerankResponse.FromString(call.result(30)).ranking) == 3
        stopping.join(30)
    assert not stopping.is_alive()
    with Client(server.address) as client, pytest.raises(Gr2Error):
        client.rerank([], KNOWN[:3], timeout=1)


class Broken:
    """As grpc's event of a call on which nothing can be started."""

    def __init__(self, data: bytes) -> None:
        self.call, self.invocation_metadata, self.call_details = self, (), self
        self.batch_operations, self.deadline = [self], time.time() + 30
        self._data, self.cancelled = data, False

    def message(self) -> bytes:
        return self._data

    def start_server_batch(self, *_: object) -> None:
        raise ValueError("too many operations")

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize("data", [REQUEST, b"\xff", REQUEST + FALLBACK], ids=["good", "malformed", "fallback"])
def test_a_call_on_which_nothing_can_be_started_takes_no_room(
    server: Server, data: bytes, await_idle: AwaitIdle
) -> None:
    direct_calls, event = server._direct, Broken(data)
    assert direct_calls is not None
    call = DirectCall(event, server._servicer.ended)
    with pytest.raises(ValueError, match="too many"):
        direct_calls._read(call, event)
    server._admission.unread += 1
    waiting = server._patience.waiting(event, 30)
    waiting.__enter__()
    assert direct_calls._message(call, waiting, event.deadline, event)[0] is call
    assert event.cancelled
    assert (server._admission.unread, server._patience._waiting) == (0, {})
    await_idle(server)
    stats = server._admission.core.stats()
    assert (stats["working"], stats["waiting"]) == (0, (0, 0))
    with grpc.insecure_channel(server.address) as channel:
        assert len(pb.RerankResponse.FromString(channel.unary_unary(METHOD)(REQUEST, timeout=30)).ranking) == 3


class Failing:
    """grpc's operations, of which the first `failures` that send a status cannot be had."""

    def __init__(self, failures: int) -> None:
        self._grpc, self.left = direct_call.cygrpc, failures

    def __getattr__(self, name: str) -> Any:
        if name == "SendInitialMetadataOperation" and self.left:
            self.left -= 1
            raise MemoryError("no operation")
        return getattr(self._grpc, name)


@pytest.mark.parametrize(
    ("failures", "code"), [(1, grpc.StatusCode.INTERNAL), (2, grpc.StatusCode.CANCELLED)], ids=["once", "for good"]
)
@pytest.mark.parametrize("messages", [[REQUEST], [b"\xff"], [], [b"away"]], ids=["good", "malformed", "none", "away"])
def test_a_call_whose_status_cannot_be_sent_ends_all_the_same(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[bytes],
    failures: int,
    code: grpc.StatusCode,
    await_idle: AwaitIdle,
    codes_after: CodesAfter,
) -> None:
    failing = Failing(failures)
    monkeypatch.setattr(direct_call, "cygrpc", failing)
    server._servicer.refusing = messages == [b"away"]
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as ended:
        channel.stream_unary(METHOD)(iter(messages), timeout=30)
    assert (ended.value.code(), failing.left) == (code, 0)
    await_idle(server)
    assert codes_after(server, 1) == {"OK": 0, "INTERNAL": 1}


def test_operations_that_grpc_does_not_start_are_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, await_idle: AwaitIdle
) -> None:
    errors, end = [], server._servicer.end

    def twice(begun: Any, call: DirectCall) -> None:
        try:
            call.watch()
        except RuntimeError as error:
            errors.append(str(error))
        end(begun, call)

    monkeypatch.setattr(server._servicer, "end", twice)
    with grpc.insecure_channel(server.address) as channel:
        assert len(pb.RerankResponse.FromString(channel.unary_unary(METHOD)(REQUEST, timeout=30)).ranking) == 3
    assert errors == ["grpc's core does not start operations of a call: error 8"]
    await_idle(server)


def test_a_call_that_does_not_end_does_not_keep_the_server(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LAST", 0.3)
    server, stays = Server(make_bundle(), port=0), object()
    server.start()
    server._server._state.rpc_states.add(stays)
    stopping = threading.Thread(target=server.stop, args=(0.2,), daemon=True)
    stopping.start()
    stopping.join(20)
    server._server._state.rpc_states.discard(stays)
    assert not stopping.is_alive()


def test_a_request_that_gets_no_thread_is_refused_and_holds_up_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, await_idle: AwaitIdle
) -> None:
    core, held, start = server._admission.core, Call(), threading.Thread.start

    def exhausted(thread: threading.Thread) -> None:
        if "rerank-run" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    assert core.enter(held) is None
    low = pb.RerankRequest(priority=pb.PRIORITY_LOW).SerializeToString()
    with grpc.insecure_channel(server.address) as channel:
        waits = channel.unary_unary(METHOD).future(REQUEST + low)
        deadline = time.monotonic() + 30
        while core.stats()["waiting"] != (0, 1) and time.monotonic() < deadline:
            time.sleep(0.005)
        monkeypatch.setattr(threading.Thread, "start", exhausted)
        with pytest.raises(grpc.RpcError) as refused:
            # Of high priority: the core would let it work before the one that has the only thread.
            channel.unary_unary(METHOD)(REQUEST, timeout=10)
        core.leave(held, done=False)
        assert len(pb.RerankResponse.FromString(waits.result(30)).ranking) == 3
    assert status(refused.value) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "the system gives no thread for a call"
    )  # fmt: skip
    await_idle(server)


@pytest.mark.parametrize(
    ("given", "age", "code"),
    [
        (0.008, 0.0, "CANCELLED"),
        (0.008, 0.0065, "DEADLINE_EXCEEDED"),
        (0.014, 0.003, "CANCELLED"),
        (1.0, 0.98, "CANCELLED"),
        (1.0, 0.992, "DEADLINE_EXCEEDED"),
        (float("inf"), 60.0, "CANCELLED"),
    ],
)
def test_a_caller_that_goes_is_counted_by_whether_its_time_was_over(
    server: Server, monkeypatch: pytest.MonkeyPatch, given: float, age: float, code: str
) -> None:
    monkeypatch.setattr(direct_call, "time", SimpleNamespace(perf_counter_ns=lambda: 10**14))
    event = Broken(REQUEST)
    call = DirectCall(event, server._servicer.ended)
    call.given, call.seconds = given, time_to_answer(given)
    call.came -= int(1e9 * age)
    call._closed(event)
    call.refuse(grpc.StatusCode.INTERNAL, "")
    assert server._observer.codes == {"OK": 0, code: 1}
