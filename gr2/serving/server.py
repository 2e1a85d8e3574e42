"""The gRPC server: re-ranking, health and reflection on one port, and a stop that loses no accepted request."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gr2.bundle import Bundle
from gr2.errors import Gr2Error
from gr2.serving.engine import Engine
from gr2.serving.servicer import SERVICE, Servicer

__all__ = ["Server", "serve"]

QUEUE = 64
PAUSE, LONGEST_WAIT = 0.05, 0.5  # seconds
SERVED = ("", SERVICE)


class _Pool(ThreadPoolExecutor):
    """A thread pool that knows how many calls it has taken, and how many of them are queued or running."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="gr2-serve")
        self.taken = self.pending = 0
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            self.taken += 1
            self.pending += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self.pending -= 1


class Server:
    """A server for one bundle.

    `threads` handle requests, by default one more than there are cores; `queue` more may wait, and any beyond that are
    refused with RESOURCE_EXHAUSTED at once. Port 0 takes a free port.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        host: str = "127.0.0.1",
        port: int = 50051,
        threads: int | None = None,
        queue: int = QUEUE,
    ) -> None:
        """Load the bundle and take the port. Raises BundleError, or Gr2Error if the port cannot be taken."""
        self.engine = Engine(bundle)
        self._servicer = Servicer(self.engine)
        self._health = health.HealthServicer()
        threads = threads or len(os.sched_getaffinity(0)) + 1
        self._pool = _Pool(threads)
        self._server = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=threads + queue,
            options=[
                ("grpc.max_receive_message_length", self.engine.bundle.manifest.limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers((self._servicer,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise Gr2Error(f"cannot listen on {host}:{port}; is another program using the port?") from error
        self.address = f"{host}:{self.port}"

    def start(self) -> None:
        """Begin to answer; health turns to SERVING."""
        self._server.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace: float) -> None:
        """Turn health to NOT_SERVING, answer what was accepted, and return; at most after about `grace` seconds.

        Calls that still arrive are answered until there is a pause, then refused with UNAVAILABLE until there is a
        pause: a call that reaches the transport while it shuts down would be CANCELLED, which clients do not retry.
        Calls at work when `grace` ends are cancelled. Open health and reflection streams are not waited for.
        """
        start = time.monotonic()
        self._health.enter_graceful_shutdown()
        self._await_pause(min(LONGEST_WAIT, grace / 4))
        self._servicer.refusing = True
        self._await_pause(min(LONGEST_WAIT, grace / 4))
        stopped = self._server.stop(max(0.0, grace - (time.monotonic() - start)))
        while not stopped.wait(PAUSE):
            if self._idle:
                self._server.stop(None)
        self._pool.shutdown()

    def _await_pause(self, limit: float) -> None:
        """Return once no call has arrived for PAUSE seconds and none is at work, or after `limit` seconds."""
        end = time.monotonic() + limit
        taken = -1
        while (taken != self._pool.taken or not self._idle) and time.monotonic() < end:
            taken = self._pool.taken
            time.sleep(min(PAUSE, limit))

    @property
    def _idle(self) -> bool:
        return self._pool.pending == 0 and self._servicer.active == 0

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in SERVED:
            self._health.set(name, status)


def serve(
    bundle: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 50051,
    threads: int | None = None,
    queue: int = QUEUE,
    grace: float = 10.0,
) -> None:
    """Serve a bundle until SIGTERM or SIGINT, then stop as `Server.stop` says. Runs in the main thread only.

    Once it answers, one line of JSON on standard output tells the address:
    `{"event": "ready", "address": "127.0.0.1:50051", "bundle": "VERSION"}`. A second signal ends the process at once.
    Raises BundleError, or Gr2Error if the port cannot be taken.
    """
    server = Server(bundle, host=host, port=port, threads=threads, queue=queue)
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.start()
        ready = {"event": "ready", "address": server.address, "bundle": server.engine.version}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        stop.wait()
        server.stop(grace)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
