"""Our server beside those that pip installs: the same graph, on the same core, the load from another.

`make server-comparison` stores docs/results/server.comparison.json. Each of the others has a virtual environment of its
own below `--venvs`, made from benchmarks/servers/requirements-NAME.txt where it is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.server_bundles import write_bundles
from benchmarks.server_processes import OURS, SERVERS, Started, started
from gr2.bundle import Bundle
from gr2.errors import Gr2Error
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.load.summary import Summary
from gr2.v1 import reranker_pb2

__all__ = ["comparison", "main"]

EVENTS, CANDIDATES, CALLERS = 50, 50, 8
REQUESTS, COMPARED, USERS = 20_000, 200, 200
LOAD = 0.7  # of what the best of the others answers
# Scores of different graphs of one model round differently.
CLOSE = 1e-3
ATTEMPTS = 3
DIM, LAYERS = 64, 1


@dataclass
class Setup:
    """What all measurements share. `core` is the server's, `client` the load generator's."""

    venvs: Path
    core: int
    client: int
    seconds: float
    warmup: float = 2.0
    answers: dict[str, list[tuple[list[int], list[float]]]] = field(default_factory=dict)

    def step(self, server: Started, requests: Sequence[bytes], **load: float) -> Summary:
        """One step against a server, again if the generator was the bottleneck, three times at most.

        Raises Gr2Error if it was each time, or if a request failed.
        """
        step = Step(seconds=self.seconds, warmup=self.warmup, deadline=10.0, **load)  # type: ignore[arg-type]
        generator = Generator(2, 1, [self.client])
        for _ in range(ATTEMPTS):
            found = run_step(
                server.target, requests, step, generator=generator, worker=server.worker, server=server.pids()
            )
            if not found.refused:
                break
        if found.refused:
            raise Gr2Error(found.refused)
        if set(found.codes) != {"OK"}:
            raise Gr2Error(f"{server.target}: {found.codes}")
        return found


def answers(server: Started, requests: Sequence[bytes]) -> list[tuple[list[int], list[float]]]:
    """Order and scores of the first COMPARED requests."""
    rankings = []
    for request in requests[:COMPARED]:
        code, reply = server.call(request, 10.0)
        if code:
            raise Gr2Error(f"{server.target}: status {code}")
        ranking = reranker_pb2.RerankResponse.FromString(reply).ranking
        rankings.append(([item.index for item in ranking], [item.score for item in ranking]))
    return rankings


def same(found: list[tuple[list[int], list[float]]], expected: list[tuple[list[int], list[float]]]) -> int:
    """How many orders are equal. Raises AssertionError if scores differ, or orders beyond what rounding explains."""
    equal = 0
    for (order, scores), (right, right_scores) in zip(found, expected, strict=True):
        by_index = dict(zip(right, right_scores, strict=True))
        assert np.allclose(scores, [by_index[index] for index in order], atol=CLOSE)
        assert np.allclose(sorted(scores), sorted(right_scores), atol=CLOSE)
        equal += order == right
    return equal


def rounds(count: int, names: Sequence[str], measure: Callable[[str], None]) -> None:
    """Every measurement `count` times, in turns, each time beginning with another."""
    for turn in range(count):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            print(f"round {turn + 1} of {count}: {name}", file=sys.stderr, flush=True)
            measure(name)


def comparison(bundles: tuple[Path, Path, Path], setup: Setup, names: Sequence[str], count: int) -> Record:
    """All figures, from `count` rounds of each measurement."""
    default, whole, exported = bundles
    loaded = Bundle.load(default)
    fresh = draw_requests(loaded, REQUESTS, history=EVENTS, candidates=CANDIDATES)
    known = draw_requests(loaded, REQUESTS, history=EVENTS, candidates=CANDIDATES, users=USERS)
    alone: dict[str, list[Summary]] = {name: [] for name in (OURS, *names)}
    closed: dict[str, list[Summary]] = {name: [] for name in (OURS, *names)}
    memory: dict[str, float] = {}

    def same_graph(name: str) -> None:
        with started(name, whole, setup.core, setup.venvs, fresh[0]) as server:
            setup.answers.setdefault(name, answers(server, fresh))
            alone[name].append(setup.step(server, fresh, concurrency=1))
            closed[name].append(setup.step(server, fresh, concurrency=CALLERS))
            memory[name] = server.megabytes()

    rounds(count, [OURS, *names], same_graph)
    assert all(same(setup.answers[name], setup.answers[OURS]) == COMPARED for name in names)
    best = max(names, key=lambda name: rate_of(closed[name]))
    load = LOAD * rate_of(closed[best])
    able = [name for name in names if rate_of(closed[name]) > load]
    opened: dict[str, list[Summary]] = {name: [] for name in (OURS, *able)}

    def equal_load(name: str) -> None:
        with started(name, whole, setup.core, setup.venvs, fresh[0]) as server:
            opened[name].append(setup.step(server, fresh, rate=load))

    rounds(count, [OURS, *able], equal_load)
    kinds = {
        f"{best}, the graph as exported": (best, exported, fresh),
        f"{OURS}, the default bundle": (OURS, default, fresh),
        f"{OURS}, the default bundle, history known": (OURS, default, known),
    }
    ours: dict[str, list[Summary]] = {kind: [] for kind in kinds}
    equal: list[int] = []

    def graphs(kind: str) -> None:
        name, bundle, requests = kinds[kind]
        with started(name, bundle, setup.core, setup.venvs, requests[0]) as server:
            equal.append(same(answers(server, fresh), setup.answers[OURS]))
            ours[kind].append(setup.step(server, requests, concurrency=CALLERS))

    rounds(count, list(kinds), graphs)
    return _record(best, load, alone, closed, opened, ours, memory, min(equal))


def rate_of(summaries: Sequence[Summary]) -> float:
    """Requests a second at the median."""
    return float(np.median([each.throughput for each in summaries]))


def ratio(over: Sequence[Summary], under: Sequence[Summary], value: Callable[[Summary], float]) -> float:
    """The median over rounds of one's value over the other's."""
    return float(np.median([value(a) / value(b) for a, b in zip(over, under, strict=True)]))


def throughput(summary: Summary) -> float:
    """Answers a second."""
    return summary.throughput


def tail(summary: Summary) -> float:
    """Milliseconds at the 99th percentile."""
    return summary.latency["p99"]


Runs = dict[str, list[Summary]]


def _record(
    best: str, load: float, alone: Runs, closed: Runs, opened: Runs, ours: Runs, memory: dict[str, float], equal: int
) -> Record:
    others = [name for name in opened if name != OURS]
    quickest = min(others, key=lambda name: float(np.median([tail(each) for each in opened[name]])))
    exported, default, known = ours.values()
    figures = [
        Figure.judge(
            f"same graph, same core: throughput over the best of the others ({best})",
            ratio(closed[OURS], closed[best], throughput),
            1.25,
        ),
        Figure.judge(
            f"the same, open loop at {load:.0f} requests/s: p99 over the best of the others ({quickest})",
            ratio(opened[OURS], opened[quickest], tail),
            0.7,
            at_most=True,
        ),
        Figure.judge(
            f"the default bundle over the graph as exported in {best}: throughput",
            ratio(default, exported, throughput),
            2.5,
        ),
        Figure.judge("the same, histories in the cache", ratio(known, exported, throughput), 4.0),
    ]
    rows = [
        [
            name,
            f"{np.median([each.latency['p50'] for each in alone[name]]):.2f}",
            f"{rate_of(closed[name]):.0f}",
            f"{np.median([each.server_cpu for each in closed[name]]):.0f}",
            *([f"{np.median([each.latency[p] for each in opened[name]]):.2f}" for p in ("p50", "p99", "p99.9")]
              if name in opened else ["overloaded"] * 3),
            f"{memory[name]:.0f}",
        ]
        for name in closed
    ]  # fmt: skip
    columns = ["server", "1 caller, p50 ms", f"{CALLERS} callers, requests/s", "processor us a request"]
    columns += [f"open loop at {load:.0f}/s, p50 ms", "p99 ms", "p99.9 ms", "memory MB"]
    return Record(
        "server.comparison",
        "Our server beside others",
        "make server-comparison",
        figures,
        [
            {
                "title": f"One core, one worker, the same graph; {EVENTS} history items, {CANDIDATES} candidates",
                "columns": columns,
                "rows": rows,
            },
            {
                "title": "Graphs: requests a second of 8 callers",
                "columns": ["server and graph", "requests/s", "processor us a request"],
                "rows": [
                    [kind, f"{rate_of(runs):.0f}", f"{np.median([each.server_cpu for each in runs]):.0f}"]
                    for kind, runs in ours.items()
                ],
            },
        ],
        [
            f"Medians over {len(closed[OURS])} interleaved rounds. Before any time is taken, {COMPARED} answers of each"
            f" server are compared: all orders are equal with the same graph, at least {equal} with others, where "
            f"scores differ by less than {CLOSE:g}.",
            "The others run the same work in Python around onnxruntime, with our codebook, trie and ranking in C++ and "
            "without our checks of requests; bytes of the same protobuf messages, ours by gRPC, theirs by HTTP.",
            f"The student is that of the defaults ({DIM} wide, {LAYERS} layer) with random weights. As exported means "
            "that its last layer computes every row, and that it is not split.",
        ],
    )


def prepare(venvs: Path, names: Sequence[str]) -> None:
    """Make the virtual environments that are missing."""
    for name in names:
        folder = venvs / name
        if folder.exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        needed = ROOT / "benchmarks" / "servers" / f"requirements-{name}.txt"
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", needed], check=True)


def main() -> None:
    """Print the figures, store them, and exit with 1 if one is short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "servers")
    parser.add_argument("--servers", nargs="+", default=SERVERS, choices=SERVERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--dry", action="store_true", help="do not store the record")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("not measured: the load needs a core of its own")
    prepare(options.venvs, options.servers)
    with tempfile.TemporaryDirectory() as folder:
        bundles = write_bundles(Path(folder), dim=DIM, layers=LAYERS)
        setup = Setup(options.venvs, cores[0], cores[1], options.seconds)
        record = comparison(bundles, setup, options.servers, options.rounds)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} (bar {figure.bar}) {figure.status}")
    for table in record.tables:
        print(table["title"], *(" | ".join(map(str, row)) for row in [table["columns"], *table["rows"]]), sep="\n  ")
    print(*record.notes, sep="\n")
    if not options.dry:
        print(store(record))
    sys.exit(any(figure.status == "short" for figure in record.figures))


if __name__ == "__main__":
    main()
