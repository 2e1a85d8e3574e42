"""A table from an item's codes to its row that a graph of array operators can read: two gathers and a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CodeTable", "build_code_table"]

PRIMES = (1_000_003, 998_244_353, 1_299_709, 15_485_863, 32_452_843, 49_979_687, 67_867_967, 86_028_121)
EMPTY = -1
ATTEMPTS = 500


@dataclass(frozen=True)
class CodeTable:
    """A cuckoo hash table: an item lies in one of two slots, (codes + 1) . multipliers[i] mod S, i = 0, 1.

    codes (S, L) int64, EMPTY in free slots; rows (S,) int64; multipliers (2, L) int64.
    """

    codes: NDArray[np.int64]
    rows: NDArray[np.int64]
    multipliers: NDArray[np.int64]

    def find(self, codes: NDArray[np.integer], missing: int) -> NDArray[np.int64]:
        """(n,) int64 rows of items with codes (n, L), `missing` where there is none: what the graph computes."""
        slots = (codes.astype(np.int64) + 1) @ self.multipliers.T % len(self.rows)
        first, second = ((self.codes[slots[:, way]] == codes).all(-1) for way in (0, 1))
        own = np.where(second, self.rows[slots[:, 1]], missing)
        return np.where(first, self.rows[slots[:, 0]], own)


def build_code_table(codes: NDArray[np.integer]) -> CodeTable:
    """The table of items with codes (N, L); of items with equal codes the first one's row is found."""
    distinct, first = np.unique(codes.astype(np.int64), axis=0, return_index=True)
    multipliers = np.array([PRIMES, PRIMES[::-1]], dtype=np.int64)[:, : codes.shape[1]]
    size = 2 * len(distinct) + 1
    while True:
        slots = (distinct + 1) @ multipliers.T % size
        placed = _place(slots.tolist(), size)
        if placed is not None:
            break
        size += size // 8 + 2
    table = np.full((size, codes.shape[1]), EMPTY, dtype=np.int64)
    rows = np.zeros(size, dtype=np.int64)
    where = np.array(placed, dtype=np.int64)
    table[where], rows[where] = distinct, first
    return CodeTable(table, rows, multipliers)


def _place(slots: list[list[int]], size: int) -> list[int] | None:
    """Each key's slot, or None if the keys' choices cannot be satisfied by the evictions that are tried."""
    holder = [EMPTY] * size
    at = [EMPTY] * len(slots)
    for key in range(len(slots)):
        current, target = key, slots[key][0]
        for _ in range(ATTEMPTS):
            evicted, holder[target], at[current] = holder[target], current, target
            if evicted == EMPTY:
                break
            ways = slots[evicted]
            current, target = evicted, ways[1] if ways[0] == target else ways[0]
        else:
            return None
    return at
