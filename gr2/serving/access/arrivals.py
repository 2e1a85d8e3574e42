"""Calls whose message is read before they take a thread.

grpc's synchronous server hands a call to a pool once its headers have come, and the pool's thread waits for the
message. Here the thread that grpc serves from asks for the message, and looks at it as it comes: a call that is refused
takes no thread and no switch between threads, and silent calls hold none. A call that was looked at is ended by its
`Caller`, without the context and the checks that grpc puts around handlers. That takes functions which grpc keeps to
itself; where they are not as they were, calls are read by the threads that answer them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import grpc

from gr2.errors import OverloadError
from gr2.serving.access.calls import DONE, Admission, Patience
from gr2.serving.access.load import Trailers

try:
    from grpc._cython.cygrpc import ReceiveMessageOperation
    from grpc._cython.cygrpc import StatusCode as CoreCode
    from grpc._server import _RECEIVE_MESSAGE_TOKEN, _abort, _receive_message, _status, _unary_response_in_pool
except ImportError:  # another version of grpc
    _unary_response_in_pool = None

__all__ = ["Begun", "Caller", "Message", "Reader"]

logger = logging.getLogger(__name__)

# What grpc submits: the function, the call's event and state, the behavior, its argument, and two (de)serialisers.
SUBMITTED = 7
NO_FLAGS = 0


class Begun(Protocol):
    """What was made of a message on its arrival."""

    @property
    def known(self) -> bool:
        """Whether it may be told in the thread that grpc serves from."""

    def abandon(self) -> None:
        """Nobody waits for the answer."""


class Caller:
    """Who waits for the end of a call whose message was looked at. It is told once: the answer, or a status.

    `came` is when the message `data` was there, by `perf_counter_ns`, and `seconds` what the call had left then.
    """

    __slots__ = ("_ended", "_event", "_state", "came", "data", "seconds")

    def __init__(
        self, event: Any, state: Any, behavior: Callable[..., Any], came: int, data: bytes, seconds: float
    ) -> None:
        self._event, self._state, self.came, self.data, self.seconds = event, state, came, data, seconds
        # Of a behavior that an interceptor watches.
        self._ended = getattr(behavior, "ended", None)

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.perf_counter_ns() - self.came > 1e9 * self.seconds

    def on_end(self, tell: Callable[[], None]) -> bool:
        """Have it told that the call is over, whatever ended it; False if it is over already."""
        with self._state.condition:
            if self._state.callbacks is None:
                return False
            self._state.callbacks.append(tell)
        return True

    def answer(self, reply: bytes, trailers: Trailers) -> None:
        """Send the message and the status OK."""
        self._state.trailing_metadata = trailers
        _status(self._event, self._state, reply)
        self._watch("OK", reply)

    def refuse(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        """Send a status other than OK."""
        state = self._state
        with state.condition:
            state.code, state.details, state.trailing_metadata = code, details.encode(), trailers
            _abort(state, self._event.call, CoreCode.unknown, b"")
        self._watch(code.name, None)

    def cancel(self) -> None:
        """End the call without a status of ours."""
        self._event.call.cancel()

    def _watch(self, code: str, reply: bytes | None) -> None:
        if self._ended is not None:
            self._ended(lambda: self._event.invocation_metadata, self.came, code, reply)


class Message:
    """The messages of a call that has been read: one, or none. Iterating raises `refusal`, if there is one.

    `came` is when the message was there, by `perf_counter_ns`.
    """

    __slots__ = ("_data", "_refusal", "came")

    def __init__(self, came: int, data: bytes | None, refusal: OverloadError | None = None) -> None:
        self.came, self._data, self._refusal = came, data, refusal

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._refusal is not None:
            raise self._refusal
        data, self._data = self._data, None
        if data is None:
            raise StopIteration
        return data


class Reader(ThreadPoolExecutor):
    """Reads the messages of calls, each for at most `wait` seconds, and runs the calls in the admission's pool.

    `look` is what to make of a message that comes, with the seconds that its call has left; None where that would take
    time. `end` ends a call of which something was made. A call whose end is known then, or that finds no room in the
    pool, is ended in the thread that grpc serves from. `look` may not wait, nor may `end` there.
    """

    def __init__(
        self,
        admission: Admission,
        patience: Patience,
        wait: float,
        look: Callable[[bytes, float], Begun | None] = lambda _, __: None,
        end: Callable[[Any, Caller], None] = lambda _, __: None,
    ) -> None:
        super().__init__(1)
        self._admission, self._patience, self._wait, self._look, self._end = admission, patience, wait, look, end

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call once its message has come."""
        if _unary_response_in_pool is None or len(args) != SUBMITTED or args[0] is not _unary_response_in_pool:
            self._admission.by_threads = True
            return self._admission.pool.submit(fn, *args, **kwargs)
        work, event, state, behavior, _, *coders = args
        received = _receive_message(state, event.call, None)
        waiting = self._patience.waiting(event.call, self._wait)

        def arrived(operations: Any) -> Any:
            waiting.__exit__()
            ended = received(operations)
            data, state.request = state.request, None
            came = time.perf_counter_ns()
            seconds = max(0.0, event.call_details.deadline - time.time())
            begun = None if data is None else self._look_at(data, seconds)
            pool: ThreadPoolExecutor
            try:
                if begun is not None:
                    pool = self._admission.in_place if begun.known else self._admission.pool
                    pool.submit(self._finish, begun, Caller(event, state, behavior, came, data, seconds))
                else:
                    message, pool = self._choose(came, data)
                    pool.submit(fn, work, event, state, behavior, lambda: message, *coders)
            except RuntimeError:  # the pool takes no more: the server stops
                event.call.cancel()
                if begun is not None:
                    begun.abandon()
            # Last: between the two a call would look as if it were not there.
            self._admission.unread -= 1
            return ended

        self._admission.unread += 1
        waiting.__enter__()
        event.call.start_server_batch((ReceiveMessageOperation(NO_FLAGS),), arrived)
        state.due.add(_RECEIVE_MESSAGE_TOKEN)
        return DONE

    def without_look(self) -> Reader:
        """One that leaves what to make of messages to the calls' threads."""
        return Reader(self._admission, self._patience, self._wait)

    def _finish(self, begun: Begun, caller: Caller) -> None:
        try:
            self._end(begun, caller)
        except Exception:
            logger.exception("a call could not be ended")
            caller.cancel()

    def _look_at(self, data: bytes, seconds: float) -> Begun | None:
        try:
            return self._look(data, seconds)
        except Exception:
            # The call's own thread will find the same, and end the call; this one serves all of them.
            logger.exception("a request could not be looked at")
            return None

    def _choose(self, came: int, data: bytes | None) -> tuple[Message, ThreadPoolExecutor]:
        """What a call that is to be looked at elsewhere finds in place of its messages, and where it runs."""
        if data is None:
            return Message(came, None), self._admission.in_place
        if self._admission.full:
            return Message(came, data, OverloadError(self._admission.overload)), self._admission.in_place
        return Message(came, data), self._admission.pool
