"""Servers in processes of their own, and a load at a steady rate whose every answer is compared with the engine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np

import gr2
from gr2.bundle import Bundle
from gr2.client import SERVICE, service_config
from gr2.serving.engine import Engine
from gr2.v1 import reranker_pb2

__all__ = ["METHOD", "Load", "Question", "Replica", "Tally", "make_questions"]

METHOD = f"/{SERVICE}/Rerank"
EVENTS, CANDIDATES = 50, 50
DEADLINE = 5.0  # seconds
READY_SECONDS = 60.0

Order = list[tuple[int, float]]


@dataclass(frozen=True)
class Question:
    """A request, and the order and scores that each bundle's engine gives, by the bundle's version."""

    data: bytes
    expected: dict[str, Order]


def make_questions(bundles: Sequence[Path], count: int = 64, *, seed: int = 0) -> list[Question]:
    """Requests of 50 history items and 50 candidates of the bundles' catalogue, answered in process."""
    rng, ids = np.random.default_rng(seed), Bundle.load(bundles[0]).catalog().ids
    engines = [Engine(bundle) for bundle in bundles]
    questions = []
    for _ in range(count):
        drawn = [ids[at] for at in rng.choice(len(ids), EVENTS + CANDIDATES, replace=False)]
        scores = rng.normal(size=CANDIDATES).astype(np.float32)
        request = reranker_pb2.RerankRequest(scores=scores.tolist())
        kind = "strings" if isinstance(ids[0], str) else "ints"
        getattr(request.history, kind).extend(drawn[:EVENTS])
        getattr(request.candidates, kind).extend(drawn[EVENTS:])
        rankings = [engine.rerank(drawn[:EVENTS], drawn[EVENTS:], scores=scores) for engine in engines]
        expected = {each.bundle_version: [(item.index, item.score) for item in each.items] for each in rankings}
        questions.append(Question(request.SerializeToString(), expected))
    return questions


class Replica:
    """`gr2 serve` in a process. It is killed at the end of its `with` block if it still runs."""

    def __init__(
        self,
        bundle: Path,
        *arguments: str,
        port: int = 0,
        env: dict[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        """Start it, and return once it answers; with `output`, which takes what it prints, the port must be given."""
        found = [str(Path(gr2.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "gr2.cli", "serve", "--bundle", str(bundle), "--port", str(port), *arguments]
        sink = output.open("wb") if output else subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=sink if output else subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1", **(env or {})},
        )
        self.address = f"127.0.0.1:{port}"
        if self.process.stdout is not None:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(command)} ended with {self.process.wait()}")
            self.address = json.loads(line)["address"]
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(READY_SECONDS)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])

    def __enter__(self) -> Replica:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def resident(self) -> float:
        """MiB of memory that it holds."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


@dataclass
class Tally:
    """What callers saw: answers by the bundle's version, errors by status, answers that were wrong, milliseconds."""

    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    milliseconds: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Calls without an answer, or with a wrong one."""
        return sum(self.errors.values()) + self.wrong

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(self.answers.values()) + self.failed

    def quantile(self, share: float) -> float:
        """Milliseconds within which that share of the calls was answered."""
        return float(np.quantile(self.milliseconds, share)) if self.milliseconds else float("nan")


class Load:
    """Calls at a steady rate for as long as the `with` block runs, by the published service config.

    A call's time is from the moment when it was due, so that one that is held up shows in those behind it.
    """

    def __init__(
        self, addresses: Sequence[str], questions: Sequence[Question], *, rate: float, threads: int = 6
    ) -> None:
        self._target = f"ipv4:{','.join(addresses)}"
        self._questions, self._rate, self._threads = questions, rate, threads
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.tally = Tally()

    def __enter__(self) -> Load:
        options = [("grpc.service_config", service_config()), ("grpc.max_reconnect_backoff_ms", 500)]
        self._channel = grpc.insecure_channel(self._target, options=options)
        grpc.channel_ready_future(self._channel).result(READY_SECONDS)
        start = time.monotonic() + 0.1
        self._callers = [threading.Thread(target=self._call, args=(each, start)) for each in range(self._threads)]
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for caller in self._callers:
            caller.join()
        self._channel.close()

    def _call(self, number: int, start: float) -> None:
        rerank = self._channel.unary_unary(METHOD)
        turn = number
        while not self._over.wait(max(0.0, (due := start + turn / self._rate) - time.monotonic())):
            question = self._questions[turn % len(self._questions)]
            outcome: Any
            try:
                outcome = rerank(question.data, timeout=DEADLINE)
            except grpc.RpcError as error:
                outcome = error.code().name
            self._count(question, outcome, 1000 * (time.monotonic() - due))
            turn += self._threads

    def _count(self, question: Question, outcome: bytes | str, milliseconds: float) -> None:
        with self._lock:
            self.tally.milliseconds.append(milliseconds)
            if isinstance(outcome, str):
                self.tally.errors[outcome] += 1
                return
            reply = reranker_pb2.RerankResponse.FromString(outcome)
            order = [(item.index, item.score) for item in reply.ranking]
            if question.expected.get(reply.bundle_version) == order:
                self.tally.answers[reply.bundle_version] += 1
            else:
                self.tally.wrong += 1
