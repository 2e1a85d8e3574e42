"""The batches of one epoch, each of rows of similar length, in a random order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["epoch_batches"]

# Batches drawn together and sorted by length before they are cut: little padding, and still a random order.
SORTED_BATCHES = 16


def epoch_batches(
    lengths: NDArray[np.integer], size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Row numbers of every batch of one epoch: each row once, `size` rows a batch, of similar `lengths` (R,)."""
    order = generator.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), size * SORTED_BATCHES):
        group = order[first : first + size * SORTED_BATCHES]
        group = group[np.argsort(lengths[group], kind="stable")]
        batches += [group[cut : cut + size] for cut in range(0, len(group), size)]
    for number in generator.permutation(len(batches)):
        yield batches[number]
