"""Residual k-means: each level clusters what the levels above it left unexplained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.progress import track

__all__ = ["Codebook", "cluster_count", "fit_residual_kmeans", "nearest_codes", "squared_distances", "standardise"]

ITEMS_PER_CLUSTER = 8
SAMPLE_PER_CLUSTER = 1024
BLOCK = 16_384
# Squared distance per dimension, of standardised inputs, below which two points count as one.
SAME_POINT = 1e-6


@dataclass(frozen=True)
class Codebook:
    """`centroids` (L, V, D) float32; `used` clusters a level were fitted, the rows after them repeat the first.

    A repeated row never wins a nearest-centroid search, since ties go to the lower code.
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
    """The codebook of standardised `vectors` (N, D) float32: k-means++ and at most `iterations` Lloyd steps a level.

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
            fitted = _lloyd(residuals, _plus_plus(residuals, clusters, rng), iterations)
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
    """(n,) int64 nearest centroid, the lower code on ties, and (n,) float32 squared distance to it."""
    codes = np.empty(len(points), dtype=np.int64)
    errors = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squared_distances(points[block], centroids)
        codes[block] = distances.argmin(axis=1)
        errors[block] = distances.min(axis=1)
    return codes, errors


def _plus_plus(points: NDArray[np.float32], clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(k, D) float32 distinct points drawn with probability proportional to squared distance (Arthur 2007).

    Fewer than `clusters` where the points have fewer distinct values.
    """
    chosen = [int(rng.integers(len(points)))]
    norms = np.square(points).sum(axis=1)
    closest = np.full(len(points), np.inf, dtype=np.float32)
    while True:
        latest = chosen[-1]
        closest = np.minimum(closest, norms + norms[latest] - 2.0 * (points @ points[latest]))
        closest[latest] = 0.0
        closest[closest <= SAME_POINT * points.shape[1]] = 0.0
        mass = np.cumsum(closest, dtype=np.float64)
        if len(chosen) == clusters or mass[-1] == 0.0:
            return points[chosen]
        drawn = np.searchsorted(mass, rng.random() * mass[-1], side="right")
        chosen.append(int(min(drawn, np.flatnonzero(closest)[-1])))


def _lloyd(points: NDArray[np.float32], centroids: NDArray[np.float32], iterations: int) -> NDArray[np.float32]:
    """(k, D) float32 centroids after Lloyd's steps; stops early once no point changes its cluster."""
    previous: NDArray[np.int64] | None = None
    for _ in range(iterations):
        codes, errors = nearest_codes(points, centroids)
        _fill_empty(codes, errors, len(centroids))
        if previous is not None and np.array_equal(codes, previous):
            break
        previous = codes
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(centroids))
        present = counts > 0
        starts = (np.cumsum(counts) - counts)[present]
        sums = np.add.reduceat(points[order], starts, axis=0, dtype=np.float64)
        centroids = centroids.copy()
        centroids[present] = sums / counts[present, None]
    return centroids


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
