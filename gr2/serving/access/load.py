"""The load of a server, told to its callers with each answer, so that gRPC can share requests by it.

An ORCA report (xds.data.orca.v3.OrcaLoadReport) in the trailing metadata, as gRFC A51 and A58 define it: balancers of
the policy `weighted_round_robin` weigh a server by its rate of answers over its utilization.
"""

from __future__ import annotations

import os
import struct
import threading
import time

__all__ = ["TRAILER", "LoadReport", "Trailers", "encode_report"]

TRAILER = "endpoint-load-metrics-bin"
WINDOW = 0.25  # seconds that a report is of, at the least
# Of the report's doubles.
FIELDS = {"cpu_utilization": 1, "rps_fractional": 6, "eps": 7, "application_utilization": 9}

Trailers = tuple[tuple[str, bytes], ...]


class LoadReport:
    """Counts requests, and says of the last window of time how busy they made the server.

    The application's utilization is the time that requests took, their waits included, over the time that `threads`
    threads had: above 1, they queue. The processor's is this process's time over that of the cores it may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._cores = threads, len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._busy, self._answers, self._failures = 0, 0, 0
        self._since, self._cpu = time.monotonic(), time.process_time()
        self._trailers: Trailers = ()

    def add(self, duration: int, *, failed: bool) -> Trailers:
        """Count a request of so many nanoseconds; returns the trailing metadata for it, none in the first window."""
        with self._lock:
            self._busy += duration
            self._answers += not failed
            self._failures += failed
            now = time.monotonic()
            if now - self._since >= WINDOW:
                self._report(now)
        return self._trailers

    def _report(self, now: float) -> None:
        window, cpu = now - self._since, time.process_time()
        report = encode_report(
            cpu_utilization=(cpu - self._cpu) / (window * self._cores),
            rps_fractional=self._answers / window,
            eps=self._failures / window,
            application_utilization=self._busy / (1e9 * window * self._threads),
        )
        self._trailers = ((TRAILER, report),)
        self._busy, self._answers, self._failures = 0, 0, 0
        self._since, self._cpu = now, cpu


def encode_report(**values: float) -> bytes:
    """A serialised OrcaLoadReport of the named doubles."""
    return b"".join(struct.pack("<Bd", FIELDS[name] << 3 | 1, value) for name, value in values.items())
