"""Ranks and metrics against their formulas, the tie rule, and the bootstrap interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr2.metrics import (
    METRICS,
    compare,
    compare_ranks,
    graded_values,
    metric_values,
    paired_bootstrap,
    rank_of_target,
    ranking_metrics,
    weighed_values,
)

slates = st.integers(1, 12).flatmap(
    lambda k: st.tuples(
        st.lists(st.integers(-3, 3), min_size=k, max_size=k), st.integers(0, k - 1), st.permutations(range(k))
    )
)


def rank(scores: list[float], target: int) -> int:
    return int(rank_of_target(np.array([scores], dtype=np.float32), np.array([target]))[0])


@given(slates)
def test_rank_is_the_position_in_a_stable_sort(slate: tuple[list[int], int, list[int]]) -> None:
    scores, target, _ = slate
    order = sorted(range(len(scores)), key=lambda column: -scores[column])
    assert rank([float(s) for s in scores], target) == order.index(target) + 1


@given(st.integers(1, 20).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k - 1))))
def test_constant_scorer_reproduces_the_incoming_order(case: tuple[int, int]) -> None:
    k, target = case
    assert rank([0.5] * k, target) == target + 1


@given(slates)
def test_shuffling_the_input_of_distinct_scores_changes_nothing(slate: tuple[list[int], int, list[int]]) -> None:
    scores, target, order = slate
    distinct = [score + column / 100 for column, score in enumerate(scores)]
    shuffled = [distinct[column] for column in order]
    assert rank(shuffled, order.index(target)) == rank(distinct, target)


def test_padding_is_never_ahead_of_the_target() -> None:
    assert rank([1.0, 0.0, -math.inf], 1) == 2


def test_nan_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"scores\[0, 1\] is NaN"):
        rank([0.0, math.nan], 0)


def test_target_outside_the_slate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 2\), got -1"):
        rank([0.0, 1.0], -1)


def test_metrics_follow_their_formulas() -> None:
    metrics = ranking_metrics(np.array([1, 2, 4, 11]))
    assert tuple(metrics) == METRICS
    assert metrics["R@1"] == 1 / 4
    assert metrics["R@3"] == 2 / 4
    assert metrics["R@5"] == 3 / 4
    assert metrics["N@3"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert metrics["N@5"] == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(5)) / 4)
    assert metrics["N@10"] == metrics["N@5"]
    assert metrics["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 11) / 4)


def test_no_slates_is_an_error() -> None:
    with pytest.raises(ValueError, match="no slates"):
        ranking_metrics(np.array([], dtype=np.int64))


def test_bootstrap_agrees_with_resampling_the_slates() -> None:
    generator = np.random.default_rng(0)
    before = metric_values(generator.integers(1, 11, 400))
    after = metric_values(generator.integers(1, 9, 400))
    ours = paired_bootstrap(before, after, seed=1)
    for name in METRICS:
        difference = after[name] - before[name]
        plain = difference[generator.integers(0, 400, (10_000, 400))].mean(axis=1)
        low, high = np.percentile(plain, (2.5, 97.5))
        assert ours[name].mean == pytest.approx(difference.mean())
        assert ours[name].low == pytest.approx(low, abs=0.1 * (high - low))
        assert ours[name].high == pytest.approx(high, abs=0.1 * (high - low))


def test_bootstrap_is_repeatable_and_depends_on_the_seed() -> None:
    before, after = metric_values(np.array([1, 2, 3, 4, 9] * 9)), metric_values(np.array([2, 1, 1, 7, 3] * 9))
    assert paired_bootstrap(before, after, 3) == paired_bootstrap(before, after, 3)
    assert paired_bootstrap(before, after, 3) != paired_bootstrap(before, after, 4)


def test_bootstrap_of_equal_rankings_is_zero() -> None:
    values = metric_values(np.array([1, 5, 2]))
    assert all((d.mean, d.low, d.high) == (0, 0, 0) for d in paired_bootstrap(values, values, 0).values())


def test_bootstrap_refuses_different_metrics() -> None:
    values = metric_values(np.array([1, 5, 2]))
    with pytest.raises(ValueError, match="same metrics"):
        paired_bootstrap(values, {"R@1": values["R@1"]}, 0)


def test_a_comparison_has_both_rankings_and_their_difference() -> None:
    incoming, ranks = np.array([1, 2, 4]), np.array([1, 1, 7])
    found = compare_ranks(incoming, ranks, 0, name="student")
    assert found is not None
    assert (found["slates"], found["incoming"], found["student"]) == (
        3, ranking_metrics(incoming), ranking_metrics(ranks),
    )  # fmt: skip
    assert found["difference"]["R@1"]["mean"] == pytest.approx(1 / 3)
    assert found["difference"]["R@5"]["mean"] == pytest.approx(-1 / 3)


def test_no_slates_compare_to_nothing() -> None:
    empty = np.array([], dtype=np.int64)
    assert compare_ranks(empty, empty, 0, name="student") is None


def test_graded_values_with_one_positive_are_the_metrics_of_its_rank() -> None:
    ranks = np.array([1, 3, 6, 8])
    grades = (np.arange(1, 9) == ranks[:, None]).astype(np.int8)
    graded = graded_values(grades, np.ones(grades.shape, dtype=np.bool_))
    for name, values in metric_values(ranks).items():
        np.testing.assert_allclose(graded[name], values)
    np.testing.assert_allclose(graded["AUC"], (8 - ranks) / 7)


@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=9).filter(lambda grades: 0 < sum(map(bool, grades)) < len(grades))
)
def test_graded_values_follow_their_formulas(grades: list[int]) -> None:
    padded = np.array([[*grades, 0, 0]], dtype=np.int8)
    present = np.arange(padded.shape[1])[None] < len(grades)
    found = {name: float(values[0]) for name, values in graded_values(padded, present).items()}
    pairs = [(i, j) for i, up in enumerate(grades) for j, down in enumerate(grades) if up and not down]
    assert found["AUC"] == pytest.approx(sum(i < j for i, j in pairs) / len(pairs))

    def dcg(order: list[int]) -> float:
        return sum((2**grade - 1) / math.log2(2 + place) for place, grade in enumerate(order[:5]))

    assert found["N@5"] == pytest.approx(dcg(grades) / dcg(sorted(grades, reverse=True)))
    assert found["R@3"] == pytest.approx(sum(map(bool, grades[:3])) / sum(map(bool, grades)))
    assert found["MRR"] == pytest.approx(1 / (1 + [bool(grade) for grade in grades].index(True)))


def test_a_slate_without_a_negative_has_no_graded_values() -> None:
    with pytest.raises(ValueError, match="slate 1 needs a positive and a negative, has 2 and 0"):
        graded_values(np.array([[1, 0], [1, 2]]), np.ones((2, 2), dtype=np.bool_))


def test_weighed_values_follow_their_formulas() -> None:
    weights = np.array([[0.0, 4.0, 0.0, 1.0], [2.0, 0.0, 0.0, 0.0]])
    found = weighed_values(weights)
    np.testing.assert_allclose(found["R@1"], [0.0, 1.0])
    np.testing.assert_allclose(found["R@3"], [0.8, 1.0])
    np.testing.assert_allclose(found["D@3"], [0.8 / math.log2(3), 1.0])
    np.testing.assert_allclose(found["D@5"], [0.8 / math.log2(3) + 0.2 / math.log2(5), 1.0])
    with pytest.raises(ValueError, match="slate 1 has no positive"):
        weighed_values(np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_a_weighted_difference_counts_slates_by_their_weight() -> None:
    before, after = {"R@1": np.zeros(4)}, {"R@1": np.array([1.0, 0.0, 0.0, 1.0])}
    weights = np.array([3.0, 1.0, 1.0, 1.0])
    found = compare(before, after, 0, name="student", weights=weights, users=np.array([0, 0, 1, 1]))
    assert found["difference"]["R@1"]["mean"] == pytest.approx(4 / 6)
    assert found["student"]["R@1"] == pytest.approx(4 / 6)
    assert found["difference"]["R@1"]["low"] == pytest.approx(1 / 2)  # the second user twice
    assert found["difference"]["R@1"]["high"] == pytest.approx(3 / 4)


def test_the_interval_over_users_is_wider_where_their_slates_are_alike() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(50), 20)
    before = {"N@5": np.zeros(1000)}
    after = {"N@5": np.repeat(rng.normal(size=50), 20) + 0.01 * rng.normal(size=1000)}
    by_slate, by_user = (paired_bootstrap(before, after, 0, users=users)["N@5"] for users in (None, user))
    assert by_user.mean == pytest.approx(by_slate.mean)
    expected = 1.96 * after["N@5"].reshape(50, 20).mean(1).std() / math.sqrt(50)
    assert (by_user.high - by_user.low) / 2 == pytest.approx(expected, rel=0.1)
    assert by_user.high - by_user.low > 3 * (by_slate.high - by_slate.low)
