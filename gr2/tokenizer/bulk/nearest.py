"""Nearest centroids of a point, whatever points are computed beside it.

The sums inside a matrix product, and so its last bits, depend on a row's place in the matrix. Items must not change
their codes with the order or the number of the input files, so products only say which centroids may be the nearest,
and sums over one row at a time decide between those.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Centroids"]

SCORES = 1 << 18  # scores at once: 1 MiB, which stays in a core's cache
DIFFERENCES = 1 << 18
CODE_BITS, CODE_MASK = np.uint64(16), np.uint64(0xFFFF)


class Centroids:
    """Centroids (V, D) float32, V at most 65536, to search; of equal ones the lower code is the nearer."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self._centroids = centroids
        # Equal centroids get scores from different columns of a product: they are searched once.
        _, first, inverse = np.unique(centroids, axis=0, return_index=True, return_inverse=True)
        self._first = np.sort(first)
        self._place = np.searchsorted(self._first, first[inverse.reshape(-1)])
        distinct = centroids[self._first].astype(np.float64)
        self._distinct = distinct
        self._scaled = np.ascontiguousarray((-2.0 * distinct).T, dtype=np.float32)
        norms = np.square(distinct).sum(axis=1)
        self._norms, self._reach = norms.astype(np.float32), np.float32(np.sqrt(norms.max()))
        self._rows = max(16, SCORES // len(centroids))

    def nearest(self, points: NDArray[np.float32]) -> NDArray[np.uint16]:
        """(n,) uint16: the nearest centroid of each of `points` (n, D), which must be finite."""
        codes = np.empty(len(points), dtype=np.uint16)
        for start in range(0, len(points), self._rows):
            block = points[start : start + self._rows]
            scores = self._scores(block)
            limit = scores.min(axis=1) + self._slack(block)
            rows, columns = np.divmod(np.flatnonzero(scores <= limit[:, None]), scores.shape[1])
            if len(rows) > len(block):
                rows, columns = self._decide(block, rows, columns)
            codes[start : start + self._rows] = self._first[columns]
        return codes

    def neighbours(self, points: NDArray[np.float32], count: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """The codes (n, m) uint16 and squared distances (n, m) float32 of the m = min(count, V) nearest, in order."""
        size, width = len(self._centroids), points.shape[1]
        # One more than is asked for, since rounding may have exchanged the last one with the next.
        kept, wide = min(count, size), min(count + 1, size)
        codes = np.empty((len(points), kept), dtype=np.uint16)
        distances = np.empty((len(points), kept), dtype=np.float32)
        rows = max(1, min(self._rows, DIFFERENCES // (wide * width)))
        for start in range(0, len(points), self._rows):
            block = points[start : start + self._rows]
            scores = self._scores(block)
            scores += _lengths(block)[:, None]
            np.maximum(scores, 0.0, out=scores)
            if len(self._first) < size:
                scores = scores[:, self._place]
            keys = np.partition(_keys(scores, np.arange(size, dtype=np.uint64)), wide - 1, axis=1)[:, :wide]
            found = keys & CODE_MASK
            for part in range(0, len(block), rows):
                near = found[part : part + rows]
                difference = np.take(self._centroids, near.view(np.int64), axis=0)
                difference -= block[part : part + rows, None]
                exact = _keys(np.einsum("nkd,nkd->nk", difference, difference), near)
                exact.sort(axis=1)
                place = slice(start + part, start + part + len(near))
                codes[place] = exact[:, :kept] & CODE_MASK
                distances[place] = (exact[:, :kept] >> CODE_BITS).astype(np.uint32).view(np.float32)
        return codes, distances

    def _scores(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, distinct): ||c||^2 - 2 x c, about."""
        scores: NDArray[np.float32] = points @ self._scaled
        scores += self._norms
        return scores

    def _slack(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,): no two scores of a point are wrong by more than this together.

        A product of D terms is off by at most D u |x| |c|, u = 2^-24; the scores are twice it, and there are two.
        """
        lengths = np.sqrt(_lengths(points))
        slack: NDArray[np.float32] = (
            np.float32((points.shape[1] + 4) * 2.0**-22) * self._reach * (lengths + self._reach)
        )
        return slack

    def _decide(
        self, points: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The nearest of each row's `columns`, which ascend in a row; `rows` ascend."""
        contested = np.flatnonzero(np.bincount(rows)[rows] > 1)
        exact = np.zeros(len(rows))
        difference = points[rows[contested]] - self._distinct[columns[contested]]
        exact[contested] = np.square(difference).sum(axis=1)
        order = np.lexsort((exact, rows))
        rows, columns = rows[order], columns[order]
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        return rows[first], columns[first]


def _lengths(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,): ||x||^2."""
    lengths: NDArray[np.float32] = np.einsum("nd,nd->n", points, points)
    return lengths


def _keys(values: NDArray[np.float32], codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Integers that sort as (value, code) do; values are not negative, whose bits sort as they do."""
    keys = values.view(np.uint32).astype(np.uint64)
    keys <<= CODE_BITS
    keys |= codes
    return keys
