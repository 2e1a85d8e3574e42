"""Nearest centroids that do not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gr2.tokenizer.bulk.nearest import Centroids


def case(points: int, size: int, width: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(points, width)).astype(np.float32), rng.normal(size=(size, width)).astype(np.float32)


def exact(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = np.square(points[:, None].astype(np.float64) - centroids[None]).sum(axis=2)
    return distances


@settings(max_examples=40, deadline=None)
@given(points=st.integers(0, 70), size=st.integers(1, 300), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_nearest_is_that_of_exact_arithmetic(points: int, size: int, width: int, seed: int) -> None:
    vectors, centroids = case(points, size, width, seed)
    codes = Centroids(centroids).nearest(vectors)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes, exact(vectors, centroids).argmin(axis=1) if points else [])


@settings(max_examples=40, deadline=None)
@given(
    points=st.integers(0, 70),
    size=st.integers(1, 300),
    width=st.integers(1, 70),
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_neighbours_are_those_of_exact_arithmetic_in_order(
    points: int, size: int, width: int, count: int, seed: int
) -> None:
    vectors, centroids = case(points, size, width, seed)
    codes, distances = Centroids(centroids).neighbours(vectors, count)
    expected = exact(vectors, centroids)
    assert codes.shape == distances.shape == (points, min(count, size))
    np.testing.assert_array_equal(codes, expected.argsort(axis=1)[:, :count])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :count], rtol=1e-5)


@pytest.mark.parametrize(("size", "width"), [(256, 64), (1000, 8), (37, 130)])
def test_a_points_answer_is_the_same_bits_in_any_batch(size: int, width: int) -> None:
    vectors, centroids = case(3000, size, width, 0)
    vectors[1::2] = (centroids[0] + centroids[1]) / 2  # as near to one as to the other, but for rounding
    search = Centroids(centroids)
    codes, (near, distances) = search.nearest(vectors), search.neighbours(vectors, 16)
    order = np.random.default_rng(1).permutation(3000)
    for rows in (order, order[:1], order[:100], order[17:1900]):
        np.testing.assert_array_equal(search.nearest(vectors[rows]), codes[rows])
        again = search.neighbours(vectors[rows], 16)
        np.testing.assert_array_equal(again[0], near[rows])
        np.testing.assert_array_equal(again[1].view(np.uint32), distances[rows].view(np.uint32))


def test_of_equal_centroids_the_lower_codes_are_nearer() -> None:
    _, centroids = case(0, 12, 8, 0)
    repeated = np.concatenate([centroids, centroids[:1].repeat(52, axis=0)])
    points = centroids + np.float32(0.01)
    search = Centroids(repeated)
    np.testing.assert_array_equal(search.nearest(points), np.arange(12))
    codes, distances = search.neighbours(points, 16)
    np.testing.assert_array_equal(codes[0], [0, *range(12, 27)])
    assert len(set(distances[0].tolist())) == 1
