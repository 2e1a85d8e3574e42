"""Trainings as independent jobs, each in a folder and a thread of its own.

A job that was killed goes on where it was, as `gr2 run` does.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reasoner.quality import BASE, CONFIG, SHARED, link
from benchmarks.results import ROOT, machine
from benchmarks.rl.copies import write_copies
from gr2.artifact import Artifact
from gr2.errors import ArtifactError

__all__ = ["FOLDER", "Job", "Limits", "matches", "run_jobs"]

FOLDER = ROOT / "runs" / "rl"
MACHINE = "machine.txt"
# A job that takes these takes traces, and adds to each a copy of the incoming order.
COPIES = "copies"
# Runs of one thread each share the cores best.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


# Minutes of an evaluation before the training.
BEFORE = 1.0


@dataclass(frozen=True)
class Job:
    """Stages of one run, in order, with the keys of their tables.

    `start` is the run that its model comes from, from the stage `taken`; `teacher` is the run of a frozen one.
    """

    name: str
    title: str
    start: Path
    stages: tuple[tuple[str, Mapping[str, Any]], ...]
    taken: str = "sft"
    teacher: Path | None = None
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Of its run."""
        return FOLDER / self.name

    @property
    def machine(self) -> str:
        """Where it ran."""
        return (self.folder / MACHINE).read_text(encoding="utf-8").strip()

    @property
    def ready(self) -> bool:
        """Whether the models that it needs are there."""
        needed = [
            self.start / ("traces" if self.taken == COPIES else self.taken),
            *([self.teacher / "rl"] if self.teacher else []),
        ]
        return all((stage / "artifact.json").is_file() for stage in needed)

    @property
    def finished(self) -> bool:
        """Whether all of its stages are there."""
        try:
            return all(bool(self.stage(stage)) for stage, _ in self.stages)
        except ArtifactError:
            return False

    @property
    def measured(self) -> bool:
        """Whether it has answered test lists, too."""
        return self.finished and "ranks.parquet" in self.stage(self.stages[-1][0]).files

    def stage(self, name: str) -> Artifact:
        """The artefact of one of its stages. Raises ArtifactError if there is none."""
        return Artifact.load(self.folder / name, name)


@dataclass(frozen=True)
class Limits:
    """What a run may cost: at the time `ends`, by the monotonic clock, trainings end where they are, and what they have
    learnt by then is evaluated. `steps` of training, divided among a job's stages, and test `lists` to answer, where
    these are not what the jobs say.
    """

    ends: float | None = None
    steps: int | None = None
    lists: int | None = None


def run_jobs(jobs: Sequence[Job], limits: Limits, *, processes: int) -> list[str]:
    """Run the jobs that are ready, so many at a time, until no more are, and return the names of those that failed."""
    waiting, failed = list(jobs), []
    with ThreadPoolExecutor(processes) as pool:
        while chosen := [job for job in waiting if job.ready]:
            waiting = [job for job in waiting if job not in chosen]
            done = pool.map(lambda job: _run(job, limits), chosen)
            failed += [job.name for job, whole in zip(chosen, done, strict=True) if not whole]
    return [*failed, *(job.name for job in waiting)]


def matches(name: str, patterns: str) -> bool:
    """Whether one of the patterns, which commas separate, is that of the name."""
    return any(fnmatch.fnmatch(name, each) for each in patterns.split(","))


def _run(job: Job, limits: Limits) -> bool:
    link(BASE, job.folder, SHARED)
    if job.taken == COPIES:
        if not (job.folder / "traces").exists():
            write_copies(job.start / "traces", job.folder / "traces")
    else:
        link(job.start, job.folder, (job.taken,))
    (job.folder / MACHINE).write_text(machine() + "\n", encoding="utf-8")
    for number, (stage, settings) in enumerate(job.stages):
        keys = dict(settings)
        if stage == "opd":
            keys["teacher"] = str(job.teacher / "rl" / "model")  # type: ignore[operator]
        if limits.lists is not None and keys.get("test_lists"):
            keys["test_lists"] = limits.lists
        if limits.steps is not None and "steps" in keys:
            keys["steps"] = limits.steps // len(job.stages)
        if limits.ends is not None and "steps" in keys:
            left = (limits.ends - time.monotonic()) / 60.0 / (len(job.stages) - number)
            before = BEFORE if keys.get("evaluate_start", stage == "bypass") else 0.0
            keys["minutes"] = max(0.01, round(left - before, 2))
        if not _stage(job, stage, keys):
            return False
    return True


def _stage(job: Job, stage: str, keys: Mapping[str, Any]) -> bool:
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in keys.items()}
    options = [text for name, value in texts.items() for text in ("--set", f"{stage}.{name}={value}")]
    own = ["--set", f"run.out={job.folder}", "--set", f"run.seed={job.seed}"]
    with (job.folder / f"{stage}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "gr2.cli", "run_jobs", CONFIG, *own, *options, "--only", stage],
            cwd=ROOT,
            check=False,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | THREADS,
        )
    return done.returncode == 0
