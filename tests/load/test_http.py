"""The comparison's HTTP sender reads answers of both forms, from a real socket."""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (0, b"hello")),
    "chunks": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
        (0, b"hello"),
    ),
    "busy": (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", (14, b"")),
    "other": (b"HTTP/1.1 418 I'm a teapot\r\ncontent-length: 0\r\n\r\n", (2, b"")),
    "cut": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", (14, b"")),
}


@pytest.fixture(scope="module")
def sender() -> Any:
    """`HttpCall` of `benchmarks/server/http.py`, which is not installed."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "server" / "http.py"
    spec = importlib.util.spec_from_file_location("gr2_server_http", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HttpCall


@pytest.fixture
def answering() -> Callable[[bytes, int], str]:
    """Starts a server that gives each request an answer, `piece` bytes at a time, and returns its target."""
    listeners = []

    def start(answer: bytes, piece: int) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                for at in range(0, len(answer), piece):
                    connection.sendall(answer[at : at + piece])

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}/inference"

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("kind", list(ANSWERS))
def test_an_answer_is_read_however_it_arrives(
    sender: Any, answering: Callable[[bytes, int], str], kind: str, piece: int
) -> None:
    answer, expected = ANSWERS[kind]
    call = sender(answering(answer, piece))
    assert call(b"request", 5.0) == expected
    call.close()


def test_nobody_there_is_unavailable(sender: Any) -> None:
    assert sender("127.0.0.1:1/x")(b"", 1.0) == (14, b"")
