"""A load test from its first request to its files: steps, the table, JSON and the picture."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from gr2.artifact import write_atomic
from gr2.errors import ConfigError, Gr2Error, MissingExtraError, RequestError
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.load.summary import Summary
from gr2.load.worker import Stub, grpc_stubs
from gr2.version import __version__

__all__ = ["Plan", "check_target", "run_plan", "write_results"]

PROBE_TIMEOUT, PAUSE = 10.0, 0.1
FIRST_CONCURRENCY = (1, 8)
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Plan:
    """Steps of equal length: closed loops of each `concurrency`, then open loops at each of `rates`, a second.

    Without any, one and eight callers show the capacity, and open loops follow at SHARES of it. Raises ConfigError for
    a step that cannot be.
    """

    rates: Sequence[float] = ()
    concurrency: Sequence[int] = ()
    seconds: float = 10.0
    warmup: float = 2.0
    deadline: float = 1.0

    def __post_init__(self) -> None:
        # Before the first is run, and a minute later the last is refused.
        self.steps()

    def steps(self) -> list[Step]:
        """The steps, those of FIRST_CONCURRENCY if none are given."""
        closed = self.concurrency or (() if self.rates else FIRST_CONCURRENCY)
        return [self.step(concurrency=count) for count in closed] + [self.step(rate=rate) for rate in self.rates]

    def step(self, *, rate: float | None = None, concurrency: int | None = None) -> Step:
        """One step of this plan."""
        return Step(rate, concurrency, self.seconds, self.warmup, self.deadline)

    def longest(self) -> int:
        """Requests enough that no open loop of the rates given repeats one."""
        return round(1.2 * max(self.rates, default=0.0) * (self.seconds + self.warmup))


def check_target(target: str, request: bytes, tls: Sequence[str] = ("", "", "")) -> None:
    """Return if the server at `target` answers `request`. Raises RequestError or Gr2Error that says why not."""
    if not target:
        raise ConfigError("the address of the server must be HOST:PORT, or any gRPC target; it is empty")
    rerank, end = next(grpc_stubs(target, 1, tls)), time.monotonic() + PROBE_TIMEOUT
    while (error := _failure(rerank, request)) is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
        if time.monotonic() > end:
            hint = "" if tls[0] or "Socket closed" not in _details(error) else "; one with TLS needs --ca"
            raise Gr2Error(f"{target}: no server within {PROBE_TIMEOUT:g} s: {_details(error)}{hint}")
        time.sleep(PAUSE)
    if error is None:
        return
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        why = f"{target} refuses the first one ({_details(error)})"
        raise RequestError("request", f"{why}: does it serve the bundle of these requests?")
    raise Gr2Error(f"{target}: the first request failed: {error.code().name}: {_details(error)}")


def _failure(rerank: Stub, request: bytes) -> Any:
    try:
        rerank(request, timeout=PROBE_TIMEOUT)
    except grpc.RpcError as error:
        return error
    return None


def _details(error: Any) -> str:
    return (error.details() or "no details").partition("\n")[0]


def run_plan(
    target: str, requests: Sequence[bytes], plan: Plan, *, generator: Generator | None = None, seed: int = 0
) -> Iterator[Summary]:
    """The steps' summaries, one after the other. Raises what `check_target` and `run_step` raise.

    A step that found no server is the last, and Gr2Error follows it.
    """
    if not requests:
        raise ConfigError("there are no requests to send")
    check_target(target, requests[0], generator.tls if generator else ("", "", ""))

    capacity = 0.0
    for step in plan.steps():
        summary = run_step(target, requests, step, generator=generator, seed=seed)
        capacity = max(capacity, summary.throughput)
        yield summary
        _check_there(target, summary)
    if plan.rates or plan.concurrency:
        return
    if not capacity:
        raise Gr2Error(f"{target}: no request of the closed loops was answered")
    for share in SHARES:
        summary = run_step(target, requests, plan.step(rate=share * capacity), generator=generator, seed=seed)
        yield summary
        _check_there(target, summary)


def _check_there(target: str, summary: Summary) -> None:
    if set(summary.codes) == {"UNAVAILABLE"}:
        raise Gr2Error(f"{target}: the server is gone: no call of {summary.step.name} found it")


def write_results(folder: Path, target: str, summaries: Sequence[Summary], settings: dict[str, Any]) -> list[Path]:
    """Write bench.json and, where matplotlib is installed, bench.png. Raises MissingExtraError after the first."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "gr2": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "target": target,
        "settings": settings,
        "steps": [summary.record() for summary in summaries],
    }
    figures, picture = folder / "bench.json", folder / "bench.png"
    write_atomic(figures, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    try:
        from gr2.load.picture import load_picture
    except ImportError as error:
        raise MissingExtraError("the picture", "plot", error) from error
    write_atomic(picture, load_picture(summaries))
    return [figures, picture]
