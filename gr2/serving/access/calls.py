"""What keeps one caller from holding up the others: pools apart, a bound on the work, and an end to silence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import grpc

from gr2._core import Admission as CoreAdmission
from gr2.serving.access.open_calls import OpenCalls
from gr2.serving.observing.endings import lost_code

__all__ = [
    "DONE",
    "EMPTY",
    "Admission",
    "CallPool",
    "InPlace",
    "NoThreadError",
    "Patience",
    "PoolClosedError",
    "in_pool",
    "messages_of",
    "only_message",
    "time_to_answer",
]

logger = logging.getLogger(__name__)

PRESSED = 0.5  # seconds
SPARE = 4
MOST_UNREAD = 1024
WAY_BACK = 0.005  # seconds
SWEEP = 0.25  # seconds between two looks at silent calls
DONE: Future[Any] = Future()
DONE.set_result(None)
EMPTY = grpc.StatusCode.UNIMPLEMENTED, "exactly one request message is needed, uncompressed"

Pressed = Callable[[], bool]
"""Whether others are refused, or wait, for want of room."""
Limits = tuple[float, Pressed | None]
"""Seconds that a call may be silent, and what presses it."""

T = TypeVar("T")
Behavior = TypeVar("Behavior", bound=Callable[..., Any])


class PoolClosedError(RuntimeError):
    """A pool takes no more calls."""


class NoThreadError(RuntimeError):
    """The system gives a pool no thread for a call, and those that it has are busy."""


class CallPool(ThreadPoolExecutor):
    """A thread pool that knows how many calls it has taken, and how many of them are queued or running."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=f"gr2-{name}")
        self.taken = self.pending = 0
        self._lock = threading.Lock()
        self._most, self._name = threads, name
        # Of `run`: threads beside those of `submit`.
        self._runs: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = SimpleQueue()
        self._runners: list[threading.Thread] = []
        self._running, self._closed = 0, False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call, counted until it is done."""
        with self._lock:
            self.taken += 1
            self.pending += 1
        return super().submit(self._counted, fn, args, kwargs)

    def run(self, fn: Callable[..., object], *args: Any) -> None:
        """Run a call that raises nothing, counted until it is done; nobody can wait for it, which takes half the time.

        Raises PoolClosedError once the pool is shut down, and NoThreadError.
        """
        with self._lock:
            if self._closed:
                raise PoolClosedError("the pool is shut down")
            if len(self._runners) < min(self._running + 1, self._most):
                self._add_runner()
            self.taken += 1
            self.pending += 1
            self._running += 1
        self._runs.put((fn, args))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once their calls are done."""
        with self._lock:
            self._closed, runners = True, self._runners
            self._runners = []
        for _ in runners:
            self._runs.put(None)
        if wait:
            for thread in runners:
                thread.join()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _add_runner(self) -> None:
        name = f"gr2-{self._name}-run_{len(self._runners)}"
        thread = threading.Thread(target=self._take_runs, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # Queued behind others, a call that the core lets work might wait for one that waits for it.
            raise NoThreadError("the system gives no thread for a call") from error
        self._runners.append(thread)

    def _take_runs(self) -> None:
        while (run := self._runs.get()) is not None:
            fn, args = run
            try:
                fn(*args)
            except Exception:
                logger.exception("a call could not be ended")
            finally:
                with self._lock:
                    self.pending -= 1
                    self._running -= 1
                # Not kept until the next one comes.
                del run, fn, args

    def _counted(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            with self._lock:
                self.pending -= 1


def in_pool(pool: ThreadPoolExecutor, behavior: Behavior) -> Behavior:
    """`behavior`, a function of its own, marked for grpc's synchronous server to run in `pool`."""
    behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return behavior


class InPlace(ThreadPoolExecutor):
    """Runs what it is given in the thread that gives it, for calls that are over at once; `taken` counts them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.taken = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call."""
        self.taken += 1
        fn(*args, **kwargs)
        return DONE


class Admission:
    """At most `threads` requests at work, at most `queue` more waiting, and a refusal for any beyond that.

    `core` decides which of them work, and counts them. Those that it lets in have a thread each in `pool`, and SPARE
    more are there for requests that must be read before it can decide. Refusals are made `in_place`, by the thread that
    grpc serves from. `unread` calls have sent no message yet, MOST_UNREAD at most; they hold no thread, unless
    calls are read `by_threads` (see `gr2.serving.access.arrivals`). `overload` is why a call is refused that finds no
    room, `silence` and `untaken` why one is refused unread.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self.bound = threads + queue
        self.core = CoreAdmission(threads, queue)
        self.pool = CallPool(self.bound + SPARE, "rerank")
        self.in_place = InPlace()
        self.unread, self.by_threads = 0, False
        self.open = OpenCalls()
        self.overload = f"{self.bound} requests are at work or wait already"
        self.silence = f"{MOST_UNREAD} calls have not sent their message yet"
        self.untaken = "too many answers have not been taken by their callers yet"

    @property
    def full(self) -> bool:
        """Whether no thread can be had for a call that the core has not let in."""
        return self.pool.pending >= self.bound + SPARE

    @property
    def crowded(self) -> str:
        """Why a call that arrives now must be refused unread; empty if it need not be."""
        if self.unread >= MOST_UNREAD:
            return self.silence
        if self.open.crowded:
            return self.untaken
        return self.overload if self.by_threads and self.full else ""

    @property
    def taken(self) -> int:
        """Calls that have sent a message, and those that were refused before."""
        return self.pool.taken + self.in_place.taken

    @property
    def pending(self) -> int:
        """Calls that have arrived and are not done."""
        return self.pool.pending + self.unread

    def shutdown(self) -> None:
        """End the threads once their calls are done."""
        self.pool.shutdown()


class Cancellable(Protocol):
    """A call, as grpc's contexts and grpc's calls themselves are."""

    def cancel(self) -> Any: ...


class _Waiting:
    """A call's entry among those that wait, for the time of a `with` block."""

    __slots__ = ("_all", "_context", "_limits")

    def __init__(self, waiting: dict[Cancellable, tuple[float, Limits]], context: Cancellable, limits: Limits) -> None:
        self._all, self._context, self._limits = waiting, context, limits

    def __enter__(self) -> None:
        self._all[self._context] = time.monotonic(), self._limits

    def __exit__(self, *_: object) -> None:
        self._all.pop(self._context, None)


class Patience:
    """Cancels calls that keep a thread waiting for a message. grpc waits without an end, inside the thread.

    While `pressed()` says that others are refused for want of room, silent calls lose theirs after PRESSED seconds;
    those of which something else is said, while that says so. `looks` are taken by its thread four times a second.
    """

    def __init__(self, pressed: Pressed = lambda: False) -> None:
        self.pressed = pressed
        self.looks: list[Callable[[], None]] = [self._look]
        self._waiting: dict[Cancellable, tuple[float, Limits]] = {}
        self._cap = float("inf")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sweep, name="gr2-patience", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def waiting(self, context: Cancellable, seconds: float, pressed: Pressed | None = None) -> _Waiting:
        """A `with` block that cancels the call if it takes longer than `seconds`; `pressed` is said of that call."""
        return _Waiting(self._waiting, context, (seconds, pressed))

    def hurry(self, seconds: float) -> None:
        """From now on, no call may wait longer than `seconds`."""
        self._cap = seconds

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sweep(self) -> None:
        while not self._closed.wait(SWEEP):
            try:
                for look in self.looks:
                    look()
            except Exception:
                # Without this thread, silent calls would take all the room that there is.
                logger.exception("looking for calls that wait failed; it goes on")

    def _look(self) -> None:
        now = time.monotonic()
        usual = self.pressed()
        for context, (since, (seconds, own)) in list(self._waiting.items()):
            pressed = usual if own is None else own()
            if now - since <= min(seconds, self._cap, PRESSED if pressed else seconds):
                continue
            try:
                context.cancel()
            except Exception:
                logger.exception("a silent call could not be cancelled")
                self._waiting.pop(context, None)


def messages_of(
    messages: Iterator[T],
    context: grpc.ServicerContext,
    patience: Patience,
    limit: float,
    pressed: Pressed | None = None,
) -> Iterator[T]:
    """The messages of a stream; one that stays silent for `limit` seconds is cancelled."""
    while True:
        with patience.waiting(context, limit, pressed):
            try:
                message = next(messages)
            except StopIteration:
                return
        yield message


def time_to_answer(seconds: float) -> float:
    """Of the seconds that a call has left, those in which its answer must be made: the rest is for the way back.

    An answer that leaves later would reach its caller after the deadline.
    """
    return seconds - min(WAY_BACK, seconds / 10)


def only_message(
    messages: Iterator[T],
    context: grpc.ServicerContext,
    patience: Patience,
    limit: float,
    pressed: Pressed | None = None,
) -> T:
    """The message of a call that has one. Aborts the call if it ends without a message or is silent for `limit` s."""
    with patience.waiting(context, limit, pressed):
        for message in messages:
            return message
    lost = lost_code(context.time_remaining())
    if context.is_active() and lost is not grpc.StatusCode.DEADLINE_EXCEEDED:
        context.abort(*EMPTY)
    context.abort(lost, "the call has ended")
    raise AssertionError("abort raises")
