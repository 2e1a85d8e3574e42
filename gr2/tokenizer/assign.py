"""From vectors to semantic IDs: nearest codes, and a last level that tells apart the items of one prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.errors import ConfigError, MissingExtraError
from gr2.interrupts import interrupts_wait
from gr2.tokenizer.residual_kmeans import Codebook, nearest_codes, squared_distances

__all__ = ["Assignment", "assign_codes"]


@dataclass(frozen=True)
class Assignment:
    """`codes` (N, L) uint16, all rows distinct; `errors` (N, L) float32, squared residual length after each level.

    `nearest` (N, L) uint16 is what plain nearest-code encoding gives, with its collisions. `overflow` items were moved
    to another prefix because theirs had more items than codes.
    """

    codes: NDArray[np.uint16]
    errors: NDArray[np.float32]
    nearest: NDArray[np.uint16]
    overflow: int


def assign_codes(vectors: NDArray[np.float32], codebook: Codebook) -> Assignment:
    """Semantic IDs of standardised `vectors` (N, D) float32.

    All levels but the last take the nearest code. Inside each prefix the last codes are distinct and minimise the sum
    of squared distances (linear assignment); of a prefix with more items than codes, the items that fit worst move to
    the nearest prefix with room. Ties go by row. Raises ConfigError if there are more items than IDs.
    """
    levels, size = codebook.levels, codebook.level_size
    if len(vectors) > size**levels:
        raise ConfigError(f"{len(vectors):,} items, but {levels} levels of {size} codes make {size**levels:,} IDs")
    codes = np.empty((len(vectors), levels), dtype=np.int64)
    residuals = vectors.copy()
    for level in range(levels):
        codes[:, level], _ = nearest_codes(residuals, codebook.centroids[level])
        if level < levels - 1:
            residuals -= codebook.centroids[level, codes[:, level]]
    nearest = codes.astype(np.uint16)
    overflow = _move_overflow(codes, residuals, vectors, codebook)
    for rows in _groups(codes[:, :-1]):
        if len(np.unique(codes[rows, -1])) < len(rows):
            kept, last = _match(squared_distances(residuals[rows], codebook.centroids[-1]))
            codes[rows[kept], -1] = last
    return Assignment(codes.astype(np.uint16), _errors(vectors, codes, codebook), nearest, overflow)


def _groups(prefixes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows, ascending, of each prefix that has more than one."""
    if not len(prefixes):
        return
    _, inverse, counts = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    bounds = np.cumsum(counts)
    order = np.argsort(inverse, kind="stable")
    for group in np.flatnonzero(counts > 1):
        yield order[bounds[group] - counts[group] : bounds[group]]


def _match(costs: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the cheapest one-to-one matching of (n, V) costs; min(n, V) pairs."""
    try:
        with interrupts_wait():
            from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError("assigning semantic IDs", "train", error) from error
    rows, columns = linear_sum_assignment(costs)
    return rows, columns


def _move_overflow(
    codes: NDArray[np.int64], residuals: NDArray[np.float32], vectors: NDArray[np.float32], codebook: Codebook
) -> int:
    """Change, in place, prefix and residual of the items that their prefix has no code for; returns how many."""
    size, overflow = codebook.level_size, []
    taken: dict[tuple[int, ...], int] = {}
    for rows in _groups(codes[:, :-1]):
        taken[tuple(codes[rows[0], :-1].tolist())] = min(len(rows), size)
        if len(rows) > size:
            kept, _ = _match(squared_distances(residuals[rows], codebook.centroids[-1]))
            overflow += np.setdiff1d(rows, rows[kept]).tolist()
    if not overflow:
        return 0
    stay = np.setdiff1d(np.arange(len(codes)), overflow)
    for row in stay:
        taken.setdefault(tuple(codes[row, :-1].tolist()), 1)
    for row in sorted(overflow):
        for prefix, residual in _prefixes(vectors[row], codebook, 0):
            if taken.get(prefix, 0) < size:
                taken[prefix] = taken.get(prefix, 0) + 1
                codes[row, :-1], residuals[row] = prefix, residual
                codes[row, -1] = nearest_codes(residual[None], codebook.centroids[-1])[0][0]
                break
    return len(overflow)


def _prefixes(
    residual: NDArray[np.float32], codebook: Codebook, level: int
) -> Iterator[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """Every prefix below the last level with its residual, nearest code first; the deepest level varies fastest."""
    if level == codebook.levels - 1:
        yield (), residual
        return
    centroids = codebook.centroids[level]
    for code in np.argsort(squared_distances(residual[None], centroids)[0], kind="stable").tolist():
        for rest, remaining in _prefixes(residual - centroids[code], codebook, level + 1):
            yield (code, *rest), remaining


def _errors(vectors: NDArray[np.float32], codes: NDArray[np.int64], codebook: Codebook) -> NDArray[np.float32]:
    errors = np.empty(codes.shape, dtype=np.float32)
    residuals = vectors.copy()
    for level in range(codebook.levels):
        residuals -= codebook.centroids[level, codes[:, level]]
        errors[:, level] = np.square(residuals).sum(axis=1)
    return errors
