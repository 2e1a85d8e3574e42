"""Twice the capacity offered to a server: what it still answers in time, what it refuses, and its memory meanwhile.

`make server-overload` stores docs/results/server.overload.json; `make server-memory` docs/results/server.memory.json,
of half an hour. The server has one core, the callers another.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import Figure, Record, store
from benchmarks.server_processes import OURS, Started, started
from gr2.bundle import Bundle
from gr2.errors import Gr2Error
from gr2.export.random_bundle import write_random_bundle
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.load.summary import Summary

__all__ = ["main", "memory", "overload"]

EVENTS, CANDIDATES, REQUESTS = 50, 50, 20_000
SERVER, CLIENT = 0, 1
DEADLINE, CALLERS, WARMUP = 0.05, 16, 2.0
GENERATOR = Generator(2, 4, [CLIENT])
ROUNDS = 3
WINDOW = 20.0  # seconds of one step of the half hour
FLAT = 0.03


def step(server: Started, requests: Sequence[bytes], seconds: float, **load: float) -> Summary:
    """One step; its callers have DEADLINE seconds."""
    plan = Step(seconds=seconds, warmup=WARMUP, deadline=DEADLINE, **load)  # type: ignore[arg-type]
    return run_step(server.target, requests, plan, generator=GENERATOR, server=server.pids())


def late(found: Summary) -> int:
    """Answers that came after their callers' deadline."""
    return round((found.throughput - found.goodput) * found.step.seconds)


def shares(found: Summary) -> str:
    """What became of the calls of a step."""
    return ", ".join(f"{code} {count / found.calls:.1%}" for code, count in sorted(found.codes.items()))


def overload(server: Started, requests: Sequence[bytes], seconds: float) -> Record:
    """Peak and overload in turns."""
    peaks, floods = [], []
    for _ in range(ROUNDS):
        peaks.append(step(server, requests, seconds, concurrency=CALLERS))
        floods.append(step(server, requests, seconds, rate=2 * peaks[-1].throughput))
    ratios = [flood.goodput / peak.goodput for peak, flood in zip(peaks, floods, strict=True)]
    latency = max(flood.latency["p99"] for flood in floods)
    figures = [
        Figure.judge("goodput at twice the capacity over the peak", float(np.median(ratios)), 0.9),
        Figure.judge("p99 of the answered at twice the capacity, ms", latency, 1e3 * DEADLINE, at_most=True),
        Figure.judge("answers after their deadline", sum(map(late, floods)), 0, at_most=True),
    ]
    rows = [
        [found.step.name, f"{found.throughput:.0f}", f"{found.goodput:.0f}", f"{found.latency['p50']:.1f}",
         f"{found.latency['p99']:.1f}", shares(found)]
        for pair in zip(peaks, floods, strict=True) for found in pair
    ]  # fmt: skip
    table = {
        "title": f"deadline {1e3 * DEADLINE:.0f} ms, {seconds:.0f} s a step",
        "columns": ["", "answered/s", "in time/s", "p50 ms", "p99 ms", "calls by status"],
        "rows": rows,
    }
    notes = [f"{EVENTS} history items and {CANDIDATES} candidates; latency from when a request was due"]
    refused = [found.refused for found in [*peaks, *floods] if found.refused]
    notes += [f"of a step: {reason}" for reason in refused]
    return Record("server.overload", "The server under overload", "make server-overload", figures, [table], notes)


def memory(server: Started, requests: Sequence[bytes], minutes: float, rate: float | None) -> Record:
    """Resident memory while twice the capacity, or `rate` a second, is offered; sampled between steps."""
    rate = rate or 2 * step(server, requests, 5.0, concurrency=CALLERS).throughput
    end = time.monotonic() + 60 * minutes
    samples: list[float] = []
    answered, offered = 0.0, 0
    while time.monotonic() < end:
        found = step(server, requests, WINDOW, rate=rate)
        answered += found.throughput * WINDOW
        offered += found.calls
        samples.append(server.megabytes())
    if len(samples) < 10:
        raise Gr2Error(f"{minutes:g} minutes are too few to tell")
    fifth = len(samples) // 5
    early, last = float(np.median(samples[fifth : 2 * fifth])), float(np.median(samples[-fifth:]))
    growth = last / early - 1
    figures = [
        Figure.judge(f"growth of memory over {minutes:.0f} minutes of overload", growth, FLAT, at_most=True),
        Figure("requests meanwhile", f"{offered:,} sent, {answered:,.0f} answered", "measured", "ok"),
    ]
    table = {
        "title": "memory in MB, at fifths of the run",
        "columns": ["second fifth", "third", "fourth", "last", "most"],
        "rows": [
            [f"{np.median(part):.1f}" for part in np.array_split(np.array(samples), 5)[1:]] + [f"{max(samples):.1f}"]
        ],
    }
    notes = ["growth is that from the second to the last fifth of the run, medians: the first one warms up"]
    return Record("server.memory", "The server's memory", "make server-memory", figures, [table], notes)


def main() -> None:
    """Store the record, or with --dry print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, help="memory over so many minutes in place of the overload")
    parser.add_argument("--rate", type=float, help="requests a second for it; by default twice what is answered")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a step of the overload")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_random_bundle(Path(folder) / "bundle", batched=False)
        requests = draw_requests(Bundle.load(bundle), REQUESTS, history=EVENTS, candidates=CANDIDATES)
        with started(OURS, bundle, SERVER, Path(), requests[0]) as server:
            if arguments.minutes:
                found = memory(server, requests, arguments.minutes, arguments.rate)
            else:
                found = overload(server, requests, arguments.seconds)
    print(found if arguments.dry else store(found))


if __name__ == "__main__":
    main()
