"""A load test: the processes that send, in step; the server's processor time beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gr2.errors import Gr2Error
from gr2.load.frames import write_frames
from gr2.load.job import Calls, Job
from gr2.load.processor_time import listeners, processor_seconds
from gr2.load.step import Generator, Step
from gr2.load.summary import Summary, summarize
from gr2.progress import Bar, track

__all__ = ["run_step"]

REPLIES = 2000  # kept of each step, about
HEAD_START = 0.05  # seconds
TICK = 0.25  # seconds
LONGEST_END = 30.0  # seconds


def run_step(
    target: str,
    requests: Sequence[bytes],
    step: Step,
    *,
    generator: Generator | None = None,
    seed: int = 0,
    worker: str = "gr2.load.worker",
    server: Sequence[int] | None = None,
) -> Summary:
    """What the server at `target` made of one step of serialised `requests`.

    `worker` is the module that sends; its `main` is as `gr2.load.worker.main`. `server` are the server's process IDs,
    by default those that listen on the target's ports. Raises Gr2Error if the sender fails.
    """
    generator = generator or Generator()
    with tempfile.TemporaryDirectory(prefix="gr2-load-") as name:
        folder = Path(name)
        write_frames(folder / "requests", requests)
        jobs = _jobs(target, folder / "requests", step, generator, seed)
        stems = [folder / str(job.place) for job in jobs]
        processes = []
        try:
            for job, stem in zip(jobs, stems, strict=True):
                job.save(stem.with_suffix(".json"))
                processes.append(_start(worker, stem.with_suffix(".json")))
            spent = _drive(processes, step, listeners(target) if server is None else list(server))
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        calls = Calls.join([Calls.load(stem) for stem in stems])
    cores = len(generator.pin) or len(os.sched_getaffinity(0))
    return summarize(step, calls, server_seconds=spent, processors=min(cores, len(jobs)))


def _jobs(target: str, requests: Path, step: Step, generator: Generator, seed: int) -> list[Job]:
    slots = [count for count in generator.slots_for(step) if count]
    places = len(slots)
    rate = None if step.rate is None else step.rate / places
    expected = 1000 if step.rate is None else step.rate * step.seconds
    stride = max(1, round(expected / REPLIES))
    pin, connections = list(generator.pin), generator.connections
    options = (connections, step.warmup, step.seconds, step.deadline, pin, stride, seed, list(generator.tls))
    return [Job(target, str(requests), place, places, rate, count, *options) for place, count in enumerate(slots)]


def _start(worker: str, job: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", worker, str(job)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _drive(processes: list[subprocess.Popen[str]], step: Step, server: list[int]) -> float:
    """Begin together, wait for all, and return the server's processor seconds after the warm-up."""
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Gr2Error(f"the load generator ended with exit code {process.wait(LONGEST_END)} before it was ready")
    start = time.monotonic_ns() + round(1e9 * HEAD_START)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    with track(round(step.warmup + step.seconds), step.name, "s") as bar:
        _sleep_until(start, step.warmup, bar)
        before = processor_seconds(server)
        _sleep_until(start, step.warmup + step.seconds, bar)
        spent = processor_seconds(server) - before
    for process in processes:
        process.communicate(timeout=step.deadline + LONGEST_END)
        if process.returncode:
            raise Gr2Error(f"the load generator ended with exit code {process.returncode}")
    return spent


def _sleep_until(start: int, seconds: float, bar: Bar) -> None:
    while (passed := (time.monotonic_ns() - start) / 1e9) < seconds:
        time.sleep(min(TICK, seconds - passed))
        bar.advance(max(0, min(int((time.monotonic_ns() - start) / 1e9), int(seconds)) - bar.done))
