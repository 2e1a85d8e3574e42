"""Items that users met one after the other, from the training split only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.dataset import Dataset

__all__ = ["Partners", "training_partners"]


@dataclass(frozen=True)
class Partners:
    """Each item's partners as rows of a ragged array: those of item i are `items[offsets[i]:offsets[i + 1]]`.

    A partner comes as often as it was met. `offsets` (N + 1,) int64; `items` (P,) int64, ascending in a row.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]


def training_partners(dataset: Dataset, order: NDArray[np.int64]) -> Partners:
    """The partners of each item, numbered by their place in `order` (a permutation of the catalogue's items).

    Two items are partners where they are consecutive events of a user's `events[:-2]`, in either order; an item is
    not its own partner. Neither the order of users nor the numbering of items has an influence.
    """
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    users = np.repeat(np.arange(dataset.users), dataset.lengths)
    position = np.arange(len(users)) - dataset.offsets[users]
    # The event at `here` and the one after it: both are among the first n - 2.
    here = np.flatnonzero(position + 1 < dataset.lengths[users] - 2)
    first, second = rank[dataset.items[here]], rank[dataset.items[here + 1]]
    first, second = first[first != second], second[first != second]
    anchors, partners = np.concatenate([first, second]), np.concatenate([second, first])
    by_anchor = np.lexsort((partners, anchors))
    counts = np.bincount(anchors, minlength=len(order))
    return Partners(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), partners[by_anchor])
