"""Assignment of semantic IDs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gr2.errors import ConfigError
from gr2.tokenizer.assign import assign_codes
from gr2.tokenizer.residual_kmeans import Codebook, fit_residual_kmeans


def codebook(*levels: list[list[float]]) -> Codebook:
    centroids = np.array(levels, dtype=np.float32)
    return Codebook(centroids, (centroids.shape[1],) * len(centroids))


def random_case(items: int, levels: int, size: int, seed: int) -> tuple[NDArray[np.float32], Codebook]:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(items, 3)).astype(np.float32)
    return points, Codebook(rng.normal(size=(levels, size, 3)).astype(np.float32), (size,) * levels)


def test_nearest_codes_where_they_are_distinct() -> None:
    book = codebook([[0.0], [10.0]], [[-1.0], [1.0]])
    points = np.array([[-1.1], [0.9], [9.2], [11.3]], dtype=np.float32)
    result = assign_codes(points, book)
    assert result.codes.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert result.codes.dtype == np.uint16
    np.testing.assert_array_equal(result.codes, result.nearest)
    np.testing.assert_allclose(result.errors[:, 1], [0.01, 0.01, 0.04, 0.09], atol=1e-5)


def test_last_level_has_the_least_total_distance_of_all_ways() -> None:
    points, book = random_case(items=5, levels=2, size=6, seed=0)
    book = Codebook(np.concatenate([np.zeros((1, 6, 3), np.float32), book.centroids[1:]]), book.used)
    result = assign_codes(points, book)
    costs = np.square(points[:, None] - book.centroids[1][None]).sum(axis=2)
    best = min(sum(costs[range(5), list(ways)]) for ways in itertools.permutations(range(6), 5))
    assert result.codes[:, 0].tolist() == [0] * 5
    assert result.errors[:, 1].sum() == pytest.approx(best, rel=1e-5)


def test_items_of_a_full_prefix_move_to_the_nearest_with_room() -> None:
    book = codebook([[0.0], [3.0], [100.0]], [[-0.5], [0.0], [0.5]])
    points = np.array([[0.0], [0.1], [0.2], [-0.1], [1.0], [100.0]], dtype=np.float32)
    result = assign_codes(points, book)
    assert result.overflow == 2
    assert len(np.unique(result.codes, axis=0)) == 6
    assert sorted(result.codes[:, 0].tolist()) == [0, 0, 0, 1, 1, 2]
    assert result.codes[4, 0] == 1
    assert result.nearest[4, 0] == 0


def test_overflow_goes_beyond_the_last_prefix_level() -> None:
    points = np.zeros((20, 2), dtype=np.float32)
    book = Codebook(np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32), (3, 3, 3))
    result = assign_codes(points, book)
    assert result.overflow == 17
    assert len(np.unique(result.codes, axis=0)) == 20
    assert len(np.unique(result.codes[:, 0])) == 3


def test_every_id_can_be_taken_and_not_one_more() -> None:
    points, book = random_case(items=27, levels=3, size=3, seed=1)
    assert len(np.unique(assign_codes(points, book).codes, axis=0)) == 27
    with pytest.raises(ConfigError, match="28 items, but 3 levels of 3 codes make 27 IDs"):
        assign_codes(np.zeros((28, 3), dtype=np.float32), book)


def test_identical_items_get_distinct_ids() -> None:
    points = np.ones((40, 4), dtype=np.float32)
    book = fit_residual_kmeans(points, levels=3, level_size=64, iterations=3, seed=0)
    result = assign_codes(points, book)
    assert len(np.unique(result.codes, axis=0)) == 40
    assert len(np.unique(result.codes[:, :-1], axis=0)) == 1
    assert result.overflow == 0


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 60),
    levels=st.integers(2, 4),
    size=st.integers(4, 6),
    copies=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_ids_are_always_distinct_and_errors_are_those_of_the_codes(
    items: int, levels: int, size: int, copies: int, seed: int
) -> None:
    points, book = random_case(items, levels, size, seed)
    points = points.repeat(copies, axis=0)[: size**levels]
    result = assign_codes(points, book)
    assert len(np.unique(result.codes, axis=0)) == len(points)
    decoded = sum(book.centroids[level, result.codes[:, level]] for level in range(levels))
    np.testing.assert_allclose(result.errors[:, -1], np.square(points - decoded).sum(axis=1), rtol=1e-3, atol=1e-3)
    moved = (result.codes[:, :-1] != result.nearest[:, :-1]).any(axis=1)
    assert moved.sum() == result.overflow
