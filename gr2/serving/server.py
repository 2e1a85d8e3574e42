"""The gRPC server: re-ranking, health and reflection on one port, and a stop that loses no accepted request."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from types import FrameType

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from gr2.bundle import Bundle
from gr2.errors import ConfigError, Gr2Error
from gr2.serving.batcher import BatchLimits
from gr2.serving.calls import Admission, Patience
from gr2.serving.engine import Engine
from gr2.serving.repository import Repository
from gr2.serving.servicer import SERVICE, Servicer
from gr2.serving.standard import HealthService, ReflectionService

__all__ = ["Server", "serve"]

QUEUE = 64
MOST_THREADS = 4096
PAUSE, LONGEST_WAIT = 0.05, 0.5  # seconds
WAKE = 0.2  # seconds
SERVED = ("", SERVICE)
# Against connections and callers that are gone or idle. The ages are in milliseconds.
CONNECTION_LIMITS = (
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
# Bit 0 alone, no compression: a compressed message is inflated before its size is checked, 300 KB to 300 MB.
UNCOMPRESSED = ("grpc.compression_enabled_algorithms_bitset", 1)


class Server:
    """A server for one bundle, or for a repository of them (see `gr2.serving.repository`).

    `threads` requests are at work at once, by default one more than there are cores; `queue` more may wait, and any
    beyond that are refused with RESOURCE_EXHAUSTED at once. Health checks and reflection have threads of their own.
    Port 0 takes a free port. `device` and `batches` are the engine's; on a GPU the default of `threads` is two batches:
    one at work and the next, whose callers wait. `default` and `poll` are the repository's.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        host: str = "127.0.0.1",
        port: int = 50051,
        threads: int | None = None,
        queue: int = QUEUE,
        device: str = "cpu",
        batches: BatchLimits | None = None,
        default: str = "",
        poll: float = 0.0,
    ) -> None:
        """Load the bundles and take the port.

        Raises BundleError, ConfigError if a number is out of range or "cuda" cannot be had, or Gr2Error if the port
        cannot be taken.
        """
        batches = batches or BatchLimits()
        if (threads is not None and not 1 <= threads <= MOST_THREADS) or not 0 <= queue <= MOST_THREADS:
            limits = f"threads must be in 1..{MOST_THREADS} and queue in 0..{MOST_THREADS}"
            raise ConfigError(f"{limits}, got {threads} and {queue}")
        self.repository = Repository(
            bundle.path if isinstance(bundle, Bundle) else bundle,
            lambda loaded: Engine(loaded, device=device, batches=batches),
            default=default,
            poll=poll,
        )
        if threads is None:
            cores = len(os.sched_getaffinity(0))
            threads = cores + 1 if self.engine.device == "cpu" else min(2 * batches.size, MOST_THREADS)
        self._patience = Patience()
        self._admission = Admission(threads, queue)
        self._servicer = Servicer(self.repository, self._admission, self._patience)
        self._health = HealthService(SERVED, self._patience)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._reflection = ReflectionService(names, self._patience)
        self._server = grpc.server(
            self._admission.pool,
            handlers=(self._servicer, self._health.handler(), self._reflection.handler()),
            options=[
                ("grpc.max_receive_message_length", self._largest_request()),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                UNCOMPRESSED,
                *CONNECTION_LIMITS,
            ],
        )
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            self._close()
            reason = "does another program use the port, or is the host not an address of this machine?"
            raise Gr2Error(f"cannot listen on {host}:{port}; {reason}") from error
        self.address = f"{host}:{self.port}"

    @property
    def engine(self) -> Engine:
        """The engine of the default bundle, as it is now."""
        with self.repository.lease() as engine:
            return engine

    def start(self) -> None:
        """Begin to answer; health turns to SERVING."""
        self._patience.start()
        self._server.start()
        self.repository.on_change = self._show_health
        self.repository.start()
        self._show_health()

    def stop(self, grace: float) -> None:
        """Turn health to NOT_SERVING, answer what was accepted, and return; at most after about `grace` seconds.

        Calls that still arrive are answered until there is a pause, then refused with UNAVAILABLE until there is a
        pause: a call that reaches the transport while it shuts down would be CANCELLED, which clients do not retry.
        Calls at work when `grace` ends are cancelled. Open health and reflection streams are not waited for, nor calls
        that have sent no message.
        """
        start = time.monotonic()
        self._health.stop()
        self._patience.hurry(LONGEST_WAIT)
        self._await_pause(min(LONGEST_WAIT, grace / 4))
        self._servicer.refusing = True
        self._await_pause(min(LONGEST_WAIT, grace / 4))
        stopped = self._server.stop(max(0.0, grace - (time.monotonic() - start)))
        while not stopped.wait(PAUSE):
            if self._idle:
                self._server.stop(None)
        self._close()

    def _close(self) -> None:
        """End every thread."""
        for part in (self._admission, self._health, self._reflection):
            part.shutdown()
        self._patience.close()
        self.repository.close()

    def _await_pause(self, limit: float) -> None:
        """Return once no call has arrived for PAUSE seconds and none is at work, or after `limit` seconds."""
        end = time.monotonic() + limit
        taken = -1
        while (taken != self._admission.taken or not self._idle) and time.monotonic() < end:
            taken = self._admission.taken
            time.sleep(min(PAUSE, limit))

    def _show_health(self) -> None:
        bundles = {f"{SERVICE}/{each.name}": each.bundle is not None for each in self.repository.status()}
        self._health.show({**dict.fromkeys(SERVED, True), **bundles})

    def _largest_request(self) -> int:
        """Bytes of the largest message that one of the bundles takes."""
        bundles = [status.bundle for status in self.repository.status()]
        return max(bundle.manifest.limits.max_request_bytes for bundle in bundles if bundle is not None)

    @property
    def _idle(self) -> bool:
        return self._admission.pending == 0 and self._servicer.active == 0


def serve(
    bundle: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 50051,
    threads: int | None = None,
    queue: int = QUEUE,
    grace: float = 10.0,
    device: str = "cpu",
    batches: BatchLimits | None = None,
    default: str = "",
    poll: float = 0.0,
) -> None:
    """Serve one bundle or several until SIGTERM or SIGINT, then stop as `Server.stop` says. In the main thread only.

    Once it answers, one line of JSON on standard output tells the address:
    `{"event": "ready", "address": "127.0.0.1:50051", "bundle": "VERSION", "device": "cpu"}`. A second signal ends the
    process at once.
    Raises what `Server` raises.
    """
    server = Server(
        bundle,
        host=host,
        port=port,
        threads=threads,
        queue=queue,
        device=device,
        batches=batches,
        default=default,
        poll=poll,
    )
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.start()
        engine = server.engine
        ready = {"event": "ready", "address": server.address, "bundle": engine.version, "device": engine.device}
        if sys.stdout is not None:  # it is None where standard output is closed
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()
        # The system may hand a signal to another thread; its handler runs once this one, the main thread, wakes.
        while not stop.wait(WAKE):
            pass
        server.stop(grace)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
