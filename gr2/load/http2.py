"""What gRPC needs of HTTP/2, from the caller's side: calls on one connection, as frames. Not for TLS.

RFC 9113 and 7541. Header blocks are sent without a dynamic table, and the server is told to do so too.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import grpc

__all__ = ["UNAVAILABLE", "Connection", "Ended"]

Ended = Callable[[int, int, bytes], None]
"""Told of each call that ends: its stream, the status code, and the message, empty unless the code is OK."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
TABLE_SIZE, PUSH, INITIAL_WINDOW = 1, 2, 4  # of the settings
CANCEL = 8
FIRST_WINDOW, OUR_WINDOW = 65535, 1 << 30
MOST_IDS = 1 << 31

UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
UNKNOWN: int = grpc.StatusCode.UNKNOWN.value[0]


class Connection:
    """Calls of one method over a socket of its own, which blocks for nothing but what it sends.

    The caller waits until the socket can be read, and then calls `receive`. `next` is the stream of the next call.
    Once an OSError was raised, nothing is left but `close`.
    """

    def __init__(self, address: tuple[str, int], method: str, ended: Ended) -> None:
        """Connect. Raises OSError."""
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = _head(f"{address[0]}:{address[1]}", method)
        self._ended = ended
        self.next, self._window = 1, FIRST_WINDOW
        self._open: dict[int, list[bytes]] = {}
        self._held: list[bytes] = []
        self._rest = b""
        self._taken = 0
        settings = struct.pack(">HIHIHI", TABLE_SIZE, 0, PUSH, 0, INITIAL_WINDOW, OUR_WINDOW)
        window = struct.pack(">I", OUR_WINDOW - FIRST_WINDOW)
        self.socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW, 0, 0, window))

    def start(self, message: bytes, timeout: float) -> None:
        """Send a call that has `timeout` seconds. Raises OSError."""
        stream, self.next = self.next, self.next + 2
        if stream >= MOST_IDS:
            raise ConnectionError("the connection has had all the calls that it may")
        self._open[stream] = []
        block = self._head + b"%08du" % max(1, min(99_999_999, round(1e6 * timeout)))
        body = struct.pack(">BI", 0, len(message)) + message
        frames = _frame(HEADERS, END_HEADERS, stream, block) + _frame(DATA, END_STREAM, stream, body)
        if self._held or len(body) > self._window:
            self._held.append(frames)
        else:
            self._window -= len(body)
            self.socket.sendall(frames)

    def cancel(self, stream: int) -> None:
        """Give a call up; nothing more is told of it."""
        if self._open.pop(stream, None) is not None:
            self.socket.sendall(_frame(RESET, 0, stream, struct.pack(">I", CANCEL)))

    def receive(self) -> None:
        """Take in what the socket has. Raises OSError, and ConnectionError if the server has closed it."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        data = self._rest + data
        at, size = 0, len(data)
        while size - at >= 9:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            end = at + 9 + length
            if end > size:
                break
            self._take(data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end])
            at = end
        self._rest = data[at:]

    def close(self) -> None:
        """Close the socket; calls that are open are told to be UNAVAILABLE."""
        self.socket.close()
        for stream in list(self._open):
            self._end(stream, UNAVAILABLE)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._taken += len(payload)
            if stream in self._open:
                self._open[stream].append(payload[1 : -payload[0] or None] if flags & PADDED else payload)
            if self._taken >= OUR_WINDOW // 2:
                self.socket.sendall(_frame(WINDOW, 0, 0, struct.pack(">I", self._taken)))
                self._taken = 0
        elif kind == HEADERS and flags & END_STREAM:
            self._end(stream, _status(payload))
        elif kind == RESET:
            self._end(stream, UNAVAILABLE)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self.socket.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == WINDOW and stream == 0:
            self._window += int.from_bytes(payload, "big")
            self._send_held()
        elif kind == GOAWAY:
            raise ConnectionError("the server goes away")

    def _send_held(self) -> None:
        while self._held:
            frames = self._held[0]
            # The message's frame is the last one.
            head = 9 + int.from_bytes(frames[:3], "big")
            size = len(frames) - head - 9
            if size > self._window:
                return
            self._window -= size
            self.socket.sendall(self._held.pop(0))

    def _end(self, stream: int, code: int) -> None:
        parts = self._open.pop(stream, None)
        if parts is not None:
            self._ended(stream, code, b"".join(parts)[5:] if code == 0 else b"")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _head(authority: str, method: str) -> bytes:
    """The header block of each call, up to the digits of its timeout. Indices are those of RFC 7541, appendix A."""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + _text(method),  # :path
            b"\x01" + _text(authority),  # :authority
            b"\x00" + _text("te") + _text("trailers"),
            b"\x0f\x10" + _text("application/grpc"),  # content-type
            b"\x00" + _text("grpc-timeout") + b"\x09",
        )
    )


def _text(value: str) -> bytes:
    data = value.encode("ascii")
    if len(data) > 126:
        raise ValueError(f"at most 126 letters are sent, got {value!r}")
    return bytes((len(data),)) + data


def _status(block: bytes) -> int:
    """The status code in the trailers' block, whose names are literal."""
    at = block.find(b"grpc-status")
    if at < 0:
        return UNKNOWN
    size = block[at + 11]
    digits = block[at + 12 : at + 12 + size]
    return int(digits) if digits.isdigit() else UNKNOWN
