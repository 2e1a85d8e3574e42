"""Calls whose message is read before they take a thread.

grpc's synchronous server hands a call to a pool once its headers have come, and the pool's thread waits for the
message. Here the thread that grpc serves from asks for it: a call that finds no room takes no thread, and silent calls
hold none. That takes functions which grpc keeps to itself; where they are not as they were, calls are read by the
threads that answer them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gr2.errors import OverloadError
from gr2.serving.access.calls import DONE, Admission, Patience

try:
    from grpc._cython.cygrpc import ReceiveMessageOperation
    from grpc._server import _RECEIVE_MESSAGE_TOKEN, _receive_message, _unary_response_in_pool
except ImportError:  # another version of grpc
    _unary_response_in_pool = None

__all__ = ["Message", "NoRoomError", "Reader"]

# What grpc submits: the function, the call's event and state, the behavior, its argument, and two (de)serialisers.
SUBMITTED = 7
NO_FLAGS = 0


class NoRoomError(OverloadError):
    """There is no thread for a call, whose message is `data`."""

    def __init__(self, reason: str, data: bytes) -> None:
        super().__init__(reason)
        self.data = data


class Message:
    """The messages of a call that has been read: one, or none. Iterating raises `refusal`, if there is one.

    `came` is when the message was there, by `perf_counter_ns`.
    """

    __slots__ = ("_data", "_refusal", "came")

    def __init__(self, came: int, data: bytes | None, refusal: NoRoomError | None = None) -> None:
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

    A call that finds no room in the pool is ended in the thread that grpc serves from.
    """

    def __init__(self, admission: Admission, patience: Patience, wait: float) -> None:
        super().__init__(1)
        self._admission, self._patience, self._wait = admission, patience, wait

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
            message, pool = self._choose(data)
            try:
                pool.submit(fn, work, event, state, behavior, lambda: message, *coders)
            except RuntimeError:  # the pool takes no more: the server stops
                event.call.cancel()
            # Last: between the two a call would look as if it were not there.
            self._admission.unread -= 1
            return ended

        self._admission.unread += 1
        waiting.__enter__()
        event.call.start_server_batch((ReceiveMessageOperation(NO_FLAGS),), arrived)
        state.due.add(_RECEIVE_MESSAGE_TOKEN)
        return DONE

    def _choose(self, data: bytes | None) -> tuple[Message, ThreadPoolExecutor]:
        """What the call finds in place of its messages, and where it runs."""
        came = time.perf_counter_ns()
        if data is None:
            return Message(came, None), self._admission.in_place
        if self._admission.full:
            return Message(came, None, NoRoomError(self._admission.overload, data)), self._admission.in_place
        return Message(came, data), self._admission.pool
