"""Residual k-means: each level clusters what the levels above it left unexplained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.progress import track

__all__ = [
    "Codebook",
    "are_finite",
    "cluster_count",
    "fit_residual_kmeans",
    "nearest_codes",
    "squared_distances",
    "standardise",
]

ITEMS_PER_CLUSTER = 8
SAMPLE_PER_CLUSTER = 1024
# Principal components that the first clusters of a level are found in.
FIRST_COMPONENTS = 8
BLOCK = 16_384
# Squared distance per dimension, of standardised inputs, below which two points count as one.
SAME_POINT = 1e-6


@dataclass(frozen=True)
class Codebook:
    """`centroids` (L, V, D) float32; `used` clusters a level were fitted, the rows after them repeat the first.

    A repeated row is never the nearest (`nearest_codes`).
    """

    centroids: NDArray[np.float32]
    used: tuple[int, ...]

    @property
    def levels(self) -> int:
        """L."""
        return len(self.centroids)

    @property
    def level_size(self) -> int:
        """V."""
        return len(self.centroids[0])


def standardise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, D) float32 with mean 0 and variance 1 in each dimension, and (2, D) float32: the mean and scale taken out.

    Without it, text vectors, which share one large common direction, collapse into few clusters. A dimension that
    does not vary becomes 0.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    scale = vectors.std(axis=0, dtype=np.float64)
    scale[scale <= 1e-6 * (np.abs(mean) + scale.max(initial=0.0))] = np.inf
    standard = ((vectors - mean) / scale).astype(np.float32)
    return standard, np.stack([mean, scale]).astype(np.float32)


def are_finite(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) bool: the rows whose distances can be computed, of standardised points (N, D)."""
    with np.errstate(over="ignore", invalid="ignore"):
        good: NDArray[np.bool_] = np.isfinite(4.0 * np.einsum("nd,nd->n", points, points))
    return good


def cluster_count(items: int, level_size: int) -> int:
    """How many of a level's codes are fitted: all of them, or fewer so that a cluster has at least 8 items on average.

    A small catalogue whose items had a cluster each would have no prefixes to share.
    """
    return max(1, min(level_size, items // ITEMS_PER_CLUSTER))


def fit_residual_kmeans(
    vectors: NDArray[np.float32],
    *,
    levels: int,
    level_size: int,
    iterations: int,
    seed: int,
    clusters: int | None = None,
) -> Codebook:
    """The codebook of standardised `vectors` (N, D) float32: k-means a level, `iterations` Lloyd steps at most.

    A level gets `clusters`, by default `cluster_count`. More than 1,024 items a cluster are sampled: the first ones,
    so the rows must come in an order that says nothing of the items (`content_order`).
    """
    clusters = cluster_count(len(vectors), level_size) if clusters is None else clusters
    residuals = vectors[: SAMPLE_PER_CLUSTER * clusters].copy()
    rng = np.random.default_rng(seed)
    centroids = np.empty((levels, level_size, vectors.shape[1]), dtype=np.float32)
    used = []
    with track(levels, "cluster items", unit="levels") as bar:
        for level in range(levels):
            fitted = _cluster(residuals, clusters, iterations, rng)
            centroids[level, : len(fitted)] = fitted
            centroids[level, len(fitted) :] = fitted[0]
            used.append(len(fitted))
            residuals -= fitted[nearest_codes(residuals, fitted)[0]]
            bar.advance(1, error=float(np.square(residuals).mean()))
    return Codebook(centroids, tuple(used))


def squared_distances(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, V) float32: ||x - c||^2, at least 0."""
    distances: NDArray[np.float32] = points @ centroids.T
    distances *= -2.0
    distances += np.square(centroids).sum(axis=1)
    distances += np.square(points).sum(axis=1)[:, None]
    np.maximum(distances, 0.0, out=distances)
    return distances


def nearest_codes(
    points: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n,) int64 nearest centroid, the lower code on ties, and (n,) float32 squared distance to it.

    The rows at the end that repeat the first are left out: rounding might tell them apart.
    """
    repeats = (centroids == centroids[0]).all(axis=1)
    centroids = centroids[: max(1, len(centroids) - int(np.logical_and.accumulate(repeats[::-1]).sum()))]
    codes = np.empty(len(points), dtype=np.int64)
    errors = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squared_distances(points[block], centroids)
        codes[block] = distances.argmin(axis=1)
        errors[block] = distances.min(axis=1)
    return codes, errors


def _cluster(
    points: NDArray[np.float32], clusters: int, iterations: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(k, D) float32 centroids: k-means of the leading principal components, then of twice as many, up to all of them.

    Each starts from the clusters of the one before, the first from k-means++. In many dimensions all points are about
    equally far apart, and k-means++ alone starts from outliers: clusters are then uneven and worth less.
    """
    centred = points - points.mean(axis=0)
    basis = np.linalg.eigh(centred.T @ centred)[1][:, ::-1].astype(np.float32)
    rotated, width = points @ basis, min(FIRST_COMPONENTS, points.shape[1])
    tolerance = SAME_POINT * points.shape[1]
    centroids = _plus_plus(np.ascontiguousarray(rotated[:, :width]), clusters, rng, tolerance)
    while True:
        leading = np.ascontiguousarray(rotated[:, :width])
        centroids = _lloyd(leading, centroids, iterations)
        if width == points.shape[1]:
            wide: NDArray[np.float32] = centroids @ basis.T
            return wide
        codes, _ = nearest_codes(leading, centroids)
        width = min(2 * width, points.shape[1])
        leading = np.ascontiguousarray(rotated[:, :width])
        wider = np.zeros((len(centroids), width), dtype=np.float32)
        wider[:, : centroids.shape[1]] = centroids
        # Points that the leading components did not tell apart may be clusters of their own now.
        centroids = _plus_plus(leading, clusters, rng, tolerance, _means(leading, codes, wider))


def _plus_plus(
    points: NDArray[np.float32],
    clusters: int,
    rng: np.random.Generator,
    tolerance: float,
    start: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(k, D) float32: `start`, or one random point, and points drawn with probability proportional to squared distance.

    (Arthur and Vassilvitskii, 2007.) Fewer than `clusters` where the points have fewer values that are
    more than `tolerance` apart (squared).
    """
    if start is not None and len(start) >= clusters:
        return start
    centroids = [points[int(rng.integers(len(points)))]] if start is None else list(start)
    norms = np.square(points).sum(axis=1)
    closest = np.full(len(points), np.inf, dtype=np.float32)
    for latest in centroids[:-1]:
        np.minimum(closest, norms + np.square(latest).sum() - 2.0 * (points @ latest), out=closest)
    while True:
        latest = centroids[-1]
        np.minimum(closest, norms + np.square(latest).sum() - 2.0 * (points @ latest), out=closest)
        closest[closest <= tolerance] = 0.0
        mass = np.cumsum(closest, dtype=np.float64)
        if len(centroids) == clusters or mass[-1] == 0.0:
            return np.stack(centroids)
        drawn = int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
        drawn = min(drawn, int(np.flatnonzero(closest)[-1]))
        centroids.append(points[drawn])
        closest[drawn] = 0.0


def _lloyd(points: NDArray[np.float32], centroids: NDArray[np.float32], iterations: int) -> NDArray[np.float32]:
    """(k, D) float32 centroids after Lloyd's steps; stops early once no point changes its cluster."""
    previous: NDArray[np.int64] | None = None
    for _ in range(iterations):
        codes, errors = nearest_codes(points, centroids)
        _fill_empty(codes, errors, len(centroids))
        if previous is not None and np.array_equal(codes, previous):
            break
        previous = codes
        centroids = _means(points, codes, centroids)
    return centroids


def _means(
    points: NDArray[np.float32], codes: NDArray[np.int64], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(k, D) float32: the mean of each cluster's points; `centroids` where it has none."""
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(centroids))
    present = counts > 0
    starts = (np.cumsum(counts) - counts)[present]
    sums = np.add.reduceat(points[order], starts, axis=0, dtype=np.float64)
    means = centroids.copy()
    means[present] = sums / counts[present, None]
    return means


def _fill_empty(codes: NDArray[np.int64], errors: NDArray[np.float32], clusters: int) -> None:
    """Give each empty cluster, in place, the point worst served by its own; clusters of one point are left alone."""
    counts = np.bincount(codes, minlength=clusters)
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return
    waiting = iter(empty)
    target = next(waiting)
    for point in np.argsort(-errors, kind="stable"):
        if counts[codes[point]] > 1 and errors[point] > 0.0:
            counts[codes[point]] -= 1
            codes[point] = target
            following = next(waiting, None)
            if following is None:
                return
            target = following
