"""The stage `traces`: a teacher re-ranks training lists and says why; a reasoner learns from what it gets right.

1. Lists that hold their target are drawn; the evidence teacher's models are fitted to all of them, cross-fitted.
2. Attempt after attempt, the teacher is asked about every list that has no accepted answer yet. Each attempt is logged
   before the next is counted, so that a stage that was killed does not ask again for what was answered.
3. Accepted answers are the traces; the log says what became of all others.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gr2.artifact import Artifact, Workspace, file_digest, open_stage, write_atomic
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError, DataError, Gr2Error
from gr2.models.evidence import CrossFit
from gr2.progress import track
from gr2.prompts.answer import parse_answer
from gr2.tokenizer.bulk.cluster import ray_pool
from gr2.tokenizer.bulk.encode import Pool
from gr2.training.teachers.endpoint import unwrap
from gr2.training.teachers.scores import score_training_lists
from gr2.training.tracing.job import Desk, TraceJob
from gr2.training.tracing.log import Attempt, read_log
from gr2.training.tracing.settings import TracesConfig
from gr2.training.tracing.table import Trace, save_traces

__all__ = ["TracesConfig", "inputs", "prepare", "run", "sources"]

MOST_HISTORY = 50  # events that the evidence teacher looks at
TASK = {"evidence": 512, "endpoint": 64, "local": 64}  # lists that a worker takes at once
BAD_REQUEST = "bad-request"

Log = Mapping[tuple[int, int], Attempt]
Step = tuple[int, int, dict[str, Any]]  # lists asked about, answers accepted, and what to show beside the bar


def inputs(config: TracesConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return ("prepare", "tokenize", config.lists)


def sources(config: TracesConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads: those of a local model."""
    if config.teacher != "local":
        return {}
    folder = Path(config.model)
    if not folder.is_dir():
        raise ConfigError(f"[traces] model: no such folder: {folder} (paths are relative to {Path.cwd()})")
    return {f"file:model/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}


def run(config: TracesConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write `traces.parquet` (`Trace`) and `attempts.jsonl`, every attempt at every list.

    Raises ConfigError where the teacher cannot be asked, Gr2Error where it does not answer: what it has answered is
    kept, and the stage goes on from there.
    """
    parents = {name: artifacts[name].digest for name in inputs(config)}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "traces", config, parents, seed) as work:
        began = time.monotonic()
        job = prepare(config, artifacts, work, seed)
        desk = job.desk
        asking = time.monotonic()
        log = _ask_all(job, len(desk.lists))
        _refuse_unanswered(log, len(desk.lists))
        work.metrics.update(_metrics(log, desk), ask_seconds=time.monotonic() - asking)
        _write(work, log, desk, config)
        work.metrics["total_seconds"] = time.monotonic() - began
    return Artifact.load(out, "traces")


def prepare(config: TracesConfig, artifacts: Mapping[str, Artifact], work: Workspace, seed: int) -> TraceJob:
    """The files that the workers read, made again by a stage that goes on: they follow from its inputs."""
    dataset = Dataset.load(artifacts["prepare"].path)
    every = CandidateLists.load(artifacts[config.lists].file("train.parquet")).top(config.list_size).with_target()
    if not len(every):
        raise DataError(
            f"no training list of {config.lists} holds its target among its first {config.list_size} candidates",
            path=artifacts[config.lists].path / "train.parquet",
        )
    entropy = seed & 0xFFFF_FFFF
    rows = np.arange(len(every))
    if 0 < config.limit < len(every):
        rows = np.sort(np.random.default_rng(entropy).permutation(len(every))[: config.limit])
    folder = work.checkpoints.resolve()
    every.take(rows).save(folder / "lists.parquet")
    if config.teacher == "evidence":
        codes = artifacts["tokenize"].array("codes.npy")
        fit = CrossFit(neighbours=config.neighbours, longest=MOST_HISTORY, folds=config.folds, seed=entropy)
        found = score_training_lists(dataset, codes, every, fit)
        stored = io.BytesIO()
        np.savez(stored, scores=found.scores[rows], shares=found.shares[rows])
        write_atomic(folder / "evidence.npz", stored.getvalue())
    return TraceJob(
        config=config,
        dataset=str(artifacts["prepare"].path.resolve()),
        codes=str(artifacts["tokenize"].file("codes.npy").resolve()),
        level_size=int(artifacts["tokenize"].config["level_size"]),
        lists=str(folder / "lists.parquet"),
        evidence=str(folder / "evidence.npz"),
        tokenizer=str(artifacts["midtrain"].file("model").resolve()) if config.lists == "midtrain" else "",
        log=str(folder),
        seed=entropy,
    )


def _ask_all(job: TraceJob, lists: int) -> dict[tuple[int, int], Attempt]:
    """The log after as many attempts at every list as it takes or may take."""
    log = read_log(Path(job.log))
    with _asking(job) as ask:
        for number in range(job.config.rounds):
            done = {row for (row, attempt), each in log.items() if each.settles(attempt == number)}
            rows = [row for row in range(lists) if row not in done]
            if not rows:
                continue
            accepted = sum(each.verdict == "accepted" for each in log.values())
            with track(len(rows), f"attempt {number + 1} of {job.config.rounds}", "list") as bar:
                for count, more, shown in ask(rows, number):
                    accepted += more
                    bar.advance(count, accepted=accepted, **shown)
            log = read_log(Path(job.log))
    return log


@contextmanager
def _asking(job: TraceJob) -> Iterator[Callable[[Sequence[int], int], Iterator[Step]]]:
    """What makes an attempt at lists: this process, or workers of Ray that live as long as the block."""
    config = job.config
    if not config.workers:
        yield lambda rows, number: _ask_here(job, rows, number)
        return
    with ray_pool(config.workers, address=config.address or None, gpu=_wants_gpu(config)) as pool:
        yield lambda rows, number: _ask_workers(replace(job, workers=pool.workers), pool, rows, number)


def _ask_here(job: TraceJob, rows: Sequence[int], number: int) -> Iterator[Step]:
    began, tokens, cost = time.monotonic(), 0, 0.0
    for attempt in job.desk.ask(rows, number, _segment(job)):
        tokens, cost = tokens + (attempt.completion_tokens or 0), cost + attempt.cost
        shown = {"tokens/s": round(tokens / max(time.monotonic() - began, 1e-9))} | ({"cost": cost} if cost else {})
        yield 1, int(attempt.verdict == "accepted"), shown


def _ask_workers(job: TraceJob, pool: Pool, rows: Sequence[int], number: int) -> Iterator[Step]:
    segment = _segment(job)
    size = max(1, min(TASK[job.config.teacher], -(-len(rows) // job.workers)))
    tasks = [
        {"attempt": number, "rows": list(rows[first : first + size]), "segment": f"{segment}-{first:09d}"}
        for first in range(0, len(rows), size)
    ]
    for answer in pool.run(job, tasks):
        yield int(answer["asked"]), int(answer["accepted"]), {}


def _segment(job: TraceJob) -> str:
    """A name for a new segment of the log, after those that there are."""
    return f"{len(list(Path(job.log).glob('attempts-*.jsonl'))):06d}"


def _wants_gpu(config: TracesConfig) -> bool:
    import torch

    return config.teacher == "local" and torch.cuda.is_available()


def _refuse_unanswered(log: Log, lists: int) -> None:
    """Raise Gr2Error if a list has no answer for a reason that may pass."""
    answered = {row for (row, _), each in log.items() if each.verdict != "failed" or each.why.startswith(BAD_REQUEST)}
    if len(answered) < lists:
        last = next(each.why for each in reversed(list(log.values())) if each.row not in answered)
        raise Gr2Error(
            f"traces: {lists - len(answered):,} of {lists:,} lists were not answered, one of them because of {last}; "
            "the answers so far are kept, and the same command goes on from there"
        )


def _accepted(log: Log) -> dict[int, Attempt]:
    """The accepted attempt of each list that has one."""
    found: dict[int, Attempt] = {}
    for (row, _), each in log.items():
        if each.verdict == "accepted":
            found.setdefault(row, each)
    return found


def _metrics(log: Log, desk: Desk) -> dict[str, Any]:
    accepted = _accepted(log)
    places = (desk.label + 1).tolist()
    asked, won = Counter(places), Counter(places[row] for row in accepted)
    verdicts = Counter(each.verdict for each in log.values())
    answers = [each for each in log.values() if each.answer is not None]
    reasons = Counter(each.why.partition(":")[0] for each in log.values() if each.verdict in ("refused", "failed"))
    return {
        "lists": len(desk.lists),
        "accepted": len(accepted),
        "acceptance": len(accepted) / len(desk.lists),
        "acceptance_by_incoming_rank": {
            str(rank): {"lists": asked[rank], "accepted": won[rank], "share": won[rank] / asked[rank]}
            for rank in sorted(asked)
        },
        "attempts": len(log),
        "verdicts": {name: verdicts[name] for name in ("accepted", "rejected", "refused", "failed")},
        "reasons": dict(sorted(reasons.items())),
        "retries": sum(each.retries for each in log.values()),
        # Of all attempts: an answer without content was paid for, too.
        "prompt_tokens": sum(each.prompt_tokens or 0 for each in log.values()),
        "completion_tokens": sum(each.completion_tokens or 0 for each in log.values()),
        "answers_without_usage": sum(each.completion_tokens is None for each in answers),
        "cost": sum(each.cost for each in log.values()),
    }


def _write(work: Workspace, log: Log, desk: Desk, config: TracesConfig) -> None:
    traces = [_trace(row, attempt, desk, config) for row, attempt in sorted(_accepted(log).items())]
    save_traces(work.path / "traces.parquet", traces)
    user, position = desk.lists.user.tolist(), desk.lists.position.tolist()
    lines = (each.line(user=user[each.row], position=position[each.row]) for each in log.values())
    write_atomic(work.path / "attempts.jsonl", b"".join(lines))


def _trace(row: int, attempt: Attempt, desk: Desk, config: TracesConfig) -> Trace:
    candidates = desk.candidates(row)
    answer = parse_answer(
        unwrap(attempt.answer or ""),
        [tuple(desk.codes[item].tolist()) for item in candidates],
        level_size=desk.level_size,
        reasoning=config.reasoning,
    )
    return Trace(
        user=int(desk.lists.user[row]),
        position=int(desk.lists.position[row]),
        target=int(desk.lists.target[row]),
        candidates=tuple(candidates),
        explanation=answer.explanation,
        ranking=answer.ranking,
        sampling=config.sampling,
        attempts=attempt.attempt + 1,
    )
