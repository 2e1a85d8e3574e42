"""Residual k-means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from gr2.tokenizer.residual_kmeans import (
    Codebook,
    fit_residual_kmeans,
    nearest_codes,
    squared_distances,
    standardise,
)


def clusters(count: int, members: int, width: int, spread: float, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 1, width))
    points = (centres + spread * rng.normal(size=(count, members, width))).reshape(-1, width)
    return rng.permutation(points).astype(np.float32)


def residual_errors(points: NDArray[np.float32], codebook: Codebook) -> list[float]:
    errors = []
    for centroids in codebook.centroids:
        codes, _ = nearest_codes(points, centroids)
        points = points - centroids[codes]
        errors.append(float(np.square(points).mean()))
    return errors


def test_standardised_dimensions_have_mean_0_and_variance_1() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(500, 4)) * [1e-3, 1.0, 50.0, 0.0] + [5.0, -1.0, 0.0, 7.0]).astype(np.float32)
    points, standard = standardise(vectors)
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(points.std(axis=0), [1.0, 1.0, 1.0, 0.0], atol=1e-3)
    np.testing.assert_allclose((vectors - standard[0]) / standard[1], points, atol=2e-3)


def test_distances_match_their_definition() -> None:
    rng = np.random.default_rng(1)
    points, centroids = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    expected = np.square(points[:, None] - centroids[None]).sum(axis=2)
    np.testing.assert_allclose(squared_distances(points, centroids), expected, atol=1e-5)
    codes, errors = nearest_codes(points, centroids)
    np.testing.assert_array_equal(codes, expected.argmin(axis=1))
    np.testing.assert_allclose(errors, expected.min(axis=1), atol=1e-5)


def test_equal_centroids_give_the_lower_code() -> None:
    centroids = np.zeros((4, 2), dtype=np.float32)
    assert nearest_codes(np.ones((3, 2), dtype=np.float32), centroids)[0].tolist() == [0, 0, 0]


def test_separate_clusters_are_found() -> None:
    points = clusters(16, 20, width=24, spread=0.01)
    codebook = fit_residual_kmeans(points, levels=2, level_size=16, iterations=20, seed=0)
    assert codebook.used == (16, 16)
    assert residual_errors(points, codebook)[0] < 1e-3


def test_each_level_lowers_the_error() -> None:
    points = clusters(40, 50, width=16, spread=0.6)
    codebook = fit_residual_kmeans(points, levels=4, level_size=32, iterations=15, seed=0)
    errors = residual_errors(points, codebook)
    assert all(after < 0.95 * before for before, after in itertools.pairwise(errors))


def test_lloyd_improves_on_its_start_and_is_no_worse_than_a_plain_reference() -> None:
    points = clusters(30, 40, width=8, spread=0.5)
    started = fit_residual_kmeans(points, levels=1, level_size=20, iterations=1, seed=3)
    fitted = fit_residual_kmeans(points, levels=1, level_size=20, iterations=50, seed=3)
    centroids = points[:20].copy()
    for _ in range(50):
        codes = np.square(points[:, None] - centroids[None]).sum(axis=2).argmin(axis=1)
        centroids = np.stack([points[codes == code].mean(axis=0) for code in range(20)])
    plain = residual_errors(points, Codebook(centroids[None], (20,)))[0]
    assert residual_errors(points, fitted)[0] < residual_errors(points, started)[0]
    assert residual_errors(points, fitted)[0] < 1.03 * plain


def test_no_cluster_stays_empty() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([np.zeros((300, 4)), rng.normal(size=(40, 4))]).astype(np.float32)
    codebook = fit_residual_kmeans(points, levels=1, level_size=30, iterations=10, seed=0)
    assert codebook.used == (30,)
    assert len(np.unique(nearest_codes(points, codebook.centroids[0])[0])) == 30


def test_same_seed_same_codebook() -> None:
    points = clusters(10, 30, width=8, spread=0.4)
    first, second, other = (
        fit_residual_kmeans(points, levels=2, level_size=16, iterations=10, seed=seed).centroids for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_small_catalogue_uses_fewer_clusters() -> None:
    points = clusters(20, 10, width=12, spread=0.5)
    codebook = fit_residual_kmeans(points, levels=3, level_size=256, iterations=10, seed=0)
    assert codebook.centroids.shape == (3, 256, 12)
    assert codebook.used == (25, 25, 25)
    np.testing.assert_array_equal(codebook.centroids[:, 25:], codebook.centroids[:, :1].repeat(231, axis=1))
    assert nearest_codes(points, codebook.centroids[0])[0].max() < 25


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_points_than_clusters(distinct: int) -> None:
    points = np.random.default_rng(0).normal(size=(distinct, 6)).astype(np.float32).repeat(100, axis=0)
    codebook = fit_residual_kmeans(points, levels=2, level_size=8, iterations=5, seed=0)
    assert codebook.used == (distinct, 1)
    assert np.isfinite(codebook.centroids).all()
    assert residual_errors(points, codebook)[0] < 1e-10


def test_points_that_leading_components_do_not_tell_apart_become_clusters() -> None:
    # Forty equal directions: no eight components hold them all.
    points = np.repeat(np.eye(40, dtype=np.float32) * 10.0, 8, axis=0)
    codebook = fit_residual_kmeans(points, levels=2, level_size=64, iterations=20, seed=0)
    assert codebook.used[0] == 40
    codes, errors = nearest_codes(points, codebook.centroids[0])
    assert len(np.unique(codes)) == 40
    assert errors.max() < 1e-3
