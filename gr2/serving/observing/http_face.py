"""`/metrics` and `/healthz` over HTTP, on threads of their own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from gr2.errors import Gr2Error
from gr2.serving.observing.exposition import CONTENT_TYPE

__all__ = ["HttpFace"]

MOST = 32  # connections
LIMIT = 5.0  # seconds of a connection, whatever its client sends or reads
MOMENT = 0.5  # seconds
LAST_ANSWERS = 1.0  # seconds for the answers that are being made when the face closes


class HttpFace:
    """Answers GET /metrics with `metrics()`, and GET /healthz with 200 if `healthy()`, else 503."""

    def __init__(self, host: str, port: int, *, metrics: Callable[[], str], healthy: Callable[[], bool]) -> None:
        """Take the port; 0 takes a free one. Raises Gr2Error if it cannot be had."""
        # However many ask, only one thread more wants the interpreter, which requests need.
        one_page = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            timeout = LIMIT
            server_version, sys_version = "gr2", ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    with one_page:
                        page = metrics()
                    self._reply(200, page, CONTENT_TYPE)
                elif path == "/healthz":
                    well = healthy()
                    self._reply(200 if well else 503, "SERVING\n" if well else "NOT_SERVING\n", "text/plain")
                else:
                    self._reply(404, "there are /metrics and /healthz\n", "text/plain")

            def _reply(self, status: int, text: str, kind: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """A scrape every few seconds is not worth a line."""

        host = host.strip("[]")
        try:
            self._server = _BoundedServer((host, port), Handler)
        except OSError as error:
            raise Gr2Error(f"cannot listen on {host}:{port} for HTTP: {error.strerror or error}") from error
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="gr2-http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more, and give the port back; clients that have sent half a request are not waited for."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _BoundedServer(HTTPServer):
    """A server with a bound on its connections, each of which has a thread, and on their time.

    With MOST of them open, one more ends the oldest: who sends a request and reads the answer is done long before.
    """

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._changed = threading.Condition()
        # When each connection must be over, by `monotonic`, oldest first. Those that were ended have but a thread.
        self._open: dict[socket.socket, float] = {}
        self._threads = 0
        # Last: it calls `server_close` where the port is in use.
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection on a thread of its own."""
        if not self._enter(request):
            return self.shutdown_request(request)
        try:
            threading.Thread(target=self._handle, args=(request, client_address), name="gr2-http", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self._leave(request)

    def service_actions(self) -> None:
        """End the connections whose time is over. The serving thread comes here twice a second at least."""
        now = time.monotonic()
        with self._changed:
            for request in [each for each, until in self._open.items() if until <= now]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""

    def server_close(self) -> None:
        """Give the port back, and end the connections; answers that are being made have LAST_ANSWERS seconds."""
        super().server_close()
        with self._changed:
            for request in self._open:
                _shut(request, socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._threads, LAST_ANSWERS)
            for request in list(self._open):
                self._end(request)

    def _enter(self, request: socket.socket) -> bool:
        """Whether there is room for a connection; it is taken then."""
        with self._changed:
            if len(self._open) >= MOST:
                self._end(next(iter(self._open)))
            # An ended one takes a moment to go.
            if not self._changed.wait_for(lambda: self._threads < MOST, MOMENT):
                return False
            self._open[request] = time.monotonic() + LIMIT
            self._threads += 1
        return True

    def _end(self, request: socket.socket) -> None:
        del self._open[request]
        _shut(request, socket.SHUT_RDWR)

    def _leave(self, request: socket.socket) -> None:
        with self._changed:
            # Before it is closed: its descriptor may be another's then.
            self._open.pop(request, None)
        self.shutdown_request(request)
        with self._changed:
            self._threads -= 1
            self._changed.notify_all()

    def _handle(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self._leave(request)


def _shut(request: socket.socket, how: int) -> None:
    """Wake the connection's thread, wherever it waits."""
    with contextlib.suppress(OSError):  # the client has gone
        request.shutdown(how)
