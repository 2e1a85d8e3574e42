"""A worker as `gr2.load.worker` that needs a third of its processor time: one thread, which writes HTTP/2 itself.

For loads that the other cannot send in time. It keeps to what the server sets for a connection, goes on over another
one when the server leaves, and calls with the token of the environment variable GR2_TOKEN, if there is one. Without
TLS.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from typing import NamedTuple

import grpc

from gr2.load.http2 import UNAVAILABLE, UNPROCESSED, Connection
from gr2.load.job import EXPIRED, OK, Job
from gr2.load.worker import METHOD, MOST_REPLIES, run_job

__all__ = ["LeanSender"]

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
IDLE = 0.05  # seconds
# As `gr2.client.service_config` has it: four attempts, the second at once here, which costs the server nothing.
MORE_TRIES, PAUSE = 3, 10_000_000  # nanoseconds


class _Call(NamedTuple):
    number: int
    place: int
    due: int
    sent: int
    tries: int = 0


class LeanSender:
    """Sends the requests of a job, and notes what became of each."""

    def __init__(self, job: Job, requests: list[bytes]) -> None:
        """Raises ValueError for a job with TLS."""
        if any(job.tls):
            raise ValueError("the lean worker has no TLS")
        self.job, self._requests = job, requests
        self.rows: list[tuple[int, int, int, int, bool]] = []  # due, sent, done, code, crowded
        self.replies: list[bytes] = []
        self.threads = [threading.Thread(target=self._run)]
        self.start = self._count = 0
        self._deadline = round(1e9 * job.deadline)
        host, _, port = job.target.rpartition(":")
        self._address, self._token = (host, int(port)), os.environ.get("GR2_TOKEN", "")
        self._connections: list[Connection | None] = [None] * job.connections
        self._leaving: list[Connection] = []
        # `select` waits by the microsecond, but for descriptors below 1024: for this one, which has all.
        self._epoll = select.epoll()
        self._there: dict[int, Connection] = {}  # by descriptor
        self._open: dict[int, tuple[_Call, Connection, int]] = {}  # by number; the last is the stream
        self._busy = [0] * job.connections
        self._again: list[tuple[int, _Call]] = []  # when
        self._ends: deque[tuple[int, int]] = deque()  # deadline, number

    def begin(self, start: int) -> None:
        """Send from `start` on, nanoseconds of the monotonic clock."""
        self.start = start
        self.threads[0].start()

    def _run(self) -> None:
        for place in range(self.job.connections):
            self._connection(place)
        while (left := -self._now()) > 0:
            self._receive(min(left / 1e9, IDLE))
        if self.job.rate is None:
            self._run_closed()
        else:
            self._run_open(self.job.due().tolist())
        for connection in (*self._connections, *self._leaving):
            if connection is not None:
                self._drop(connection)
        self._epoll.close()

    def _run_closed(self) -> None:
        end = round(1e9 * (self.job.warmup + self.job.seconds))
        places = self.job.connections
        slots = [len(range(place, self.job.slots, places)) for place in range(places)]
        while (now := self._now()) < end or self._open or self._again:
            if now < end:
                for place, count in enumerate(slots):
                    for _ in range(count - self._busy[place]):
                        self._send(place, self._now())
            self._receive(IDLE)

    def _run_open(self, due: list[int]) -> None:
        at = 0
        while at < len(due) or self._open or self._again:
            while at < len(due) and due[at] <= self._now():
                self._send(at % self.job.connections, due[at])
                at += 1
            left = (due[at] - self._now()) / 1e9 if at < len(due) else IDLE
            self._receive(max(0.0, min(left, IDLE)))

    def _send(self, place: int, due: int) -> None:
        call = _Call(self._count, place, due, self._now())
        self._count += 1
        if due + self._deadline <= call.sent:
            self.rows.append((due, call.sent, call.sent, EXPIRED, True))
            return
        self._ends.append((due + self._deadline, call.number))
        self._busy[place] += 1
        self._start(call)

    def _start(self, call: _Call) -> None:
        number, place, due = call[:3]
        connection = self._connection(place)
        left = due + self._deadline - self._now()
        if connection is None or left <= 0:
            self._note(call, UNAVAILABLE if connection is None else DEADLINE_EXCEEDED)
            return
        self._open[number] = call, connection, connection.next
        request = self._requests[(self.job.place + number * self.job.places) % len(self._requests)]
        try:
            connection.start(number, request, left / 1e9)
        except OSError:
            self._drop(connection)

    def _receive(self, seconds: float) -> None:
        """Take in what has come, once something has or the time is over, and give up what is late."""
        if select.select((self._epoll,), (), (), seconds)[0]:
            for descriptor, _ in self._epoll.poll(0):
                connection = self._there[descriptor]
                try:
                    connection.receive()
                except OSError:
                    self._drop(connection)
        self._give_up_late()
        again, self._again = self._again, []
        for when, call in again:
            if when <= self._now():
                self._start(call)
            else:
                self._again.append((when, call))
        for connection in self._leaving[:]:
            if not connection.busy:
                self._drop(connection)

    def _give_up_late(self) -> None:
        now = self._now()
        while self._ends and self._ends[0][0] <= now:
            number = self._ends.popleft()[1]
            if number in self._open:
                call, connection, stream = self._open.pop(number)
                self._note(call, DEADLINE_EXCEEDED)
                try:
                    connection.cancel(stream)
                except OSError:
                    self._drop(connection)

    def _connection(self, place: int) -> Connection | None:
        """A connection, made again if it was lost or the server leaves it; None if it cannot be."""
        connection = self._connections[place]
        if connection is not None and connection.leaving:
            self._leaving.append(connection)
            connection = self._connections[place] = None
        if connection is None:
            try:
                connection = Connection(self._address, METHOD, self._ended, token=self._token)
            except OSError:
                return None
            self._connections[place] = self._there[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket, select.EPOLLIN)
        return connection

    def _drop(self, connection: Connection) -> None:
        if connection in self._leaving:
            self._leaving.remove(connection)
        elif connection in self._connections:
            self._connections[self._connections.index(connection)] = None
        # Closed, it is no longer waited for.
        self._there.pop(connection.socket.fileno(), None)
        connection.close()

    def _ended(self, number: int, code: int, reply: bytes) -> None:
        call, _, _ = self._open.pop(number)
        if code == UNPROCESSED and call.tries < MORE_TRIES:
            self._again.append((self._now() + call.tries * PAUSE, call._replace(tries=call.tries + 1)))
            return
        self._note(call, UNAVAILABLE if code == UNPROCESSED else code)
        if code == OK and number % self.job.stride == 0 and len(self.replies) < MOST_REPLIES:
            self.replies.append(reply)

    def _note(self, call: _Call, code: int) -> None:
        self._busy[call.place] -= 1
        self.rows.append((call.due, call.sent, self._now(), code, False))

    def _now(self) -> int:
        return time.monotonic_ns() - self.start


if __name__ == "__main__":
    run_job(LeanSender)
