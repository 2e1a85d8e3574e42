"""A worker as `gr2.load.worker` that needs a third of its processor time: one thread, which writes HTTP/2 itself.

For loads that the other cannot send in time. Without TLS and tokens.
"""

from __future__ import annotations

import functools
import select
import threading
import time
from collections import deque

import grpc

from gr2.load.http2 import UNAVAILABLE, Connection
from gr2.load.job import EXPIRED, OK, Job
from gr2.load.worker import METHOD, MOST_REPLIES, run_job

__all__ = ["LeanSender"]

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
IDLE = 0.05  # seconds


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
        self._address = host, int(port)
        self._connections: list[Connection | None] = [None] * job.connections
        self._open: list[dict[int, tuple[int, int, int]]] = [{} for _ in range(job.connections)]  # number, due, sent
        self._ends: deque[tuple[int, int, int, int]] = deque()  # deadline, connection, stream, number

    def begin(self, start: int) -> None:
        """Send from `start` on, nanoseconds of the monotonic clock."""
        self.start = start
        self.threads[0].start()

    def _run(self) -> None:
        for place in range(self.job.connections):
            self._connection(place)
        time.sleep(max(0, -self._now()) / 1e9)
        if self.job.rate is None:
            self._run_closed()
        else:
            self._run_open(self.job.due().tolist())
        for place in range(self.job.connections):
            self._drop(place)

    def _run_closed(self) -> None:
        end = round(1e9 * (self.job.warmup + self.job.seconds))
        waiting = deque(slot % self.job.connections for slot in range(self.job.slots))
        while waiting or any(self._open):
            while waiting:
                place = waiting.popleft()
                if self._now() < end:
                    self._send(place, self._now())
            before = [len(each) for each in self._open]
            self._receive(IDLE)
            for place, count in enumerate(before):
                waiting.extend([place] * (count - len(self._open[place])))

    def _run_open(self, due: list[int]) -> None:
        at = 0
        while at < len(due) or any(self._open):
            while at < len(due) and due[at] <= self._now():
                self._send(at % self.job.connections, due[at])
                at += 1
            left = (due[at] - self._now()) / 1e9 if at < len(due) else IDLE
            self._receive(max(0.0, min(left, IDLE)))

    def _send(self, place: int, due: int) -> None:
        job, number, sent = self.job, self._count, self._now()
        self._count += 1
        left = due + self._deadline - sent
        if left <= 0:
            self.rows.append((due, sent, sent, EXPIRED, True))
            return
        request = self._requests[(job.place + number * job.places) % len(self._requests)]
        connection = self._connection(place)
        if connection is None:
            self.rows.append((due, sent, self._now(), UNAVAILABLE, False))
            return
        stream = connection.next
        self._open[place][stream] = (number, due, sent)
        self._ends.append((due + self._deadline, place, stream, number))
        try:
            connection.start(request, left / 1e9)
        except OSError:
            self._drop(place)

    def _receive(self, seconds: float) -> None:
        """Take in what has come, once something has or the time is over, and give up what is late."""
        sockets = {each.socket: place for place, each in enumerate(self._connections) if each is not None}
        for ready in select.select(sockets, (), (), seconds)[0]:
            place = sockets[ready]
            connection = self._connections[place]
            try:
                if connection is not None:
                    connection.receive()
            except OSError:
                self._drop(place)
        self._give_up_late()

    def _give_up_late(self) -> None:
        now = self._now()
        while self._ends and self._ends[0][0] <= now:
            _, place, stream, number = self._ends.popleft()
            connection, call = self._connections[place], self._open[place].get(stream)
            # Streams of a connection that was made again have the numbers of the lost one's.
            if connection is None or call is None or call[0] != number:
                continue
            self._note(place, stream, DEADLINE_EXCEEDED, b"")
            try:
                connection.cancel(stream)
            except OSError:
                self._drop(place)

    def _connection(self, place: int) -> Connection | None:
        """A connection, made again if it was lost; None if it cannot be."""
        if self._connections[place] is None:
            try:
                self._connections[place] = Connection(self._address, METHOD, functools.partial(self._note, place))
            except OSError:
                return None
        return self._connections[place]

    def _drop(self, place: int) -> None:
        connection, self._connections[place] = self._connections[place], None
        if connection is not None:
            connection.close()

    def _note(self, place: int, stream: int, code: int, reply: bytes) -> None:
        number, due, sent = self._open[place].pop(stream)
        self.rows.append((due, sent, self._now(), code, False))
        if code == OK and number % self.job.stride == 0 and len(self.replies) < MOST_REPLIES:
            self.replies.append(reply)

    def _now(self) -> int:
        return time.monotonic_ns() - self.start


if __name__ == "__main__":
    run_job(LeanSender)
