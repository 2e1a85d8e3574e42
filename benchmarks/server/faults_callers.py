"""Callers that do not behave: slow, mute, gone, or sending what is no request."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import grpc

from benchmarks.server.faults_bench import SETTLE, Bench, Outcome
from benchmarks.server.faults_load import METHOD, Question, Replica
from gr2.v1 import reranker_pb2

__all__ = ["half_open", "malformed", "slow_callers", "statuses"]

PATIENCE = 11.0  # seconds after which the server has closed a connection without a handshake
SILENT_CALLS, STUCK_CALLS, SENDERS = 24, 16, 50
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# The head of a frame of headers of 16,000 bytes, of which few ever come.
HEADERS = b"\x00\x3e\x80\x01\x04\x00\x00\x00\x01"
STUCK = f"""
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary(sys.argv[2])
calls = [call.future(b"", timeout=600) for _ in range({STUCK_CALLS})]
calls[-1].exception()
print("begun", flush=True)
while True:
    calls = [call.future(b"", timeout=600) for _ in range({STUCK_CALLS})]
    calls[-1].exception()
"""


def slow_callers(bench: Bench) -> Outcome:
    """Callers that begin a call and never end it, and connections that send a byte now and then."""
    over, ends = threading.Event(), Counter[str]()

    def silence() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with bench.serve() as replica:
        with bench.load(replica) as load, grpc.insecure_channel(replica.address) as channel:
            time.sleep(SETTLE)
            silent = [channel.stream_unary(METHOD).future(silence()) for _ in range(SILENT_CALLS)]
            sockets = [_connect(replica, PREFACE + HEADERS) for _ in range(bench.sizes.sockets)]
            end = time.monotonic() + bench.sizes.hold
            while time.monotonic() < end:
                time.sleep(0.5)
                for each in sockets:
                    # The server may have closed it.
                    with contextlib.suppress(OSError):
                        each.sendall(b"\x00")
            over.set()
            ends.update(call.code().name for call in silent)
            for each in sockets:
                each.close()
            time.sleep(SETTLE)
        code = replica.stop()
    said = ", ".join(f"{count} {name}" for name, count in ends.items())
    note = f"{SILENT_CALLS} calls without a message ({said}), {len(sockets)} connections amid a frame; exit code {code}"
    return Outcome("slow clients", load.tally, "OK" not in ends and code == 0, note)


def half_open(bench: Bench) -> Outcome:
    """Connections that say nothing, and one whose owner is stopped amid its calls."""
    with bench.serve() as replica:
        with bench.load(replica) as load:
            time.sleep(SETTLE)
            mute = [_connect(replica, b"") for _ in range(bench.sizes.sockets)]
            command = [sys.executable, "-c", STUCK, replica.address, METHOD]
            stuck = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert stuck.stdout is not None
            stuck.stdout.readline()
            stuck.send_signal(signal.SIGSTOP)
            time.sleep(bench.sizes.hold)
            closed = sum(_is_closed(each) for each in mute)
            time.sleep(SETTLE)
        code = replica.stop()
        stuck.kill()
        stuck.communicate()
        for each in mute:
            each.close()
    what = f"{closed} of {len(mute)} connections that said nothing were closed after {bench.sizes.hold:g} s"
    note = f"{what}; a caller stopped amid {STUCK_CALLS} calls at a time; exit code {code}"
    holds = code == 0 and (closed == len(mute) or bench.sizes.hold < PATIENCE)
    return Outcome("half-open connections", load.tally, holds, note)


def malformed(bench: Bench) -> Outcome:
    """Random bytes, requests that were cut off or altered, and connections that do not speak HTTP/2."""
    rng = random.Random(0)
    requests = [_malformed(rng, bench.questions) for _ in range(bench.sizes.malformed)]
    with bench.serve() as replica:
        # In a process of their own: what they hold up in this one would be taken for the server's.
        with bench.load(replica) as load, ProcessPoolExecutor(1, get_context("spawn")) as apart:
            codes = apart.submit(statuses, replica.address, requests, SENDERS).result()
            for _ in range(bench.sizes.sockets):
                _connect(replica, rng.randbytes(500)).close()
            time.sleep(SETTLE)
        code = replica.stop()
    said = ", ".join(f"{count:,} {name}" for name, count in sorted(codes.items()))
    what = f"{said}, over {SENDERS} connections at once"
    note = f"{what}; {bench.sizes.sockets} connections of random bytes; exit code {code}"
    # A full queue refuses what it has not read; most are read.
    refused = codes["INVALID_ARGUMENT"] + codes["RESOURCE_EXHAUSTED"]
    holds = refused == len(requests) < 2 * codes["INVALID_ARGUMENT"] and codes.total() == len(requests) and code == 0
    return Outcome(f"{len(requests):,} malformed requests", load.tally, holds, note)


def statuses(target: str, requests: Sequence[bytes], connections: int) -> Counter[str]:
    """The calls by their status, of requests sent over that many connections at once."""

    def send(place: int) -> list[str]:
        found = []
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            rerank = channel.unary_unary(METHOD)
            for data in requests[place::connections]:
                try:
                    rerank(data, timeout=30)
                    found.append("OK")
                except grpc.RpcError as error:
                    found.append(error.code().name)
        return found

    with ThreadPoolExecutor(connections) as pool:
        return Counter(code for found in pool.map(send, range(connections)) for code in found)


def _malformed(rng: random.Random, questions: Sequence[Question]) -> bytes:
    """Bytes that the official parser refuses, or that break a rule of requests."""
    good = rng.choice(questions).data
    kind = rng.randrange(4)
    if kind == 0:
        # A tag of the wire type 7, which there is none of.
        return b"\x0f" + rng.randbytes(rng.randrange(400))
    if kind == 1:
        return good + b"\xff" * rng.randrange(1, 20)
    request = reranker_pb2.RerankRequest.FromString(good)
    if kind == 2:
        del request.scores[rng.randrange(1, len(request.scores)) :]
    else:
        request.candidates.CopyFrom(reranker_pb2.ItemIds(ints=[rng.randrange(9)] * rng.randrange(2, 2000)))
        request.ClearField("scores")
    return request.SerializeToString()


def _connect(replica: Replica, data: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", replica.port), timeout=10)
    made.sendall(data)
    return made


def _is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; what it sent is read and dropped."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
