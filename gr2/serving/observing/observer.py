"""What is seen of calls from outside: how many ended how, after how long, and their spans in the caller's trace."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from gr2.serving.observing.endings import lost_code
from gr2.serving.observing.histogram import Recorder

if TYPE_CHECKING:
    from gr2.serving.observing.tracing import Tracing

__all__ = ["Observer"]

logger = logging.getLogger(__name__)


class Observer(grpc.ServerInterceptor):  # type: ignore[misc]
    """Sees the calls of `methods`, the first of which answers with a `RerankResponse`.

    `codes` counts their statuses, `durations` the time of those answered.

    A call lasts from when its message has come until its answer is handed to grpc. Costs some
    microseconds a call; spans are made only for callers whose trace is sampled.
    """

    def __init__(self, methods: Sequence[str], tracing: Tracing | None = None) -> None:
        self.methods = methods
        self._failures: Counter[str] = Counter()
        self.durations = Recorder()
        self._tracing = tracing
        self._lock = threading.Lock()
        # A server has a handful of handlers, and returns the same ones again.
        self._watched: dict[int, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]] = {}

    @property
    def codes(self) -> dict[str, int]:
        """Status to the calls that ended with it; OK is always there."""
        with self._lock:
            return {"OK": self.durations.read().total, **self._failures}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The handler that the server has, watched."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method not in self.methods:
            return handler
        known = self._watched.get(id(handler))
        if known is None:
            known = self._watched[id(handler)] = (handler, self._watch(handler, handler_call_details.method))
        return known[1]

    def _watch(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        inner = handler.stream_unary or handler.unary_unary
        make = grpc.stream_unary_rpc_method_handler if handler.stream_unary else grpc.unary_unary_rpc_method_handler

        def watched(messages: Iterator[bytes] | bytes, context: grpc.ServicerContext) -> Any:
            # A message that was read ahead tells when it came.
            start = getattr(messages, "came", None) or time.perf_counter_ns()
            reply = None
            try:
                reply = inner(messages, context)
            finally:
                self.ended(method, context.invocation_metadata, start, _code(context, reply), reply)
            return reply

        if (pool := getattr(inner, "experimental_thread_pool", None)) is not None:
            watched.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return make(watched, handler.request_deserializer, handler.response_serializer)

    def ended(self, method: str, metadata: Callable[[], Any], start: int, code: str, reply: bytes | None) -> None:
        """A call that began at `start`, by `perf_counter_ns`, has ended; it has a reply if the code is OK."""
        duration = time.perf_counter_ns() - start
        if reply is not None:
            self.durations.add(duration)
        else:
            with self._lock:
                self._failures[code] += 1
        if self._tracing is None:
            return
        try:
            self._tracing.record(method, metadata(), code, duration, reply if method == self.methods[0] else None)
        except Exception:
            # The call has its answer all the same.
            logger.exception("a call could not be traced")


def _code(context: grpc.ServicerContext, reply: Any) -> str:
    if reply is not None:
        return "OK"
    code = context.code()
    if code is None:
        return "UNKNOWN" if context.is_active() else lost_code(context.time_remaining()).name
    return str(code.name)
