"""What gRPC needs of HTTP/2, from the caller's side: calls on one connection, as frames. Not for TLS.

RFC 9113. Header blocks are sent without a dynamic table, and the server is told to do so too.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from gr2.load.header_block import call_headers, status_of

__all__ = ["UNAVAILABLE", "UNPROCESSED", "Connection", "Ended"]

Ended = Callable[[int, int, bytes], None]
"""Told of each call that ends: its number, the status code, and the message, empty unless the code is OK."""

UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
UNPROCESSED = -2
"""The code of a call that the server has not looked at, as it leaves or has no room yet: it may be sent again."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
TABLE_SIZE, PUSH, MOST_STREAMS, INITIAL_WINDOW, MOST_BYTES = 1, 2, 3, 4, 5  # of the settings
CANCEL = 8
# As grpc reads what a reset says; anything else is INTERNAL.
RESETS = {
    7: UNPROCESSED,  # REFUSED_STREAM
    CANCEL: grpc.StatusCode.CANCELLED.value[0],
    11: grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],  # ENHANCE_YOUR_CALM
}
INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]
FIRST_WINDOW, OUR_WINDOW = 65535, 1 << 30
MOST_IDS = 1 << 31
LOWER_BITS = MOST_IDS - 1  # of a number whose highest bit is reserved
CONNECT_SECONDS = 5.0


@dataclass(slots=True)
class _Stream:
    """A call under way: what of its message is still to be sent, and what has come of the answer."""

    call: int
    ends: float
    rest: bytes
    begun: bool = False
    window: int = 0
    parts: list[bytes] = field(default_factory=list)


class Connection:
    """Calls of one method over a socket of its own, which blocks for nothing but what it sends.

    The caller waits until the socket can be read, and then calls `receive`. `next` is the stream of the next call.
    Calls wait for the server's settings, and for room within them: streams, windows, the size of frames. Once the
    connection is `leaving`, the next call needs another; those that it is `busy` with may still be answered. Once an
    OSError was raised, nothing is left but `close`.
    """

    def __init__(self, address: tuple[str, int], method: str, ended: Ended, *, token: str = "") -> None:
        """Connect; the calls carry the token, if there is one. Raises OSError."""
        self.socket = socket.create_connection(address, CONNECT_SECONDS)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = call_headers(f"{address[0]}:{address[1]}", method, token)
        self._ended = ended
        self.next, self.leaving = 1, False
        self._window, self._first_window = FIRST_WINDOW, FIRST_WINDOW
        # No stream before the server has said how many.
        self._settled, self._most, self._most_bytes = False, MOST_IDS, 1 << 14
        self._begun = 0
        self._open: dict[int, _Stream] = {}
        self._held: list[int] = []
        self._rest = self._block = b""
        self._taken, self._last = 0, False
        settings = struct.pack(">HIHIHI", TABLE_SIZE, 0, PUSH, 0, INITIAL_WINDOW, OUR_WINDOW)
        window = struct.pack(">I", OUR_WINDOW - FIRST_WINDOW)
        self.socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW, 0, 0, window))

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self._open)

    def start(self, call: int, message: bytes, timeout: float) -> None:
        """Send the call of that number, which has `timeout` seconds, or hold it until there is room. Raises OSError."""
        stream, self.next = self.next, self.next + 2
        self.leaving |= self.next >= MOST_IDS
        body = struct.pack(">BI", 0, len(message)) + message
        self._open[stream] = _Stream(call, time.monotonic() + timeout, body)
        self._held.append(stream)
        self._send()

    def cancel(self, stream: int) -> None:
        """Give a call up; nothing more is told of it. Raises OSError."""
        each = self._open.pop(stream, None)
        # The server must not hear of a stream that was never begun.
        if each is not None and each.begun:
            self._begun -= 1
            self.socket.sendall(_frame(RESET, 0, stream, struct.pack(">I", CANCEL)))
            self._send()

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
        self._send()

    def close(self) -> None:
        """Close the socket; calls that are open are told to be UNAVAILABLE."""
        self.socket.close()
        for stream in list(self._open):
            self._end(stream, UNAVAILABLE)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._take_data(flags, stream, payload)
        elif kind in (HEADERS, CONTINUATION):
            self._take_headers(kind, flags, stream, payload)
        elif kind == RESET:
            self._end(stream, RESETS.get(int.from_bytes(payload, "big"), INTERNAL))
        elif kind in (SETTINGS, PING) and not flags & ACK:
            if kind == SETTINGS:
                self._take_settings(payload)
            self.socket.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == WINDOW:
            room = int.from_bytes(payload, "big") & LOWER_BITS
            if not stream:
                self._window += room
            elif stream in self._open:
                self._open[stream].window += room
        elif kind == GOAWAY:
            self._leave(int.from_bytes(payload[:4], "big") & LOWER_BITS)

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._taken += len(payload)
        if stream in self._open:
            self._open[stream].parts.append(payload[1 : -payload[0] or None] if flags & PADDED else payload)
        if self._taken >= OUR_WINDOW // 2:
            self.socket.sendall(_frame(WINDOW, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0

    def _take_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._block, self._last = payload, bool(flags & END_STREAM)
        else:
            self._block += payload
        if flags & END_HEADERS and self._last:
            self._end(stream, status_of(self._block))

    def _take_settings(self, payload: bytes) -> None:
        settings = dict(struct.iter_unpack(">HI", payload))
        self._settled, self._most = True, settings.get(MOST_STREAMS, self._most)
        self._most_bytes = settings.get(MOST_BYTES, self._most_bytes)
        change = settings.get(INITIAL_WINDOW, self._first_window) - self._first_window
        self._first_window += change
        for each in self._open.values():
            each.window += change

    def _leave(self, last: int) -> None:
        """The server takes no streams after `last`; it ends those up to there."""
        self.leaving = True
        for stream in [stream for stream, each in self._open.items() if stream > last or not each.begun]:
            self._end(stream, UNPROCESSED)

    def _send(self) -> None:
        """Send of the calls that are held what the server has room for, in their order."""
        if not self._held or not self._settled:
            return
        held, self._held = self._held, []
        frames: list[bytes] = []
        for at, stream in enumerate(held):
            each = self._open.get(stream)
            if each is None:
                continue
            if self._window <= 0 or (not each.begun and self._begun >= self._most):
                self._held += held[at:]
                break
            self._fill(frames, stream, each)
            if each.rest:
                self._held.append(stream)
        if frames:
            self.socket.sendall(b"".join(frames))

    def _fill(self, frames: list[bytes], stream: int, each: _Stream) -> None:
        if not each.begun:
            each.begun, each.window = True, self._first_window
            self._begun += 1
            left = b"%08du" % max(1, min(99_999_999, round(1e6 * (each.ends - time.monotonic()))))
            frames.append(_frame(HEADERS, END_HEADERS, stream, self._head + left))
        while (size := min(len(each.rest), self._window, each.window, self._most_bytes)) > 0:
            part, each.rest = each.rest[:size], each.rest[size:]
            self._window -= size
            each.window -= size
            frames.append(_frame(DATA, 0 if each.rest else END_STREAM, stream, part))

    def _end(self, stream: int, code: int) -> None:
        each = self._open.pop(stream, None)
        if each is not None:
            self._begun -= each.begun
            self._ended(each.call, code, b"".join(each.parts)[5:] if code == 0 else b"")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload
