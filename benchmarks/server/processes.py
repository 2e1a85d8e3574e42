"""The servers that are compared, each a group of processes on one core: started, found ready, and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import ROOT
from benchmarks.server.http import HttpCall
from gr2.errors import Gr2Error
from gr2.load.job import OK
from gr2.load.worker import Call, grpc_calls

__all__ = ["CORE", "OURS", "SERVERS", "Started", "empty_server", "free_port", "started"]

LONGEST_START, LONGEST_STOP = 120.0, 20.0  # seconds
OURS = "gr2"


@dataclass(frozen=True)
class Started:
    """A server that answers: its target, the module that sends to it, and one call."""

    target: str
    worker: str
    call: Call
    leader: int

    def pids(self) -> list[int]:
        """All of its processes."""
        return [self.leader, *_session(self.leader)]

    def megabytes(self) -> float:
        """Memory of all of them; what they share counts once."""
        return sum(_kilobytes(process, "Pss:") for process in self.pids()) / 1e3

    def resident(self) -> float:
        """Resident memory of all of them in MB, which other programs with the same libraries do not change."""
        return sum(_kilobytes(process, "Rss:") for process in self.pids()) / 1e3


def _command(name: str, python: Path, port: int) -> list[str]:
    """How a server is started; one worker each."""
    module = ["-m", f"benchmarks.server.peers.with_{name}"]
    return {
        "mosec": [str(python), *module, "--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"],
        "litserve": [str(python), *module, str(port)],
        "bentoml": [
            str(python), "-m", "bentoml", "serve", "benchmarks.server.peers.with_bentoml:Reranker",
            "--host", "127.0.0.1", "--port", str(port), "--api-workers", "1",
        ],
        "ray": [str(python), *module, str(port)],
    }[name]  # fmt: skip


PATHS = {"mosec": "inference", "litserve": "inference", "bentoml": "raw/inference", "ray": "inference"}
SERVERS = tuple(PATHS)
CORE = "+core"
"""Ends the name of a server whose handler has our codebook, trie and ranking in C++."""


@contextmanager
def started(name: str, bundle: Path, core: int, venvs: Path, request: bytes, *options: str) -> Iterator[Started]:
    """A server of the bundle on one core, once it has answered `request`; ended with all of its processes.

    `options` are further ones of `gr2 serve`. Raises Gr2Error if it does not start.
    """
    port = free_port()
    name, _, core_handler = name.partition(CORE[0])
    environment = os.environ | {
        "GR2_BUNDLE": str(bundle),
        "GR2_HANDLER": core_handler or "numpy",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "LIT_SERVER_DISABLE_TELEMETRY": "1",
    }
    if name == OURS:
        command = [sys.executable, "-m", "gr2.cli", "serve", "--bundle", str(bundle), "--port", str(port), *options]
        target, worker = f"127.0.0.1:{port}", "gr2.load.worker"
        call: Call = next(grpc_calls(target, 1))
    else:
        command = _command(name, venvs / name / "bin" / "python", port)
        target, worker = f"127.0.0.1:{port}/{PATHS[name]}", "benchmarks.server.http"
        call = HttpCall(target)
    log = ROOT / "build" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_pinned(core),  # noqa: PLW1509
        )
        try:
            _share_priority(process.pid)
            _await(call, request, process, log)
            yield Started(target, worker, call, process.pid)
        finally:
            _end(process)


@contextmanager
def empty_server(core: int, *arguments: str) -> Iterator[tuple[int, int]]:
    """The port and the process of `benchmarks.server.peers.with_nothing` on one core."""
    command = [sys.executable, "-m", "benchmarks.server.peers.with_nothing", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=_pinned(core))  # noqa: PLW1509
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.communicate()


def _pinned(core: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, [core])


def _share_priority(process: int) -> None:
    """Give a process the priority of this one: Linux schedules sessions as groups, and a new one has the default."""
    try:
        nice = Path("/proc/self/autogroup").read_text(encoding="ascii").split()[-1]
        Path(f"/proc/{process}/autogroup").write_text(nice, encoding="ascii")
    except OSError:  # no such groups, or not allowed
        return


def _await(call: Call, request: bytes, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LONGEST_START
    while time.monotonic() < end and process.poll() is None:
        if call(request, 5.0)[0] == OK:
            return
        time.sleep(0.2)
    raise Gr2Error(f"no server: exit code {process.poll()}\n{log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it has started: all of it is in its session."""
    members = _session(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(LONGEST_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member in members | _session(process.pid):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _session(leader: int) -> set[int]:
    """The processes of the session that `leader` leads, and their descendants in sessions of their own."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)], sessions[int(path.parent.name)] = int(fields[1]), int(fields[3])
    found = {each for each, session in sessions.items() if session == leader}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {leader, os.getpid()}


def _kilobytes(process: int, of: str) -> float:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return float(next(line for line in text.splitlines() if line.startswith(of)).split()[1])


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
