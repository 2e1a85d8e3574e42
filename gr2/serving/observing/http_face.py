"""`/metrics` and `/healthz` over HTTP, on a few threads of their own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from gr2.errors import Gr2Error
from gr2.serving.observing.exposition import CONTENT_TYPE

__all__ = ["HttpFace"]

THREADS = 4
TIMEOUT = 5.0  # seconds that a client may be silent


class HttpFace:
    """Answers GET /metrics with `metrics()`, and GET /healthz with 200 if `healthy()`, else 503."""

    def __init__(self, host: str, port: int, *, metrics: Callable[[], str], healthy: Callable[[], bool]) -> None:
        """Take the port; 0 takes a free one. Raises Gr2Error if it cannot be had."""

        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT
            server_version, sys_version = "gr2", ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._reply(200, metrics(), CONTENT_TYPE)
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
            self._server = _PooledServer((host, port), Handler)
        except OSError as error:
            raise Gr2Error(f"cannot listen on {host}:{port} for HTTP: {error.strerror or error}") from error
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="gr2-http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more, and give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _PooledServer(HTTPServer):
    """A server with a bound on its threads."""

    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        # `server_close`, which a port in use leads to, ends it.
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="gr2-http")
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection on a thread of the pool."""
        self._pool.submit(self._handle, request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""

    def server_close(self) -> None:
        """End the threads once their answers are sent."""
        super().server_close()
        self._pool.shutdown()

    def _handle(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
