"""An OpenAI-compatible server on loopback that answers, or misbehaves, as it is told: for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["Call", "ChatServer", "Response", "closed_port", "completion", "serving", "transformers_serve"]

START_SECONDS = 120.0


@dataclass(frozen=True)
class Call:
    """A request: `number` counts from 0, `at` is a monotonic time in seconds."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt."""
        messages: list[dict[str, str]] = self.body["messages"]
        return messages


@dataclass(frozen=True)
class Response:
    """What the server does: answers, after waiting for `until` or the server's end; or resets the connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    until: threading.Event | None = None
    reset: bool = False


def completion(text: str | None, *, finish: str = "stop", tokens: tuple[int, int] | None = (100, 20)) -> Response:
    """A chat completion; `tokens` are those of prompt and answer, None where the server does not say."""
    record: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }
    if tokens is not None:
        prompt, answer = tokens
        record["usage"] = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return Response(body=json.dumps(record).encode())


class ChatServer(ThreadingHTTPServer):
    """Does what `respond` says for each call; `calls` are those that came."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, respond: Callable[[Call], Response]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond, self.calls = respond, list[Call]()
        self.ending, self.lock = threading.Event(), threading.Lock()

    @property
    def url(self) -> str:
        """What a client takes as `base_url`."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hung up are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one call."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            call = Call(len(self.server.calls), body, headers, time.monotonic())
            self.server.calls.append(call)
        response = self.server.respond(call)
        while response.until is not None and not response.until.wait(0.02):
            if self.server.ending.is_set():
                return
        if response.reset:
            # Closing with a linger of zero sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.send_response(response.status)
        for name, value in {"content-type": "application/json", **response.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def serving(respond: Callable[[Call], Response]) -> Iterator[ChatServer]:
    """A server that runs while the block does."""
    with ChatServer(respond) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join()


def closed_port() -> str:
    """The `base_url` of a server that is not there."""
    return f"http://127.0.0.1:{_free_port()}/v1"


@contextlib.contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """The `base_url` of a `transformers serve` of the folder `model`, without a network.

    Raises RuntimeError with what it said if it does not start.
    """
    port = _free_port()
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(model), "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.communicate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"transformers serve did not start:\n{process.communicate()[1]}")
