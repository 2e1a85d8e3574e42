"""Last codes inside prefixes: from the nearest ones, and from whole vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gr2.errors import ConfigError
from gr2.tokenizer.assign import Assignment, assign_codes, extend_codes
from gr2.tokenizer.bulk.crowds import Settlement, settle
from gr2.tokenizer.bulk.groups import Decision, Items, decide
from gr2.tokenizer.bulk.nearest import Centroids
from gr2.tokenizer.order import content_order
from gr2.tokenizer.residual_kmeans import Codebook


class Case:
    """New items beside others, all of them from a normal distribution; `order` says in which order ties are decided."""

    def __init__(self, new: int, old: int, levels: int, size: int, seed: int, width: int = 4, copies: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.centroids = rng.normal(size=(levels, size, width)).astype(np.float32)
        self.points = rng.normal(size=(new, width)).astype(np.float32).repeat(copies, axis=0)[:new]
        others = rng.normal(size=(old, width)).astype(np.float32)
        self.taken = assign_codes(others, self.book).codes if old else np.empty((0, levels), dtype=np.uint16)
        self.order = rng.permutation(new).astype(np.uint64) // np.uint64(copies)
        self.order.sort()

    @property
    def book(self) -> Codebook:
        return Codebook(self.centroids, (self.centroids.shape[1],) * len(self.centroids))

    def reference(self) -> Assignment:
        return extend_codes(self.points, self.taken, self.book)

    def items(self) -> tuple[Items, NDArray[np.float32], tuple[NDArray[np.uint16], NDArray[np.float32]]]:
        """With what the first L - 2 codes leave, and the nearest last codes."""
        codes = np.empty((len(self.points), len(self.centroids)), dtype=np.uint16)
        residuals, before = self.points.copy(), self.points
        for level in range(len(self.centroids) - 1):
            before = residuals.copy()
            codes[:, level] = Centroids(self.centroids[level]).nearest(residuals)
            residuals -= self.centroids[level, codes[:, level]]
        near, distances = Centroids(self.centroids[-1]).neighbours(residuals, 16)
        codes[:, -1] = near[:, 0]
        return Items(pa.array(range(len(codes))), codes, self.order), before, (near, distances)

    def solve(self) -> tuple[NDArray[np.uint16], Decision, Settlement | None]:
        items, residuals, (near, distances) = self.items()
        size, codes = self.centroids.shape[1], items.codes.copy()
        decision = decide(items, near, distances, taken=self.taken, size=size, seed=0)
        codes[:, -1] = decision.last
        rows = np.flatnonzero(decision.open)
        if not len(rows):
            return codes, decision, None
        settled = settle(
            Items(items.ids.take(rows), items.codes[rows], items.order[rows]),
            residuals[rows],
            taken=np.concatenate([self.taken, codes[~decision.open]]),
            centroids=self.centroids,
            seed=0,
        )
        codes[rows] = settled.codes
        return codes, decision, settled


@settings(max_examples=60, deadline=None)
@given(
    new=st.integers(1, 400),
    old=st.integers(0, 200),
    size=st.integers(12, 40),
    levels=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_codes_are_those_of_extend_codes(new: int, old: int, size: int, levels: int, seed: int) -> None:
    old = min(old, size**levels // 2)
    case = Case(min(new, size**levels - old), old, levels, size, seed)
    reference = case.reference()
    try:
        codes, _, settled = case.solve()
    except ConfigError:
        assert reference.overflow
        return
    np.testing.assert_array_equal(codes, reference.codes)
    assert reference.overflow == (0 if settled is None else settled.moved.sum())


def test_prefixes_of_all_sizes_are_met() -> None:
    case = Case(6000, 500, levels=3, size=64, seed=0, width=6)
    codes, decision, settled = case.solve()
    _, counts = np.unique(case.items()[0].codes[:, :-1], axis=0, return_counts=True)
    assert {1, 2, 3, 8} < set(counts.tolist())
    assert settled is not None
    assert 0 < decision.open.sum() < 3000
    np.testing.assert_array_equal(codes, case.reference().codes)
    chosen = case.points - sum(case.centroids[level, codes[:, level]] for level in range(3))
    distances = decision.distances.copy()
    distances[decision.open] = settled.distances
    np.testing.assert_allclose(distances, np.square(chosen).sum(axis=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_items_of_equal_content_get_the_codes_of_extend_codes_between_them(copies: int) -> None:
    case = Case(900, 60, levels=3, size=40, seed=0, width=16, copies=copies)
    codes, reference = case.solve()[0], case.reference().codes
    for start in range(0, 900, copies):
        rows = slice(start, start + copies)
        assert sorted(codes[rows].tolist()) == sorted(reference[rows].tolist())


def shuffled(case: Case, seed: int) -> tuple[list[Any], list[Any]]:
    items, _, (near, distances) = case.items()
    rows = np.random.default_rng(seed).permutation(len(items.codes))
    ids = items.ids.take(pa.array(rows))
    mixed = Items(ids, items.codes[rows], items.order[rows])
    size = case.centroids.shape[1]
    decision = decide(mixed, near[rows], distances[rows], taken=case.taken, size=size, seed=0)
    return ids.to_pylist(), decision.last.tolist()


def test_the_order_of_the_rows_has_no_influence() -> None:
    case = Case(900, 60, levels=3, size=40, seed=0, width=16, copies=3)
    assert dict(zip(*shuffled(case, 1), strict=True)) == dict(zip(*shuffled(case, 2), strict=True))


def test_ties_go_by_order_and_then_as_content_order_puts_ids() -> None:
    ids = [f"item {number}" for number in range(20)]
    items = Items(pa.array(ids), np.zeros((20, 2), np.uint16), np.array([7] * 5 + [3] * 15, dtype=np.uint64))
    expected = content_order([b"b"] * 15, ids[5:], 9) + 5, content_order([b"a"] * 5, ids[:5], 9)
    assert items.sorted(np.zeros(20, dtype=np.uint64), 9).tolist() == np.concatenate(expected).tolist()


def test_a_full_branch_is_refused_by_name() -> None:
    case = Case(40, 0, levels=3, size=5, seed=0)
    case.points[:] = 0.25
    with pytest.raises(
        ConfigError, match=r"all 25 IDs that begin with the codes \[\d\] are taken; .* larger level_size"
    ):
        case.solve()
