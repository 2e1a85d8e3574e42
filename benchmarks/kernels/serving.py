"""The engine on a GPU: its order against the CPU's, the time of each phase, and requests a second.

`make kernels-serving` on a machine with a GPU stores docs/results/kernels.serving.json, part by part. The bundle is of
a student with random weights; `python -m benchmarks.kernels.serving --bundle DIR` takes another, and `--dry` runs the
same code without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels.report import Report
from benchmarks.kernels.start import starts
from benchmarks.results import FOLDER, Figure, Record, details
from gr2.bundle import Bundle
from gr2.decoding import CandidateTrie
from gr2.export.random_bundle import write_random_bundle
from gr2.features import candidate_features
from gr2.serving.engine import Engine
from gr2.serving.models.batcher import BatchLimits
from gr2.serving.models.device import Device, obstacle
from gr2.serving.models.device_model import PHASES, DeviceModel
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.query import Query, UnrankableError

__all__ = ["main", "serving"]

EVENTS, CANDIDATES = 50, 100
PARTS = ("order", "phases", "throughput", "start")
# Scores are sums of float32 logarithms of about -20, and how they round depends on the order of additions: candidates
# whose scores are closer than this count as tied.
TIE = 1e-4


@dataclass(frozen=True)
class Plan:
    """How much is asked, and of what. A dry run takes the code for batches on the CPU."""

    device: Device
    items: int
    requests: int
    batch: int
    rounds: int
    seconds: float  # of asking


FULL = Plan("cuda", items=12_000, requests=10_000, batch=64, rounds=200, seconds=4.0)
DRY = Plan("cpu", items=300, requests=20, batch=4, rounds=2, seconds=0.2)


@dataclass(frozen=True)
class Request:
    """What `Engine.rerank` takes, and the same as the model takes it."""

    arguments: dict[str, Any]
    query: Query


def make_requests(bundle: Bundle, count: int, *, full: bool = False, seed: int = 0) -> list[Request]:
    """Seeded requests of up to EVENTS and CANDIDATES items, one in 30 unknown; `full` ones have them all, and known."""
    rng, codebook, width = np.random.default_rng(seed), bundle.codebook(), bundle.manifest.features.width
    ids = bundle.catalog().ids
    strings = isinstance(ids[0], str)
    requests = []
    for _ in range(count):
        events = EVENTS if full else int(rng.integers(0, EVENTS + 1))
        size = min(len(ids), CANDIDATES if full else int(rng.integers(1, CANDIDATES + 1)))
        history = [ids[at] for at in rng.integers(0, len(ids), events)]
        candidates = [ids[at] for at in rng.choice(len(ids), size, replace=False)]
        for at in range(1, size):
            if not full and rng.random() < 1 / 30:
                candidates[at] = f"unknown {at}" if strings else -at
        scores = rng.normal(size=size).astype(np.float32)
        dense = rng.normal(size=(size, width)).astype(np.float32) if width else None
        arguments = {"history": history, "candidates": candidates, "scores": scores, "features": dense}

        def look_up(items: list[Any]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
            return codebook.lookup(items if strings else np.array(items, dtype=np.int64))

        codes, known = look_up(candidates)
        past = look_up(history)[0][-bundle.manifest.model.max_history :]
        features = candidate_features(size, scores=scores if bundle.manifest.features.scores else None, dense=dense)
        trie = CandidateTrie(codes, known, bundle.manifest.model.level_size)
        requests.append(Request(arguments, Query(past, codes, known, features, trie)))
    return requests


@dataclass(frozen=True)
class Agreement:
    """Requests whose order is the CPU's, differs among tied candidates only, and differs otherwise."""

    same: int
    tied: int
    other: int
    difference: float  # the largest between two scores of a candidate


def agreement(host: HostModel, device: DeviceModel, queries: list[Query], most: int) -> Agreement:
    """The device's orders, in batches of at most `most`, against those of the CPU."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        expected = list(pool.map(host.score, queries))
    batches = [queries[at : at + most] for at in range(0, len(queries), most)]
    found = [answer for batch in batches for answer in device.run(batch).answers]
    same = tied = 0
    difference = 0.0
    for query, scored, answer in zip(queries, expected, found, strict=True):
        assert not isinstance(answer, UnrankableError), answer
        order, scores = answer
        difference = max(difference, float(np.abs(scores[query.known] - scored.scores[query.known]).max()))
        if np.array_equal(order, scored.order):
            same += 1
            continue
        assert sorted(order.tolist()) == list(range(len(order)))
        # Unknown candidates have -inf in both, and keep their places.
        count = int(query.known.sum())
        unknown = np.array_equal(order[count:], scored.order[count:])
        gaps = np.abs(scored.scores[order[:count]] - scored.scores[scored.order[:count]])
        tied += bool(unknown and (gaps <= TIE).all())
    return Agreement(same, tied, len(queries) - same - tied, difference)


def phases(device: DeviceModel, queries: list[Query], rounds: int) -> tuple[NDArray[np.float64], float]:
    """Microseconds of each of PHASES, and of a whole run, at the median of so many runs of a batch."""
    device.run(queries)
    rows, whole = [], []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        rows.append(device.run(queries).phases)
        whole.append(time.perf_counter_ns() - start)
    return np.median(np.array(rows), axis=0) / 1e3, float(np.median(whole)) / 1e3


def median_time(call: Callable[[], object], rounds: int) -> float:
    """Microseconds of a call, at the median."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e3


def throughput(engine: Engine, requests: list[Request], threads: int, seconds: float) -> float:
    """Requests a second of as many callers as `threads`, each asking again as soon as it is answered."""
    end = time.perf_counter() + seconds

    def ask(caller: int) -> int:
        done = 0
        while time.perf_counter() < end:
            engine.rerank(**requests[(caller + done * threads) % len(requests)].arguments)
            done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(ask, range(threads)))
    return total / (time.perf_counter() - start)


def serving(bundle: Bundle, plan: Plan, report: Report) -> None:
    """Every figure of the engine on a device, each part stored as soon as it is there."""
    limits = BatchLimits(plan.batch, 500.0, 4 * plan.batch)
    host, model = HostModel(bundle), DeviceModel(bundle, plan.device, limits=limits)
    mixed, full = make_requests(bundle, plan.requests), make_requests(bundle, plan.batch, full=True, seed=1)
    report.put("order", *_order(agreement(host, model, [request.query for request in mixed], plan.batch), plan))
    report.put("phases", *_phases(host, model, [request.query for request in full], plan))
    model.close()
    report.put("throughput", [], [_throughput(bundle, plan, limits, mixed[:2048])])
    figures, table = starts(bundle.path, plan.device)
    report.put("start", figures, [table])


def _order(found: Agreement, plan: Plan) -> tuple[list[Figure], list[dict[str, Any]], list[str]]:
    other = f"of {plan.requests:,} requests, ranked otherwise than on the CPU, ties excepted"
    note = (
        f"Of {plan.requests:,} requests {found.same:,} have the CPU's very order; {found.tied:,} differ only among "
        f"candidates whose scores are within {TIE:g}. Scores differ by at most {found.difference:.2g}."
    )
    return [Figure.judge(other, found.other, 0, at_most=True)], [], [note]


def _phases(
    host: HostModel, model: DeviceModel, batch: list[Query], plan: Plan
) -> tuple[list[Figure], list[dict[str, Any]], list[str]]:
    (one, one_whole), (many, many_whole) = (phases(model, each, plan.rounds) for each in (batch[:1], batch))
    cpu = median_time(lambda: host.score(batch[0]), plan.rounds)
    cheaper = f"one request of a batch of {plan.batch} to one alone, times faster"
    table = {
        "title": f"Microseconds of each phase: {EVENTS} history items, {CANDIDATES} candidates a request",
        "columns": ["phase", "one request", f"batch of {plan.batch}"],
        "rows": [
            *([name, f"{a:.0f}", f"{b:.0f}"] for name, a, b in zip(PHASES, one, many, strict=True)),
            ["whole run, by the caller's clock", f"{one_whole:.0f}", f"{many_whole:.0f}"],
            ["the CPU's model, one core", f"{cpu:.0f}", f"{cpu * plan.batch:.0f} (one by one)"],
        ],
    }
    note = "Phases after padding are by the device's clock and include its waits for the host."
    return [Figure.judge(cheaper, one_whole * plan.batch / many_whole, 4)], [table], [note]


def _throughput(bundle: Bundle, plan: Plan, limits: BatchLimits, requests: list[Request]) -> dict[str, Any]:
    cores, callers = len(os.sched_getaffinity(0)), 2 * plan.batch
    plain = Engine(bundle)
    cpu = throughput(plain, requests, cores, plan.seconds)
    plain.close()
    engine = Engine(bundle, device=plan.device, batches=limits)
    batched = throughput(engine, requests, callers, plan.seconds)
    engine.close()
    return {
        "title": f"Requests a second through `Engine.rerank`, 1..{CANDIDATES} candidates, one Python process",
        "columns": ["engine", "callers", "requests a second"],
        "rows": [
            [f"CPU, {cores} cores", cores, f"{cpu:.0f}"],
            [f"{plan.device}, batches of {plan.batch}", callers, f"{batched:.0f}"],
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures and store them as they come; exit with 1 if one is short or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a bundle with batch.onnx")
    parser.add_argument("--requests", type=int, default=FULL.requests)
    parser.add_argument("--dry", action="store_true", help="without a GPU, few requests: times say nothing")
    parser.add_argument("--out", type=Path, help="a folder for the record; docs/results if there is a GPU")
    options: Any = parser.parse_args(arguments)
    if options.dry and options.out is None:
        sys.exit("benchmarks.kernels.serving --dry needs --out: what it stores is no result")
    plan = DRY if options.dry else replace(FULL, requests=options.requests)
    record = Record("kernels.serving", "The engine on a GPU", "make kernels-serving", [])
    report = Report(record, PARTS, options.out or FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.load(options.bundle or write_random_bundle(Path(folder) / "bundle", items=plan.items))
        if not options.dry and (reason := obstacle(bundle)):
            sys.exit(f"not measured: {reason}")
        serving(bundle, plan, report)
    print(*report.record.figures, *details(report.record), sep="\n")
    sys.exit(not options.dry and any(figure.status == "short" for figure in report.record.figures))


if __name__ == "__main__":
    main()
