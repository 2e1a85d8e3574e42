"""Clicks weighed by propensities against plain clicks, judged by the truth: `python -m benchmarks.student.clicks`.

The synthetic shop shows slates, and only the simulator knows what was wanted. For each seed and log, students are
trained on the same log without weights and with each way to get them, and every bundle re-ranks the same test slates,
those without a click included. Their gain is the probability that a candidate was wanted. Needs the folder runs/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.results import ROOT, Figure, Record, store
from gr2.data.dataset import Dataset
from gr2.data.impressions import read_impressions
from gr2.data.synthetic import write_synthetic
from gr2.data.synthetic_clicks import Clicks
from gr2.evaluate import engine_orders
from gr2.metrics import Difference, paired_bootstrap, weighed_values
from gr2.pipeline import execute, load_plan
from gr2.serving.engine import Engine

__all__ = ["main"]

FOLDER, CONFIG = Path("runs/student-clicks"), ROOT / "configs" / "clicks.toml"
USERS, ITEMS, SLATE, SEEDS = 1000, 400, 10, 5
METHODS = ("off", "swaps", "em", "given")


@dataclass(frozen=True)
class Log:
    """How a log is simulated, and what is tried on it; swaps need slates that were shuffled."""

    name: str
    clicks: Clicks
    methods: tuple[str, ...] = METHODS


LOGS = (
    Log("position bias", Clicks(slate=SLATE)),
    Log("no bias", Clicks(slate=SLATE, bias=0.0)),
    Log("position bias, no slate shuffled", Clicks(slate=SLATE, shuffled=0.0), ("off", "em", "given")),
)
METRICS = ("N@1", "N@5", "N@10")
# What weighing may cost at most where no bias calls for it.
HARM = 0.005


@dataclass(frozen=True)
class Judged:
    """The students of one log: each method's true N@k, (R,) a metric, the slates' users, and the propensities.

    `verdicts` are each student's gain on the incoming order: N@5 by test clicks, D@5 by weighed ones, D@5 by the truth.
    """

    values: dict[str, dict[str, np.ndarray]]
    users: np.ndarray
    propensities: dict[str, list[float]]
    verdicts: dict[str, tuple[float, float | None, float]]


def looked(log: Log) -> list[float]:
    """How often each place is looked at."""
    return [float(place**-log.clicks.bias) for place in range(1, SLATE + 1)]


def say(line: str) -> None:
    """Progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def judge(log: Log, seed: int) -> Judged:
    """Make one log, train a student a method, and measure all on its test slates."""
    folder = ROOT / FOLDER / f"{log.name.replace(',', '').replace(' ', '-')}-{seed}"
    data = folder / "data"
    write_synthetic(data, users=USERS, items=ITEMS, seed=seed, clicks=log.clicks)
    values: dict[str, dict[str, np.ndarray]] = {}
    propensities: dict[str, list[float]] = {}
    verdicts: dict[str, tuple[float, float | None, float]] = {}
    users = np.empty(0)
    shown = 0.0
    for method in log.methods:
        settings = {"run.out": folder, "run.seed": seed, "distill.propensity": method}
        settings |= {
            key: data / f"{name}.parquet"
            for key, name in (
                ("prepare.items", "items"),
                ("prepare.interactions", "interactions"),
                ("prerank.impressions", "impressions"),
            )
        }
        if method == "given":
            settings["distill.propensities"] = looked(log)
        made = execute(load_plan(CONFIG, overrides=[f"{key}={value}" for key, value in settings.items()]), say=say)
        metrics = {outcome.stage: outcome.artifact.metrics for outcome in made if outcome.artifact}
        propensities[method] = metrics["distill"].get("propensities", [])
        values[method], users, discounted = true_values(folder)
        if "incoming" not in values:
            values["incoming"], _, shown = true_values(folder, incoming=True)
        weighed = metrics["evaluate"].get("weighed")
        verdicts[method] = (
            metrics["evaluate"]["all"]["difference"]["N@5"]["mean"],
            weighed and weighed["difference"]["D@5"]["mean"],
            discounted - shown,
        )
    return Judged(values, users, propensities, verdicts)


def true_values(folder: Path, *, incoming: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """N@k of each test slate, the slates' users, and D@5, with relevance as gain, in the bundle's order or as shown."""
    dataset = Dataset.load(folder / "prepare")
    source = read_impressions(folder / "data" / "impressions.parquet", dataset)
    rows = source.rows(dataset, "test")
    slates = source.lists.take(rows)
    truth = pq.read_table(folder / "data" / "truth.parquet").to_pydict()
    pairs = zip(truth["request_id"], truth["item_id"], strict=True)
    known = dict(zip(pairs, truth["relevance"], strict=True))
    ids = dataset.catalog.ids
    gains = np.array(
        [
            [known[source.requests[row], ids[item]] for item in items]
            for row, items in zip(rows.tolist(), slates.candidates.tolist(), strict=True)
        ]
    )
    orders = np.tile(np.arange(SLATE), (len(slates), 1))
    if not incoming:
        orders = engine_orders(Engine(folder / "export"), dataset, slates, use_scores=True)
    ranked, best = np.take_along_axis(gains, orders, axis=1), -np.sort(-gains, axis=1)
    discount = 1.0 / np.log2(2.0 + np.arange(SLATE))
    found = {f"N@{k}": (ranked[:, :k] @ discount[:k]) / (best[:, :k] @ discount[:k]) for k in (1, 5, 10)}
    return found, slates.user, float(np.average(weighed_values(ranked)["D@5"], weights=ranked.sum(axis=1)))


def difference(judged: Sequence[Judged], method: str, baseline: str = "off") -> dict[str, Difference]:
    """The mean difference over the slates of all seeds, with the interval over their users."""
    before, after = (
        {metric: np.concatenate([each.values[name][metric] for each in judged]) for metric in METRICS}
        for name in (baseline, method)
    )
    users = np.concatenate([seed * USERS + each.users for seed, each in enumerate(judged)])
    return paired_bootstrap(before, after, 0, users=users)


def interval(change: Difference) -> str:
    """As text."""
    return f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"


def measure(seeds: int) -> Record:
    """The record of all seeds and biases."""
    # Seed by seed, so that what a shorter run needs is done first.
    every = [[judge(log, seed) for log in LOGS] for seed in range(seeds)]
    runs = {log.name: [judged[place] for judged in every] for place, log in enumerate(LOGS)}
    figures = [
        figure(log, method, difference(runs[log.name], method)["N@5"]) for log in LOGS for method in log.methods[1:]
    ]
    tables = [quality_table(log, runs[log.name]) for log in LOGS]
    tables += [verdict_table(log, runs[log.name]) for log in LOGS]
    tables += [place_table(log, runs[log.name][0]) for log in LOGS]
    slates = sum(len(each.users) for each in runs[LOGS[0].name])
    notes = [
        f"{USERS:,} users, {ITEMS} items, seeds 0..{seeds - 1}; {slates:,} test slates a log, intervals over users",
        "gains are the probabilities that candidates were wanted, which only the simulator knows",
        "bias: place k is examined with probability 1/k; a tenth of the slates is shown in random order, unless said",
        "'given' are the simulator's own propensities; 'em' without shuffled slates takes some relevance for a bias",
    ]
    title = "Clicks weighed by propensities, judged by the truth"
    command = "make student-clicks" if seeds == SEEDS else f"python -m benchmarks.student.clicks --seeds {seeds}"
    return Record("student.clicks", title, command, figures, tables, notes)


def figure(log: Log, method: str, change: Difference) -> Figure:
    """Weighing must help where there is a bias, and do no harm where there is none."""
    what = f"clicks, {log.name}: true N@5 with propensities by {method!r}, minus without"
    least = 0.0 if log.clicks.bias else -HARM
    return Figure(what, interval(change), f"interval above {least:g}", "ok" if change.low > least else "short")


def quality_table(log: Log, judged: Sequence[Judged]) -> dict[str, Any]:
    """The incoming order and every student under the truth."""
    rows = []
    for name in ("incoming", *log.methods):
        means = [np.mean([each.values[name][metric].mean() for each in judged]) for metric in METRICS]
        seeds = [each.values[name]["N@5"].mean() - each.values["off"]["N@5"].mean() for each in judged]
        better = "" if name in ("incoming", "off") else f"{sum(value > 0 for value in seeds)} of {len(seeds)}"
        cells = "" if name == "off" else interval(difference(judged, name)["N@5"])
        rows.append([name, *(f"{mean:.4f}" for mean in means), cells, better])
    columns = ["propensities", *METRICS, "N@5 minus without", "seeds better"]
    return {"title": f"true NDCG: {log.name}", "columns": columns, "rows": rows}


def verdict_table(log: Log, judged: Sequence[Judged]) -> dict[str, Any]:
    """What test clicks say of the students, as they are and weighed, beside the truth."""
    rows = []
    for name in log.methods:
        columns = zip(*(each.verdicts[name] for each in judged), strict=True)
        rows.append([name, *("" if None in column else f"{np.mean(column):+.4f}" for column in columns)])
    columns = ["propensities", "N@5 by clicks", "D@5 by weighed clicks", "D@5 by the truth"]
    return {"title": f"student minus the incoming order: {log.name}", "columns": columns, "rows": rows}


def place_table(log: Log, judged: Judged) -> dict[str, Any]:
    """The propensities of each place by each method, of the first seed."""
    rows = [["truth", *(f"{value:.3f}" for value in looked(log))]]
    rows += [
        [name, *(f"{value:.3f}" for value in judged.propensities[name])]
        for name in log.methods
        if name not in ("off", "given")
    ]
    columns = ["", *(str(place) for place in range(1, SLATE + 1))]
    return {"title": f"propensities by place, seed 0: {log.name}", "columns": columns, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    print(store(measure(parser.parse_args(arguments).seeds)).relative_to(ROOT))


if __name__ == "__main__":
    main()
