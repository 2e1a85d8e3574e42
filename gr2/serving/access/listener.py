"""Calls of the small services, whose first message is read before they take a thread.

As in `gr2.serving.access.arrivals`: silent calls hold no thread, and where grpc's functions are not as they were, calls
are read by the threads that answer them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from gr2.serving.access.calls import DONE, CallPool, InPlace, Patience, messages_of, only_message

try:
    from grpc._cython.cygrpc import ReceiveMessageOperation
    from grpc._server import (
        _RECEIVE_MESSAGE_TOKEN,
        _receive_message,
        _stream_response_in_pool,
        _unary_response_in_pool,
    )

    ANSWERED_BY: tuple[Any, ...] = (_unary_response_in_pool, _stream_response_in_pool)
except ImportError:  # another version of grpc
    ANSWERED_BY = ()

__all__ = ["Listener"]

MOST = 256
# What grpc submits: the function, the call's event and state, the behavior, its argument, and two (de)serialisers.
SUBMITTED = 7
NO_FLAGS = 0

T = TypeVar("T")


class Listener(ThreadPoolExecutor):
    """Runs calls in `threads` threads once their first message has come, for which each has `wait` seconds.

    Of more than `most` calls without a message, the oldest is cancelled: a caller that has something to say does so
    long before. A call that comes while `most` others are at work or wait is refused with RESOURCE_EXHAUSTED.
    """

    def __init__(self, threads: int, name: str, patience: Patience, wait: float, *, most: int = MOST) -> None:
        super().__init__(1)
        self.pool = CallPool(threads, name)
        self._at_once, self._patience, self._wait, self._most = threads, patience, wait, most
        self._in_place = InPlace()
        self._full = f"{most} calls of this service are at work or wait already"
        # Oldest first. Only the thread that grpc serves from comes and goes here.
        self._unread: dict[Any, None] = {}

    @property
    def unread(self) -> int:
        """Calls that have sent no message yet, but for those that were cancelled."""
        return len(self._unread)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call once its first message has come."""
        if len(args) != SUBMITTED or args[0] not in ANSWERED_BY:
            return self.pool.submit(fn, *args, **kwargs)
        work, event, state, behavior, rest, *coders = args
        received = _receive_message(state, event.call, coders[0])
        waiting = self._patience.waiting(event.call, self._wait)

        def arrived(operations: Any) -> Any:
            waiting.__exit__()
            self._unread.pop(event.call, None)
            ended = received(operations)
            message, state.request = state.request, None
            if not state.statused:  # with a message that could not be parsed
                pool, chosen, messages = self._choose(behavior, message, rest)
                try:
                    pool.submit(fn, work, event, state, chosen, lambda: messages, *coders)
                except RuntimeError:  # the pool takes no more: the server stops
                    event.call.cancel()
            return ended

        self._make_room()
        self._unread[event.call] = None
        waiting.__enter__()
        event.call.start_server_batch((ReceiveMessageOperation(NO_FLAGS),), arrived)
        state.due.add(_RECEIVE_MESSAGE_TOKEN)
        return DONE

    def only_message(self, messages: Iterator[T], context: grpc.ServicerContext) -> T:
        """As `gr2.serving.access.calls.only_message`, of a call that runs here."""
        return only_message(messages, context, self._patience, self._wait, self._pressed)

    def messages_of(self, messages: Iterator[T], context: grpc.ServicerContext) -> Iterator[T]:
        """As `gr2.serving.access.calls.messages_of`, of a call that runs here."""
        return messages_of(messages, context, self._patience, self._wait, self._pressed)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once their calls are done."""
        self.pool.shutdown(wait, cancel_futures=cancel_futures)
        super().shutdown(wait)

    def _pressed(self) -> bool:
        """Whether others wait for a thread."""
        return self.pool.pending > self._at_once

    def _make_room(self) -> None:
        if len(self._unread) >= self._most:
            oldest = next(iter(self._unread))
            del self._unread[oldest]
            oldest.cancel()

    def _choose(
        self, behavior: Callable[..., Any], message: Any, rest: Callable[[], Iterator[Any]]
    ) -> tuple[ThreadPoolExecutor, Callable[..., Any], Iterator[Any]]:
        """Where a call runs, what answers it, and its messages; `rest` gives those after the first."""
        if message is None:
            return self._in_place, behavior, iter(())
        if self.pool.pending >= self._most:
            return self._in_place, self._refuse, iter(())
        return self.pool, behavior, itertools.chain((message,), rest())

    def _refuse(self, _: Iterator[Any], context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self._full)
