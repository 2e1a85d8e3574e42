"""`gr2.v1.Reranker`: calls, their deadlines and their ends, and the status of each."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from time import perf_counter_ns

import grpc

from gr2._core import Call, ParsedRequest
from gr2.errors import Gr2Error, OverloadError, RequestError, UnservedError
from gr2.serving.access.calls import Admission, Patience, in_pool, only_message
from gr2.serving.access.load import LoadReport
from gr2.serving.bundles.repository import Repository
from gr2.serving.bundles.shadow import Shadow
from gr2.serving.models.outcomes import Outcome
from gr2.serving.services.replies import malformed, reply
from gr2.v1 import reranker_pb2

__all__ = ["METHOD", "SERVICE", "STATUS", "Servicer"]

logger = logging.getLogger(__name__)

SERVICE: str = reranker_pb2.DESCRIPTOR.services_by_name["Reranker"].full_name
METHOD = f"/{SERVICE}/Rerank"

MESSAGE_WAIT = 10.0  # seconds from a call's arrival to the end of its message

# The first class that matches decides; anything else is a bug: INTERNAL, with the details in the server's log only.
STATUS: tuple[tuple[type[Gr2Error], grpc.StatusCode], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnservedError, grpc.StatusCode.UNAVAILABLE),
)


class Servicer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers `Rerank` calls; add it to a grpc server as a generic handler.

    `active` is the number of calls begun whose answer has not left yet. While `refusing`, calls that arrive get
    UNAVAILABLE; those that arrived before are answered.
    """

    def __init__(
        self,
        repository: Repository,
        admission: Admission,
        patience: Patience,
        load: LoadReport,
        shadow: Shadow | None = None,
    ) -> None:
        self.repository = repository
        self.admission = admission
        self.patience = patience
        self.load, self.shadow = load, shadow
        self.active = 0
        self.refusing = False
        self._lock = threading.Lock()
        # As streams of one message, which look the same on the wire: grpc waits for a unary call's message before it
        # calls the behavior, so that nothing of ours could end a call that never sends one.
        self._answer = grpc.stream_unary_rpc_method_handler(self.rerank)
        self._refuse = self.refusal(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        full = OverloadError(f"{admission.bound} requests are at work or wait already")
        self._overloaded = self.refusal(_status(full), str(full))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call that has just arrived; None for another service's."""
        if handler_call_details.method != METHOD:
            return None
        if self.refusing:
            return self._refuse
        return self._overloaded if self.admission.full else self._answer

    def rerank(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """One call: the serialised response, or a status from the table."""
        with self._lock:
            self.active += 1
        call = Call()
        if not context.add_callback(functools.partial(self._finished, call)):
            self._finished(call)
            context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
        data = only_message(messages, context, self.patience, MESSAGE_WAIT)
        arrived = perf_counter_ns()
        failed = True
        try:
            out = self.answer(data, context.time_remaining(), call)
            failed = False
            if self.shadow is not None:
                self.shadow.offer(data, out)
            return out
        except CancelledError as error:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, str(error)
        except Exception as error:
            code, details = _status(error), str(error)
            if code is grpc.StatusCode.INTERNAL:
                logger.exception("a request failed")
                details = "internal error; the server's log has the details"
        finally:
            context.set_trailing_metadata(self.load.add(perf_counter_ns() - arrived, failed=failed))
        context.abort(code, details)
        raise AssertionError("abort raises")

    def answer(self, data: bytes, seconds: float | None = None, call: Call | None = None) -> bytes:
        """The serialised `RerankResponse` to a serialised `RerankRequest` that has `seconds` left.

        Raises what `Repository.lease` and `gr2.serving.services.replies.reply` do.
        """
        request = ParsedRequest(data)
        name = request.bundle
        if name is None:
            self.admission.core.count(Outcome.INVALID)
            raise malformed()
        with self.repository.lease(name) as engine:
            most = engine.bundle.manifest.limits.max_request_bytes
            if len(data) > most:
                self.admission.core.count(Outcome.INVALID)
                raise RequestError("request", f"at most {most} bytes for this bundle, got {len(data)}")
            return reply(engine, data, request, self.admission, call or Call(), seconds)

    def refusal(self, code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler:
        """The handler that ends a call with a status, whatever it sends."""

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            context.abort(code, details)
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(in_pool(self.admission.refusals, refuse))

    def _finished(self, call: Call) -> None:
        self.admission.core.cancel(call)
        with self._lock:
            self.active -= 1


def _status(error: Exception) -> grpc.StatusCode:
    return next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
