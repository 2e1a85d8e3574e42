"""Several serving processes on one machine: each on a port of its own, started again when it dies, stopped together.

Ports apart, because connections that the kernel shares among processes of one port end up anywhere; callers balance
(`gr2.client.service_config`). Processes are started afresh, never forked, and map the same codebook file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType

from gr2.errors import ConfigError, Gr2Error
from gr2.serving.config import ServeConfig
from gr2.serving.observing.logs import configure_logs
from gr2.serving.worker import REFUSED

__all__ = ["MOST_PROCESSES", "next_delay", "serve_processes"]

logger = logging.getLogger(__name__)

MOST_PROCESSES = 256
LOOK = 0.05  # seconds between two looks at the processes
FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0  # seconds before a process that died is started again
STEADY = 60.0  # seconds after which a death counts as the first again
LATE = 10.0  # seconds beyond their grace that processes have to end


@dataclass
class _Worker:
    config: ServeConfig
    process: subprocess.Popen[bytes]
    since: float
    delay: float = 0.0
    again: float | None = None


def serve_processes(bundle: str | os.PathLike[str], config: ServeConfig, processes: int) -> None:
    """Serve with several processes until SIGTERM or SIGINT, which stops them all as it would one. Main thread only.

    The ports are `config.port` and those after it, or free ones for 0; each process prints a line once it answers, as
    `gr2.serving.server.serve` does. One that dies is started again on its port, after a delay that doubles while it
    keeps dying. If the parent dies, they stop. Raises Gr2Error if a process refuses its configuration at the start, or
    if one does not end in its time.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise ConfigError(f"processes must be in 1..{MOST_PROCESSES}, got {processes}")
    configure_logs(config.log_format, config.log_level)
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    lifeline, held = os.pipe()
    workers: list[_Worker] = []
    try:
        # One by one, so that those that were started are ended if another cannot be.
        workers.extend(
            _Worker(each, _start(bundle, each, lifeline), time.monotonic()) for each in _configs(config, processes)
        )
        while not stop.wait(LOOK):
            for worker in workers:
                _look_after(worker, bundle, lifeline)
    finally:
        late = _end([worker.process for worker in workers], config.grace + LATE)
        os.close(lifeline)
        os.close(held)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if late:
        raise Gr2Error(f"{late} of {processes} processes did not end in time and were killed")


def _configs(config: ServeConfig, processes: int) -> list[ServeConfig]:
    """The configuration of each process: a port of its own, and a share of the cores."""
    threads = config.threads
    if threads is None and config.device == "cpu":
        threads = -(-len(os.sched_getaffinity(0)) // processes) + 1
    if config.port and config.port + processes > 1 << 16:
        raise ConfigError(f"port {config.port} leaves no {processes} ports")
    ports = [config.port + number for number in range(processes)] if config.port else _free_ports(processes)
    # Metrics are each process's own, on ports that follow each other too.
    first = config.metrics_port
    return [
        dataclasses.replace(config, port=port, metrics_port=first + number if first else first, threads=threads)
        for number, port in enumerate(ports)
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that are free now. A process that is started again must find its own, so that 0 will not do."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _start(bundle: str | os.PathLike[str], config: ServeConfig, lifeline: int) -> subprocess.Popen[bytes]:
    record = json.dumps({"bundle": os.fspath(bundle), "config": dataclasses.asdict(config)})
    command = [sys.executable, "-m", "gr2.serving.worker", record, str(lifeline)]
    # In a session of its own, so that Ctrl-C reaches the parent alone, which then stops them all.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lifeline], start_new_session=True)


def _look_after(worker: _Worker, bundle: str | os.PathLike[str], lifeline: int) -> None:
    """Start the process again if it has died and its time has come."""
    now = time.monotonic()
    if worker.again is not None:
        if now >= worker.again:
            worker.process, worker.since, worker.again = _start(bundle, worker.config, lifeline), now, None
        return
    code = worker.process.poll()
    if code is None:
        return
    if code == REFUSED and not worker.delay:
        raise Gr2Error(f"the process of port {worker.config.port} cannot serve")
    worker.delay = next_delay(worker.delay, now - worker.since)
    worker.again = now + worker.delay
    logger.error(
        "process %d of port %d ended with %d; started again in %g s",
        worker.process.pid, worker.config.port, code, worker.delay,
    )  # fmt: skip


def next_delay(before: float, lived: float) -> float:
    """Seconds to wait after a death: twice as many as `before`, unless the process lived long enough."""
    return FIRST_DELAY if not before or lived >= STEADY else min(2 * before, LONGEST_DELAY)


def _end(processes: list[subprocess.Popen[bytes]], patience: float) -> int:
    """Stop the processes and wait for them; returns how many had to be killed."""
    deadline, late = time.monotonic() + patience, 0
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late += 1
            process.kill()
            process.wait()
    return late
