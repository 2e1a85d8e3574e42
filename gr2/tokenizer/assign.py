"""From vectors to semantic IDs: nearest codes, and last codes that tell apart the items of one prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gr2.errors import ConfigError, MissingExtraError
from gr2.interrupts import interrupts_wait
from gr2.tokenizer.residual_kmeans import Codebook, nearest_codes, squared_distances

__all__ = ["Assignment", "LastLevel", "assign_codes", "extend_codes"]

LastLevel = Literal["assign", "random", "nearest"]


@dataclass(frozen=True)
class Assignment:
    """`codes` (N, L) uint16; `errors` (N, L) float32, squared residual length after each level.

    Rows of `codes` are distinct, unless they were asked to be the nearest. `nearest` (N, L) uint16 is what plain
    nearest-code encoding gives, with its collisions. Items of one prefix have the first `depth` codes in common.
    """

    codes: NDArray[np.uint16]
    errors: NDArray[np.float32]
    nearest: NDArray[np.uint16]
    depth: int

    @property
    def moved(self) -> NDArray[np.bool_]:
        """(N,): whether an item has another prefix than its nearest, which had more items than codes."""
        changed: NDArray[np.bool_] = (self.codes[:, : self.depth] != self.nearest[:, : self.depth]).any(axis=1)
        return changed

    @property
    def overflow(self) -> int:
        """How many items were moved."""
        return int(self.moved.sum())

    def overflow_prefixes(self) -> list[tuple[list[int], int]]:
        """Each prefix that items were moved from, with their number, the largest number first."""
        prefixes, counts = np.unique(self.nearest[self.moved, : self.depth], axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return list(zip(prefixes[order].tolist(), counts[order].tolist(), strict=True))


def assign_codes(
    vectors: NDArray[np.float32],
    codebook: Codebook,
    *,
    last_level: LastLevel = "assign",
    random_levels: int = 1,
    seed: int = 0,
) -> Assignment:
    """Semantic IDs of standardised `vectors` (N, D) float32: nearest codes, and last codes that tell items apart.

    - "assign": inside each prefix the last codes are distinct and minimise the sum of squared distances (linear
      assignment).
    - "random": the last `random_levels` codes are drawn inside each prefix without replacement. The draw depends on
      the seed, the prefix and the order of its rows only.
    - "nearest": plain nearest codes; items may share an ID.

    Of a prefix with more items than codes, the items that fit worst move to the first prefix with room, trying codes
    from the last level up, nearest first. Ties go by row. Raises ConfigError if there are more items than IDs, or not
    fewer random levels than levels.
    """
    levels, size = codebook.levels, codebook.level_size
    if last_level != "nearest" and len(vectors) > size**levels:
        raise ConfigError(f"{len(vectors):,} items, but {levels} levels of {size} codes make {size**levels:,} IDs")
    if last_level == "random" and not 1 <= random_levels < levels:
        raise ConfigError(f"random_levels must be 1 to {levels - 1} of {levels} levels, got {random_levels}")
    depth = levels - (random_levels if last_level == "random" else 1)
    codes = np.empty((len(vectors), levels), dtype=np.int64)
    residuals = vectors.copy()
    prefix_residuals = residuals
    for level in range(levels):
        if level == depth:
            prefix_residuals = residuals.copy()
        codes[:, level], _ = nearest_codes(residuals, codebook.centroids[level])
        residuals -= codebook.centroids[level, codes[:, level]]
    nearest = codes.astype(np.uint16)
    if last_level != "nearest":
        random = last_level == "random"
        _move_overflow(codes, prefix_residuals, vectors, codebook, depth, random=random)
        if random:
            _draw_last(codes, depth, size, seed)
        else:
            _match_last(codes, prefix_residuals, codebook)
    return Assignment(codes.astype(np.uint16), _errors(vectors, codes, codebook), nearest, depth)


def extend_codes(vectors: NDArray[np.float32], taken: NDArray[np.uint16], codebook: Codebook) -> Assignment:
    """Semantic IDs of new items, standardised `vectors` (M, D) float32, beside the IDs `taken` (N, L) uint16.

    Each takes its nearest prefix. Of the prefix's last codes that are free, the new items take different ones, of least
    total squared distance; items that find none move as in `assign_codes`. Ties go by row. Raises
    ConfigError if there are more items than IDs.
    """
    levels, size = codebook.levels, codebook.level_size
    if len(vectors) + len(taken) > size**levels:
        items = len(vectors) + len(taken)
        raise ConfigError(f"{items:,} items, but {levels} levels of {size} codes make {size**levels:,} IDs")
    last, used = codebook.centroids[-1], dict[tuple[int, ...], set[int]]()
    for *prefix, code in taken.tolist():
        used.setdefault(tuple(prefix), set()).add(code)
    codes, residuals = np.empty((len(vectors), levels), dtype=np.int64), vectors.copy()
    for level in range(levels):
        codes[:, level], _ = nearest_codes(residuals, codebook.centroids[level])
        if level < levels - 1:
            residuals -= codebook.centroids[level, codes[:, level]]
    nearest, overflow = codes.astype(np.uint16), []
    for rows in _groups(codes[:, :-1], least=1):
        busy = used.setdefault(tuple(codes[rows[0], :-1].tolist()), set())
        free = np.setdiff1d(np.arange(size), list(busy))
        kept, columns = _match(squared_distances(residuals[rows], last[free]))
        codes[rows[kept], -1] = free[columns]
        busy.update(free[columns].tolist())
        overflow += np.setdiff1d(rows, rows[kept]).tolist()
    for row in sorted(overflow):
        for found, residual in _prefixes(vectors[row], codebook, 0, levels - 1):
            busy = used.setdefault(found, set())
            if len(busy) < size:
                free = np.setdiff1d(np.arange(size), list(busy))
                code = int(free[squared_distances(residual[None], last[free])[0].argmin()])
                codes[row] = (*found, code)
                busy.add(code)
                break
    return Assignment(codes.astype(np.uint16), _errors(vectors, codes, codebook), nearest, levels - 1)


def _match_last(codes: NDArray[np.int64], residuals: NDArray[np.float32], codebook: Codebook) -> None:
    """Give, in place, the items of each prefix with a collision the last codes of least total distance."""
    for rows in _groups(codes[:, :-1]):
        if len(np.unique(codes[rows, -1])) < len(rows):
            kept, last = _match(squared_distances(residuals[rows], codebook.centroids[-1]))
            codes[rows[kept], -1] = last


def _draw_last(codes: NDArray[np.int64], depth: int, size: int, seed: int) -> None:
    """Draw, in place, the codes from `depth` on, without replacement inside each prefix of `depth` codes."""
    suffix = codes.shape[1] - depth
    powers = size ** np.arange(suffix - 1, -1, -1, dtype=np.int64)
    for rows in _groups(codes[:, :depth], least=1):
        rng = np.random.default_rng([seed % 2**64, *codes[rows[0], :depth].tolist()])
        drawn = rng.choice(size**suffix, len(rows), replace=False)
        codes[rows, depth:] = drawn[:, None] // powers % size


def _groups(prefixes: NDArray[np.int64], least: int = 2) -> Iterator[NDArray[np.int64]]:
    """The rows, ascending, of each prefix that has at least `least`."""
    if not len(prefixes):
        return
    _, inverse, counts = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    bounds = np.cumsum(counts)
    order = np.argsort(inverse, kind="stable")
    for group in np.flatnonzero(counts >= least):
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
    codes: NDArray[np.int64],
    residuals: NDArray[np.float32],
    vectors: NDArray[np.float32],
    codebook: Codebook,
    depth: int,
    *,
    random: bool,
) -> None:
    """Change, in place, prefix and residual of the items that their prefix has no code for.

    A prefix is the first `depth` codes. Those stay that fit best: by the matching of the last level, or, where that is
    random, by the length of their residuals.
    """
    room, overflow = codebook.level_size ** (codebook.levels - depth), []
    taken: dict[tuple[int, ...], int] = {}
    for rows in _groups(codes[:, :depth]):
        taken[tuple(codes[rows[0], :depth].tolist())] = min(len(rows), room)
        if len(rows) > room:
            if random:
                kept = np.argsort(np.square(residuals[rows]).sum(axis=1), kind="stable")[:room]
            else:
                kept, _ = _match(squared_distances(residuals[rows], codebook.centroids[-1]))
            overflow += np.setdiff1d(rows, rows[kept]).tolist()
    if not overflow:
        return
    stay = np.setdiff1d(np.arange(len(codes)), overflow)
    for row in stay:
        taken.setdefault(tuple(codes[row, :depth].tolist()), 1)
    for row in sorted(overflow):
        for prefix, residual in _prefixes(vectors[row], codebook, 0, depth):
            if taken.get(prefix, 0) < room:
                taken[prefix] = taken.get(prefix, 0) + 1
                codes[row, :depth], residuals[row] = prefix, residual
                if not random:
                    codes[row, -1] = nearest_codes(residual[None], codebook.centroids[-1])[0][0]
                break


def _prefixes(
    residual: NDArray[np.float32], codebook: Codebook, level: int, depth: int
) -> Iterator[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """Every prefix of `depth` codes with its residual, nearest code first; the deepest level varies fastest."""
    if level == depth:
        yield (), residual
        return
    centroids = codebook.centroids[level]
    for code in np.argsort(squared_distances(residual[None], centroids)[0], kind="stable").tolist():
        for rest, remaining in _prefixes(residual - centroids[code], codebook, level + 1, depth):
            yield (code, *rest), remaining


def _errors(vectors: NDArray[np.float32], codes: NDArray[np.int64], codebook: Codebook) -> NDArray[np.float32]:
    errors = np.empty(codes.shape, dtype=np.float32)
    residuals = vectors.copy()
    for level in range(codebook.levels):
        residuals -= codebook.centroids[level, codes[:, level]]
        errors[:, level] = np.square(residuals).sum(axis=1)
    return errors
