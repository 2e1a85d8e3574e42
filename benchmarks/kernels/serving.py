"""The engine on a GPU: its order against the CPU's, the time of each phase, and requests a second.

`make kernels-serving` on a machine with a GPU stores docs/results/kernels.serving.json. The bundle is of a student with
random weights; `python -m benchmarks.kernels.serving --bundle DIR` takes another.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels.start import starts
from benchmarks.results import Figure, Record, store
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

BATCH, EVENTS, CANDIDATES = 64, 50, 100
ROUNDS = 200
SECONDS = 4.0
# Scores are sums of float32 logarithms of about -20, and how they round depends on the order of additions: candidates
# whose scores are closer than this count as tied.
TIE = 1e-4


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


def agreement(host: HostModel, device: DeviceModel, queries: list[Query]) -> Agreement:
    """The device's orders, in batches of BATCH, against those of the CPU."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        expected = list(pool.map(host.score, queries))
    found = [answer for at in range(0, len(queries), BATCH) for answer in device.run(queries[at : at + BATCH]).answers]
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


def phases(device: DeviceModel, queries: list[Query]) -> tuple[NDArray[np.float64], float]:
    """Microseconds of each of PHASES, and of a whole run, at the median of ROUNDS runs of a batch."""
    device.run(queries)
    rows, whole = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        rows.append(device.run(queries).phases)
        whole.append(time.perf_counter_ns() - start)
    return np.median(np.array(rows), axis=0) / 1e3, float(np.median(whole)) / 1e3


def median_time(call: Callable[[], object]) -> float:
    """Microseconds of a call, at the median of ROUNDS."""
    call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e3


def throughput(engine: Engine, requests: list[Request], threads: int) -> float:
    """Requests a second of as many callers as `threads`, each asking again as soon as it is answered."""
    end = time.perf_counter() + SECONDS

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


def serving(bundle: Bundle, device: Device, requests: int) -> Record:
    """Every figure of the engine on `device`. On "cpu" the same code runs without a GPU: a check of this file."""
    limits = BatchLimits(BATCH, 500.0, 4 * BATCH)
    host, model = HostModel(bundle), DeviceModel(bundle, device, limits=limits)
    mixed, full = make_requests(bundle, requests), make_requests(bundle, BATCH, full=True, seed=1)
    found = agreement(host, model, [request.query for request in mixed])
    single, batch = [full[0].query], [request.query for request in full]
    (one, one_whole), (many, many_whole) = phases(model, single), phases(model, batch)
    cpu = median_time(lambda: host.score(single[0]))
    model.close()
    cores = len(os.sched_getaffinity(0))
    plain = Engine(bundle)
    engine = Engine(bundle, device=device, batches=limits)
    asked = mixed[:2048]
    rates = {"CPU": throughput(plain, asked, cores), device: throughput(engine, asked, 2 * BATCH)}
    engine.close()
    started, starting = starts(bundle.path, device)
    other = f"of {requests:,} requests, ranked otherwise than on the CPU, ties excepted"
    cheaper = f"one request of a batch of {BATCH} to one alone, times faster"
    figures = [
        Figure.judge(other, found.other, 0, at_most=True),
        Figure.judge(cheaper, one_whole * BATCH / many_whole, 4),
        *started,
    ]
    return Record(
        "kernels.serving",
        "The engine on a GPU",
        "make kernels-serving",
        figures,
        [
            {
                "title": f"Microseconds of each phase: {EVENTS} history items, {CANDIDATES} candidates a request",
                "columns": ["phase", "one request", f"batch of {BATCH}"],
                "rows": [
                    *([name, f"{a:.0f}", f"{b:.0f}"] for name, a, b in zip(PHASES, one, many, strict=True)),
                    ["whole run, by the caller's clock", f"{one_whole:.0f}", f"{many_whole:.0f}"],
                    ["the CPU's model, one core", f"{cpu:.0f}", f"{cpu * BATCH:.0f} (one by one)"],
                ],
            },
            {
                "title": f"Requests a second through `Engine.rerank`, 1..{CANDIDATES} candidates, one Python process",
                "columns": ["engine", "callers", "requests a second"],
                "rows": [
                    [f"CPU, {cores} cores", cores, f"{rates['CPU']:.0f}"],
                    [f"{device}, batches of {BATCH}", 2 * BATCH, f"{rates[device]:.0f}"],
                ],
            },
            starting,
        ],
        [
            f"Of {requests:,} requests {found.same:,} have the CPU's very order; {found.tied:,} differ only among "
            f"candidates whose scores are within {TIE:g}. Scores differ by at most {found.difference:.2g}.",
            "Phases after padding are by the device's clock and include its waits for the host.",
        ],
    )


def main() -> None:
    """Print the figures, store them, and exit with 1 if one is short or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a bundle with batch.onnx")
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.load(options.bundle or write_random_bundle(Path(folder) / "bundle"))
        if reason := obstacle(bundle):
            sys.exit(f"not measured: {reason}")
        record = serving(bundle, "cuda", options.requests)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} (bar {figure.bar}) {figure.status}")
    for table in record.tables:
        rows = [" | ".join(map(str, row)) for row in [table["columns"], *table["rows"]]]
        print(table["title"], *rows, sep="\n  ")
    print(*record.notes, sep="\n")
    print(store(record))
    sys.exit(any(figure.status == "short" for figure in record.figures))


if __name__ == "__main__":
    main()
