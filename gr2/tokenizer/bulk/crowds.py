"""The last codes of prefixes with many items, from whole vectors, and new prefixes for the items that find none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.errors import ConfigError
from gr2.tokenizer.bulk.groups import Items, match, prefix_keys
from gr2.tokenizer.residual_kmeans import squared_distances

__all__ = ["Settlement", "settle"]


@dataclass(frozen=True)
class Settlement:
    """`codes` (n, L) uint16 at `distances` (n,) float32, squared; `moved` (n,) bool: from a prefix that was full."""

    codes: NDArray[np.uint16]
    distances: NDArray[np.float32]
    moved: NDArray[np.bool_]


def settle(
    items: Items,
    residuals: NDArray[np.float32],
    *,
    taken: NDArray[np.uint16],
    centroids: NDArray[np.float32],
    seed: int,
) -> Settlement:
    """IDs for items whose nearest codes collide in crowded prefixes, as `extend_codes` gives them.

    `residuals` (n, D) are what the first L - 2 codes leave, `centroids` (L, V, D), `taken` (t, L) every ID that others
    have. In each prefix the items get the free last codes of least total squared distance; items that find none move
    to the nearest prefix with room that shares their first L - 2 codes. Raises ConfigError if there is none.
    """
    size = centroids.shape[1]
    occupancy = _Occupancy(taken, size)
    codes, distances = items.codes.copy(), np.zeros(len(items.codes), dtype=np.float32)
    moved = np.zeros(len(codes), dtype=bool)
    keys = prefix_keys(codes, size)
    order = items.sorted(keys, seed)
    for rows in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        used = occupancy.of(int(keys[rows[0]]))
        free = np.flatnonzero(~used)
        costs = squared_distances(residuals[rows] - centroids[-2, codes[rows[0], -2]], centroids[-1, free])
        kept, columns = match(costs)
        codes[rows[kept], -1] = free[columns]
        distances[rows[kept]] = costs[kept, columns]
        used[free[columns]] = True
        moved[np.setdiff1d(rows, rows[kept])] = True
    waiting = np.flatnonzero(moved)
    whole = Items(items.ids.take(waiting), codes[waiting], items.order[waiting])
    for row in waiting[whole.sorted(np.zeros(len(waiting), dtype=np.uint64), seed)].tolist():
        codes[row, -2:], distances[row] = _move(codes[row], residuals[row], occupancy, centroids)
    return Settlement(codes, distances, moved)


class _Occupancy:
    """Which last codes of a prefix somebody has."""

    def __init__(self, taken: NDArray[np.uint16], size: int) -> None:
        keys = prefix_keys(taken, size)
        order = np.argsort(keys)
        self._keys, self._codes, self._size = keys[order], taken[order, -1], size
        self._used: dict[int, NDArray[np.bool_]] = {}

    def of(self, key: int) -> NDArray[np.bool_]:
        """(V,) bool of the prefix with that key, to be changed in place."""
        if key not in self._used:
            first, end = (np.searchsorted(self._keys, np.uint64(key), side) for side in ("left", "right"))
            self._used[key] = np.zeros(self._size, dtype=bool)
            self._used[key][self._codes[first:end]] = True
        return self._used[key]


def _move(
    codes: NDArray[np.uint16], residual: NDArray[np.float32], occupancy: _Occupancy, centroids: NDArray[np.float32]
) -> tuple[tuple[int, int], float]:
    """The last two codes, and the squared distance, of the nearest free ID that keeps the first L - 2 codes."""
    size = centroids.shape[1]
    above = int(prefix_keys(codes[None, :-1], size)[0]) * size
    for code in np.argsort(squared_distances(residual[None], centroids[-2])[0], kind="stable").tolist():
        used = occupancy.of(above + code)
        free = np.flatnonzero(~used)
        if len(free):
            costs = squared_distances((residual - centroids[-2, code])[None], centroids[-1, free])[0]
            best = int(costs.argmin())
            used[free[best]] = True
            return (code, int(free[best])), float(costs[best])
    raise ConfigError(
        f"all {size * size:,} IDs that begin with the codes {codes[:-2].tolist()} are taken; "
        "learn codes with a larger level_size, or with one more level"
    )
