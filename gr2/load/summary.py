"""What a step came to: latencies from when requests were due, goodput, phases; or why they say nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from gr2.load.job import EXPIRED, OK, Calls
from gr2.load.step import Step
from gr2.serving.observing.phases import PHASES
from gr2.v1 import reranker_pb2

__all__ = ["PERCENTILES", "Summary", "obstacle", "summarize"]

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
CURVE = np.concatenate([np.linspace(0, 99, 100), [99.5, 99.9, 99.95, 99.99, 100]])
BUSY = 0.9
# Seconds that the sender may be late by, at the 99th percentile, or this share of the latency there.
LATE, LATE_SHARE = 2e-3, 0.25


@dataclass(frozen=True)
class Summary:
    """One step. Times are in milliseconds; rates are a second, over the time that counts.

    `latency` is from when a request was due until its answer, over answers: name of the percentile to milliseconds.
    `goodput` counts the answers within the deadline, and `in_time` is their number with those of the warm-up, which a
    server's own count can be compared with. `phases` is each phase's share of the server's time and `inside`
    that time at the median, both from the replies. `server_cpu` and `client_cpu` are microseconds a request; NaN where
    unknown. `crowded` is the share of requests that found no free slot when they were due. `refused` says why there is
    nothing else to report.
    """

    step: Step
    calls: int
    codes: dict[str, int]
    throughput: float
    goodput: float
    in_time: int
    latency: dict[str, float]
    curve: list[float]
    phases: dict[str, float]
    inside: float
    server_cpu: float
    client_cpu: float
    late: float
    crowded: float
    refused: str = ""

    def record(self) -> dict[str, Any]:
        """The summary as JSON values; NaN becomes null."""
        step = {name: value for name, value in vars(self.step).items() if value is not None}
        plain: dict[str, Any] = _plain(
            {**vars(self), "step": {"name": self.step.name, **step}, "curve_percentiles": CURVE.tolist()}
        )
        return plain


def summarize(step: Step, calls: Calls, *, server_seconds: float, processors: int) -> Summary:
    """What the calls of a step came to.

    `server_seconds` is the server's processor time after the warm-up, NaN where unknown; `processors` is how many the
    sending processes could use.
    """
    counted = calls.due >= 1e9 * step.warmup
    answered = counted & (calls.code == OK)
    taken = (calls.done - calls.due)[answered] / 1e6
    good = np.count_nonzero(taken <= 1e3 * step.deadline)
    total = np.count_nonzero(counted)
    free = counted & ~calls.crowded
    late = _percentile((calls.sent - calls.due)[free] / 1e6, 99)
    shares, inside = _phases(calls.replies)
    return Summary(
        step,
        int(total),
        _codes(calls.code[counted]),
        float(len(taken) / step.seconds),
        float(good / step.seconds),
        int(np.count_nonzero((calls.code == OK) & (calls.done - calls.due <= 1e9 * step.deadline))),
        {f"p{percent:g}": _percentile(taken, percent) for percent in PERCENTILES} | {"max": _percentile(taken, 100)},
        np.percentile(taken, CURVE).tolist() if len(taken) else [],
        shares,
        inside,
        1e6 * server_seconds / max(1, len(taken)),
        1e6 * calls.cpu / max(1, int(total)),
        late,
        float(calls.crowded[counted].mean()) if total else math.nan,
        obstacle(step, _percentile(taken, 99), late, calls.cpu / step.seconds / processors),
    )


def obstacle(step: Step, latency: float, late: float, busy: float) -> str:
    """Why the sender and not the server may have made the latencies; empty if it has not.

    `latency` and `late` are milliseconds at the 99th percentile; `busy` is the share of its processors that the sender
    used.
    """
    if busy > BUSY:
        return f"the load generator used {100 * busy:.0f} % of its processors; give it more --processes, and cores"
    if step.rate is not None and late > max(1e3 * LATE, LATE_SHARE * latency):
        return f"the load generator sent {late:.1f} ms late (p99); give it a core of its own by --pin"
    return ""


def _phases(replies: list[bytes]) -> tuple[dict[str, float], float]:
    """Each phase's share of the time inside the server, and that time in milliseconds at the median."""
    timings = [reranker_pb2.RerankResponse.FromString(reply).timings for reply in replies]
    totals = np.array([timing.total_ns for timing in timings], dtype=np.float64)
    if not totals.sum():
        return {}, math.nan
    shares = {name: float(sum(getattr(each, f"{name}_ns") for each in timings) / totals.sum()) for name in PHASES}
    return {**shares, "other": max(0.0, 1 - sum(shares.values()))}, float(np.median(totals)) / 1e6


def _codes(codes: NDArray[np.int8]) -> dict[str, int]:
    names = {code.value[0]: code.name for code in grpc.StatusCode} | {EXPIRED: "EXPIRED_UNSENT"}
    return {names.get(code, str(code)): count for code, count in sorted(Counter(codes.tolist()).items())}


def _percentile(values: NDArray[Any], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
