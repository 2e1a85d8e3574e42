"""A process that sends requests over HTTP/1.1, for `gr2.load.run`: as cheap as its gRPC one.

The target is HOST:PORT/PATH. Each thread has a connection of its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence

import grpc

from gr2.load.job import OK
from gr2.load.worker import Call, main

__all__ = ["HttpCall", "http_calls"]

CODES = {
    200: OK,
    408: grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
    429: grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    503: grpc.StatusCode.UNAVAILABLE.value[0],
    504: grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
}
UNKNOWN = grpc.StatusCode.UNKNOWN.value[0]


def http_calls(target: str, connections: int, tls: Sequence[str]) -> Iterator[Call]:
    """Calls by POST at a target, each over a connection of its own, in clear text."""
    while True:
        yield HttpCall(target)


class HttpCall:
    """A call over one connection, made when it is first needed and again after it failed; for one thread."""

    def __init__(self, target: str) -> None:
        address, _, path = target.partition("/")
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self._head = f"POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/octet-stream\r\n"
        self._connection: socket.socket | None = None

    def __call__(self, request: bytes, timeout: float) -> tuple[int, bytes]:
        """The code and the reply."""
        end = time.monotonic() + timeout
        try:
            if self._connection is None:
                self._connection = socket.create_connection(self._address, timeout)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.settimeout(timeout)
            self._connection.sendall(f"{self._head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
            return _reply(self._connection, end)
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        except OSError:
            code = grpc.StatusCode.UNAVAILABLE.value[0]
        self.close()
        return code, b""

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _reply(connection: socket.socket, end: float) -> tuple[int, bytes]:
    """The code and the body of an answer that says its length, or comes in chunks."""
    data = b""
    while (split := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection, end)
    status, *fields = data[:split].split(b"\r\n")
    named = dict(field.lower().split(b": ", 1) for field in fields)
    code, data = CODES.get(int(status.split()[1]), UNKNOWN), data[split + 4 :]
    if b"content-length" not in named:
        return code, _chunks(connection, data, end)
    while len(data) < int(named[b"content-length"]):
        data += _more(connection, end)
    return code, data


def _chunks(connection: socket.socket, data: bytes, end: float) -> bytes:
    body = b""
    while True:
        while (split := data.find(b"\r\n")) < 0:
            data += _more(connection, end)
        size = int(data[:split].partition(b";")[0], 16)
        while len(data) < split + 4 + size:
            data += _more(connection, end)
        body += data[split + 2 : split + 2 + size]
        data = data[split + 4 + size :]
        if not size:
            return body


def _more(connection: socket.socket, end: float) -> bytes:
    connection.settimeout(max(1e-3, end - time.monotonic()))
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionResetError("the server closed the connection")
    return data


if __name__ == "__main__":
    main(http_calls)
