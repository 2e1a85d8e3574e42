"""The small services hear a call before they give it a thread: silence, and idle streams, hold up nobody."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gr2.serving.access import listener as listener_module
from gr2.serving.access.calls import Patience, in_pool
from gr2.serving.access.listener import Listener
from gr2.serving.server import Server
from gr2.serving.services import standard

MakeBundle = Callable[..., Path]
SilentCalls = Callable[[str, str, int], socket.socket]
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVICES = {
    CHECK: "_health",
    "/gr2.v1.Management/GetServerInfo": "_management",
    "/inference.GRPCInferenceService/ServerReady": "_inference",
}


@pytest.fixture
def server(make_bundle: MakeBundle) -> Iterator[Server]:
    server = Server(make_bundle(), port=0)
    server.start()
    yield server
    server.stop(5)


def await_true(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert holds()


@pytest.mark.parametrize("method", SERVICES)
def test_silent_calls_without_number_delay_no_other(server: Server, method: str, silent_calls: SilentCalls) -> None:
    pool: Listener = getattr(server, SERVICES[method])._pool
    with grpc.insecure_channel(server.address) as channel, silent_calls(server.address, method, 400):
        await_true(lambda: pool.unread == listener_module.MOST)
        for _ in range(3):
            channel.unary_unary(method)(b"", timeout=1)
        assert pool.pool.taken == 3
        assert 200 < pool.unread <= listener_module.MOST


def test_one_silent_call_more_ends_the_oldest(server: Server, silent_calls: SilentCalls) -> None:
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        begin = time.monotonic()
        first = channel.stream_unary(CHECK).future(silence(), timeout=60)
        await_true(lambda: server._health._pool.unread == 1)
        with silent_calls(server.address, CHECK, listener_module.MOST):
            assert first.exception(30).code() is grpc.StatusCode.CANCELLED
            assert time.monotonic() - begin < 4
        over.set()


def test_silent_calls_do_not_delay_the_stop(server: Server, silent_calls: SilentCalls) -> None:
    with silent_calls(server.address, CHECK, 300):
        await_true(lambda: server._health._pool.unread > 200)
        begin = time.monotonic()
        server.stop(20)
        assert time.monotonic() - begin < 5


def test_what_is_no_message_is_refused(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as broken:
            channel.unary_unary(CHECK)(b"\xff", timeout=10)
        assert broken.value.code() is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.RpcError) as empty:
            channel.stream_unary(CHECK)(iter(()), timeout=10)
        assert empty.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server._health._pool.pool.taken == 0


def test_idle_reflection_streams_give_way_to_another(server: Server) -> None:
    over = threading.Event()
    listing = reflection_pb2.ServerReflectionRequest(list_services="")

    def idle() -> Iterator[Any]:
        yield listing
        over.wait(60)

    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = [stub.ServerReflectionInfo(idle(), timeout=60) for _ in range(4)]
        for stream in streams:
            next(stream)
        assert len(list(stub.ServerReflectionInfo(iter((listing,)), timeout=5))) == 1
        over.set()


def test_a_watch_that_is_given_up_while_it_waits_for_a_thread_is_not_kept(server: Server) -> None:
    pool, watchers = server._health._pool.pool, server._health._servicer._send_response_callbacks
    free = threading.Event()
    request = health_pb2.HealthCheckRequest(service="given up").SerializeToString()
    with grpc.insecure_channel(server.address) as channel:
        for _ in range(standard.HEALTH_THREADS):
            pool.submit(free.wait, 30)
        watch = channel.unary_stream(WATCH)(request, timeout=10)
        await_true(lambda: pool.pending == standard.HEALTH_THREADS + 1)
        watch.cancel()
        # On the same connection: once it is answered, the server knows.
        channel.unary_unary("/gr2.v1.Management/GetServerInfo")(b"", timeout=10)
        free.set()
        await_true(lambda: not pool.pending)
    assert watchers["given up"] == set()


def test_calls_are_read_by_their_threads_where_grpc_is_another(
    make_bundle: MakeBundle, silent_calls: SilentCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "ANSWERED_BY", ())
    server = Server(make_bundle(), port=0)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        channel.unary_unary(CHECK)(b"", timeout=10)
        with silent_calls(server.address, CHECK, 8):
            await_true(lambda: server._health._pool.pool.pending == 8)
            # Silent calls have five seconds, but half a one where others wait.
            channel.unary_unary(CHECK)(b"", timeout=3)
    server.stop(5)


class Held(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A service whose calls are at work until `free`."""

    def __init__(self, pool: Listener) -> None:
        self.free = threading.Event()

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            assert self.free.wait(30)
            return pool.only_message(messages, context)

        self._method = grpc.stream_unary_rpc_method_handler(in_pool(pool, answer))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._method


@pytest.fixture
def held() -> Iterator[tuple[Held, Listener, grpc.Channel]]:
    patience = Patience()
    pool = Listener(1, "test", patience, 5.0, most=2)
    held = Held(pool)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[held])
    port = server.add_insecure_port("127.0.0.1:0")
    patience.start()
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield held, pool, channel
        held.free.set()
    server.stop(5).wait()
    pool.shutdown()
    patience.close()


def test_a_call_that_finds_too_many_others_is_refused_at_once(held: tuple[Held, Listener, grpc.Channel]) -> None:
    service, pool, channel = held
    taken = [channel.unary_unary("/a/b").future(b"x", timeout=30) for _ in range(2)]
    await_true(lambda: pool.pool.pending == 2)
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/a/b")(b"x", timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details() == "2 calls of this service are at work or wait already"
    service.free.set()
    assert [call.result(30) for call in taken] == [b"x", b"x"]
