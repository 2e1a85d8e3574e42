"""A catalogue's trie, and which of its items may be returned, in the memory of a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.decoding import CatalogTrie

__all__ = ["DeviceCatalog", "DeviceFilter"]

LARGEST_LEVEL = 8192


class DeviceCatalog:
    """The trie of a catalogue on a device, level by level as CatalogTrie.level gives it. Immutable.

    Takes 4 bytes a node and 2 an edge; nodes and edges are numbers of 31 bits.
    """

    def __init__(self, trie: CatalogTrie, device: str | torch.device) -> None:
        """Raises ValueError on a level size above 8192, or more than 2^31 - 1 items."""
        if trie.level_size > LARGEST_LEVEL:
            raise ValueError(f"level_size must be at most {LARGEST_LEVEL} on a GPU, got {trie.level_size}")
        if trie.size > np.iinfo(np.int32).max:
            raise ValueError(f"at most 2^31 - 1 items on a GPU, got {trie.size}")
        self.device = torch.device(device)
        self.size, self.levels, self.level_size = trie.size, trie.levels, trie.level_size
        self.offsets: list[torch.Tensor] = []  # (n + 1,) int32 of each level
        self.codes: list[torch.Tensor] = []  # (e,) int16
        self.widest: list[int] = []  # the most children of a node
        for level in range(trie.levels):
            offsets, codes = trie.level(level)
            self.offsets.append(self._ends(offsets))
            self.codes.append(torch.from_numpy(codes.view(np.int16)).to(self.device))
        items = trie.item_offsets()
        self.item_offsets = self._ends(items)
        self.widest_leaf = _widest(items)

    def _ends(self, offsets: NDArray[np.int64]) -> torch.Tensor:
        self.widest.append(_widest(offsets))
        return torch.from_numpy(offsets.astype(np.int32)).to(self.device)

    def first_node(self, depth: int) -> int:
        """The nodes of all depths before `depth`."""
        return sum(len(self.offsets[above]) - 1 for above in range(depth))


def _widest(offsets: NDArray[np.int64]) -> int:
    return max(1, int(np.diff(offsets).max(initial=1)))


class DeviceFilter:
    """Which items of a catalogue a search may return: a byte an edge of every level. Immutable.

    Made in a few passes over the catalogue, so it is for sets that many searches share.
    """

    def __init__(
        self, catalog: DeviceCatalog, *, allow: NDArray[np.int64] | None = None, deny: NDArray[np.int64] | None = None
    ) -> None:
        """Sets of item rows as ItemFilter takes them, int64 (n,).

        Raises TypeError and ValueError on other dtypes and shapes, and ValueError that names a row that there is not.
        """
        self.catalog = catalog
        items = torch.full((catalog.size,), allow is None, dtype=torch.bool, device=catalog.device)
        for name, rows, value in (("allow", allow, True), ("deny", deny, False)):
            if rows is not None:
                items[self._rows(name, rows)] = value
        self.items = items.view(torch.uint8)  # (N,)
        self.edges: list[torch.Tensor] = []  # (e,) uint8 of each level
        below, ends = items, catalog.item_offsets
        for level in reversed(range(catalog.levels)):
            counts = torch.cat([torch.zeros(1, dtype=torch.int64, device=catalog.device), below.cumsum(0)])
            below = counts[ends[1:].long()] > counts[ends[:-1].long()]
            self.edges.insert(0, below.view(torch.uint8))
            ends = catalog.offsets[level]

    def _rows(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 1:
            got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            error = ValueError if getattr(rows, "dtype", None) == np.int64 else TypeError
            raise error(f"{name} must be int64 (n,) of item rows, got {got}")
        bad = np.flatnonzero((rows < 0) | (rows >= self.catalog.size))
        if len(bad):
            raise ValueError(f"{name} row {bad[0]} is {rows[bad[0]]}, the catalogue has {self.catalog.size} items")
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.catalog.device)
