"""A server with a small bundle, a channel to a test file's server, and clients that it must bear."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gr2.load.header_block import call_headers
from gr2.serving.server import Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, END_HEADERS = 1, 4, 4


@pytest.fixture(scope="module")
def server(make_bundle: Callable[..., Path]) -> Iterator[Server]:
    """Serves 300 items with integer IDs and no features; a file that needs another has a fixture of its own."""
    server = Server(make_bundle(), port=0)
    server.start()
    yield server
    server.stop(5)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A channel to `server`, whichever the test file has."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def silent_calls() -> Iterator[Callable[[str, str, int], socket.socket]]:
    """A connection to an address with a number of calls of a method, which have sent their headers only."""
    with contextlib.ExitStack() as stack:

        def call(address: str, method: str, count: int) -> socket.socket:
            connection = stack.enter_context(_connect(address))
            headers = call_headers(address, method) + b"99999999u"
            calls = b"".join(_frame(HEADERS, END_HEADERS, 1 + 2 * call, headers) for call in range(count))
            connection.sendall(PREFACE + _frame(SETTINGS, 0, 0) + calls)
            return connection

        yield call


@pytest.fixture
def dribble() -> Iterator[Callable[[str, int], list[socket.socket]]]:
    """A number of HTTP clients at an address that send half a request, then a byte now and then."""
    over, threads = threading.Event(), []
    with contextlib.ExitStack() as stack:

        def send(clients: list[socket.socket]) -> None:
            while not over.wait(0.1):
                for each in clients:
                    with contextlib.suppress(OSError):
                        each.sendall(b"x")

        def start(address: str, count: int) -> list[socket.socket]:
            clients = [stack.enter_context(_connect(address)) for _ in range(count)]
            for each in clients:
                each.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            threads.append(threading.Thread(target=send, args=(clients,), daemon=True))
            threads[-1].start()
            return clients

        yield start
        over.set()
        for thread in threads:
            thread.join()


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload
