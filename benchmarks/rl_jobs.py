"""What is trained on Beauty to show reinforcement learning: independent jobs, each in a folder and a thread of its own.

A job that was killed goes on where it was, as `gr2 run` does. All start from what `make reasoner` has left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reasoner_quality import BASE, CONFIG, SHARED, VARIANTS, link
from benchmarks.results import ROOT
from gr2.artifact import Artifact
from gr2.errors import ArtifactError

__all__ = ["BYPASSED", "HACKING", "JOBS", "QUALITY", "RANKING", "Job", "finished", "run"]

FOLDER = ROOT / "runs" / "rl"
# Runs of one thread each share the cores best.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PROMPT = {"max_history": 8, "title_words": 4}
ALONE = PROMPT | {"reasoning": False, "knowledge": False}
EVALUATED = {"validation_lists": 0, "test_lists": -1, "threads": 1, "copy_limit": 1.0, "checkpoint_seconds": 20.0}


@dataclass(frozen=True)
class Job:
    """Stages of one run, in order, with the keys of their tables; `start` is the run that its model comes from."""

    name: str
    title: str
    start: Path
    stages: tuple[tuple[str, Mapping[str, Any]], ...]
    taken: str = "sft"

    @property
    def folder(self) -> Path:
        """Of its run."""
        return FOLDER / self.name

    def stage(self, name: str) -> Artifact:
        """The artefact of one of its stages. Raises ArtifactError if there is none."""
        return Artifact.load(self.folder / name, name)


def _tuned(sampling: str, *, knowledge: bool) -> Path:
    return next(each.folder for each in VARIANTS if (each.sampling, each.knowledge) == (sampling, knowledge))


# The model that all rewards start from: fine-tuned to answer with the ranking alone.
RANKING = Job(
    "ranking",
    "SFT, ranking alone",
    _tuned("rejection", knowledge=True),
    (
        (
            "sft",
            ALONE | {"epochs": 4, "batch": 8, "learning_rate": 2e-3, "dropout": 0.1, "threads": 1}
            | {"validation_lists": 0, "test_lists": -1},
        ),
    ),
    "traces",
)  # fmt: skip
SHORT = ALONE | EVALUATED | {
    "steps": 300, "groups": 16, "samples": 8, "batch": 64, "answer_batch": 128, "redraws": 1, "learning_rate": 3e-4,
}  # fmt: skip
FREE = SHORT | {"constrained": False}
SHUFFLED = {"shuffle": True, "incoming_rank": True}
HACKING = tuple(
    Job(name, title, RANKING.folder, (("rl", settings),))
    for name, title, settings in (
        ("unconditional", "unconditional, free answers", FREE | {"reward": "unconditional"}),
        ("conditional", "conditional, free answers", FREE | {"reward": "conditional"}),
        ("default-free", "default, free answers", FREE),
        ("conditional-constrained", "conditional, constrained", SHORT | {"reward": "conditional"}),
        ("default-constrained", "default, constrained", SHORT),
        ("ours", "default, constrained, shuffled with ranks", SHORT | SHUFFLED),
    )
)
LONG = PROMPT | EVALUATED | {
    "steps": 60, "groups": 8, "samples": 8, "batch": 64, "answer_batch": 64, "redraws": 0, "learning_rate": 3e-4,
}  # fmt: skip
QUALITY = tuple(
    Job(
        f"rl-{sampling}-{'kp' if knowledge else 'plain'}",
        f"RL {sampling}, {'KP' if knowledge else 'no KP'}",
        _tuned(sampling, knowledge=knowledge),
        (("rl", LONG | {"knowledge": knowledge}),),
    )
    for sampling in ("targeted", "rejection")
    for knowledge in (True, False)
)
BYPASSED = next(job for job in QUALITY if job.name == "rl-rejection-kp")
JOBS = (RANKING, *HACKING, *QUALITY)


def finished(job: Job) -> bool:
    """Whether all of its stages are there."""
    try:
        return all(bool(job.stage(stage)) for stage, _ in job.stages)
    except ArtifactError:
        return False


def run(jobs: Sequence[Job], *, processes: int, minutes: float = 0.0) -> list[str]:
    """Run the jobs, so many at a time, and return the names of those that failed.

    After `minutes`, if not 0, trainings end where they are, and what they have learnt by then is evaluated.
    """
    ends = time.monotonic() + 60.0 * minutes if minutes else None
    with ThreadPoolExecutor(processes) as pool:
        done = pool.map(lambda job: _run(job, ends), jobs)
        return [job.name for job, whole in zip(jobs, done, strict=True) if not whole]


def _run(job: Job, ends: float | None) -> bool:
    link(BASE, job.folder, SHARED)
    link(job.start, job.folder, (job.taken,))
    for number, (stage, settings) in enumerate(job.stages):
        keys = dict(settings)
        if ends is not None and stage != "sft":
            left = (ends - time.monotonic()) / 60.0 / (len(job.stages) - number)
            keys["minutes"] = max(0.01, round(left, 2))
        if not _stage(job, stage, keys):
            return False
    return True


def _stage(job: Job, stage: str, keys: Mapping[str, Any]) -> bool:
    texts = {
        f"{stage}.{name}": str(value).lower() if isinstance(value, bool) else value for name, value in keys.items()
    }
    options = [text for name, value in texts.items() for text in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "gr2.cli", "run", CONFIG, "--set", f"run.out={job.folder}", *options]
    log = job.folder / f"{stage}.log"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [*command, "--only", stage],
            cwd=ROOT,
            check=False,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | THREADS,
        )
    return done.returncode == 0
