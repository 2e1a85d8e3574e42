"""Request bytes to reply bytes with one bundle's engine: in the C++ core, or in Python.

Both give the same bytes, but for the timings. Python also words what is wrong with a request that the core refuses.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import CancelledError
from time import perf_counter_ns

import numpy as np
from google.protobuf.message import DecodeError

from gr2._core import Call, ParsedRequest, StartedRequest
from gr2.errors import Gr2Error, OverloadError, RequestError
from gr2.serving.access.calls import Admission
from gr2.serving.engine import Answer, Engine
from gr2.serving.models.native_model import NativeModel
from gr2.serving.models.outcomes import Outcome, error_of
from gr2.serving.ranking import Timings
from gr2.serving.request import Ids, Slate
from gr2.v1 import reranker_pb2

__all__ = ["InCore", "malformed", "reply", "reply_in_python", "reply_unranked"]

# Of requests that were let in.
FAILURES: dict[type[BaseException], Outcome] = {
    RequestError: Outcome.OVERFLOW,
    OverloadError: Outcome.FULL,
    CancelledError: Outcome.CANCELLED,
}


def malformed() -> RequestError:
    """What is wrong with bytes that are no message."""
    return RequestError("request", "the bytes are not a gr2.v1.RerankRequest")


def reply(
    engine: Engine, data: bytes, request: ParsedRequest, admission: Admission, call: Call, seconds: float | None
) -> bytes:
    """The serialised `RerankResponse` to `data`, a `RerankRequest` that is parsed as `request` and has `seconds` left.

    Raises what `Engine.rank` raises, OverloadError if the request cannot be answered in time, and CancelledError if its
    time is over, or if the admission was told that `call` is.
    """
    if engine.native is None:
        return reply_in_python(engine, data, admission, call, seconds)
    return InCore(engine, engine.native, data, request, admission, call, seconds).reply()


class InCore:
    """A request that the core has looked at, without waiting: it has asked for a worker, or its outcome is there."""

    def __init__(
        self,
        engine: Engine,
        native: NativeModel,
        data: bytes,
        request: ParsedRequest,
        admission: Admission,
        call: Call,
        seconds: float | None,
    ) -> None:
        self._engine, self._data, self._bound = engine, data, admission.bound
        self._found = native.start(request, admission.core, call, seconds, engine.times)

    @property
    def outcome(self) -> int | None:
        """The outcome, where it is there."""
        return None if isinstance(self._found, StartedRequest) else self._found[0]

    def reply(self) -> bytes:
        """What the function `reply` gives, once. Waits for the worker."""
        number, out = self._found.finish() if isinstance(self._found, StartedRequest) else self._found
        if number in (Outcome.ANSWERED, Outcome.FALLBACK):
            return out
        engine = self._engine
        if number == Outcome.INVALID:
            engine.rank(_check(engine, self._data)[1], perf_counter_ns())
            raise Gr2Error(f"bundle {engine.version}: the core refuses a request that keeps the rules")
        raise error_of(Outcome(number), out.decode(errors="replace"), version=engine.version, bound=self._bound)


def reply_in_python(engine: Engine, data: bytes, admission: Admission, call: Call, seconds: float | None) -> bytes:
    """What `reply` gives, by the official parser and serialiser and in Python between them."""
    start, core = perf_counter_ns(), admission.core
    try:
        request, slate = _check(engine, data)
    except RequestError:
        core.count(Outcome.INVALID)
        raise
    size = len(slate.candidates) + min(len(slate.history), engine.bundle.manifest.model.max_history)
    checked = perf_counter_ns()
    low = request.priority == reranker_pb2.PRIORITY_LOW
    refusal = core.enter(call, seconds=seconds, low=low, size=size, times=engine.times)
    begun = perf_counter_ns()
    if refusal is not None:
        if request.fallback and refusal in (Outcome.FULL, Outcome.LATE):
            core.count(Outcome.FALLBACK)
            return _fallback(request, slate, engine.version, start, begun - checked)
        core.count(refusal)
        raise error_of(Outcome(refusal), "", version=engine.version, bound=admission.bound)
    answer = _rank(engine, slate, begun, admission, call)
    response = _response(slate, answer)
    response.request_id = request.request_id
    response.bundle_version = engine.version
    end = perf_counter_ns()
    timings = dataclasses.replace(
        Timings.between(answer.stamps, end), parse_ns=checked - start, queue_ns=begun - checked, total_ns=end - start
    )
    _set_timings(response.timings, timings)
    core.count(Outcome.ANSWERED, [getattr(timings, name) for name in Timings.__slots__])
    return response.SerializeToString()


def reply_unranked(engine: Engine, data: bytes, request: ParsedRequest, admission: Admission) -> bytes:
    """What `reply` gives where there is no room for the request, for which the admission need not be asked.

    Raises OverloadError, unless the incoming order is asked for; then RequestError.
    """
    if not request.fallback:
        admission.core.count(Outcome.FULL)
        raise error_of(Outcome.FULL, "", version=engine.version, bound=admission.bound)
    start = perf_counter_ns()
    try:
        message, slate = _check(engine, data)
    except RequestError:
        admission.core.count(Outcome.INVALID)
        raise
    admission.core.count(Outcome.FALLBACK)
    return _fallback(message, slate, engine.version, start, 0)


def _rank(engine: Engine, slate: Slate, begun: int, admission: Admission, call: Call) -> Answer:
    """The answer of a request that was let in, and that is counted if there is none."""
    outcome = Outcome.FAILED
    try:
        answer = engine.rank(slate, begun, lambda: not call.cancelled)
        outcome = Outcome.ANSWERED
    except (RequestError, OverloadError, CancelledError) as error:
        outcome = FAILURES[type(error)]
        raise
    finally:
        admission.core.leave(call, done=outcome is Outcome.ANSWERED)
        if outcome is not Outcome.ANSWERED:
            admission.core.count(outcome)
    return answer


def _check(engine: Engine, data: bytes) -> tuple[reranker_pb2.RerankRequest, Slate]:
    """The message in `data` and what is to be ranked. Raises RequestError."""
    try:
        request = reranker_pb2.RerankRequest.FromString(data)
    except DecodeError as error:
        raise malformed() from error
    slate = engine.rules.check(
        _ids(request.history),
        _ids(request.candidates),
        scores=np.array(request.scores[:], dtype=np.float32),
        features=np.array(request.features[:], dtype=np.float32),
        top_n=request.top_n,
        request_id=request.request_id,
    )
    return request, slate


def _ids(message: reranker_pb2.ItemIds) -> Ids:
    return message.ints[:], message.strings[:]


def _response(slate: Slate, answer: Answer) -> reranker_pb2.RerankResponse:
    response = reranker_pb2.RerankResponse(unknown_history=answer.unknown_history)
    add, ids, scores, known = response.ranking.add, slate.candidates, answer.scores.tolist(), answer.known.tolist()
    key = _key(slate)
    status = (reranker_pb2.CANDIDATE_STATUS_UNKNOWN_ITEM, reranker_pb2.CANDIDATE_STATUS_SCORED)
    # Setting fields one by one takes half the time of keyword arguments.
    for index in answer.order.tolist():
        item = add()
        item.index = index
        setattr(item, key, ids[index])
        item.score = scores[index]
        item.status = status[known[index]]
    return response


def _fallback(request: reranker_pb2.RerankRequest, slate: Slate, version: str, start: int, waited: int) -> bytes:
    """The reply with the incoming order."""
    response = reranker_pb2.RerankResponse(request_id=request.request_id, bundle_version=version, fallback=True)
    key = _key(slate)
    for index, item in enumerate(slate.candidates[: slate.top_n]):
        response.ranking.add(index=index, status=reranker_pb2.CANDIDATE_STATUS_NOT_RANKED, **{key: item})
    response.timings.queue_ns = waited
    response.timings.total_ns = perf_counter_ns() - start
    return response.SerializeToString()


def _key(slate: Slate) -> str:
    return "string_id" if isinstance(slate.candidates[0], str) else "int_id"


def _set_timings(message: reranker_pb2.Timings, timings: Timings) -> None:
    for name in Timings.__slots__:
        setattr(message, name, getattr(timings, name))
