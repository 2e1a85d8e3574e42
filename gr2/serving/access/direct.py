"""Calls of one method, from their arrival to their end, without what grpc's synchronous server builds for each.

The thread that grpc serves from asks for a call's message, and looks at it as it comes: a call that is refused takes no
thread and a third of the processor time, and silent calls hold none. That takes what grpc keeps to itself: the method
is registered with its core, and calls of it are asked for with a tag of ours, which the serving thread runs. Where that
is not as it was, there are no direct calls, and the method's handler answers.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from gr2.serving.access.calls import Admission, NoThreadError, Patience, PoolClosedError, time_to_answer
from gr2.serving.access.direct_call import GOES_ON, DirectCall, Told

try:
    from grpc._cython import cygrpc
    from grpc._server import _ServerStage, _stop_serving

    PRIVATE = all(hasattr(cygrpc.Server, name) for name in ("register_method", "request_registered_call")) and callable(
        _stop_serving
    )
except ImportError:  # another version of grpc
    PRIVATE = False

__all__ = ["Answerer", "Begun", "DirectCalls", "direct_calls"]

logger = logging.getLogger(__name__)

# Of the state of grpc's server.
FIELDS = ("completion_queue", "due", "lock", "rpc_states", "server", "stage")


class Begun(Protocol):
    """What was made of a message on its arrival."""

    @property
    def known(self) -> bool:
        """Whether it may be told in the thread that grpc serves from."""

    @property
    def admitted(self) -> bool:
        """Whether the core has let it in, so that there is a thread for it."""

    def abandon(self) -> None:
        """Nobody waits for the answer."""


class Answerer(Protocol):
    """What becomes of calls. Only `end` may wait, unless what was begun is known; the rest runs in grpc's thread."""

    def turn_away(self, metadata: Any) -> tuple[grpc.StatusCode, str] | None:
        """The status of a call whose message need not be read; None for others."""

    def look(self, data: bytes, seconds: float) -> Begun | None:
        """What is made of a message whose call has `seconds` left; None where that would take time."""

    def end_without_room(self, begun: Any, call: DirectCall) -> None:
        """Answer or refuse a call of which that was made, and for which there is no room."""

    def end(self, begun: Any, call: DirectCall) -> None:
        """Answer or refuse a call of which that was made."""

    def ended(self, metadata: Callable[[], Any], start: int, code: str, reply: bytes | None) -> None:
        """Hears of each call that was answered or refused; `start` is when its message was there."""


class DirectCalls:
    """Answers the calls of a method, which `direct_calls` has registered, in the pool of the admission.

    A message has `wait` seconds to come.
    """

    def __init__(
        self, state: Any, method: str, admission: Admission, patience: Patience, wait: float, answerer: Answerer
    ) -> None:
        self._state, self._method, self._answerer = state, method, answerer
        self._admission, self._patience, self._wait = admission, patience, wait

    def start(self) -> None:
        """Ask for the first call, once the server has started."""
        with self._state.lock:
            self._ask()

    def _ask(self) -> None:
        state = self._state
        queue = state.completion_queue
        state.server.request_registered_call(queue, queue, self._method, self._arrived)
        state.due.add(self._arrived)

    def _arrived(self, event: Any) -> Told:
        """A call is there, or the server stops."""
        state = self._state
        call = DirectCall(event, self._answerer.ended)
        with state.lock:
            state.due.remove(self._arrived)
            state.rpc_states.add(call)
            if state.stage is _ServerStage.STARTED:
                self._ask()
        if not event.success:
            return call, ()
        try:
            status = self._answerer.turn_away(event.invocation_metadata)
            if status is None:
                self._read(call, event)
                return GOES_ON
            self._admission.in_place.taken += 1
            call.refuse(*status)
        except Exception:
            self._give_up(call)
        return call.next()

    def _read(self, call: DirectCall, event: Any) -> None:
        self._admission.unread += 1
        waiting = self._patience.waiting(event.call, self._wait)
        waiting.__enter__()
        told = functools.partial(self._message, call, waiting, event.call_details.deadline)
        try:
            call.read(told)
        except Exception:
            waiting.__exit__()
            self._admission.unread -= 1
            raise

    def _message(self, call: DirectCall, waiting: Any, deadline: float, event: Any) -> Told:
        """The message is there, or there is none."""
        waiting.__exit__()
        call.came = time.perf_counter_ns()
        try:
            data = event.batch_operations[0].message()
            call.given = max(0.0, deadline - time.time())
            call.seconds = time_to_answer(call.given)
            if data is None:
                self._admission.in_place.taken += 1
                call.refuse_empty()
            else:
                call.data = data
                self._place(call)
        except PoolClosedError:  # the server stops
            call.cancel()
        except NoThreadError as error:
            self._refuse(call, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except Exception:
            self._give_up(call)
        # Last: between the two a call would look as if it were not there.
        self._admission.unread -= 1
        return call.next()

    def _place(self, call: DirectCall) -> None:
        """End the call here, if that is done at once, or in the pool."""
        admission = self._admission
        begun = self._look(call)
        if begun is not None and begun.known:
            admission.in_place.submit(self._end, begun, call)
        elif admission.full and not (begun is not None and begun.admitted):
            admission.in_place.submit(self._answerer.end_without_room, begun, call)
        else:
            try:
                call.watch()
                admission.pool.run(self._end, begun, call)
            except Exception:
                if begun is not None:
                    begun.abandon()
                raise

    def _look(self, call: DirectCall) -> Begun | None:
        try:
            return self._answerer.look(call.data, call.seconds)
        except Exception:
            # Its own thread will find the same, and end the call; this one serves all of them.
            logger.exception("a request could not be looked at")
            return None

    def _end(self, begun: Begun | None, call: DirectCall) -> None:
        try:
            self._answerer.end(begun, call)
        except Exception:
            self._give_up(call)

    def _give_up(self, call: DirectCall) -> None:
        logger.exception("a call could not be ended")
        self._refuse(call, grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")

    def _refuse(self, call: DirectCall, code: grpc.StatusCode, details: str) -> None:
        try:
            call.refuse(code, details)
        except Exception:
            # The thread may be the one that serves all calls.
            logger.exception("a call could not be refused")
            call.drop()


def direct_calls(
    server: grpc.Server, method: str, admission: Admission, patience: Patience, *, wait: float, answerer: Answerer
) -> DirectCalls | None:
    """The calls of `method` of a server that has not started; None if this version of grpc does not hand them over."""
    state, core = getattr(server, "_state", None), getattr(server, "_cy_server", None)
    if not PRIVATE or core is None or not all(hasattr(state, name) for name in FIELDS):
        return None
    core.register_method(method)
    return DirectCalls(state, method, admission, patience, wait, answerer)
