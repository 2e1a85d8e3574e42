"""Our server beside those that pip installs: the same graph, on the same core, the load from another.

`make server-comparison` stores docs/results/server.comparison.json. Each of the others has a virtual environment of its
own below `--venvs`, made from benchmarks/server/peers/requirements-NAME.txt where it is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.server.bundles import Bundles, write_bundles
from benchmarks.server.processes import CORE, OURS, SERVERS, Started, started
from gr2.bundle import Bundle
from gr2.errors import Gr2Error
from gr2.export.agreement import Agreement
from gr2.export.agreement import Comparison as Agreements
from gr2.export.bundle import ExportConfig
from gr2.export.gate import Gate
from gr2.load.requests import draw_requests
from gr2.load.run import run_step
from gr2.load.step import Generator, Step
from gr2.load.summary import Summary
from gr2.v1 import reranker_pb2

__all__ = ["Comparison", "main"]

EVENTS, CANDIDATES, CALLERS = 50, 50, 8
REQUESTS, COMPARED, USERS = 20_000, 200, 200
JUDGED = 1000  # answers that the default bundle's arithmetic is judged by
LOAD = 0.7  # of what the best of the others answers
# Scores of different graphs of one model round differently.
CLOSE = 1e-3
ATTEMPTS = 3
DIM, LAYERS = 64, 1

Answers = list[tuple[list[int], list[float]]]
"""Orders, and the scores in these orders."""
Runs = dict[str, list[Summary]]


@dataclass
class Setup:
    """What all measurements share. `core` is the server's, `client` the load generator's."""

    venvs: Path
    core: int
    client: int
    seconds: float
    warmup: float = 2.0

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


def answers(server: Started, requests: Sequence[bytes]) -> Answers:
    """Order and scores of the requests."""
    rankings = []
    for request in requests:
        code, reply = server.call(request, 10.0)
        if code:
            raise Gr2Error(f"{server.target}: status {code}")
        ranking = reranker_pb2.RerankResponse.FromString(reply).ranking
        rankings.append(([item.index for item in ranking], [item.score for item in ranking]))
    return rankings


def same(found: Answers, expected: Answers) -> int:
    """How many orders are equal. Raises AssertionError if scores differ, or orders beyond what rounding explains."""
    equal = 0
    for (order, scores), (right, right_scores) in zip(found, expected, strict=True):
        by_index = dict(zip(right, right_scores, strict=True))
        assert np.allclose(scores, [by_index[index] for index in order], atol=CLOSE)
        assert np.allclose(sorted(scores), sorted(right_scores), atol=CLOSE)
        equal += order == right
    return equal


def agreement(found: Answers, expected: Answers) -> Agreement:
    """How far answers are from those in fp32. Raises AssertionError if they are beyond the gate of `gr2 export`, of
    which N@5 does not count: random requests have no target.
    """
    agreements = Agreements(CLOSE)
    for pair in zip(expected, found, strict=True):
        scores = (np.array(values, dtype=np.float32)[np.argsort(order)] for order, values in pair)
        agreements.add(*scores, label=-1)
    figures = agreements.result()
    faults = Gate(ExportConfig.min_top1, ExportConfig.min_tau, ExportConfig.max_lost).faults(figures, figures)
    assert not faults, faults
    return figures


def rounds(count: int, names: Sequence[str], measure: Callable[[str], None]) -> None:
    """Every measurement `count` times, in turns, each time beginning with another."""
    for turn in range(count):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            print(f"round {turn + 1} of {count}: {name}", file=sys.stderr, flush=True)
            measure(name)


class Comparison:
    """The measurements: the same graph in all servers, the same load, and our graphs against the best of the others."""

    def __init__(self, bundles: Bundles, setup: Setup, names: Sequence[str], count: int) -> None:
        self.bundles, self.setup, self.names, self.count = bundles, setup, names, count
        loaded = Bundle.load(bundles.default)
        shape = {"history": EVENTS, "candidates": CANDIDATES}
        self.fresh = draw_requests(loaded, REQUESTS, **shape)
        self.known = draw_requests(loaded, REQUESTS, users=USERS, **shape)
        self.answers: dict[str, Answers] = {}
        self.memory: dict[str, float] = {}
        self.alone: Runs = {}
        self.closed: Runs = {}
        self.opened: Runs = {}
        self.graphs: Runs = {}
        self.judged: dict[Path, Answers] = {}
        self.equal = self.equal_orders = COMPARED

    def started(self, name: str, bundle: Path) -> AbstractContextManager[Started]:
        """A server on its core."""
        return started(name, bundle, self.setup.core, self.setup.venvs, self.fresh[0])

    def same_graph(self) -> None:
        """One caller and several, in every server. Raises AssertionError if answers differ."""

        def measure(name: str) -> None:
            with self.started(name, self.bundles.whole) as server:
                self.answers.setdefault(name, answers(server, self.fresh[:COMPARED]))
                self.alone.setdefault(name, []).append(self.setup.step(server, self.fresh, concurrency=1))
                self.closed.setdefault(name, []).append(self.setup.step(server, self.fresh, concurrency=CALLERS))
                self.memory[name] = server.megabytes()

        rounds(self.count, [OURS, *self.names], measure)
        self.equal_orders = min(same(self.answers[name], self.answers[OURS]) for name in self.names)

    @property
    def best(self) -> str:
        """The server with the highest throughput of the others, as they are: without our parts in C++."""
        return max((name for name in self.names if CORE not in name), key=lambda name: rate_of(self.closed[name]))

    @property
    def load(self) -> float:
        """Requests a second of the open loop."""
        return LOAD * rate_of(self.closed[self.best])

    def equal_load(self) -> None:
        """An open loop at that load, in every server that is able to answer it."""

        def measure(name: str) -> None:
            with self.started(name, self.bundles.whole) as server:
                self.opened.setdefault(name, []).append(self.setup.step(server, self.fresh, rate=self.load))

        rounds(self.count, [OURS, *(name for name in self.names if rate_of(self.closed[name]) > self.load)], measure)

    def our_graphs(self) -> None:
        """The graph as exported in the best of the others, and our bundles, the default one with known histories too.

        Raises AssertionError if answers differ.
        """
        kinds = {
            f"{self.best}, the graph as exported": (self.best, self.bundles.exported, self.fresh),
            f"{OURS}, fp32": (OURS, self.bundles.exact, self.fresh),
            f"{OURS}, fp32, histories known": (OURS, self.bundles.exact, self.known),
            f"{OURS}, the default bundle": (OURS, self.bundles.default, self.fresh),
            f"{OURS}, the default bundle, histories known": (OURS, self.bundles.default, self.known),
        }

        def measure(kind: str) -> None:
            name, bundle, requests = kinds[kind]
            with self.started(name, bundle) as server:
                if bundle != self.bundles.default:
                    self.equal = min(self.equal, same(answers(server, self.fresh[:COMPARED]), self.answers[OURS]))
                self.judged.setdefault(bundle, answers(server, self.fresh[:JUDGED]))
                self.graphs.setdefault(kind, []).append(self.setup.step(server, requests, concurrency=CALLERS))

        rounds(self.count, list(kinds), measure)
        self.agreement = agreement(self.judged[self.bundles.default], self.judged[self.bundles.exact])
        self.graphs = {kind: self.graphs[kind] for kind in kinds}

    def record(self) -> Record:
        """The figures of what was measured."""
        return Record(
            "server.comparison",
            "Our server beside others",
            "make server-comparison",
            self._figures(),
            [self._servers(), self._graphs()],
            [
                f"Medians over {self.count} interleaved rounds. {COMPARED} answers of each server, asked for before "
                f"its times, are compared, and no figure is made if they differ: at least {self.equal_orders} orders "
                f"are equal with the same graph, {self.equal} with others in fp32; all scores differ by less than "
                f"{CLOSE:g}.",
                "The default bundle has the arithmetic that `gr2 export` chooses for the width. Against fp32, over "
                f"{JUDGED} requests: the same first candidate on {self.agreement.top1:.1%}, Kendall's tau "
                f"{self.agreement.tau:.4f}, both asserted to be within the export's gate.",
                "The others run the same work in Python, vectorised: protobuf, NumPy, onnxruntime, without our checks "
                f"of requests. With {CORE} their handler has our codebook, trie and ranking in C++, which nobody but "
                "us ships. Bytes of the same messages, ours by gRPC, theirs by HTTP.",
                f"The student is that of the defaults ({DIM} wide, {LAYERS} layer) with random weights. As exported "
                "means that its last layer computes every row, and that it is not split.",
                *(
                    ["Servers and load ran at real-time priority, since the machine had other work."]
                    if urgent()
                    else []
                ),
            ],
        )

    def _figures(self) -> list[Figure]:
        others = [name for name in self.opened if name != OURS and CORE not in name]
        quickest = min(others, key=lambda name: float(np.median([tail(each) for each in self.opened[name]])))
        exported, exact, exact_known, default, known = self.graphs.values()
        throughputs = ratio(self.closed[OURS], self.closed[self.best], throughput)
        tails = ratio(self.opened[OURS], self.opened[quickest], tail)
        best, load = f"the best of the others ({self.best})", f"open loop at {self.load:.0f} requests/s"
        return [
            Figure.judge(f"same graph, same core: throughput over {best}", throughputs, 1.25),
            Figure.judge(f"the same, {load}: p99 over the best of the others ({quickest})", tails, 0.7, at_most=True),
            Figure.judge(
                f"the default bundle over the graph as exported in {self.best}: throughput",
                ratio(default, exported, throughput),
                2.5,
            ),
            Figure.judge("the same, histories in the cache", ratio(known, exported, throughput), 4.0),
            *(
                Figure(
                    f"the same with our bundle in fp32{how}",
                    f"{ratio(runs, exported, throughput):.3f}",
                    "measured",
                    "ok",
                )
                for how, runs in (("", exact), (", histories in the cache", exact_known))
            ),
        ]

    def _servers(self) -> dict[str, Any]:
        columns = ["server", "1 caller, p50 ms", f"{CALLERS} callers, requests/s", "processor us a request"]
        columns += [f"open loop at {self.load:.0f}/s, p50 ms", "p99 ms", "p99.9 ms", "memory MB"]
        rows = []
        for name, closed in self.closed.items():
            runs = self.opened.get(name, [])
            open_loop = [f"{middle(runs, lambda each: each.latency[p]):.2f}" for p in ("p50", "p99", "p99.9") if runs]  # noqa: B023
            alone = middle(self.alone[name], lambda each: each.latency["p50"])
            cells = [f"{alone:.2f}", f"{rate_of(closed):.0f}", f"{middle(closed, processor):.0f}"]
            rows.append([name, *cells, *(open_loop or ["overloaded"] * 3), f"{self.memory[name]:.0f}"])
        title = f"One core, one worker, the same graph; {EVENTS} history items, {CANDIDATES} candidates"
        return {"title": title, "columns": columns, "rows": rows}

    def _graphs(self) -> dict[str, Any]:
        rows = [[kind, f"{rate_of(runs):.0f}", f"{middle(runs, processor):.0f}"] for kind, runs in self.graphs.items()]
        columns = ["server and graph", "requests/s", "processor us a request"]
        return {"title": f"Graphs: requests a second of {CALLERS} callers", "columns": columns, "rows": rows}


def urgent() -> bool:
    """Whether this process and those it starts go before ordinary ones."""
    return os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


def middle(summaries: Sequence[Summary], value: Callable[[Summary], float]) -> float:
    """The median over rounds of a value."""
    return float(np.median([value(each) for each in summaries]))


def rate_of(summaries: Sequence[Summary]) -> float:
    """Requests a second at the median."""
    return middle(summaries, throughput)


def ratio(over: Sequence[Summary], under: Sequence[Summary], value: Callable[[Summary], float]) -> float:
    """The median over rounds of one's value over the other's."""
    return float(np.median([value(a) / value(b) for a, b in zip(over, under, strict=True)]))


def throughput(summary: Summary) -> float:
    """Answers a second."""
    return summary.throughput


def tail(summary: Summary) -> float:
    """Milliseconds at the 99th percentile."""
    return summary.latency["p99"]


def processor(summary: Summary) -> float:
    """The server's microseconds a request."""
    return summary.server_cpu


def prepare(venvs: Path, names: Sequence[str]) -> None:
    """Make the virtual environments that are missing."""
    for name in {name.removesuffix(CORE) for name in names}:
        folder = venvs / name
        if folder.exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        needed = ROOT / "benchmarks" / "server" / "peers" / f"requirements-{name}.txt"
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", needed], check=True)


def main() -> None:
    """Print the figures, store them, and exit with 1 if one is short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "servers")
    both = [*SERVERS, *(name + CORE for name in SERVERS)]
    parser.add_argument("--servers", nargs="+", default=[*SERVERS, SERVERS[0] + CORE], choices=both)
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
        measured = Comparison(bundles, setup, options.servers, options.rounds)
        measured.same_graph()
        measured.equal_load()
        measured.our_graphs()
        record = measured.record()
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
