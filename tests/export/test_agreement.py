"""How far rankings are apart: every figure against a count by hand."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from gr2.export.agreement import NOT_FINITE, Comparison, kendall_tau
from gr2.metrics import metric_values


def order_of(scores: np.ndarray) -> list[int]:
    return sorted(range(len(scores)), key=lambda column: -scores[column])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_tau_is_the_pairs_agreed_on_less_those_that_are_not(count: int) -> None:
    rng = np.random.default_rng(count)
    first, second = rng.permutation(count), rng.permutation(count)
    places = [{item: place for place, item in enumerate(each.tolist())} for each in (first, second)]
    pairs = combinations(range(count), 2)
    signs = [1 if len({own[a] < own[b] for own in places}) == 1 else -1 for a, b in pairs]
    assert kendall_tau(first, second) == pytest.approx(sum(signs) / len(signs) if signs else 1.0)


def test_figures_are_means_over_requests() -> None:
    rng = np.random.default_rng(0)
    comparison = Comparison(0.3)
    differences, same, broken, first, taus, gains = [], [], [], [], [], []
    for row in range(40):
        student = rng.normal(size=6).astype(np.float32)
        graph = student + rng.normal(scale=0.3, size=6).astype(np.float32)
        label = row % 6 if row % 2 else -1
        comparison.add(student, graph, label)
        wanted, found = order_of(student), order_of(graph)
        differences.append(float(np.abs(graph - student).max()))
        same.append(wanted == found)
        broken.append(any(student[b] > student[a] + 0.3 for a, b in pairwise(found)))
        first.append(wanted[0] == found[0])
        taus.append(kendall_tau(np.array(found), np.array(wanted)))
        if label >= 0:
            ranks = np.array([wanted.index(label) + 1, found.index(label) + 1])
            gains.append(metric_values(ranks)["N@5"])
    figures = comparison.result()
    assert (figures.requests, figures.labelled) == (40, 20)
    assert 0 < np.mean(broken) < np.mean(np.logical_not(same))
    for name, values in {
        "identical_order": same, "broken_order": broken, "top1": first, "tau": taus,
        "student_ndcg": [own[0] for own in gains], "ndcg": [own[1] for own in gains],
    }.items():  # fmt: skip
        assert getattr(figures, name) == pytest.approx(np.mean(values), abs=1e-5)
    assert figures.max_abs_difference == pytest.approx(max(differences), rel=1e-2)
    assert figures.lost == pytest.approx(1 - figures.ndcg / figures.student_ndcg)


def test_nothing_is_lost_where_nothing_is_labelled() -> None:
    comparison = Comparison(0.1)
    comparison.add(np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32), -1)
    assert comparison.result().lost == 0.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_agree_with_nothing(wrong: float) -> None:
    comparison = Comparison(0.1)
    student = np.array([2.0, 1.0, 0.0], np.float32)
    comparison.add(student, np.full(3, wrong, np.float32), 0)
    comparison.add(student, student, 0)
    figures = comparison.result()
    assert figures.max_abs_difference == NOT_FINITE
    assert (figures.identical_order, figures.broken_order, figures.top1, figures.tau) == (0.5, 0.5, 0.5, 0.0)
    assert figures.ndcg < figures.student_ndcg == 1.0
