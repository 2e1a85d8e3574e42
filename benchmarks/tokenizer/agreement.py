"""How the prefixes of semantic IDs agree with leaf categories, over pairs of items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Agreement", "Codes", "agreement", "leaf_numbers", "pairs", "resampled"]

RESAMPLES = 1_000
Codes = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Agreement:
    """What a number of first codes has.

    `same_leaf`: of pairs with one prefix, those with one leaf, None without such pairs; `found`: of pairs with one
    leaf, those with one prefix; `rand`: the adjusted Rand index; `prefixes` is their number.
    """

    same_leaf: float | None
    found: float
    rand: float
    prefixes: int


def leaf_numbers(categories: list[list[str]]) -> NDArray[np.int64]:
    """(N,) int64: a number for each whole category path, -1 where there is none."""
    numbers = {path: number for number, path in enumerate(sorted({tuple(path) for path in categories if path}))}
    return np.array([numbers[tuple(path)] if path else -1 for path in categories])


def agreement(codes: Codes, leaves: NDArray[np.int64], length: int) -> Agreement:
    """The agreement of the first `length` codes with the leaves (N,), over the items that have one."""
    prefixes = np.unique(codes[:, :length], axis=0, return_inverse=True)[1].reshape(-1)
    count = int(prefixes.max()) + 1
    prefixes, leaves = prefixes[leaves >= 0].astype(np.int64), leaves[leaves >= 0]
    both, sharing, alike = (pairs(labels) for labels in (prefixes * (leaves.max() + 1) + leaves, prefixes, leaves))
    chance = sharing * alike / pairs(np.zeros_like(leaves))
    rand = (both - chance) / ((sharing + alike) / 2 - chance)
    return Agreement(both / sharing if sharing else None, both / alike, rand, count)


def pairs(labels: NDArray[np.int64]) -> int:
    """How many pairs have equal labels."""
    counts = np.unique(labels, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def resampled(codes: Codes, leaves: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """(RESAMPLES,) the share at one code when the code's groups are drawn with replacement."""
    groups = [leaves[(codes == code) & (leaves >= 0)] for code in np.unique(codes[leaves >= 0])]
    sharing = np.array([pairs(np.zeros_like(members)) for members in groups])
    same = np.array([pairs(members) for members in groups])
    drawn = np.random.default_rng(seed).integers(0, len(groups), (RESAMPLES, len(groups)))
    ratio: NDArray[np.float64] = same[drawn].sum(axis=1) / sharing[drawn].sum(axis=1)
    return ratio
