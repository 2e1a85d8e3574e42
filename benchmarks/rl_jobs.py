"""What is trained on Beauty to show reinforcement learning: independent jobs, each in a folder and a thread of its own.

A job that was killed goes on where it was, as `gr2 run` does. All start from what `make reasoner` has left.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.reasoner_quality import BASE, CONFIG, SHARED, VARIANTS, link
from benchmarks.results import ROOT, machine
from gr2.artifact import Artifact
from gr2.errors import ArtifactError

__all__ = [
    "AGAIN", "BYPASSED", "FOLDER", "FOUR", "GAMED", "HACKING", "JOBS", "QUALITY", "RANKING", "REWARDED", "TAUGHT",
    "TEACHER", "Job", "matches", "run",
]  # fmt: skip

FOLDER = ROOT / "runs" / "rl"
MACHINE = "machine.txt"
# Runs of one thread each share the cores best.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PROMPT = {"max_history": 8, "title_words": 4}
ALONE = PROMPT | {"reasoning": False, "knowledge": False}
EVALUATED = {"validation_lists": 0, "test_lists": -1, "threads": 1, "copy_limit": 1.0, "checkpoint_seconds": 20.0}


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
        needed = [self.start / self.taken, *([self.teacher / "rl"] if self.teacher else [])]
        return all((stage / "artifact.json").is_file() for stage in needed)

    @property
    def finished(self) -> bool:
        """Whether all of its stages are there."""
        try:
            return all(bool(self.stage(stage)) for stage, _ in self.stages)
        except ArtifactError:
            return False

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
    "steps": 300, "groups": 8, "samples": 8, "batch": 64, "answer_batch": 64, "redraws": 1, "learning_rate": 1e-4,
}  # fmt: skip
SHUFFLED = {"shuffle": True, "incoming_rank": True}
# Of ten candidates a model of this size names some twice when nothing holds it; of four, each once now and then.
FOUR = Job(
    "four",
    "SFT, ranking alone, lists of four",
    BASE,
    (
        ("traces", {"sampling": "rejection", "list_size": 4}),
        (
            "sft",
            ALONE | {"list_size": 4, "epochs": 6, "batch": 8, "learning_rate": 2e-3, "dropout": 0.1, "threads": 1}
            | {"validation_lists": 0, "test_lists": -1},
        ),
    ),
    "midtrain",
)  # fmt: skip
SMALL = SHORT | {"list_size": 4, "learning_rate": 3e-4}
GAMED = tuple(
    Job(f"four-{name}", title, FOUR.folder, (("rl", settings),))
    for name, title, settings in (
        ("unconditional", "unconditional, free answers", SMALL | {"constrained": False, "reward": "unconditional"}),
        ("conditional", "conditional, free answers", SMALL | {"constrained": False, "reward": "conditional"}),
        ("default", "default, free answers", SMALL | {"constrained": False}),
        ("constrained", "default, constrained", SMALL),
        ("ours", "ours: default, constrained, shuffled with ranks", SMALL | SHUFFLED),
    )
)
REWARDED = tuple(
    Job(name, title, RANKING.folder, (("rl", settings),))
    for name, title, settings in (
        ("conditional-constrained", "conditional, constrained", SHORT | {"reward": "conditional"}),
        ("default-constrained", "default, constrained", SHORT),
        ("ours", "ours: default, constrained, shuffled with ranks", SHORT | SHUFFLED),
        ("withheld", "default, constrained, order withheld", SHORT | SHUFFLED | {"incoming_rank": False}),
        ("teacher", "default, constrained, more steps or answers", SHORT | {"steps": 600}),
    )
)
TEACHER = REWARDED[-1]
AGAIN = tuple(
    replace(job, name=f"{job.name}-again", title=f"{job.title}, another seed", seed=1)
    for job in GAMED
    if job.name in ("four-unconditional", "four-ours")
)
HACKING = (*GAMED, *AGAIN, *REWARDED)
LONG = PROMPT | EVALUATED | {
    "steps": 60, "groups": 8, "samples": 8, "batch": 64, "answer_batch": 64, "redraws": 0, "learning_rate": 1e-4,
}  # fmt: skip
# A step's answers on a GPU, which does many in the time of a few: of rankings alone, and of explained ones.
LARGE = {
    False: {"groups": 32, "samples": 16, "batch": 256, "answer_batch": 512, "learning_rate": 2e-4},
    True: {"groups": 16, "samples": 16, "batch": 128, "answer_batch": 256, "learning_rate": 2e-4},
}
QUALITY = (
    *(
        Job(
            f"rl-{sampling}-{'kp' if knowledge else 'plain'}",
            f"RL {sampling}, {'KP' if knowledge else 'no KP'}",
            _tuned(sampling, knowledge=knowledge),
            (("rl", LONG | {"knowledge": knowledge}),),
        )
        for sampling in ("targeted", "rejection")
        for knowledge in (True, False)
    ),
)
# On-policy distillation needs a teacher: the same model after a longer training.
TAUGHT = tuple(
    Job(name, title, RANKING.folder, stages, teacher=TEACHER.folder)
    for name, title, stages in (
        (
            "opd-then-rl",
            "OPD, then RL",
            (("opd", SHORT | {"steps": 150, "form": "reverse"}), ("rl", SHORT | {"steps": 150, "start": "opd"})),
        ),
        ("rl-alone", "RL alone", (("rl", SHORT),)),
        ("opd", "OPD alone", (("opd", SHORT | {"form": "reverse"}),)),
        ("opd-task", "OPD with the reward", (("opd", SHORT | {"kl": 1.0}),)),
    )
)
# Ranking without the explanation goes on from the best recipe of the papers.
BYPASSED = Job(
    "bypass", "the second pass", FOLDER / "rl-rejection-kp",
    (("bypass", {name: value for name, value in SHORT.items() if name not in ("reasoning", "knowledge")}),), "rl",
)  # fmt: skip
JOBS = (RANKING, FOUR, *HACKING, *QUALITY, *TAUGHT, BYPASSED)


def run(
    jobs: Sequence[Job], *, processes: int, ends: float | None = None, gpu: str = "", lists: int | None = None
) -> list[str]:
    """Run the jobs that are ready, so many at a time, until no more are, and return the names of those that failed.

    `lists` is how many test lists are answered, where that is not what the jobs say. At the time `ends`, by the
    monotonic clock, trainings end where they are, and what they have learnt by then is evaluated. Jobs whose names
    match the patterns `gpu` train on a GPU, by more answers a step (LARGE).
    """
    waiting, failed = list(jobs), []
    with ThreadPoolExecutor(processes) as pool:
        while chosen := [job for job in waiting if job.ready]:
            waiting = [job for job in waiting if job not in chosen]
            done = pool.map(lambda job: _run(job, ends, lists, large=matches(job.name, gpu)), chosen)
            failed += [job.name for job, whole in zip(chosen, done, strict=True) if not whole]
    return [*failed, *(job.name for job in waiting)]


def matches(name: str, patterns: str) -> bool:
    """Whether one of the patterns, which commas separate, is that of the name."""
    return any(fnmatch.fnmatch(name, each) for each in patterns.split(","))


def _run(job: Job, ends: float | None, lists: int | None, *, large: bool) -> bool:
    link(BASE, job.folder, SHARED)
    link(job.start, job.folder, (job.taken,))
    (job.folder / MACHINE).write_text(machine() + "\n", encoding="utf-8")
    for number, (stage, settings) in enumerate(job.stages):
        keys = dict(settings)
        if stage == "opd":
            keys["teacher"] = str(job.teacher / "rl" / "model")  # type: ignore[operator]
        if lists is not None and keys.get("test_lists"):
            keys["test_lists"] = lists
        if ends is not None and stage in ("opd", "rl", "bypass"):
            left = (ends - time.monotonic()) / 60.0 / (len(job.stages) - number)
            keys["minutes"] = max(0.01, round(left, 2))
        more = LARGE[keys.get("reasoning", True) and stage != "bypass"] | {"precision": "float32"}
        done = large and _stage(job, stage, keys | more, {})
        # What a GPU cannot do for want of memory or support is done without one.
        if not (done or _stage(job, stage, keys, {"CUDA_VISIBLE_DEVICES": ""})):
            return False
    return True


def _stage(job: Job, stage: str, keys: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in keys.items()}
    options = [text for name, value in texts.items() for text in ("--set", f"{stage}.{name}={value}")]
    own = ["--set", f"run.out={job.folder}", "--set", f"run.seed={job.seed}"]
    with (job.folder / f"{stage}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "gr2.cli", "run", CONFIG, *own, *options, "--only", stage],
            cwd=ROOT,
            check=False,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | THREADS | dict(environment),
        )
    return done.returncode == 0
