"""What a connection may send before any of it is a request."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from gr2.serving.access import transport
from gr2.serving.access.transport import options
from gr2.serving.config import ServeConfig
from gr2.serving.server import Server
from gr2.v1 import reranker_pb2

MakeBundle = Callable[..., Path]
METHOD = "/gr2.v1.Reranker/Rerank"
REQUEST = reranker_pb2.RerankRequest(candidates=reranker_pb2.ItemIds(ints=[1007, 1014])).SerializeToString()


def test_more_metadata_than_allowed_is_refused_and_less_is_not(channel: grpc.Channel) -> None:
    call = channel.unary_unary(METHOD)
    assert call(REQUEST, timeout=10, metadata=[("note", "x" * 4_000)])
    with pytest.raises(grpc.RpcError) as caught:
        call(REQUEST, timeout=10, metadata=[("note", "x" * 40_000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(REQUEST, timeout=10)


def test_connection_that_never_begins_is_closed(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = [(name, 300 if "handshake" in name else value) for name, value in transport.CONNECTIONS]
    monkeypatch.setattr(transport, "CONNECTIONS", shorter)
    server = Server(make_bundle(), port=0)
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as mute:
        while mute.recv(1024):  # the server's own settings, and then the end
            pass
    server.stop(5)


def test_compression_is_off_unless_asked_for() -> None:
    name = "grpc.compression_enabled_algorithms_bitset"
    assert dict(options(ServeConfig(), 1))[name] == 0b001
    assert dict(options(ServeConfig(gzip=True), 1))[name] == 0b101


def test_large_reply_is_not_bounded_and_a_large_request_is() -> None:
    found = dict(options(ServeConfig(), 12_345))
    assert (found["grpc.max_receive_message_length"], found["grpc.max_send_message_length"]) == (12_345, -1)
