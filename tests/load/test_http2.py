"""Calls as frames, by a peer that says what a test has it say."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import grpc
import pytest

from gr2.load.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MOST_BYTES,
    MOST_STREAMS,
    PREFACE,
    RESET,
    SETTINGS,
    UNAVAILABLE,
    UNPROCESSED,
    WINDOW,
    Connection,
)

Frame = tuple[int, int, int, bytes]  # kind, flags, stream, payload
OPEN, LAST = 0, END_STREAM
TRAILERS = b"\x00\x0bgrpc-status\x010"


class Peer:
    """The server's end of one connection."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ended: list[tuple[int, int, bytes]] = []
        address = self.listener.getsockname()
        self.ours = Connection(address, "/service/method", lambda *end: self.ended.append(end))
        self.theirs, _ = self.listener.accept()
        self.theirs.setblocking(False)
        assert self.theirs.recv(len(PREFACE)) == PREFACE
        self.heard()

    def say(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        """Send a frame, which is taken in."""
        self.theirs.sendall(struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload)
        self.ours.receive()

    def set(self, **settings: int) -> None:
        names = {"streams": MOST_STREAMS, "window": INITIAL_WINDOW, "size": MOST_BYTES}
        self.say(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[name], each) for name, each in settings.items()))

    def heard(self) -> list[Frame]:
        """The frames that have come; what was sent over loopback is there at once."""
        data, frames = b"", []
        try:
            while part := self.theirs.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        while data:
            length, kind, flags, stream = int.from_bytes(data[:3], "big"), data[3], data[4], data[5:9]
            frames.append((kind, flags, int.from_bytes(stream, "big"), data[9 : 9 + length]))
            data = data[9 + length :]
        return [each for each in frames if each[:2] != (SETTINGS, ACK)]


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    for each in (peer.ours, peer.theirs, peer.listener):
        each.close()


def sizes(frames: list[Frame]) -> list[tuple[int, int, int]]:
    """Stream, flags and length of each frame of a message."""
    return [(stream, flags, len(payload)) for kind, flags, stream, payload in frames if kind == DATA]


def test_no_call_goes_before_the_servers_settings_are_there(peer: Peer) -> None:
    peer.ours.start(7, b"request", 30.0)
    assert peer.heard() == []
    peer.set()
    assert [each[0] for each in peer.heard()] == [HEADERS, DATA]


def test_the_time_that_a_call_has_waited_is_not_the_servers(peer: Peer) -> None:
    peer.ours.start(7, b"request", 0.5)
    peer.ours._open[1].ends -= 0.4
    peer.set()
    block = peer.heard()[0][3]
    assert 1 <= int(block[-9:-1]) <= 100_000


def test_calls_beyond_the_streams_of_the_server_wait_for_others_to_end(peer: Peer) -> None:
    peer.set(streams=1)
    for call in range(3):
        peer.ours.start(call, b"", 30.0)
    assert [each[2] for each in peer.heard()] == [1, 1]
    peer.say(HEADERS, END_STREAM | END_HEADERS, 1, TRAILERS)
    assert [each[2] for each in peer.heard()] == [3, 3]
    peer.set(streams=2)
    assert [each[2] for each in peer.heard()] == [5, 5]
    assert peer.ended == [(0, 0, b"")]


def test_a_message_keeps_within_windows_and_sizes(peer: Peer) -> None:
    peer.set(window=30, size=1 << 14)
    peer.ours.start(0, bytes(95), 30.0)
    assert sizes(peer.heard()) == [(1, OPEN, 30)]
    # The streams are independent of each other, and the windows of those that are open change with the setting.
    peer.ours.start(1, bytes(5), 30.0)
    assert sizes(peer.heard()) == [(3, LAST, 10)]
    peer.set(window=20)
    peer.say(WINDOW, 0, 1, struct.pack(">I", 15))
    assert sizes(peer.heard()) == [(1, OPEN, 5)]
    peer.set(window=1 << 20)
    assert sizes(peer.heard()) == [(1, LAST, 65)]
    peer.ours.start(2, bytes(100_000), 30.0)
    first = sizes(peer.heard())
    assert max(size for _, _, size in first) == 1 << 14
    assert sum(size for _, _, size in first) == 65535 - 110
    peer.say(WINDOW, 0, 0, struct.pack(">I", 1 << 20))
    assert sum(size for _, _, size in sizes(peer.heard())) == 100_005 - 65535 + 110


def test_the_server_does_not_hear_of_calls_given_up_before_they_began(peer: Peer) -> None:
    peer.set(streams=1)
    peer.ours.start(0, b"", 30.0)
    peer.ours.start(1, b"", 30.0)
    peer.ours.start(2, b"", 30.0)
    peer.heard()
    peer.ours.cancel(3)
    assert peer.heard() == []
    peer.ours.cancel(1)
    assert [(kind, stream) for kind, _, stream, _ in peer.heard()] == [(RESET, 1), (HEADERS, 5), (DATA, 5)]
    assert peer.ended == []


def test_a_leaving_server_ends_what_it_has_begun_and_the_rest_is_for_another(peer: Peer) -> None:
    peer.set(streams=3)
    for call in range(4):
        peer.ours.start(call, b"", 30.0)
    # At first it does not say which was the last; only what was never sent is known not to be looked at.
    peer.say(GOAWAY, 0, 0, struct.pack(">II", (1 << 31) - 1, 0))
    assert peer.ours.leaving
    assert peer.ended == [(3, UNPROCESSED, b"")]
    peer.say(GOAWAY, 0, 0, struct.pack(">II", 3, 0))
    assert peer.ended[1:] == [(2, UNPROCESSED, b"")]
    for stream in (1, 3):
        assert peer.ours.busy
        peer.say(HEADERS, END_STREAM | END_HEADERS, stream, TRAILERS)
    assert peer.ended[2:] == [(0, 0, b""), (1, 0, b"")]
    assert not peer.ours.busy


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (7, UNPROCESSED),
        (8, grpc.StatusCode.CANCELLED.value[0]),
        (11, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]),
        (2, grpc.StatusCode.INTERNAL.value[0]),
    ],
)
def test_a_reset_is_read_as_grpc_reads_it(peer: Peer, error: int, code: int) -> None:
    peer.set()
    peer.ours.start(5, b"", 30.0)
    peer.say(RESET, 0, 1, struct.pack(">I", error))
    assert peer.ended == [(5, code, b"")]


def test_trailers_may_come_in_several_frames(peer: Peer) -> None:
    peer.set()
    peer.ours.start(5, b"", 30.0)
    peer.say(HEADERS, END_STREAM, 1, TRAILERS[:8])
    assert peer.ended == []
    peer.say(CONTINUATION, END_HEADERS, 1, TRAILERS[8:])
    assert peer.ended == [(5, 0, b"")]


def test_a_lost_connection_ends_its_calls(peer: Peer) -> None:
    peer.set(streams=1)
    peer.ours.start(4, b"", 30.0)
    peer.ours.start(5, b"", 30.0)
    peer.ours.close()
    assert peer.ended == [(4, UNAVAILABLE, b""), (5, UNAVAILABLE, b"")]
