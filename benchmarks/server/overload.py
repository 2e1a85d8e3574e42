"""Twice the capacity offered to a server: what it still answers in time, what it refuses, and its memory meanwhile.

`make server-overload` stores docs/results/server.overload.json; `make server-memory` docs/results/server.memory.json,
of half an hour. The server has one core, the callers another.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.results import Figure, Record, store
from benchmarks.server.bundles import arithmetic
from benchmarks.server.processes import OURS, Started, empty_server, free_port, started
from gr2.bundle import Bundle
from gr2.errors import Gr2Error
from gr2.export.random_bundle import write_random_bundle
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.load.summary import Summary
from gr2.top import read_metrics

__all__ = ["Counted", "Counting", "main", "memory", "overload", "rounds"]

EVENTS, CANDIDATES, REQUESTS = 50, 50, 20_000
SERVER, CLIENT = 0, 1
DEADLINE, CALLERS, WARMUP = 0.05, 4, 2.0
# The other worker needs 75 % of a core for 5,000 calls a second, and is late with answers that came in time.
GENERATOR, WORKER = Generator(2, 4, [CLIENT]), "gr2.load.lean_worker"
ROUNDS = 3
DEFAULT = f"1 layer of 64 in {arithmetic(64)}, the default"
STUDENTS = {
    "2 layers of 128 in fp32": {"dim": 128, "layers": 2},
    DEFAULT: {"dim": 64, "layers": 1, "arithmetic": arithmetic(64)},
}
WINDOW = 20.0  # seconds of one step of the half hour
FLAT = 0.03

Rounds = list[tuple["Counted", "Counted"]]
"""Peaks, each with the overload after it."""


@dataclass(frozen=True)
class Counted:
    """A step as its callers saw it, and how many answers the server has sent meanwhile by its own count."""

    found: Summary
    sent: int

    @property
    def late(self) -> int:
        """Answers that came after their callers' deadline, or never: the server sent them, and nobody had them in time.

        A caller that gives up at its deadline does not see what comes then.
        """
        return self.sent - self.found.in_time


@dataclass(frozen=True)
class Counting:
    """A server and the URL of its metrics."""

    server: Started
    metrics: str

    def step(self, requests: Sequence[bytes], seconds: float, **load: float) -> Counted:
        """One step; its callers have DEADLINE seconds."""
        plan = Step(seconds=seconds, warmup=WARMUP, deadline=DEADLINE, **load)  # type: ignore[arg-type]
        server, before = self.server, self.sent()
        found = run_step(server.target, requests, plan, generator=GENERATOR, server=server.pids(), worker=WORKER)
        # What the server is at work on when the last caller gives up.
        time.sleep(DEADLINE)
        return Counted(found, self.sent() - before)

    def sent(self) -> int:
        """Answers that the server has sent so far."""
        return int(read_metrics(self.metrics).value("gr2_requests_total", status="OK"))


def shares(found: Summary) -> str:
    """What became of the calls of a step."""
    return ", ".join(f"{code} {count / found.calls:.1%}" for code, count in sorted(found.codes.items()))


def rounds(server: Counting, requests: Sequence[bytes], seconds: float) -> Rounds:
    """Peak and overload in turns."""
    pairs = []
    for _ in range(ROUNDS):
        peak = server.step(requests, seconds, concurrency=CALLERS)
        pairs.append((peak, server.step(requests, seconds, rate=2 * peak.found.throughput)))
    return pairs


def refusal(requests: Sequence[bytes], seconds: float) -> float:
    """Microseconds of processor time of the cheapest refusal that grpcio has."""
    with empty_server(SERVER) as (port, process):
        plan = Step(seconds=seconds, warmup=WARMUP, deadline=5.0, concurrency=4 * CALLERS)
        target = f"127.0.0.1:{port}"
        found = run_step(target, requests, plan, generator=GENERATOR, server=[process], worker=WORKER)
    if set(found.codes) != {"RESOURCE_EXHAUSTED"}:
        raise Gr2Error(f"not all calls were refused: {found.codes}")
    return found.server_cpu / found.calls


def most(peak: Summary, refused: float) -> float:
    """Goodput over the peak at twice its rate, were all the rest refused for `refused` us each, at once."""
    answered = peak.server_cpu
    return (answered - 2 * refused) / (answered - refused)


def overload(found: dict[str, Rounds], refused: float, seconds: float) -> Record:
    """The figures of each student's peaks and overloads; grpcio's cheapest refusal takes `refused` us."""
    figures, rows, notes = [], [], []
    for student, pairs in found.items():
        ratio = float(np.median([flood.found.goodput / peak.found.goodput for peak, flood in pairs]))
        latency = max(flood.found.latency["p99"] for _, flood in pairs)
        bound = float(np.median([most(peak.found, refused) for peak, _ in pairs]))
        figures += [
            Figure.judge(f"goodput at twice the capacity over the peak, {student}", ratio, 0.9),
            Figure.judge(f"p99 of the answered then, {student}, ms", latency, 1e3 * DEADLINE, at_most=True),
            lateness(student, [flood for _, flood in pairs]),
            Figure(f"goodput if refusals were grpcio's cheapest, {student}", f"{bound:.3f}", "measured", "ok"),
        ]
        steps = [each for pair in pairs for each in pair]
        notes += [f"of a step: {each.found.refused}" for each in steps if each.found.refused]
        rows += [row(student, each) for each in steps]
    columns = ["student", "", "answered/s", "in time/s", "p50 ms", "p99 ms", "CPU us an answer"]
    columns += ["answers sent", "in time", "calls by status"]
    title = f"deadline {1e3 * DEADLINE:.0f} ms, {seconds:.0f} s a step"
    table = {"title": title, "columns": columns, "rows": rows}
    notes = [
        f"{EVENTS} history items and {CANDIDATES} candidates; latency from when a request was due",
        "answers sent are the server's count (gr2_requests_total, status OK), in time those that callers had by their "
        "deadline, both with the warm-up; the difference came late or was lost",
        f"grpcio's cheapest refusal, of a call unread, takes {refused:.0f} us of the processor; ours has read the "
        "request, which may ask for the incoming order in place of a refusal, or have priority",
        *notes,
    ]
    return Record("server.overload", "The server under overload", "make server-overload", figures, [table], notes)


def lateness(student: str, floods: Sequence[Counted]) -> Figure:
    """How many answers the server sent that no caller had in time."""
    # Callers that were late themselves read late, too.
    told = [each for each in floods if not each.found.refused]
    late, sent = sum(each.late for each in told), sum(each.sent for each in told)
    what = f"{late:,} of {sent:,} sent in {len(told)} of {len(floods)} steps, whose callers were not late themselves"
    # Fewer than callers had would mean that the two do not count the same, and may not make up for others.
    status = "ok" if told and all(each.late == 0 for each in told) else "short"
    return Figure(f"answers after their deadline, {student}", what, "0", status)


def row(student: str, step: Counted) -> list[str]:
    """A step's row of the table."""
    found = step.found
    rates = [f"{found.throughput:.0f}", f"{found.goodput:.0f}"]
    times = [f"{found.latency['p50']:.1f}", f"{found.latency['p99']:.1f}", f"{found.server_cpu:.0f}"]
    return [student, found.step.name, *rates, *times, f"{step.sent:,}", f"{found.in_time:,}", shares(found)]


def memory(server: Counting, requests: Sequence[bytes], minutes: float, rate: float | None) -> Record:
    """Resident memory while twice the capacity, or `rate` a second, is offered; sampled between steps."""
    rate = rate or 2 * server.step(requests, 5.0, concurrency=CALLERS).found.throughput
    end = time.monotonic() + 60 * minutes
    samples: list[float] = []
    steps: list[Counted] = []
    while time.monotonic() < end:
        steps.append(server.step(requests, WINDOW, rate=rate))
        samples.append(server.server.resident())
    if len(samples) < 10:
        raise Gr2Error(f"{minutes:g} minutes are too few to tell")
    fifth = len(samples) // 5
    early, last = float(np.median(samples[fifth : 2 * fifth])), float(np.median(samples[-fifth:]))
    growth = last / early - 1
    offered, answered = sum(each.found.calls for each in steps), sum(each.found.throughput for each in steps) * WINDOW
    figures = [
        Figure.judge(f"growth of memory over {minutes:.0f} minutes of overload", growth, FLAT, at_most=True),
        Figure("requests meanwhile", f"{offered:,} sent, {answered:,.0f} answered", "measured", "ok"),
        # Callers that stall for 50 ms once in half an hour are not the server's; the overload is judged by it.
        replace(lateness(DEFAULT, steps), bar="measured", status="ok"),
    ]
    table = {
        "title": "resident memory in MB, at fifths of the run",
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
    found: dict[str, Rounds] = {}
    students = {DEFAULT: STUDENTS[DEFAULT]} if arguments.minutes else STUDENTS
    for student, sizes in students.items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = write_random_bundle(Path(folder) / "bundle", batched=False, **sizes)
            requests = draw_requests(Bundle.load(bundle), REQUESTS, history=EVENTS, candidates=CANDIDATES)
            port = free_port()
            with started(OURS, bundle, SERVER, Path(), requests[0], "--metrics-port", str(port)) as process:
                server = Counting(process, f"http://127.0.0.1:{port}/metrics")
                if arguments.minutes:
                    grown = memory(server, requests, arguments.minutes, arguments.rate)
                else:
                    found[student] = rounds(server, requests, arguments.seconds)
    record = grown if arguments.minutes else overload(found, refusal(requests, arguments.seconds), arguments.seconds)
    print(record if arguments.dry else store(record))


if __name__ == "__main__":
    main()
