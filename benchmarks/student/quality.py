"""The student against what people use today, on five sets of lists: `python -m benchmarks.student.quality`.

Student and LambdaMART train on the same lists and see the same features; each seed trains both anew. A seed that is
done is kept in runs/quality/ and not repeated, so that a run that was killed, or had fewer seeds, goes on. Figures are
of the mean over seeds for each user, with intervals over users. Two processes of one thread each share the sources.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.spine.quality import artifact
from benchmarks.student.baselines import TREES, fitted_trees, ranks_by, simple_ranks
from benchmarks.student.lists import SOURCES, Lists, load_source
from gr2.artifact import write_atomic, write_json
from gr2.config import build, to_json
from gr2.data.candidates import PADDING
from gr2.metrics import Difference, metric_values, paired_bootstrap
from gr2.models.scoring import Parts
from gr2.models.student import Encoding, Student
from gr2.training.distill import DistillConfig, fit_student, student_features, student_parts
from gr2.training.student.prior import combine_parts

__all__ = ["CONFIG", "KEPT", "SHOWN", "main", "part_weights", "train_student", "trunk_of", "values_of"]

KEPT = ROOT / "runs" / "quality"
TRUNKS = KEPT / "trunks"
CONFIG = DistillConfig(threads=1)
# Sources of one data set share its path and head: one process makes them.
SHARES = (("games18",), ("beauty-sasrec", "beauty-midtrain"))
# The student with a part of its score left out, and the weights of the others fitted again.
ABLATIONS = {"student without its path": "path", "student without its head": "head"}
# The paper's gains over its pre-ranker, on Beauty.
BARS = {"R@1": 0.029, "R@5": 0.032, "N@5": 0.026}
SHOWN = ("R@1", "R@5", "N@5")

Ranks = dict[str, list[NDArray[np.int64]]]  # by who ranks, one a seed


def make(name: str, seeds: Sequence[int]) -> None:
    """Train and keep what is missing of a source's seeds."""
    missing = [seed for seed in seeds if not _done(name, seed)]
    if not missing:
        return
    began = _spent()
    lists = load_source(name, CONFIG)
    _keep(name, "simple", _fixed(lists), {"lists": _spent() - began})
    for seed in missing:
        began, known = time.process_time(), trunk_of(lists, seed).exists()
        ranks = _student(lists, seed)
        between = time.process_time()
        if not known:
            write_json(trunk_of(lists, seed).with_suffix(".json"), {"seconds": between - began})
        ranks |= {f"LambdaMART/{test}": found for test, found in fitted_trees(lists, seed).items()}
        seconds = {"student": between - began if known else 0.0, "LambdaMART": time.process_time() - between}
        _keep(name, str(seed), ranks, seconds)
        print(name, seed, seconds, flush=True)


def _spent() -> float:
    """Core-seconds of this process and of those that it has waited for."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _done(name: str, seed: int) -> bool:
    """Whether the seed is kept, and was made with this configuration."""
    path = KEPT / name / f"{seed}.json"
    made = json.loads(path.read_text(encoding="utf-8")).get("config") if path.exists() else None
    return made is not None and build(DistillConfig, made, path.name) == CONFIG


def _keep(name: str, part: str, arrays: dict[str, Any], seconds: dict[str, float]) -> None:
    """The figures' file last: what is kept without it is made again."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (KEPT / name).mkdir(parents=True, exist_ok=True)
    write_atomic(KEPT / name / f"{part}.npz", buffer.getvalue())
    write_json(KEPT / name / f"{part}.json", {"seconds": seconds, "config": to_json(CONFIG)})


def _fixed(lists: Lists) -> dict[str, Any]:
    """What needs no seed: simple orders, and which targets are tied."""
    arrays: dict[str, Any] = {}
    for test, held in lists.tests.items():
        arrays |= {f"{who}/{test}": ranks for who, ranks in simple_ranks(lists, test).items()}
        arrays[f"untied/{test}"] = ~lists.dataset.tied[held.user]
    return arrays


def trunk_of(lists: Lists, seed: int, encoding: Encoding = "item") -> Path:
    """Where path and head are kept."""
    also = "" if encoding == "item" else f"-{encoding}"
    return TRUNKS / f"{lists.run.name.removesuffix('-reasoner')}-{seed}-{CONFIG.epochs}{also}.pt"


def train_student(lists: Lists, seed: int, encoding: Encoding = "item") -> Student:
    """The seed's student. Path and head, which depend on no list, train once a data set and seed."""
    trunk = trunk_of(lists, seed, encoding)
    trunk.parent.mkdir(parents=True, exist_ok=True)
    student, _ = fit_student(
        replace(CONFIG, encoding=encoding),
        lists.dataset,
        lists.codes,
        lists.level_size,
        lists.seen["train"],
        (lists.train, lists.train.gains()),
        (lists.val, lists.val.gains()),
        lists.memory,
        seed=seed,
        checkpoint=trunk,
    )
    return student


def _student(lists: Lists, seed: int) -> dict[str, Any]:
    """Ranks of each test part."""
    student = train_student(lists, seed)
    weights = part_weights(student, lists)
    ranks = {}
    for test, held in lists.tests.items():
        parts = student_parts(student, lists.dataset, lists.codes, held, lists.seen[test])
        for who, (path, prior, head) in weights.items():
            ranks[f"{who}/{test}"] = ranks_by(held, path * parts.path + prior * parts.prior + head * parts.head)
    return ranks


def part_weights(student: Student, lists: Lists) -> dict[str, tuple[float, float, float]]:
    """The weights of path, prior and head: the student's own, and those without a part, from the validation lists."""
    held = lists.val
    seen = student_features(lists.dataset, lists.codes, held, lists.memory, longest=CONFIG.max_history)
    parts = vars(student_parts(student, lists.dataset, lists.codes, held, seen))
    prior, head = student.weights.tolist()
    found = {"student": (1.0, prior, head)}
    for who, part in ABLATIONS.items():
        others = Parts(**parts | {part: np.zeros_like(parts[part])})
        prior, head = combine_parts(others, held.candidates != PADDING, held.gains())
        found[who] = (float(part != "path"), prior, head * (part != "head"))
    return found


def kept(name: str) -> dict[str, tuple[Ranks, NDArray[np.bool_]]]:
    """What is kept of a source by test part: everyone's ranks, one a seed, and which targets are untied."""
    seeded = [dict(np.load(path.with_suffix(".npz"), allow_pickle=False)) for path in _files(name)]
    if not seeded:
        return {}
    with np.load(KEPT / name / "simple.npz", allow_pickle=False) as simple:
        fixed = dict(simple)
    tests = dict.fromkeys(key.partition("/")[2] for key in fixed)
    found = {}
    for test in tests:
        own = {key.partition("/")[0]: value for key, value in fixed.items() if key.endswith(f"/{test}")}
        untied = own.pop("untied")
        ranks: Ranks = {who: [value] for who, value in own.items()}
        for who in ("LambdaMART", *ABLATIONS, "student"):
            ranks[who] = [each[f"{who}/{test}"] for each in seeded]
        found[test] = ranks, untied
    return found


def _files(name: str) -> list[Path]:
    """The seeds of a source that were made with this configuration."""
    return [path for path in sorted((KEPT / name).glob("[0-9]*.json")) if _done(name, int(path.stem))]


def values_of(ranks: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.float64]]:
    """Each metric of each user, the mean over seeds."""
    every = [metric_values(each) for each in ranks]
    return {name: np.mean([each[name] for each in every], axis=0) for name in SHOWN}


def figures(test: str, ranks: Ranks) -> list[Figure]:
    """The student against the incoming order, by how much relatively, and against LambdaMART."""
    values = {who: values_of(found) for who, found in ranks.items()}
    incoming = {name: float(each.mean()) for name, each in values["incoming"].items()}
    gain = paired_bootstrap(values["incoming"], values["student"], 0)
    found = []
    for name, bar in BARS.items():
        mean, low, high = (each / incoming[name] for each in _bounds(gain[name]))
        status = "ok" if low > bar else "short"
        value = f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]"
        found.append(
            Figure(f"{test}: {name}, student over incoming, relative", value, f"interval above {bar:+.1%}", status)
        )
    trees = paired_bootstrap(values["LambdaMART"], values["student"], 0)["N@5"]
    mean, low, high = _bounds(trees)
    value = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    found.append(Figure(f"{test}: N@5, student minus LambdaMART", value, ">=0", "ok" if mean >= 0 else "short"))
    return found


def _bounds(difference: Difference) -> tuple[float, float, float]:
    return difference.mean, difference.low, difference.high


def table(test: str, ranks: Ranks, untied: NDArray[np.bool_]) -> dict[str, Any]:
    """Everyone's metrics: means over users and seeds, the deviation over seeds, and N@5 of untied targets."""
    rows = []
    for who, found in ranks.items():
        every = [{name: float(each.mean()) for name, each in values_of([one]).items()} for one in found]
        cells = [f"{np.mean([each[name] for each in every]):.4f}" for name in SHOWN]
        spread = f"{np.std([each['N@5'] for each in every], ddof=1):.4f}" if len(every) > 1 else ""
        rows.append([who, *cells, spread, f"{values_of(found)['N@5'][untied].mean():.4f}"])
    seeds = len(ranks["student"])
    columns = ["", *SHOWN, "N@5, deviation over seeds", "N@5, untied targets"]
    return {"title": f"{test}: {len(untied)} test users, {seeds} seeds", "columns": columns, "rows": rows}


def ablation(made: dict[str, Ranks]) -> dict[str, Any]:
    """What the student loses in N@5 without a part of its score."""
    rows = []
    for test, ranks in made.items():
        student = values_of(ranks["student"])
        lost = [paired_bootstrap(values_of(ranks[who]), student, 0)["N@5"] for who in ABLATIONS]
        rows.append([test, *("{:+.4f} [{:+.4f}, {:+.4f}]".format(*_bounds(each)) for each in lost)])
    title = "N@5, student minus the same student without a part, the weights of the others fitted again"
    return {"title": title, "columns": ["", *(f"without its {part}" for part in ABLATIONS.values())], "rows": rows}


def core_seconds() -> dict[str, float]:
    """What the kept seeds have cost."""
    trunks = sorted(TRUNKS.glob(f"*-{CONFIG.epochs}.json"))
    others = [path for name in SOURCES for path in _files(name)]
    others += [path for name in SOURCES if (path := KEPT / name / "simple.json").exists()]
    return {"path and head": sum(map(_seconds, trunks)), "all else": sum(map(_seconds, others))}


def list_seconds() -> str:
    """How long the lists took when they were made, as text."""
    made = [each for each in SOURCES.values() if (ROOT / "runs" / each.config / each.stage).is_dir()]
    spent = {each.config: artifact(Path("runs") / each.config, each.stage)["total_seconds"] for each in made}
    each = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in spent.items())
    return f"Their making took, in seconds by the clock: {each}"


def _seconds(path: Path) -> float:
    seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    return float(sum(seconds.values()) if isinstance(seconds, dict) else seconds)


def record(command: str) -> Record:
    """All that is kept, as one record."""
    made = {test: found for name in SOURCES for test, found in kept(name).items()}
    said = [each for test, (ranks, _) in made.items() for each in figures(test, ranks)]
    tables = [table(test, ranks, untied) for test, (ranks, untied) in made.items()]
    tables.append(ablation({test: ranks for test, (ranks, _) in made.items()}))
    spent = core_seconds()
    notes = [
        "student and LambdaMART train on the same cross-fitted lists, see the same columns, and are stopped or weighed "
        "by the same validation lists; seeds vary their training, lists and columns are those of seed 0",
        "the reasoner is compared with in student.checks, the cross-encoder in student.titles, and what the path costs "
        "a request is in student.path",
        "games18: training and validation lists of our own SASRec, test lists of other rankers for 6,000 users, whose "
        "items that the user has had are moved to the end, for everyone: our own lists never have any",
        f"of {len(TREES)} settings of LambdaMART the validation lists choose; the student's are the defaults",
        "tried: epochs 1, 3 and 8 (the default) gave a validation N@5 of .5724, .5786, .5849 on beauty-sasrec, .5349, "
        ".5437, .5514 on beauty-midtrain (seeds 0..2), .5574, .5691, .5826 on games18 (seeds 0, 1); where games18's "
        "test lists keep what users have had in its place, the head puts it first and loses .026 to .032 of test N@5",
        f"core-seconds: {', '.join(f'{who} {seconds:,.0f}' for who, seconds in spent.items())}. {list_seconds()}",
    ]
    return Record("student.quality", "The student against what people use today", command, said, tables, notes)


def made_sources(shares: Sequence[Sequence[str]], seeds: Sequence[int], jobs: int) -> Iterator[str]:
    """Each share in a process of one thread, `jobs` of them at a time; yields whenever more is kept."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _one_thread) as pool:
        waiting = {pool.submit(_make_share, share, seeds): share for share in shares}
        for done in as_completed(waiting):
            done.result()
            yield " and ".join(waiting[done])


def _one_thread() -> None:
    """Of torch here and in every process that this one starts."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _make_share(names: Sequence[str], seeds: Sequence[int]) -> None:
    for name in names:
        make(name, seeds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, and store the record after each source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", choices=sorted(SOURCES), default=list(SOURCES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    chosen = parser.parse_args(arguments)
    shares = [[name for name in share if name in chosen.sources] for share in SHARES]
    for names in made_sources([share for share in shares if share], chosen.seeds, chosen.jobs):
        print(names, store(record("make quality")).relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
