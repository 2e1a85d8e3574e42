"""Replies over many connections against those of the engine in this process, byte by byte but for the timings.

`make server-equality` stores docs/results/server.equality.json. The server answers in the C++ core, from bytes to
bytes. Here the official parser and serialiser, the rules of requests in Python and NumPy are around the same model,
which the core computes in both; what it computes is held against the ONNX graphs and the trained student elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np

from benchmarks.results import Figure, Record, store
from benchmarks.server.bundles import arithmetic
from benchmarks.server.processes import OURS, started
from gr2._core import Call
from gr2.bundle import Bundle
from gr2.export.random_bundle import write_random_bundle
from gr2.load.requests import encode_request
from gr2.load.worker import METHOD
from gr2.serving.access.calls import Admission
from gr2.serving.engine import Engine
from gr2.serving.ranking import Timings
from gr2.serving.services.replies import reply_in_python
from gr2.v1 import reranker_pb2

__all__ = ["equality", "main"]

ITEMS, WIDTH, DIM = 12_000, 2, 64
REQUESTS, CONNECTIONS = 100_000, 50
SERVER = 0
TIMEOUT = 120.0


def draw(count: int) -> list[bytes]:
    """Requests of every kind: long and short, known items and unknown, with and without scores and features."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        past, size = rng.integers(0, ITEMS + 500, rng.integers(0, 40)), int(rng.integers(1, 40))
        slate = rng.choice(ITEMS + 500, size, replace=False)
        scores = rng.normal(size=size).round(1) if rng.random() < 0.7 else ()
        features = rng.normal(size=size * WIDTH) if rng.random() < 0.7 else ()
        top = int(rng.integers(0, size + 2))
        drawn.append(encode_request(past.tolist(), slate.tolist(), scores=scores, features=features, top_n=top))
    return drawn


def digest(reply: bytes) -> bytes:
    """Of a reply without its timings; of nothing if its bytes are not what the official serialiser writes."""
    response = reranker_pb2.RerankResponse.FromString(reply)
    if response.SerializeToString() != reply:
        return b""
    for name in Timings.__slots__:
        response.timings.ClearField(name)
    return hashlib.blake2b(response.SerializeToString(), digest_size=16).digest()


def ask(target: str, requests: Sequence[bytes], connections: int) -> tuple[list[bytes], Counter[str]]:
    """The digest of each reply, and the statuses, of requests sent over that many connections at once."""
    found, codes, lock = [b""] * len(requests), Counter[str](), threading.Lock()

    def send(place: int) -> None:
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(METHOD)
            for at in range(place, len(requests), connections):
                try:
                    found[at], code = digest(call(requests[at], timeout=TIMEOUT)), "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                with lock:
                    codes[code] += 1

    threads = [threading.Thread(target=send, args=(place,)) for place in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, codes


def equality(bundle: Path, count: int, connections: int) -> Record:
    """How many replies are equal."""
    requests = draw(count)
    began = time.monotonic()
    # All may wait at once: what is refused says nothing of replies.
    with started(OURS, bundle, SERVER, Path(), requests[0], "--queue", str(connections)) as server:
        found, codes = ask(server.target, requests, connections)
    print(f"{dict(codes)} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    engine, admission = Engine(Bundle.load(bundle)), Admission(1, 0)
    equal = 0
    for request, reply in zip(requests, found, strict=True):
        equal += digest(reply_in_python(engine, request, admission, Call(), None)) == reply
    figures = [
        Figure(
            f"replies over {connections} connections equal to the in-process engine's",
            f"{equal:,} of {count:,}",
            "all",
            "ok" if equal == count else "short",
        ),
        Figure.judge("calls that failed", count - codes["OK"], 0, at_most=True),
    ]
    notes = [
        "bytes compared, all but the timings; the server answers from bytes to bytes in C++, the engine parses, "
        "checks, looks up and writes in Python; the model is the core's in both",
        f"a student {DIM} wide in {arithmetic(DIM)}, as `gr2 export` chooses",
        "0 to 39 history items and 1 to 39 candidates, a few unknown, with and without scores, features and a limit",
    ]
    return Record("server.equality", "Replies of the server", "make server-equality", figures, notes=notes)


def main() -> None:
    """Store the record, or with --dry print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {"items": ITEMS, "width": WIDTH, "dim": DIM, "batched": False}
        bundle = write_random_bundle(Path(folder) / "bundle", arithmetic=arithmetic(DIM), **options)
        found = equality(bundle, arguments.requests, arguments.connections)
    print(found if arguments.dry else store(found))


if __name__ == "__main__":
    main()
