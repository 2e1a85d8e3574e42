"""What a request costs beside the model: a call over loopback against an empty grpcio call with the same bytes.

`make server-overhead` stores docs/results/server.overhead.json. Both servers have one core, the caller
another; calls go to one and the other in turn.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import numpy as np

from benchmarks.results import Figure, Record, store
from benchmarks.server.bundles import arithmetic
from benchmarks.server.peers.with_nothing import METHOD
from benchmarks.server.processes import OURS, empty_server, started
from gr2.bundle import Bundle
from gr2.export.random_bundle import write_random_bundle
from gr2.load.requests import draw_requests
from gr2.v1 import reranker_pb2

__all__ = ["main", "overhead"]

EVENTS, CANDIDATES, DIM = 50, 50, 64
SERVER, CLIENT = 0, 1
BLOCKS = 20


def timed(call: Callable[[bytes], bytes], request: bytes) -> tuple[float, bytes]:
    """Microseconds of a call, and its reply."""
    start = time.perf_counter_ns()
    reply = call(request)
    return (time.perf_counter_ns() - start) / 1e3, reply


def overhead(bundle: Path, count: int) -> Record:
    """The ratio, of `count` pairs of calls."""
    requests = draw_requests(Bundle.load(bundle), 2000, history=EVENTS, candidates=CANDIDATES)
    os.sched_setaffinity(0, [CLIENT])
    with started(OURS, bundle, SERVER, Path(), requests[0]) as server, tempfile.TemporaryDirectory() as folder:
        reply = Path(folder) / "reply"
        reply.write_bytes(server.call(requests[0], 10.0)[1])
        with empty_server(SERVER, str(reply)) as (port, _):
            channels = [grpc.insecure_channel(target) for target in (server.target, f"127.0.0.1:{port}")]
            ours = channels[0].unary_unary(f"/{reranker_pb2.DESCRIPTOR.services_by_name['Reranker'].full_name}/Rerank")
            empty = channels[1].unary_unary(METHOD)
            rows = pairs(ours, empty, requests, count)
    return record(rows, len(requests[0]), reply_bytes=server_bytes(rows))


def pairs(
    ours: Callable[[bytes], bytes], empty: Callable[[bytes], bytes], requests: Sequence[bytes], count: int
) -> np.ndarray:
    """(count, 5): microseconds of our call, of that the model and all inside the server, of the empty call; bytes."""
    rows = []
    for at in range(count + 200):
        request = requests[at % len(requests)]
        nothing, _ = timed(empty, request)
        whole, reply = timed(ours, request)
        timings = reranker_pb2.RerankResponse.FromString(reply).timings
        rows.append((whole, timings.model_ns / 1e3, timings.total_ns / 1e3, nothing, len(reply)))
    return np.array(rows[200:])


def server_bytes(rows: np.ndarray) -> int:
    """Bytes of a reply, at the median."""
    return int(np.median(rows[:, 4]))


def record(rows: np.ndarray, request_bytes: int, *, reply_bytes: int) -> Record:
    """The figures: medians, and the spread of the ratio over blocks of the run."""
    whole, model, _, nothing = rows[:, :4].T
    rest = whole - model
    ratio = float(np.median(rest) / np.median(nothing))
    blocks = [
        float(np.median(part) / np.median(other))
        for part, other in zip(np.array_split(rest, BLOCKS), np.array_split(nothing, BLOCKS), strict=True)
    ]
    low, high = np.percentile(blocks, [10, 90])
    figures = [
        Figure.judge("p50 of a request less the model's time, over an empty call", ratio, 1.25, at_most=True),
        Figure(
            "the same over a twentieth of the run, 10th to 90th percentile", f"{low:.2f}-{high:.2f}", "measured", "ok"
        ),
    ]
    names = ["a request", "of which the model", "of which all inside the server", "an empty call"]
    table = {
        "title": f"p50 over loopback, {request_bytes:,} bytes there and {reply_bytes:,} back, {len(rows):,} calls each",
        "columns": ["", "us"],
        "rows": [[name, f"{np.median(column):.0f}"] for name, column in zip(names, rows.T, strict=False)],
    }
    notes = [
        f"random student, {DIM} wide in {arithmetic(DIM)}, {EVENTS} history items and {CANDIDATES} candidates; one "
        "caller",
        "an empty call: grpcio's synchronous server with handlers on bytes, as ours, that return bytes made before",
    ]
    return Record("server.overhead", "The server's overhead", "make server-overhead", figures, [table], notes)


def main() -> None:
    """Store the record, or with --dry print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_random_bundle(Path(folder) / "bundle", dim=DIM, arithmetic=arithmetic(DIM), batched=False)
        found = overhead(bundle, arguments.calls)
    if arguments.dry:
        print(found)
    else:
        print(store(found))


if __name__ == "__main__":
    main()
