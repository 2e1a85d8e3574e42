"""A process that sends requests and notes when: `python -m gr2.load.worker JOB`. `gr2.load.run` starts it.

It prints `ready` and waits for a line with the moment to begin, nanoseconds of the monotonic clock. Its threads block
in grpc's synchronous calls with raw bytes: nothing is cheaper in Python.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np

from gr2.credentials import channel_credentials
from gr2.load.frames import read_frames
from gr2.load.job import EXPIRED, OK, Calls, Job
from gr2.v1 import reranker_pb2

__all__ = ["Call", "Sending", "Stub", "grpc_calls", "grpc_stubs", "run_job", "work"]

Call = Callable[[bytes, float], tuple[int, bytes]]
"""Sends a request with a timeout in seconds; the gRPC status code and the reply, empty unless the code is OK."""

Stub = Callable[..., bytes]
"""Sends a request with a `timeout` in seconds, and returns the reply or raises grpc.RpcError."""

METHOD = f"/{reranker_pb2.DESCRIPTOR.services_by_name['Reranker'].full_name}/Rerank"
SET_TIMER_SLACK = 29  # of prctl(2)
MOST_REPLIES = 4096
PAUSE = 0.05  # seconds until a caller that found no server asks again
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


def grpc_calls(target: str, connections: int, tls: Sequence[str] = ("", "", "")) -> Iterator[Call]:
    """As `grpc_stubs`, with statuses in place of errors."""
    return map(_grpc_call, grpc_stubs(target, connections, tls))


def grpc_stubs(target: str, connections: int, tls: Sequence[str] = ("", "", "")) -> Iterator[Stub]:
    """Calls of `Rerank` at a gRPC target, over `connections` connections in turn; `tls` is as in `Job`.

    They carry the token of the environment variable GR2_TOKEN, if there is one. Raises what `channel_credentials` does.
    """
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    token = os.environ.get("GR2_TOKEN")
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    credentials = channel_credentials(*tls)
    channels = [
        grpc.secure_channel(target, credentials, options=options)
        if credentials
        else grpc.insecure_channel(target, options=options)
        for _ in range(connections)
    ]
    for channel in itertools.cycle(channels):
        yield functools.partial(channel.unary_unary(METHOD), metadata=metadata)


def _grpc_call(rerank: Stub) -> Call:
    def call(request: bytes, timeout: float) -> tuple[int, bytes]:
        try:
            return OK, rerank(request, timeout=timeout)
        except grpc.RpcError as error:
            return error.code().value[0], b""

    return call


class Sending(Protocol):
    """Sends the requests of a job by `threads`, and notes a row a call: due, sent, done, code, crowded."""

    rows: list[tuple[int, int, int, int, bool]]
    replies: list[bytes]
    threads: list[threading.Thread]

    def begin(self, start: int) -> None:
        """Send from `start` on, nanoseconds of the monotonic clock."""


class Sender:
    """The threads of one process. Each takes the next request, waits until it is due, and sends it."""

    def __init__(self, job: Job, requests: list[bytes], calls: Iterator[Call]) -> None:
        self.job = job
        self.due = [] if job.rate is None else job.due().tolist()
        self.rows: list[tuple[int, int, int, int, bool]] = []  # due, sent, done, code, crowded
        self.replies: list[bytes] = []
        self.start = 0
        self._requests = requests
        self._turn = itertools.count()
        self._deadline = round(1e9 * job.deadline)
        run = self._open if job.rate is not None else self._closed
        self.threads = [threading.Thread(target=run, args=(call,)) for call in itertools.islice(calls, job.slots)]

    def begin(self, start: int) -> None:
        """Send from `start` on, nanoseconds of the monotonic clock."""
        self.start = start
        for thread in self.threads:
            thread.start()

    def _open(self, call: Call) -> None:
        while (at := next(self._turn)) < len(self.due):
            due = self.due[at]
            wait = self.start + due - time.monotonic_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            self._send(call, at, due, crowded=wait <= 0)

    def _closed(self, call: Call) -> None:
        end = round(1e9 * (self.job.warmup + self.job.seconds))
        time.sleep(max(0, self.start - time.monotonic_ns()) / 1e9)
        while (now := time.monotonic_ns() - self.start) < end:
            if self._send(call, next(self._turn), now, crowded=False) == UNAVAILABLE:
                time.sleep(PAUSE)

    def _send(self, call: Call, at: int, due: int, *, crowded: bool) -> int:
        """Send a request, and return what became of it."""
        job, start = self.job, self.start
        sent = time.monotonic_ns() - start
        # Callers count their deadline from when they wanted the answer.
        left = due + self._deadline - sent
        code, reply = EXPIRED, b""
        if left > 0:
            code, reply = call(self._requests[(job.place + at * job.places) % len(self._requests)], left / 1e9)
        self.rows.append((due, sent, time.monotonic_ns() - start, code, crowded))
        if code == OK and at % job.stride == 0 and len(self.replies) < MOST_REPLIES:
            self.replies.append(reply)
        return code


def work(job: Job, sender: Sending) -> Calls:
    """Send what the job says, once standard input says when."""
    # New threads inherit it: a sleep ends within a microsecond of its time, not within 50.
    ctypes.CDLL(None).prctl(SET_TIMER_SLACK, 1, 0, 0, 0)
    print("ready", flush=True)
    start = int(sys.stdin.readline())
    sender.begin(start)
    warm = start + round(1e9 * job.warmup)
    time.sleep(max(0, warm - time.monotonic_ns()) / 1e9)
    spent = sum(os.times()[:2])
    for thread in sender.threads:
        thread.join()
    cpu = sum(os.times()[:2]) - spent
    due, sent, done, code, crowded = zip(*sender.rows, strict=True) if sender.rows else ((), (), (), (), ())
    return Calls(
        np.array(due, dtype=np.int64),
        np.array(sent, dtype=np.int64),
        np.array(done, dtype=np.int64),
        np.array(code, dtype=np.int8),
        np.array(crowded, dtype=np.bool_),
        cpu,
        sender.replies,
    )


def run_job(make: Callable[[Job, list[bytes]], Sending]) -> None:
    """Work on the job in the file of the first argument, by what `make` makes of it and its requests."""
    path = Path(sys.argv[1])
    job = Job.load(path)
    if job.pin:
        os.sched_setaffinity(0, job.pin)
    work(job, make(job, read_frames(Path(job.requests)))).save(path.with_suffix(""))


def main(connect: Callable[[str, int, Sequence[str]], Iterator[Call]] = grpc_calls) -> None:
    """Work on a job by threads; `connect` makes their calls."""
    run_job(lambda job, requests: Sender(job, requests, connect(job.target, job.connections, job.tls)))


if __name__ == "__main__":
    main()
