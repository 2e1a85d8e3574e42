"""The student against everything that the run can be compared with, on the same slates, with intervals over users."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.data.candidates import PADDING
from gr2.evaluate import order_values
from gr2.metrics import GRADED_METRICS, metric_values, paired_bootstrap
from gr2.report.run import Run

__all__ = ["Values", "quality_facts", "reasoner_facts", "student_values"]

REASONERS = ("sft", "opd", "rl", "bypass")
OWN = ("user", "position", "untied", "incoming", "student")
INCOMING = "incoming order"

Values = dict[str, NDArray[np.float64]]


def student_values(run: Run) -> tuple[Values, Values]:
    """Each metric of each judged slate, (R,): of the incoming order, and of the student."""
    judged = run.judged
    incoming = order_values(judged.slates, np.tile(np.arange(judged.slates.width), (len(judged.slates), 1)))
    if judged.orders is None:
        return incoming, metric_values(judged.ranks["student"])
    return incoming, order_values(judged.slates, judged.orders)


def quality_facts(run: Run, *, seed: int, resamples: int) -> dict[str, Any]:
    """The means of every ranker, and the student minus each of them."""
    incoming, student = student_values(run)
    users = run.judged.slates.user
    others = {INCOMING: incoming, **_baselines(run)}
    rankers = [
        {
            "name": name,
            "means": {metric: float(each.mean()) for metric, each in values.items()},
            "difference": {
                metric: asdict(change)
                for metric, change in paired_bootstrap(values, student, seed, resamples=resamples, users=users).items()
            },
        }
        for name, values in others.items()
    ]
    evaluation = run.stages["evaluate"].metrics
    return {
        "split": evaluation["split"],
        "slate": evaluation["slate"],
        "slates": len(users),
        "users": len(np.unique(users)),
        "lists": evaluation["lists"],
        "graded": run.judged.slates.grades is not None,
        "shuffled_differ": evaluation["shuffled"]["slates_that_differ"],
        "weighed": evaluation.get("weighed"),
        "metrics": [name for name in GRADED_METRICS if name in incoming],
        "student": {metric: float(each.mean()) for metric, each in student.items()},
        "rankers": rankers,
    }


def reasoner_facts(run: Run, *, seed: int, resamples: int) -> list[dict[str, Any]]:
    """Each reasoner's figures on its own test lists, and the student's minus its where they ranked the same slates."""
    facts = []
    for name in REASONERS:
        test = run.stages[name].metrics.get("test") if name in run.stages else None
        if isinstance(test, dict) and test.get("all"):
            keys = ("valid", "copied", "kendall_tau", "slate")
            fact = {"stage": name, **test["all"], **{key: test[key] for key in keys if key in test}}
            facts.append({**fact, "student": _against(run, name, seed=seed, resamples=resamples)})
    return facts


def _against(run: Run, stage: str, *, seed: int, resamples: int) -> dict[str, Any] | None:
    """The student minus a reasoner on the slates that both ranked; None if they do not share any."""
    if "evaluate" not in run.stages or "prerank" not in run.stages:
        return None
    slates, table = run.judged.slates, pq.read_table(run.stages[stage].file("ranks.parquet")).to_pydict()
    keys = zip(table["user"], table.get("position", table["user"]), table["incoming"], strict=True)
    ranks = dict(zip(keys, table["reasoner"], strict=True))
    places = zip(slates.user.tolist(), slates.position.tolist(), run.judged.ranks["incoming"].tolist(), strict=True)
    found = [ranks.get(key, 0) for key in places]
    rows = np.flatnonzero(found)
    # Lists of two rankers may agree by chance on where a target stands.
    if slates.grades is not None or len(rows) < max(1, len(ranks) // 2):
        return None
    values = metric_values(np.asarray(found)[rows])
    student = {metric: each[rows] for metric, each in student_values(run)[1].items()}
    change = paired_bootstrap(values, student, seed, resamples=resamples, users=slates.user[rows])
    return {"slates": len(rows), "difference": {metric: asdict(each) for metric, each in change.items()}}


def _baselines(run: Run) -> dict[str, Values]:
    """Rankings that anyone could make without a model, and those that the evaluation holds beside the student's."""
    slates = run.judged.slates
    popular = run.popularity[np.maximum(slates.candidates, 0)].astype(np.float64)
    baselines = {
        "popularity": order_values(slates, _orders(run, popular)),
        "co-purchases with the last item": order_values(slates, _orders(run, _copurchases(run))),
    }
    if slates.grades is None:
        for name, ranks in run.judged.ranks.items():
            if name not in OWN and np.issubdtype(ranks.dtype, np.integer):
                baselines[name] = metric_values(ranks)
    return baselines


def _orders(run: Run, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """(R, K) the columns by score, ties in incoming order, padding last."""
    padded = np.where(run.judged.slates.candidates == PADDING, -np.inf, scores)
    return np.argsort(-padded, axis=1, kind="stable")


def _copurchases(run: Run) -> NDArray[np.float64]:
    """(R, K) float64: the users whose training events hold both the candidate and the newest item of the history."""
    dataset, slates = run.dataset, run.judged.slates
    buyers: dict[int, set[int]] = defaultdict(set)
    owner = np.repeat(np.arange(dataset.users), dataset.lengths)
    train = np.arange(len(dataset.items)) < np.repeat(dataset.offsets[1:] - 2, dataset.lengths)
    for item, user in zip(dataset.items[train].tolist(), owner[train].tolist(), strict=True):
        buyers[item].add(user)
    counts = np.zeros(slates.candidates.shape)
    for row, (user, position) in enumerate(zip(slates.user.tolist(), slates.position.tolist(), strict=True)):
        last = dataset.history(user, position)[-1:].tolist()
        for column, item in enumerate(slates.candidates[row].tolist()):
            counts[row, column] = sum(len(buyers[item] & buyers[own]) for own in last)
    return counts
