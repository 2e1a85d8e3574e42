"""Reinforcement learning on Beauty with the from-scratch reasoner, after `make reasoner`.

`python -m benchmarks.rl.quality --jobs 2`. Trains what `plan` lists, unless that was done, and stores three records:
rewards that are gamed, the papers' recipes, and ranking without the explanation. With `--minutes` trainings end where
they are when the time is up, and what they have learnt is evaluated. A run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import pyarrow.parquet as pq

from benchmarks.reasoner.quality import difference, shown
from benchmarks.results import FOLDER, ROOT, Figure, Record, store
from benchmarks.rl.jobs import FOLDER as RUNS
from benchmarks.rl.jobs import Job, Limits, matches, run_jobs
from benchmarks.rl.picture import hacking_picture
from benchmarks.rl.places import places
from benchmarks.rl.plan import (
    BRIEF,
    BYPASSED,
    COPIER,
    FOUR,
    GAMED,
    JOBS,
    PLAIN,
    QUALITY,
    RANKING,
    REWARDED,
    TAUGHT,
    TEACHER,
)  # fmt: skip
from benchmarks.rl.tables import (
    Ranked,
    bypass_table,
    findings_table,
    hacking_table,
    popularity,
    quality_table,
    ranked,
    together,
    tuned,
)
from gr2.artifact import Artifact

__all__ = ["main"]

COMMAND = "make rl"
CLAIMS = (
    ("RL helps", "SFT rejection, KP", "RL rejection, KP"),
    ("RL helps", "SFT targeted, KP", "RL targeted, KP"),
    ("RL beats the pre-ranker", "pre-rank", "RL rejection, KP"),
    ("rejection beats targeted", "RL targeted, KP", "RL rejection, KP"),
    ("rejection beats targeted", "RL targeted, no KP", "RL rejection, no KP"),
    ("KP beats no KP", "RL rejection, no KP", "RL rejection, KP"),
    ("KP beats no KP", "RL targeted, no KP", "RL targeted, KP"),
)


def hacking() -> Record:
    """Rewards that are gamed, and one that is not."""
    figures, tables, pictures, notes = [], [], [], []
    for size, start, every in (
        (4, COPIER, GAMED[COPIER.name]), (4, FOUR, GAMED[FOUR.name]), (10, RANKING, REWARDED),
    ):  # fmt: skip
        jobs = [job for job in every if job.measured]
        if not jobs:
            continue
        baselines = {"popularity, which reads no history": popularity(size), start.title: ranked(start.stage("sft"))}
        origin = f"lists of {size}, from {start.title}"
        figures += [moved(f"{origin}: {job.title}", ranked(job.stage("rl")), "incoming order") for job in jobs]
        tables.append(hacking_table(origin, jobs, baselines))
        picture = hacking_picture({job.title: pq.read_table(job.stage("rl").file("steps.parquet")) for job in jobs})
        (FOLDER / f"rl.hacking-{start.name}.png").write_bytes(picture)
        title = f"{origin[0].upper()}{origin[1:]}: copies, quality and validity of the answers sampled in training"
        pictures.append({"title": title, "file": f"rl.hacking-{start.name}.png"})
        notes += _spent(jobs)
    notes += [
        "the hack does not show at this size: a model from scratch hardly ever writes a valid free answer, and neither "
        "shorter lists nor copies among its traces mend that within these steps; a policy that can write them "
        "shows it (rewards that are gamed, by a policy that can)",
        "a refused free answer counts as the incoming order on the test lists: mind its validity",
        "under constrained decoding every answer is valid, and the unconditional reward is the default one and a "
        "constant: it has the same gradient",
        "seconds are those since a training was last taken up",
    ]
    title = "Rewards on Beauty: what is gamed, and what is not"
    return Record("rl.hacking", title, COMMAND, figures, tables, notes, pictures)


def quality() -> Record:
    """The papers' recipes: fine-tuning, and reinforcement learning on top of it, with the explanation and without."""
    found = {"popularity, which reads no history": popularity(), **tuned()}
    jobs = [job for job in QUALITY if job.measured]
    found |= {job.title: ranked(job.stage("rl")) for job in jobs}
    befores = {job.title: job.title.replace("RL ", "SFT ") for job in jobs}
    brief = [job for job in BRIEF if job.measured]
    for job in brief:
        before, stage = job.title.replace("RL ", "SFT "), job.stage("bypass")
        found |= {before: ranked(stage, "start-ranks.parquet"), job.title: ranked(stage)}
        befores[job.title] = before
    dropped = [
        (claim, *(name if name == "pre-rank" else f"{name}, reasoning dropped" for name in names))
        for claim, *names in CLAIMS
    ]
    claims = [each for each in (*CLAIMS, *dropped) if each[2] in found and each[1] in {*found, "pre-rank"}]
    figures = [moved(name, (found[before][1], found[name][1]), before) for name, before in befores.items()]
    tables = [quality_table(found, befores), findings_table(found, claims)]
    if len(brief) > 1:
        each = {job.title: befores[job.title] for job in brief}
        tables[1]["rows"] += together(f"the {len(brief)} models without reasoning, on average", found, each)
    notes = ["one seed; the intervals are over users and do not hold the spread over seeds", *_spent([*jobs, *brief])]
    return Record("rl.quality", "Reinforcement learning on Beauty, from scratch", COMMAND, figures, tables, notes)


def taught() -> Record:
    """On-policy distillation, alone, with the reward, and before reinforcement learning."""
    alone = [("RL alone", PLAIN), ("the teacher: RL alone for twice the steps", TEACHER)]
    done = [(name, job) for name, job in [*alone, *((job.title, job) for job in TAUGHT)] if job.measured]
    found = {RANKING.title: ranked(RANKING.stage("sft"))}
    found |= {name: ranked(job.stage(job.stages[-1][0])) for name, job in done}
    befores = {name: RANKING.title for name in found if name != RANKING.title}
    claims = [("OPD, then RL, beats RL alone", "RL alone", "OPD, then RL")]
    claims = [each for each in claims if {*each[1:]} <= set(found)]
    figures = [moved(name, (found[before][1], found[name][1]), before) for name, before in befores.items()]
    tables = [quality_table(found, befores), findings_table(found, claims)]
    notes = [
        "the teacher is the student's own model after a longer training by the reward",
        *_spent([job for _, job in done]),
    ]
    return Record("rl.distillation", "On-policy distillation on Beauty", COMMAND, figures, tables, notes)


def bypass() -> Record:
    """Ranking without the explanation."""
    figures, tables, jobs = [], [], [job for job in (BYPASSED, *BRIEF) if job.measured]
    for job in jobs:
        reasoned, stage = Artifact.load(job.folder / job.taken), job.stage("bypass")
        full, dropped, again = ranked(reasoned)[1], ranked(stage, "start-ranks.parquet")[1], ranked(stage)[1]
        name = f"{job.taken.upper()} {job.start.name.removeprefix('rl-')}"
        figures.append(moved(f"{name}: dropping the reasoning", (full, dropped), "with it"))
        figures.append(moved(f"{name}: the second pass", (dropped, again), "reasoning dropped"))
        tables.append(bypass_table(name, reasoned, stage))
    return Record("rl.bypass", "Dropping the reasoning on Beauty", COMMAND, figures, tables, _spent(jobs))


def moved(name: str, ranks: Ranked, before: str) -> Figure:
    """What a training did to R@1 and N@5 of the test lists."""
    changes = difference(*ranks)
    value = ", ".join(f"{metric} {shown(changes[metric])}" for metric in ("R@1", "N@5"))
    return Figure(f"{name}, minus {before}", value, "measured", "ok")


def _spent(jobs: Sequence[Job]) -> list[str]:
    """What was done for each: what a run that was cut short has done is not what it was asked for."""
    lines = []
    for job in jobs:
        for stage, _ in job.stages:
            made = job.stage(stage)
            keys = {name: made.config[name] for name in ("groups", "samples", "learning_rate")}
            what = ", ".join(f"{name} {value}" for name, value in keys.items())
            steps, seconds = made.metrics["steps"], made.metrics["train_seconds"]
            lines.append(f"{job.title}: {stage}, {steps} steps in {seconds:.0f} s ({what})")
    return ["; ".join(lines)]


RECORDS = (
    (hacking, (*GAMED[COPIER.name], *GAMED[FOUR.name], *REWARDED)),
    (quality, (*QUALITY, *BRIEF)),
    (taught, (*TAUGHT, PLAIN, TEACHER)),
    (bypass, (BYPASSED, *BRIEF)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the jobs and store the records of those that are done; exit with 1 if a job failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time, each in one thread")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training; 0 is to the end")
    parser.add_argument("--only", default="*", help="patterns of job names, separated by commas")
    parser.add_argument("--steps", type=int, help="of training, where it is not what the jobs say")
    parser.add_argument("--lists", type=int, help="test lists to answer, where it is not what the jobs say")
    chosen = parser.parse_args(arguments)
    named = [job for job in JOBS if matches(job.name, chosen.only)]
    ends = time.monotonic() + 60.0 * chosen.minutes if chosen.minutes else None
    limits = Limits(ends, chosen.steps, chosen.lists)
    failed = run_jobs([job for job in named if not job.finished], limits, processes=chosen.jobs)
    if matches("places", chosen.only):
        print(store(places()).relative_to(ROOT))
    for record, jobs in RECORDS:
        done = [job for job in jobs if job.measured]
        if done:
            machines = "; ".join(dict.fromkeys(job.machine for job in done))
            print(store(replace(record(), machine=machines)).relative_to(ROOT))
    if failed:
        print(f"failed: {', '.join(failed)}; each has a log in its folder of {RUNS}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
