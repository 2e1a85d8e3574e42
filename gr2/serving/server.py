"""The gRPC server: re-ranking, health and reflection on one port, and a stop that loses no accepted request."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from gr2.bundle import Bundle
from gr2.serving.access.calls import Admission, Patience
from gr2.serving.access.direct import direct_calls
from gr2.serving.access.load import LoadReport
from gr2.serving.access.tokens import TokenFile, TokenInterceptor
from gr2.serving.access.transport import listen, options
from gr2.serving.bundles.repository import Repository
from gr2.serving.bundles.shadow import Shadow
from gr2.serving.config import MOST_THREADS, ServeConfig
from gr2.serving.engine import Engine
from gr2.serving.metrics import ServerMetrics
from gr2.serving.observation import http_face, start_watching
from gr2.serving.observing.observer import Observer
from gr2.serving.observing.phases import read_phases
from gr2.serving.services.inference import INFER, INFERENCE, InferenceService
from gr2.serving.services.management import MANAGEMENT, ManagementService
from gr2.serving.services.servicer import MESSAGE_WAIT, METHOD, SERVICE, UNKNOWN_CLIENT, Servicer
from gr2.serving.services.standard import HealthService, ReflectionService
from gr2.v1 import management_pb2

if TYPE_CHECKING:
    from gr2.serving.observing.tracing import Tracing

__all__ = ["Server", "serve"]

logger = logging.getLogger(__name__)

PAUSE, LONGEST_WAIT = 0.05, 0.5  # seconds
LAST = 5.0  # seconds for cancelled calls to end
WAKE = 0.2  # seconds
SERVED = ("", SERVICE)


class Server:
    """A server for one bundle, or for a repository of them (see `gr2.serving.bundles.repository`).

    Requests beyond those that are at work or may wait are refused with RESOURCE_EXHAUSTED at once. Health checks and
    reflection have threads of their own. On a GPU the default of `threads` is two batches: one at work and the next,
    whose callers wait.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        config: ServeConfig | None = None,
        *,
        tracing: Tracing | None = None,
        **changes: Any,
    ) -> None:
        """Load the bundles and take the port; `changes` are fields of the configuration.

        Raises BundleError, ConfigError if a value is out of range or "cuda" cannot be had, or Gr2Error if the port
        cannot be taken.
        """
        self.config = config = dataclasses.replace(config or ServeConfig(), **changes)
        self.repository = Repository(
            bundle.path if isinstance(bundle, Bundle) else bundle,
            lambda loaded: Engine(loaded, device=config.device, batches=config.batches, native=config.native),
            default=config.default,
            poll=config.poll,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self.repository.close)
            self._open(tracing, undo)
            undo.pop_all()

    def _open(self, tracing: Tracing | None, undo: contextlib.ExitStack) -> None:
        """Make the parts around the repository and take the port."""
        config, threads = self.config, self.config.threads
        if threads is None:
            cores = len(os.sched_getaffinity(0))
            threads = cores if self.engine.device == "cpu" else min(2 * config.batch, MOST_THREADS)
        self._admission = Admission(threads, config.queue)
        self._patience = Patience(lambda: self._admission.full or bool(self._admission.crowded))
        self._patience.looks.append(self._admission.open.look)
        self._threads, self._stopping = threads, False
        self._shadow = Shadow(self.repository, config.shadow, config.shadow_share) if config.shadow else None
        if self._shadow is not None:
            undo.callback(self._shadow.close)
        self._servicer = Servicer(self.repository, self._admission, self._patience, LoadReport(threads), self._shadow)
        self.serving = False
        self._observer = Observer((METHOD, INFER), tracing)
        self.metrics = ServerMetrics(
            self._observer,
            self._admission,
            self.repository,
            functools.partial(read_phases, self._admission.core),
            lambda: self.serving,
        )
        if self._shadow is not None:
            self.metrics.sources.append(self._shadow.families)
        self._health = HealthService(SERVED, self._patience)
        self._management = ManagementService(self.repository, config, self._patience, self._describe)
        self._inference = InferenceService(self._servicer, self.repository, self._patience, lambda: self.serving)
        names = (SERVICE, MANAGEMENT, INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._reflection = ReflectionService(names, self._patience)
        self._parts = (self._health, self._management, self._inference, self._reflection)
        self._largest = self._largest_request()
        self._server = grpc.server(
            self._admission.pool,
            handlers=[self._servicer, *(part.handler() for part in self._parts)],
            interceptors=(self._observer, *self._interceptors()),
            options=options(config, self._largest),
        )
        self._servicer.ended = functools.partial(self._observer.ended, METHOD)
        self._direct = direct_calls(
            self._server, METHOD, self._admission, self._patience, wait=MESSAGE_WAIT, answerer=self._servicer
        )
        self.address = listen(self._server, config)
        self.port = int(self.address.rpartition(":")[2])

    @property
    def engine(self) -> Engine:
        """The engine of the default bundle, as it is now."""
        with self.repository.lease() as engine:
            return engine

    def start(self) -> None:
        """Begin to answer; health turns to SERVING."""
        self._patience.start()
        self._server.start()
        if self._direct is not None:
            self._direct.start()
        self.repository.on_change = self._show_health
        self.repository.start()
        self._show_health()
        self.serving = True

    def stop(self, grace: float) -> None:
        """Turn health to NOT_SERVING, answer what was accepted, and return; at most after about `grace` seconds.

        Calls that still arrive are answered until there is a pause, then refused with UNAVAILABLE until there is a
        pause: a call that reaches the transport while it shuts down would be CANCELLED, which clients do not retry.
        Calls at work when `grace` ends are cancelled. Open health and reflection streams are not waited for, nor calls
        that have sent no message.
        """
        start = time.monotonic()
        self._stopping = True
        self.serving = False
        self._health.stop()
        self._patience.hurry(LONGEST_WAIT)
        self._await_pause(min(LONGEST_WAIT, grace / 4))
        self._servicer.refusing = True
        self._await_pause(min(LONGEST_WAIT, grace / 4))
        self._end_calls(max(0.0, grace - (time.monotonic() - start)))
        self._close()

    def _end_calls(self, grace: float) -> None:
        """Return once the calls at work have ended, and others were cancelled; they have `grace` seconds."""
        end = time.monotonic() + grace + LAST
        stopped = self._server.stop(grace)
        while not stopped.wait(PAUSE):
            if time.monotonic() > end:
                # Of a call that was cancelled and has not ended, nothing more is to be hoped for.
                return logger.error("calls that were cancelled have not ended; the server stops without them")
            if self._idle:
                self._server.stop(0)
        return None

    def _close(self) -> None:
        """End every thread."""
        for part in (self._admission, *self._parts):
            part.shutdown()
        self._patience.close()
        if self._shadow is not None:
            self._shadow.close()
        self.repository.close()

    def _await_pause(self, limit: float) -> None:
        """Return once no call has arrived for PAUSE seconds and none is at work, or after `limit` seconds."""
        end = time.monotonic() + limit
        taken = -1
        while (taken != self._admission.taken or not self._idle) and time.monotonic() < end:
            taken = self._admission.taken
            time.sleep(min(PAUSE, limit))

    def _interceptors(self) -> list[grpc.ServerInterceptor]:
        if not self.config.tokens:
            return []
        interceptor = TokenInterceptor(TokenFile(self.config.tokens), self._servicer.refusal(*UNKNOWN_CLIENT))
        self._servicer.admits = interceptor.admits
        self.metrics.sources.append(interceptor.families)
        return [interceptor]

    def _show_health(self) -> None:
        bundles = {f"{SERVICE}/{each.name}": each.bundle is not None for each in self.repository.status()}
        self._health.show({**dict.fromkeys(SERVED, True), **bundles})

    def _describe(self, info: management_pb2.ServerInfo) -> None:
        info.threads, info.max_message_bytes, info.stopping = self._threads, self._largest, self._stopping
        if self._shadow is not None:
            counts = self._shadow.counts()
            of = max(1, counts.compared)
            info.shadow.CopyFrom(
                management_pb2.ShadowInfo(
                    bundle=self._shadow.bundle,
                    share=self._shadow.share,
                    compared=counts.compared,
                    dropped=counts.dropped,
                    failed=counts.failed,
                    top1_disagreement=counts.disagreed / of,
                    kendall_tau=counts.tau / of,
                )
            )

    def _largest_request(self) -> int:
        """Bytes of the largest message that one of the bundles takes."""
        bundles = [status.bundle for status in self.repository.status()]
        return max(bundle.manifest.limits.max_request_bytes for bundle in bundles if bundle is not None)

    @property
    def _idle(self) -> bool:
        return self._admission.pending == 0 and len(self._admission.open) == 0


def _announce(record: dict[str, str]) -> None:
    """Print a line of JSON, if there is somewhere to print to: a full disk or a closed pipe stops no server."""
    if sys.stdout is not None:  # it is None where standard output is closed
        # Not by its buffer, which would be tried again, and fail, when the process ends.
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), f"{json.dumps(record)}\n".encode())


@contextlib.contextmanager
def _whole_turns() -> Iterator[None]:
    """Have neither this thread, nor those that are made in the block, interrupted by another that wakes.

    On a core that reads and works, calls are then read several at a time, and answers take a tenth less of it.
    """
    taken = False
    with contextlib.suppress(AttributeError, OSError):  # not on Linux, or not allowed
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            taken = True
    try:
        yield
    finally:
        if taken:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def serve(bundle: str | os.PathLike[str], config: ServeConfig | None = None, **changes: Any) -> None:
    """Serve one bundle or several until SIGTERM or SIGINT, then stop as `Server.stop` says. In the main thread only.

    Once it answers, one line of JSON on standard output tells the address:
    `{"event": "ready", "address": "127.0.0.1:50051", "bundle": "VERSION", "device": "cpu"}`, with
    `metrics`, the address of `/metrics`, if there is one. A second signal ends the process at once.
    The server's threads are of the scheduling policy SCHED_BATCH, unless the caller's is another than the usual one;
    the caller's is so only meanwhile. Raises what `Server` raises.
    """
    with _whole_turns():
        _serve(bundle, dataclasses.replace(config or ServeConfig(), **changes))


def _serve(bundle: str | os.PathLike[str], config: ServeConfig) -> None:
    tracing = start_watching(config)
    server = Server(bundle, config, tracing=tracing)
    face = http_face(server)
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.start()
        engine = server.engine
        if face is not None:
            face.start()
        ready = {"event": "ready", "address": server.address, "bundle": engine.version, "device": engine.device}
        if face is not None:
            ready["metrics"] = face.address
        logger.info("ready", extra={"address": server.address, "bundle": engine.version})
        _announce(ready)
        # The system may hand a signal to another thread; its handler runs once this one, the main thread, wakes.
        while not stop.wait(WAKE):
            pass
        server.stop(config.grace)
        if face is not None:
            face.close()
        if tracing is not None:
            tracing.close()
        logger.info("stopped")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
