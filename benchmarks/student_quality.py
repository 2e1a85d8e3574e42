"""The student against what people use today, on five sets of lists: `python -m benchmarks.student_quality`.

Student and LambdaMART train on the same lists and see the same features; each seed trains both anew. A seed that is
done is kept in runs/quality/ and not repeated, so that a run that was killed, or had fewer seeds, goes on. Figures are
of the mean over seeds for each user, with intervals over users.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.student_baselines import TREES, fitted_trees, ranks_by, simple_ranks
from benchmarks.student_lists import SOURCES, Lists, load_source
from gr2.artifact import write_json
from gr2.metrics import Difference, metric_values, paired_bootstrap
from gr2.training.distill import DistillConfig, fit_student, student_parts

__all__ = ["main"]

KEPT = ROOT / "runs" / "quality"
# Fewer epochs than a run of its own has, so that five seeds fit into two hours.
CONFIG = DistillConfig(epochs=3, threads=1)
LARGE = replace(CONFIG, epochs=1)  # games18 has more than twice the positions
# The paper's gains over its pre-ranker, on Beauty.
BARS = {"R@1": 0.029, "R@5": 0.032, "N@5": 0.026}
SHOWN = ("R@1", "R@5", "N@5")

Ranks = dict[str, list[NDArray[np.int64]]]  # by who ranks, one a seed


def make(name: str, seeds: Sequence[int]) -> None:
    """Train and keep what is missing of a source's seeds."""
    missing = [seed for seed in seeds if not (KEPT / name / f"{seed}.npz").exists()]
    if not missing:
        return
    lists = load_source(name, CONFIG)
    (KEPT / name).mkdir(parents=True, exist_ok=True)
    if not (KEPT / name / "simple.npz").exists():
        _keep_simple(name, lists)
    for seed in missing:
        began = time.process_time()
        student, metrics = _student(name, lists, seed)
        between = time.process_time()
        trees = fitted_trees(lists, seed)
        seconds = {"student": between - began, "LambdaMART": time.process_time() - between}
        write_json(KEPT / name / f"{seed}.json", {"seconds": seconds, "weights": metrics["weights"]})
        ranks: dict[str, Any] = {f"student/{test}": found for test, found in student.items()}
        ranks |= {f"LambdaMART/{test}": found for test, found in trees.items()}
        np.savez(KEPT / name / f"{seed}.npz", **ranks)
        print(name, seed, seconds, flush=True)


def _keep_simple(name: str, lists: Lists) -> None:
    """What needs no seed: simple orders, and which targets are tied."""
    arrays: dict[str, Any] = {}
    for test, held in lists.tests.items():
        arrays |= {f"{who}/{test}": ranks for who, ranks in simple_ranks(lists, test).items()}
        arrays[f"untied/{test}"] = ~lists.dataset.tied[held.user]
    np.savez(KEPT / name / "simple.npz", **arrays)


def _student(name: str, lists: Lists, seed: int) -> tuple[dict[str, NDArray[np.int64]], dict[str, Any]]:
    """The student's ranks of each test part. Path and head, which depend on no list, train once a data set and seed."""
    config = LARGE if name == "games18" else CONFIG
    trunk = KEPT / "trunks" / f"{lists.run.name.removesuffix('-reasoner')}-{seed}-{config.epochs}.pt"
    trunk.parent.mkdir(parents=True, exist_ok=True)
    student, metrics = fit_student(
        config,
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
    prior, head = student.weights.tolist()
    ranks = {}
    for test, held in lists.tests.items():
        parts = student_parts(student, lists.dataset, lists.codes, held, lists.seen[test])
        ranks[test] = ranks_by(held, parts.path + prior * parts.prior + head * parts.head)
    return ranks, metrics


def kept(name: str) -> dict[str, tuple[Ranks, NDArray[np.bool_]]]:
    """What is kept of a source by test part: everyone's ranks, one a seed, and which targets are untied."""
    files = sorted((KEPT / name).glob("[0-9]*.npz"))
    if not files:
        return {}
    with np.load(KEPT / name / "simple.npz", allow_pickle=False) as simple:
        fixed = dict(simple)
    seeded = [dict(np.load(path, allow_pickle=False)) for path in files]
    tests = dict.fromkeys(key.partition("/")[2] for key in fixed)
    found = {}
    for test in tests:
        own = {key.partition("/")[0]: value for key, value in fixed.items() if key.endswith(f"/{test}")}
        untied = own.pop("untied")
        ranks: Ranks = {who: [value] for who, value in own.items()}
        ranks |= {who: [each[f"{who}/{test}"] for each in seeded] for who in ("LambdaMART", "student")}
        found[test] = ranks, untied
    return found


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


def record(command: str) -> Record:
    """All that is kept, as one record."""
    made = {test: found for name in SOURCES for test, found in kept(name).items()}
    said = [each for test, (ranks, _) in made.items() for each in figures(test, ranks)]
    tables = [table(test, ranks, untied) for test, (ranks, untied) in made.items()]
    notes = [
        "student and LambdaMART train on the same cross-fitted lists, see the same columns, and are stopped or weighed "
        "by the same validation lists; seeds vary their training, lists and columns are those of seed 0",
        "the reasoner is compared with in student.checks, the cross-encoder in student.titles",
        "games18: training and validation lists of our own SASRec, test lists of other rankers for 6,000 users",
        f"of {len(TREES)} settings of LambdaMART the validation lists choose; the student's are the defaults but for "
        f"epochs = {CONFIG.epochs}, of games18 {LARGE.epochs}",
    ]
    return Record("student.quality", "The student against what people use today", command, said, tables, notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, and store the record after each source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", choices=sorted(SOURCES), default=list(SOURCES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for seed in chosen.seeds:
        for name in chosen.sources:
            make(name, [seed])
            print(store(record("make quality")).relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
