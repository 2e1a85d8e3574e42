"""`gr2.v1.Reranker`: calls, their deadlines and their ends, and the status of each."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from time import perf_counter_ns
from typing import Any, NamedTuple

import grpc

from gr2._core import Call, ParsedRequest
from gr2.errors import Gr2Error, OverloadError, RequestError, UnservedError
from gr2.serving.access.arrivals import NoRoomError, Reader
from gr2.serving.access.calls import Admission, Patience, in_pool, only_message, time_to_answer
from gr2.serving.access.direct_call import DirectCall
from gr2.serving.access.load import LoadReport, Trailers
from gr2.serving.bundles.handle import Handle
from gr2.serving.bundles.repository import Repository
from gr2.serving.bundles.shadow import Shadow
from gr2.serving.engine import Engine
from gr2.serving.models.outcomes import Outcome, error_of
from gr2.serving.observing.endings import lost_code
from gr2.serving.services.replies import InCore, malformed, reply, reply_unranked
from gr2.v1 import reranker_pb2

__all__ = ["MESSAGE_WAIT", "METHOD", "SERVICE", "STATUS", "UNKNOWN_CLIENT", "Servicer"]

logger = logging.getLogger(__name__)

SERVICE: str = reranker_pb2.DESCRIPTOR.services_by_name["Reranker"].full_name
METHOD = f"/{SERVICE}/Rerank"

MESSAGE_WAIT = 10.0  # seconds from a call's arrival to the end of its message
REFUSALS = (Outcome.FULL, Outcome.LATE, Outcome.EXPIRED, Outcome.CANCELLED)
SHORT = 16384  # bytes of a request that is always looked at by the thread that serves all calls

# The first class that matches decides; anything else is a bug: INTERNAL, with the details in the server's log only.
STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnservedError, grpc.StatusCode.UNAVAILABLE),
    (CancelledError, grpc.StatusCode.DEADLINE_EXCEEDED),
)

UNKNOWN_CLIENT = (
    grpc.StatusCode.UNAUTHENTICATED,
    "a token of this server is needed: authorization: Bearer TOKEN",
)
# To word it takes time, which the thread that serves all calls has not.
INVALID = (
    grpc.StatusCode.INVALID_ARGUMENT,
    "the request breaks the rules; what is wrong is said when fewer requests are at work",
)


class Looked:
    """A request that the core has looked at, and the lease of the bundle that answers it."""

    __slots__ = ("_lease", "_started", "admitted", "call", "known")

    def __init__(self, lease: Handle, started: InCore, call: Call) -> None:
        self._lease, self._started, self.call = lease, started, call
        self.known, self.admitted = started.outcome == Outcome.FALLBACK, started.outcome is None

    def reply(self) -> bytes:
        """As `gr2.serving.services.replies.reply`, once."""
        with self._lease:
            return self._started.reply()

    def abandon(self) -> None:
        """In place of `reply`: nobody waits for it."""
        del self._started
        self._lease.release()


class Refused(NamedTuple):
    """The status of a request that the core has refused."""

    code: grpc.StatusCode
    details: str
    known: bool = True
    admitted: bool = False

    def abandon(self) -> None:
        """Nobody waits for it, and it holds nothing."""


class Servicer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers `Rerank` calls; add it to a grpc server as a generic handler.

    While `refusing`, calls that arrive get UNAVAILABLE; those that arrived before are answered.
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
        self.refusing = False
        # As streams of one message, which look the same on the wire: grpc waits for a unary call's message before it
        # calls the behavior, so that nothing of ours could end a call that never sends one.
        reader = Reader(admission, patience, MESSAGE_WAIT)
        rerank = functools.partial(self.rerank)  # has attributes, which a method has not
        self._answer = grpc.stream_unary_rpc_method_handler(in_pool(reader, rerank))
        self._refused: dict[int | None, Refused] = {
            outcome: Refused(*_ending(error_of(outcome, "", version="", bound=admission.bound))) for outcome in REFUSALS
        }
        # Of direct calls: hears of each that ends, and tells who may call, by the metadata.
        self.ended: Callable[[Callable[[], Any], int, str, bytes | None], None] = lambda *_: None
        self.admits: Callable[[Any], bool] = lambda _: True
        self._late = Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "the time of the request is over")
        self._stopping = (grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        self._refuse = self.refusal(*self._stopping)
        self._crowded = {
            reason: self.refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
            for reason in (admission.overload, admission.silence, admission.untaken)
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call that has just arrived; None for another service's."""
        if handler_call_details.method != METHOD:
            return None
        if self.refusing:
            return self._refuse
        return self._crowded.get(self.admission.crowded, self._answer)

    def turn_away(self, metadata: Any) -> tuple[grpc.StatusCode, str] | None:
        """The status of a direct call that is refused unread; None for others."""
        if not self.admits(metadata):
            return UNKNOWN_CLIENT
        if self.refusing:
            return self._stopping
        crowded = self.admission.crowded
        return (grpc.StatusCode.RESOURCE_EXHAUSTED, crowded) if crowded else None

    def look(self, data: bytes, seconds: float) -> Looked | Refused | None:
        """What the core says at once to a message whose call has `seconds` left; None if that is not for it to say.

        A long one is looked at only where no thread could do it.
        """
        request = ParsedRequest(data) if len(data) <= SHORT or self.admission.full else None
        if request is None or (name := request.bundle) is None:
            return None
        try:
            lease = self.repository.lease(name)
        except Gr2Error:
            return None
        engine = lease.engine
        if engine.native is None or len(data) > engine.bundle.manifest.limits.max_request_bytes:
            lease.release()
            return None
        call = Call()
        try:
            started = InCore(engine, engine.native, data, request, self.admission, call, seconds)
        except BaseException:
            lease.release()
            raise
        refused = self._refused.get(started.outcome)
        if refused is None:
            return Looked(lease, started, call)
        lease.release()
        return refused

    def rerank(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """One call: the serialised response, or a status from the table."""
        call = self._begin(context.add_callback, context.cancel)
        if call is None:
            context.abort(lost_code(context.time_remaining()), "the call has ended")
            raise AssertionError("abort raises")
        try:
            data = only_message(messages, context, self.patience, MESSAGE_WAIT)
            seconds = time_to_answer(context.time_remaining())
            make = functools.partial(self.answer, data, seconds, call)
        except NoRoomError as error:
            data, seconds = error.data, context.time_remaining()
            make = functools.partial(self.answer_unranked, data)
        start = perf_counter_ns()
        answer, trailers = self._answered(data, make)
        if not isinstance(answer, Refused) and perf_counter_ns() - start > 1e9 * seconds:
            answer = self._late
        self.admission.open.answered(call)
        context.set_trailing_metadata(trailers)
        if not isinstance(answer, Refused):
            return answer
        context.abort(answer.code, answer.details)
        raise AssertionError("abort raises")

    def end_without_room(self, begun: Looked | Refused | None, call: DirectCall) -> None:
        """End a direct call of which `look` has made that, and for which there is no thread."""
        if begun is not None:
            # Neither known nor let in.
            begun.abandon()
            return self._refuse_call(call, *INVALID)
        answer, trailers = self._answered(call.data, functools.partial(self.answer_unranked, call.data))
        if isinstance(answer, Refused):
            return call.refuse(answer.code, answer.details)
        self.admission.open.answered(self._begin(call.on_end, call.cancel))
        return call.answer(answer, trailers)

    def end(self, begun: Looked | Refused | None, call: DirectCall) -> None:
        """End a direct call of which `look` has made that."""
        if isinstance(begun, Refused):
            return self._refuse_call(call, begun.code, begun.details)
        place = self._begin(call.on_end, call.cancel, begun.call if begun is not None else None)
        if place is None:
            if begun is not None:
                begun.abandon()
            return call.refuse(grpc.StatusCode.CANCELLED, "the caller has gone")
        seconds = call.left
        reply = begun.reply if begun is not None else lambda: self.answer(call.data, seconds, place)
        answer, trailers = self._answered(call.data, reply)
        if not isinstance(answer, Refused) and call.late:
            answer = self._late
        self.admission.open.answered(place)
        if isinstance(answer, Refused):
            return call.refuse(answer.code, answer.details, trailers)
        return call.answer(answer, trailers)

    def _refuse_call(self, call: DirectCall, code: grpc.StatusCode, details: str) -> None:
        # Without the trailer, which answers have: the cheaper a refusal, the more is answered.
        self.load.add(perf_counter_ns() - call.came, failed=True)
        call.refuse(code, details)

    def _begin(
        self, on_end: Callable[[Callable[[], None]], bool], cancel: Callable[[], Any], call: Call | None = None
    ) -> Call | None:
        """The call's place in the admission, which it loses when it ends; None if it has ended."""
        call = call or Call()
        finished = functools.partial(self._finished, call)
        self.admission.open.begin(call, cancel)
        if on_end(finished):
            return call
        finished()
        return None

    def _answered(self, data: bytes, answer: Callable[[], bytes]) -> tuple[bytes | Refused, Trailers]:
        """What becomes of a request, and the trailing metadata of that."""
        arrived = perf_counter_ns()
        found: bytes | Refused
        try:
            found = answer()
            if self.shadow is not None:
                self.shadow.offer(data, found)
        except Exception as error:
            found = Refused(*_ending(error))
            if found.code is grpc.StatusCode.INTERNAL:
                logger.exception("a request failed")
                found = found._replace(details="internal error; the server's log has the details")
        return found, self.load.add(perf_counter_ns() - arrived, failed=isinstance(found, Refused))

    def answer(self, data: bytes, seconds: float | None = None, call: Call | None = None) -> bytes:
        """The serialised `RerankResponse` to a serialised `RerankRequest` that has `seconds` left.

        Raises what `Repository.lease` and `gr2.serving.services.replies.reply` do.
        """
        return self._by_engine(
            data, lambda engine, request: reply(engine, data, request, self.admission, call or Call(), seconds)
        )

    def answer_unranked(self, data: bytes) -> bytes:
        """As `answer`, to a request for which there is no room: the incoming order, if it asks for that."""
        return self._by_engine(data, lambda engine, request: reply_unranked(engine, data, request, self.admission))

    def _by_engine(self, data: bytes, answer: Callable[[Engine, ParsedRequest], bytes]) -> bytes:
        """The answer by the bundle that the request is for."""
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
            return answer(engine, request)

    def refusal(self, code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler:
        """The handler that ends a call with a status, whatever it sends."""

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            context.abort(code, details)
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(in_pool(self.admission.in_place, refuse))

    def _finished(self, call: Call) -> None:
        self.admission.core.cancel(call)
        self.admission.open.end(call)


def _ending(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and its details."""
    return next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL), str(error)
