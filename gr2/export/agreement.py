"""How far a graph's rankings are from the trained student's, over many requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gr2.metrics import metric_values

__all__ = ["NOT_FINITE", "Agreement", "Comparison"]

DIGITS = 6
# What a score that is not finite differs by: JSON has no infinity.
NOT_FINITE = 1e38


@dataclass(frozen=True)
class Agreement:
    """Over `requests`: `max_abs_difference` of the scores; the share of `identical_order`; the share of `broken_order`,
    requests whose order puts a candidate above one that the student scores higher by more than the tolerance; the share
    that has the student's first candidate first, `top1`, and the mean of Kendall's tau to the student's order.

    Over the `labelled` requests, whose target is known and listed, the N@5 of the student and of the graph.
    """

    requests: int
    max_abs_difference: float
    identical_order: float
    broken_order: float
    top1: float
    tau: float
    labelled: int
    student_ndcg: float
    ndcg: float

    @property
    def lost(self) -> float:
        """The share of the student's N@5 that the graph loses; 0 if nothing is labelled."""
        return 1 - self.ndcg / self.student_ndcg if self.student_ndcg else 0.0


@dataclass
class Comparison:
    """Collects an `Agreement`; scores may differ by `tolerance` before an order counts as broken."""

    tolerance: float
    _difference: float = 0.0
    _rows: list[tuple[bool, bool, bool, float]] = field(default_factory=list)
    _ndcg: list[tuple[float, float]] = field(default_factory=list)

    def add(self, student: NDArray[np.float32], graph: NDArray[np.float32], label: int) -> None:
        """One request's scores (K,) by the student and by the graph, and its target's column or -1.

        An order of scores that are not finite is broken, and its target is last.
        """
        wanted = np.argsort(-student, kind="stable")
        if np.isfinite(graph).all():
            order = np.argsort(-graph, kind="stable")
            self._difference = max(self._difference, float(np.abs(graph - student).max()))
            broken = bool((np.diff(student[order]) > self.tolerance).any())
            same = bool(np.array_equal(order, wanted))
            tau = 1.0 if same else kendall_tau(order, wanted)
            self._rows.append((same, broken, bool(order[0] == wanted[0]), tau))
        else:
            self._difference = NOT_FINITE
            self._rows.append((False, True, False, -1.0))
            order = np.append(wanted[wanted != label], label)
        if label >= 0:
            ranks = np.array([1 + np.flatnonzero(each == label)[0] for each in (wanted, order)])
            first, second = metric_values(ranks)["N@5"].tolist()
            self._ndcg.append((first, second))

    def result(self) -> Agreement:
        """The figures, rounded: their last digits are of no use to a manifest."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 4)
        identical, broken, top1, tau = _means(rows)
        student, graph = _means(np.array(self._ndcg, dtype=np.float64).reshape(-1, 2))
        difference = float(f"{self._difference:.3g}")
        return Agreement(len(rows), difference, identical, broken, top1, tau, len(self._ndcg), student, graph)


def kendall_tau(first: NDArray[np.integer], second: NDArray[np.integer]) -> float:
    """The share of pairs that two orders (K,) of the same candidates agree on, less that on which they do not."""
    count = len(first)
    if count < 2:
        return 1.0
    place = np.empty(count, dtype=np.int64)
    place[second] = np.arange(count)
    ranks = place[first]
    swapped = int(np.triu(ranks[:, None] > ranks[None, :], 1).sum())
    return 1 - 4 * swapped / (count * (count - 1))


def _means(columns: NDArray[np.float64]) -> Sequence[float]:
    means = columns.mean(axis=0) if len(columns) else np.zeros(columns.shape[1])
    return [round(value, DIGITS) for value in means.tolist()]
