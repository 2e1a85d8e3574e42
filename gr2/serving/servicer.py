"""`gr2.v1.Reranker`: request bytes to response bytes through the engine.

The handler parses and serialises itself, so that both are timed, and bytes that are no request get a clear answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from time import perf_counter_ns

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from gr2.errors import Gr2Error, OverloadError, RequestError, UnservedError
from gr2.serving.calls import Admission, Patience, in_pool, only_message
from gr2.serving.engine import Answer
from gr2.serving.load import LoadReport
from gr2.serving.phases import PhaseRecorder
from gr2.serving.ranking import Timings
from gr2.serving.repository import Repository
from gr2.serving.request import Ids, Slate
from gr2.serving.shadow import Shadow
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
        self.phases = PhaseRecorder()
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
        arrived = perf_counter_ns()
        with self._lock:
            self.active += 1
        if not context.add_callback(self._finished):
            self._finished()
            context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
        data = only_message(messages, context, self.patience, MESSAGE_WAIT)
        arrived = perf_counter_ns()
        if not self.admission.acquire(context):
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call ended while the request waited")
        failed = True
        self.phases.waited(perf_counter_ns() - arrived)
        try:
            reply = self.answer(data, context.is_active)
            failed = False
            if self.shadow is not None:
                self.shadow.offer(data, reply)
            return reply
        except CancelledError:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "the call ended while the request waited"
        except Exception as error:
            code, details = _status(error), str(error)
            if code is grpc.StatusCode.INTERNAL:
                logger.exception("a request failed")
                details = "internal error; the server's log has the details"
        finally:
            self.admission.release()
            context.set_trailing_metadata(self.load.add(perf_counter_ns() - arrived, failed=failed))
        context.abort(code, details)
        raise AssertionError("abort raises")

    def answer(self, data: bytes, wanted: Callable[[], bool] | None = None) -> bytes:
        """The serialised `RerankResponse` to a serialised `RerankRequest`.

        Raises what `Repository.lease` and `Engine.rank` raise.
        """
        start = perf_counter_ns()
        try:
            request = reranker_pb2.RerankRequest.FromString(data)
        except DecodeError as error:
            raise RequestError("request", "the bytes are not a gr2.v1.RerankRequest") from error
        with self.repository.lease(request.bundle) as engine:
            most = engine.bundle.manifest.limits.max_request_bytes
            if len(data) > most:
                raise RequestError("request", f"at most {most} bytes for this bundle, got {len(data)}")
            slate = engine.rules.check(
                _ids(request.history),
                _ids(request.candidates),
                scores=np.array(request.scores[:], dtype=np.float32),
                features=np.array(request.features[:], dtype=np.float32),
                top_n=request.top_n,
                request_id=request.request_id,
            )
            answer = engine.rank(slate, start, wanted)
            version = engine.version
        response = _response(slate, answer)
        response.request_id = request.request_id
        response.bundle_version = version
        timings = Timings.between(answer.stamps, perf_counter_ns())
        self.phases.add(timings)
        _set_timings(response.timings, timings)
        return response.SerializeToString()

    def refusal(self, code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler:
        """The handler that ends a call with a status, whatever it sends."""

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            context.abort(code, details)
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(in_pool(self.admission.refusals, refuse))

    def _finished(self) -> None:
        with self._lock:
            self.active -= 1


def _status(error: Exception) -> grpc.StatusCode:
    return next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def _ids(message: reranker_pb2.ItemIds) -> Ids:
    return message.ints[:], message.strings[:]


def _response(slate: Slate, answer: Answer) -> reranker_pb2.RerankResponse:
    response = reranker_pb2.RerankResponse(unknown_history=answer.unknown_history)
    add, ids, scores, known = response.ranking.add, slate.candidates, answer.scores.tolist(), answer.known.tolist()
    key = "string_id" if isinstance(ids[0], str) else "int_id"
    status = (reranker_pb2.CANDIDATE_STATUS_UNKNOWN_ITEM, reranker_pb2.CANDIDATE_STATUS_SCORED)
    # Setting fields one by one takes half the time of keyword arguments.
    for index in answer.order.tolist():
        item = add()
        item.index = index
        setattr(item, key, ids[index])
        item.score = scores[index]
        item.status = status[known[index]]
    return response


def _set_timings(message: reranker_pb2.Timings, timings: Timings) -> None:
    for name in Timings.__slots__:
        setattr(message, name, getattr(timings, name))
