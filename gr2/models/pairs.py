"""Pairs of items of which something is counted, kept by item, and looked up for candidates and their histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.slate import pad_histories

__all__ = ["Neighbours", "list_columns", "newest", "pair_weights", "strongest", "training_events"]

BATCH = 256


@dataclass(frozen=True)
class Neighbours:
    """Row i: the items (N, M) int32 with the largest weights of the pair with i, -1 where there are fewer, and those
    weights, (N, M) float32.
    """

    items: NDArray[np.int32]
    weights: NDArray[np.float32]


def training_events(dataset: Dataset, users: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The owner of each training event, as a place in `users`, and its item; a user's events in their order."""
    lengths = dataset.lengths[users] - 2
    owner = np.repeat(np.arange(len(users)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, dataset.items[dataset.offsets[users][owner] + place]


def strongest(weights: sparse.csr_matrix, count: int, norm: NDArray[np.float32]) -> Neighbours:
    """Row i: the `count` items j of the largest w(i, j) / norm(j) above 0; ties by index, which is a seeded hash."""
    matrix = weights.tocoo()
    apart = (matrix.row != matrix.col) & (matrix.data > 0)
    row, column, value = matrix.row[apart], matrix.col[apart], matrix.data[apart]
    order = np.lexsort((column, -value / norm[column], row))
    row, column, value = row[order], column[order], value[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < count
    items = np.full((matrix.shape[0], count), -1, dtype=np.int32)
    kept_weights = np.zeros((matrix.shape[0], count), dtype=np.float32)
    items[row[kept], rank[kept]] = column[kept]
    kept_weights[row[kept], rank[kept]] = value[kept]
    return Neighbours(items, kept_weights)


def pair_weights(
    near: Neighbours, history: NDArray[np.integer], candidates: NDArray[np.integer]
) -> NDArray[np.float32]:
    """(B, K, T) float32: the weight of each candidate (B, K) among the neighbours of each item of a history (B, T)."""
    pairs = np.zeros((*candidates.shape, history.shape[1]), dtype=np.float32)
    for step in range(history.shape[1]):
        items, weights = near.items[history[:, step]], near.weights[history[:, step]]  # (B, M)
        pairs[:, :, step] = ((items[:, None] == candidates[:, :, None]) * weights[:, None]).sum(-1)
    return pairs


def newest(pairs: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, K): what each candidate has with the newest item of (B, K, T), 0 without a history."""
    last: NDArray[np.float32] = pairs[:, :, -1] if pairs.shape[2] else np.zeros(pairs.shape[:2], dtype=np.float32)
    return last


def list_columns(
    dataset: Dataset,
    lists: CandidateLists,
    width: int,
    columns_of: Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]], NDArray[np.float32]],
    *,
    longest: int,
) -> NDArray[np.float32]:
    """(R, K, `width`) float32: what `columns_of` says of every list's candidates, from at most `longest` items.

    It takes histories (B, T) right-aligned, of which the last (B,) count, and candidates (B, K), in batches of lists
    whose histories are of similar length.
    """
    past, lengths = pad_histories(dataset, lists.user, lists.position, longest)
    columns = np.zeros((*lists.candidates.shape, width), dtype=np.float32)
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        events = int(lengths[rows].max(initial=0))
        own = past[rows][:, past.shape[1] - events :]
        columns[rows] = columns_of(own, lengths[rows], lists.candidates[rows])
    return columns
