"""Assignment of semantic IDs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gr2.errors import ConfigError
from gr2.tokenizer.assign import assign_codes, extend_codes
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
    assert result.overflow_prefixes() == [([0], 2)]
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


def test_nearest_last_level_keeps_its_collisions() -> None:
    points = np.ones((5, 3), dtype=np.float32)
    _, book = random_case(items=1, levels=3, size=4, seed=0)
    result = assign_codes(points, book, last_level="nearest")
    assert len(np.unique(result.codes, axis=0)) == 1
    np.testing.assert_array_equal(result.codes, result.nearest)
    assert result.overflow == 0


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 60), levels=st.integers(2, 4), size=st.integers(4, 6), random=st.integers(1, 3), data=st.data()
)
def test_random_last_levels_are_unique_and_keep_the_nearest_prefix(
    items: int, levels: int, size: int, random: int, data: st.DataObject
) -> None:
    random = min(random, levels - 1)
    points, book = random_case(items, levels, size, data.draw(st.integers(0, 9)))
    points = points.repeat(data.draw(st.integers(1, 5)), axis=0)[: size**levels]
    result = assign_codes(points, book, last_level="random", random_levels=random, seed=1)
    assert len(np.unique(result.codes, axis=0)) == len(points)
    assert result.codes.max() < size
    moved = (result.codes[:, : levels - random] != result.nearest[:, : levels - random]).any(axis=1)
    assert moved.sum() == result.overflow


def test_random_last_level_is_drawn_and_not_the_nearest() -> None:
    points, book = random_case(items=200, levels=3, size=16, seed=0)
    one = assign_codes(points, book, last_level="random", seed=1).codes
    two = assign_codes(points, book, last_level="random", random_levels=2, seed=1)
    other = assign_codes(points, book, last_level="random", seed=2).codes
    np.testing.assert_array_equal(one[:, :2], two.nearest[:, :2])
    np.testing.assert_array_equal(other[:, :2], two.nearest[:, :2])
    for drawn, level in ((one, 2), (two.codes, 1), (two.codes, 2)):
        assert (drawn[:, level] == two.nearest[:, level]).mean() < 0.3
    assert (one[:, 2] == other[:, 2]).mean() < 0.3
    assert len(np.unique(one[:, 2])) == 16


def test_draw_of_a_prefix_does_not_depend_on_other_prefixes() -> None:
    points, book = random_case(items=200, levels=3, size=16, seed=0)
    all_codes = assign_codes(points, book, last_level="random", seed=1).codes
    keep = all_codes[:, 0] != all_codes[0, 0]
    np.testing.assert_array_equal(assign_codes(points[keep], book, last_level="random", seed=1).codes, all_codes[keep])


@pytest.mark.parametrize("random_levels", [0, 3])
def test_random_levels_must_leave_a_prefix(random_levels: int) -> None:
    points, book = random_case(items=5, levels=3, size=4, seed=0)
    with pytest.raises(ConfigError, match=f"random_levels must be 1 to 2 of 3 levels, got {random_levels}"):
        assign_codes(points, book, last_level="random", random_levels=random_levels)


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 40),
    added=st.integers(1, 40),
    copies=st.integers(1, 5),
    size=st.integers(5, 6),
    seed=st.integers(0, 9),
)
def test_new_items_get_ids_that_nobody_has(items: int, added: int, copies: int, size: int, seed: int) -> None:
    points, book = random_case(items + added, levels=3, size=size, seed=seed)
    taken = assign_codes(points[:items], book).codes
    new = points[items:].repeat(copies, axis=0)[: size**3 - items]
    result = extend_codes(new, taken, book)
    assert len(np.unique(np.concatenate([taken, result.codes]), axis=0)) == items + len(new)
    decoded = sum(book.centroids[level, result.codes[:, level]] for level in range(3))
    np.testing.assert_allclose(result.errors[:, -1], np.square(new - decoded).sum(axis=1), rtol=1e-3, atol=1e-3)
    moved = (result.codes[:, :-1] != result.nearest[:, :-1]).any(axis=1)
    assert moved.sum() == result.overflow


def test_new_item_takes_the_nearest_code_that_is_free() -> None:
    book = codebook([[0.0], [10.0]], [[-1.0], [1.0]])
    point = np.array([[0.9]], dtype=np.float32)
    taken = [np.array(rows, dtype=np.uint16).reshape(-1, 2) for rows in ([], [[0, 1]], [[0, 1], [0, 0]])]
    assert [extend_codes(point, rows, book).codes.tolist() for rows in taken] == [[[0, 1]], [[0, 0]], [[1, 0]]]
    with pytest.raises(ConfigError, match="5 items, but 2 levels of 2 codes make 4 IDs"):
        extend_codes(point, np.array(list(itertools.product(range(2), repeat=2)), dtype=np.uint16), book)
