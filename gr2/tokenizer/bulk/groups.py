"""The last codes of the items that share a prefix, decided from their nearest ones where those suffice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait

__all__ = ["Decision", "Items", "decide", "match", "prefix_keys"]


@dataclass(frozen=True)
class Items:
    """New items: `ids` (pa.Array), `codes` (n, L) uint16, and `order` (n,) uint64, by which ties are decided."""

    ids: Any
    codes: NDArray[np.uint16]
    order: NDArray[np.uint64]

    def sorted(self, keys: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
        """(n,) int64: the permutation that sorts by `keys`, then by `order`, then by a hash of the ID."""
        order = np.lexsort((self.order, keys))
        keys, ranks = keys[order], self.order[order]
        same = np.flatnonzero((keys[1:] == keys[:-1]) & (ranks[1:] == ranks[:-1]))
        for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else ():
            rows = order[run[0] : run[-1] + 2]
            digests = [_digest(item, seed) for item in self.ids.take(rows).to_pylist()]
            order[run[0] : run[-1] + 2] = rows[sorted(range(len(rows)), key=digests.__getitem__)]
        return order


@dataclass(frozen=True)
class Decision:
    """`last` (n,) uint16 codes at `distances` (n,) float32, squared; both mean nothing where `open` (n,) is True."""

    last: NDArray[np.uint16]
    distances: NDArray[np.float32]
    open: NDArray[np.bool_]


def prefix_keys(codes: NDArray[np.uint16], size: int) -> NDArray[np.uint64]:
    """(n,) uint64: a number for the first L - 1 of L codes, of which size ** (L - 1) must be at most 2 ** 64."""
    keys = np.zeros(len(codes), dtype=np.uint64)
    for level in range(codes.shape[1] - 1):
        keys *= np.uint64(size)
        keys += codes[:, level]
    return keys


def decide(
    items: Items,
    near: NDArray[np.uint16],
    distances: NDArray[np.float32],
    *,
    taken: NDArray[np.uint16],
    size: int,
    seed: int,
) -> Decision:
    """The last codes of least total squared distance in each prefix, no code twice and none that is taken.

    `near` and `distances` (n, M) are each item's nearest last codes, in order; `taken` (t, L) are the IDs given before.

    In a prefix of g new items and t taken codes, M of each item's codes suffice while g + t <= M: if an optimal
    matching gave an item none of its g + t nearest codes, one of those would be neither taken nor given to one of the
    g - 1 others, and the item could have it for less. Other prefixes with a collision are left open.
    """
    keys = prefix_keys(items.codes, size)
    order = items.sorted(keys, seed)
    prefixes, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = np.repeat(np.arange(len(prefixes)), counts)
    taken_groups, taken_codes = _taken(prefixes, taken, size)
    occupied = np.bincount(taken_groups, minlength=len(prefixes))
    distances = _without_taken(distances, near, groups, taken_groups, taken_codes, occupied, size)
    rows = np.arange(len(order))
    best = distances.argmin(axis=1)
    contested = _contested(groups, near[rows, best], ~np.isfinite(distances[rows, best]), len(prefixes), size)
    left = contested & (counts + occupied > near.shape[1])
    _decide_pairs(best, distances, order, starts[contested & ~left & (counts == 2)])
    for group in np.flatnonzero(contested & ~left & (counts > 2)):
        here = order[starts[group] : starts[group] + counts[group]]
        costs = np.full((len(here), size), np.inf)
        np.put_along_axis(costs, near[here].astype(np.int64), distances[here], axis=1)
        _, codes = match(costs)
        best[here] = (near[here] == codes[:, None]).argmax(axis=1)
    return Decision(near[rows, best], distances[rows, best], left[groups])


def match(costs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the cheapest one-to-one matching of (n, V) costs; min(n, V) pairs."""
    rows, columns = _solver()(costs)
    return rows, columns


@lru_cache(maxsize=1)
def _solver() -> Callable[[NDArray[Any]], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    try:
        with interrupts_wait():
            from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError("assigning semantic IDs", "train", error) from error
    solver: Callable[[NDArray[Any]], tuple[NDArray[np.int64], NDArray[np.int64]]] = linear_sum_assignment
    return solver


def _taken(
    prefixes: NDArray[np.uint64], taken: NDArray[np.uint16], size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Group and last code of each ID that was given before, once, where a new item has its prefix."""
    keys = prefix_keys(taken, size)
    groups = np.searchsorted(prefixes, keys)
    here = np.flatnonzero(groups < len(prefixes))
    here = here[prefixes[groups[here]] == keys[here]]
    pairs = np.unique(groups[here].astype(np.int64) * size + taken[here, -1])
    return pairs // size, (pairs % size).astype(np.uint16)


def _without_taken(
    distances: NDArray[np.float32],
    near: NDArray[np.uint16],
    groups: NDArray[np.int64],
    taken_groups: NDArray[np.int64],
    taken_codes: NDArray[np.uint16],
    occupied: NDArray[np.int64],
    size: int,
) -> NDArray[np.float32]:
    """`distances` with infinity for the codes that are taken."""
    rows = np.flatnonzero(occupied[groups] > 0)
    if not len(rows):
        return distances
    pairs = groups[rows, None] * size + near[rows]
    distances = distances.copy()
    distances[rows] = np.where(np.isin(pairs, taken_groups * size + taken_codes), np.inf, distances[rows])
    return distances


def _contested(
    groups: NDArray[np.int64], codes: NDArray[np.uint16], without: NDArray[np.bool_], count: int, size: int
) -> NDArray[np.bool_]:
    """(count,) bool: the groups in which two items want one code, or an item knows of no free one."""
    pairs = np.sort(groups * size + codes)
    contested = np.zeros(count, dtype=bool)
    contested[pairs[1:][pairs[1:] == pairs[:-1]] // size] = True
    contested[groups[without]] = True
    return contested


def _decide_pairs(
    best: NDArray[np.int64], distances: NDArray[np.float32], order: NDArray[np.int64], firsts: NDArray[np.int64]
) -> None:
    """Match, in `best`, the items at `firsts` of `order` with those after them; the nearest free code of both is one.

    The one that would lose more by its next code keeps the nearest, and in a tie the first.
    """
    pairs = np.stack([order[firsts], order[firsts + 1]])
    offered = distances[pairs].astype(np.float64)
    nearest = np.take_along_axis(offered, best[pairs][..., None], axis=2)[..., 0]
    np.put_along_axis(offered, best[pairs][..., None], np.inf, axis=2)
    following = offered.argmin(axis=2)
    second = np.take_along_axis(offered, following[..., None], axis=2)[..., 0]
    loser = (nearest[0] + second[1] <= second[0] + nearest[1]).astype(np.int64)
    places = np.arange(len(firsts))
    best[pairs[loser, places]] = following[loser, places]


def _digest(item: object, seed: int) -> bytes:
    key = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(repr(item).encode(), digest_size=16, key=key).digest()
