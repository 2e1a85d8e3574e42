"""Ranking metrics of slates with a target or with grades, and the uncertainty of a difference between two rankings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GRADED_METRICS",
    "METRICS",
    "WEIGHED_METRICS",
    "Difference",
    "compare",
    "compare_ranks",
    "graded_values",
    "metric_values",
    "paired_bootstrap",
    "rank_of_target",
    "ranking_metrics",
    "weighed_values",
]

RECALL_AT = (1, 3, 5)
NDCG_AT = (3, 5, 10)
METRICS = (*(f"R@{k}" for k in RECALL_AT), *(f"N@{k}" for k in NDCG_AT), "MRR")
GRADED_METRICS = (*METRICS, "AUC")
WEIGHED_METRICS = (*(f"R@{k}" for k in RECALL_AT), *(f"D@{k}" for k in NDCG_AT))
# Resamples are drawn in blocks of at most this many counts, so that memory stays bounded.
BLOCK = 4_000_000


def rank_of_target(scores: NDArray[np.floating], target: NDArray[np.integer]) -> NDArray[np.int64]:
    """(R,) int64: the target's rank, from 1, when each row of `scores` (R, K) is sorted, higher first.

    `target` (R,) is the target's column. Equal scores rank in incoming order (by column), so a scorer that says the
    same of every candidate reproduces the incoming order and cannot beat it. Raises ValueError on a NaN, which no
    order could be right for, and on a column outside the row.
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(f"scores (R, K) and target (R,) expected, got {scores.shape} and {target.shape}")
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores[{row}, {column}] is NaN")
    columns = np.arange(scores.shape[1])
    if target.size and (target.min() < 0 or target.max() >= scores.shape[1]):
        raise ValueError(f"target columns must be in [0, {scores.shape[1]}), got {target.min()} to {target.max()}")
    own = np.take_along_axis(scores, target[:, None], axis=1)
    ahead = (scores > own) | ((scores == own) & (columns < target[:, None]))
    rank: NDArray[np.int64] = 1 + ahead.sum(axis=1, dtype=np.int64)
    return rank


def metric_values(ranks: NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
    """Each metric of each slate, (R,) float64, from the target's rank (from 1).

    R@k = [rank <= k]; N@k = [rank <= k] / log2(1 + rank), since the ideal DCG of one target is 1; MRR = 1 / rank.
    """
    if ranks.size and ranks.min() < 1:
        raise ValueError(f"ranks count from 1, got {ranks.min()}")
    gain = 1.0 / np.log2(1.0 + ranks)
    values = {f"R@{k}": (ranks <= k).astype(np.float64) for k in RECALL_AT}
    values |= {f"N@{k}": np.where(ranks <= k, gain, 0.0) for k in NDCG_AT}
    values["MRR"] = 1.0 / ranks
    return values


def graded_values(grades: NDArray[np.integer], present: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Each metric of each slate, (R,) float64, from the candidates' grades (R, K) in the order of a ranking.

    A grade above 0 is a positive; `present` (R, K) is False in the padding, which comes last. R@k = positives among the
    first k, as a share of all; N@k with gains 2^grade - 1; MRR = 1 / rank of the first positive; AUC = the share of the
    (positive, negative) pairs that are in the right order. With one positive of grade 1, those of `metric_values`.
    Raises ValueError on a slate without a positive or without a negative.
    """
    positive, negative = (grades > 0) & present, (grades == 0) & present
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    if not (positives.all() and negatives.all()):
        row = int(np.argmin((positives > 0) & (negatives > 0)))
        raise ValueError(f"slate {row} needs a positive and a negative, has {positives[row]} and {negatives[row]}")
    gain = np.where(present, np.exp2(grades.astype(np.float64)) - 1.0, 0.0)
    best = -np.sort(-gain, axis=1)
    discount = 1.0 / np.log2(2.0 + np.arange(grades.shape[1]))
    behind = negatives[:, None] - np.cumsum(negative, axis=1)
    values = {f"R@{k}": positive[:, :k].sum(axis=1) / positives for k in RECALL_AT}
    values |= {f"N@{k}": (gain * discount)[:, :k].sum(axis=1) / (best * discount)[:, :k].sum(axis=1) for k in NDCG_AT}
    values["MRR"] = 1.0 / (1 + positive.argmax(axis=1))
    values["AUC"] = (behind * positive).sum(axis=1) / (positives * negatives)
    return values


def weighed_values(weights: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """Each metric of each slate, (R,) float64, from what its positives weigh (R, K) in the order of a ranking.

    R@k = the weight among the first k, D@k = that weight discounted by 1 / log2(1 + rank), both as a share of the
    slate's. If a positive weighs its gain over the propensity of its place, the mean over slates by their weight
    estimates what clicks without a position bias would have said (self-normalised inverse propensities, Swaminathan and
    Joachims, NeurIPS 2015). Raises ValueError on a slate without a positive.
    """
    totals = weights.sum(axis=1)
    if not (totals > 0).all():
        raise ValueError(f"slate {int(np.argmin(totals > 0))} has no positive")
    discounted = weights / np.log2(2.0 + np.arange(weights.shape[1]))
    values = {f"R@{k}": weights[:, :k].sum(axis=1) / totals for k in RECALL_AT}
    return values | {f"D@{k}": discounted[:, :k].sum(axis=1) / totals for k in NDCG_AT}


def ranking_metrics(ranks: NDArray[np.integer]) -> dict[str, float]:
    """The mean of each metric of `metric_values` over the slates. Raises ValueError if there are none."""
    if not ranks.size:
        raise ValueError("no slates to measure")
    return {name: float(values.mean()) for name, values in metric_values(ranks).items()}


@dataclass(frozen=True)
class Difference:
    """A mean difference and the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    before: Mapping[str, NDArray[np.float64]],
    after: Mapping[str, NDArray[np.float64]],
    seed: int,
    *,
    resamples: int = 10_000,
    users: NDArray[np.integer] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> dict[str, Difference]:
    """The mean of `after - before` for each metric, with its 95 % percentile interval over resampled slates.

    With `users` (R,), users are drawn with all their slates, since one user's slates are alike; with
    `weights` (R,), means are weighted by them. Both map a metric to its values, (R,), on the same slates. One resample
    draws the same slates for every metric.
    Slates with equal differences are interchangeable, so a resample is drawn as multinomial counts over the distinct
    differences: the same distribution as drawing R slates, at a cost that does not grow with R.
    """
    names = list(before)
    if names != list(after):
        raise ValueError(f"both rankings need the same metrics, got {names} and {list(after)}")
    differences = np.stack([after[name] - before[name] for name in names], axis=1)
    if not len(differences):
        raise ValueError("no slates to resample")
    sizes = np.ones(len(differences)) if weights is None else weights
    units = np.column_stack([differences * sizes[:, None], sizes])
    mean = units[:, :-1].sum(axis=0) / units[:, -1].sum()
    if users is not None:
        who = np.unique(users, return_inverse=True)[1]
        units = np.stack([np.bincount(who, weights=column) for column in units.T], axis=1)
    distinct, counts = np.unique(units, axis=0, return_counts=True)
    # Common differences first: numpy draws a multinomial as a chain of binomials and stops when all draws are placed.
    order = np.argsort(-counts, kind="stable")
    distinct, counts = distinct[order], counts[order]
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // len(counts))
    totals = np.concatenate(
        [
            generator.multinomial(len(units), counts / len(units), size=min(block, resamples - first)) @ distinct
            for first in range(0, resamples, block)
        ]
    )
    means = totals[:, :-1] / totals[:, -1:]
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: Difference(float(mean[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}


def compare_ranks(
    incoming: NDArray[np.int64], ranks: NDArray[np.int64], seed: int, *, name: str, resamples: int = 10_000
) -> dict[str, Any] | None:
    """The metrics of the incoming order and of `ranks`, called `name`, and the intervals of their differences.

    Both are (R,), the target's rank in each slate. None without slates.
    """
    if not len(incoming):
        return None
    return compare(metric_values(incoming), metric_values(ranks), seed, name=name, resamples=resamples)


def compare(
    incoming: Mapping[str, NDArray[np.float64]],
    other: Mapping[str, NDArray[np.float64]],
    seed: int,
    *,
    name: str,
    resamples: int = 10_000,
    users: NDArray[np.integer] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The means of each metric's values, (R,), under the incoming order and under `other`, called `name`, and the
    intervals of their differences (see `paired_bootstrap`).
    """
    differences = paired_bootstrap(incoming, other, seed, resamples=resamples, users=users, weights=weights)
    return {
        "slates": len(next(iter(incoming.values()))),
        "incoming": {metric: float(np.average(values, weights=weights)) for metric, values in incoming.items()},
        name: {metric: float(np.average(values, weights=weights)) for metric, values in other.items()},
        "difference": {metric: asdict(difference) for metric, difference in differences.items()},
    }
