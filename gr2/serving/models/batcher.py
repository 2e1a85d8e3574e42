"""Batches from requests that arrive one by one: full, or closed a moment after their first request came."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gr2.errors import ConfigError, Gr2Error, OverloadError

__all__ = ["BatchLimits", "Batcher"]

T = TypeVar("T")
R = TypeVar("R")
LARGEST = 4096


@dataclass(frozen=True)
class BatchLimits:
    """At most `size` requests a batch, which waits at most `delay` microseconds for them; `queue` more may wait."""

    size: int = 64
    delay: float = 500.0
    queue: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST or not 0 <= self.delay <= 1e6 or self.queue < self.size:
            raise ConfigError(
                f"a batch takes 1..{LARGEST} requests, waits 0..1000000 microseconds and has a queue of at least its "
                f"size, got {self.size}, {self.delay:g} and {self.queue}"
            )


@dataclass(frozen=True, slots=True)
class _Job(Generic[T, R]):
    item: T
    wanted: Callable[[], bool] | None
    future: Future[R] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[T, R]):
    """Hands what callers submit to `run` in batches, in a thread of its own, one batch at a time.

    `run` returns a result for each item, in order, or the item's own error in its place. If it raises, nobody knows
    whose fault it is: halves of the batch are run alone, until the error is left with the items that cause it.
    """

    def __init__(self, run: Callable[[list[T]], Sequence[R | Exception]], limits: BatchLimits) -> None:
        """Start the thread."""
        self._run, self._limits = run, limits
        self._jobs: deque[_Job[T, R]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="gr2-batches", daemon=True)
        self._thread.start()

    def submit(self, item: T, wanted: Callable[[], bool] | None = None) -> Future[R]:
        """The result of one item, to be. Cancelling it, or `wanted()` being false when its batch begins, drops it.

        What `wanted()` raises is the item's error. Raises OverloadError if the queue is full, Gr2Error after `close`.
        """
        job: _Job[T, R] = _Job(item, wanted)
        with self._changed:
            if self._closed:
                raise Gr2Error("the engine was closed")
            if len(self._jobs) >= self._limits.queue:
                raise OverloadError(f"{len(self._jobs)} requests wait for a batch already")
            self._jobs.append(job)
            # The thread waits for a first item, and then for a full batch; others need not wake it.
            if len(self._jobs) in {1, self._limits.size}:
                self._changed.notify()
        return job.future

    def close(self) -> None:
        """Run what was submitted, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        jobs: list[_Job[T, R]] = []
        try:
            while jobs := self._collect():
                live = [job for job in jobs if _starts(job)]
                if live:
                    self._answer(live)
        except BaseException as error:
            # Without the thread nobody would answer those who wait.
            self._give_up([*jobs, *self._drain()], error)
            raise

    def _drain(self) -> list[_Job[T, R]]:
        """All that wait; nothing is taken from now on."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs)
            self._jobs.clear()
        return jobs

    @staticmethod
    def _give_up(jobs: list[_Job[T, R]], error: BaseException) -> None:
        for job in jobs:
            reason = Gr2Error(f"the thread that runs batches ended: {error!r}")
            reason.__cause__ = error
            with suppress(InvalidStateError):  # of those that have their answer, or were cancelled
                job.future.set_exception(reason)

    def _collect(self) -> list[_Job[T, R]]:
        """The next batch; empty once closed and done."""
        limits, jobs = self._limits, self._jobs
        with self._changed:
            while not jobs and not self._closed:
                self._changed.wait()
            while jobs and len(jobs) < limits.size and not self._closed:
                left = jobs[0].since + limits.delay * 1e-6 - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return [jobs.popleft() for _ in range(min(limits.size, len(jobs)))]

    def _answer(self, jobs: list[_Job[T, R]]) -> None:
        try:
            results = self._run([job.item for job in jobs])
            pairs = list(zip(jobs, results, strict=True))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            middle = len(jobs) // 2
            self._answer(jobs[:middle])
            self._answer(jobs[middle:])
            return
        for job, result in pairs:
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)


def _starts(job: _Job[T, R]) -> bool:
    """Whether the job is still wanted; it can no longer be cancelled then."""
    try:
        wanted = job.wanted is None or job.wanted()
    except Exception as error:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
        return False
    if not wanted:
        job.future.cancel()
    return job.future.set_running_or_notify_cancel()
