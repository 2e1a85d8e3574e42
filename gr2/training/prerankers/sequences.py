"""Batches of item sequences for the pre-ranker, gathered from the flat event array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.data.dataset import Dataset

__all__ = ["Windows", "histories", "training_windows"]


@dataclass(frozen=True)
class Windows:
    """R runs of consecutive events: (R,) int64 `start` in the event array and `length` >= 1."""

    items: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(B, T) int64 item indices, each row padded at its end with its last item, and (B,) int64 lengths."""
        length = self.length[rows]
        offset = np.minimum(np.arange(length.max())[None, :], length[:, None] - 1)
        sequences = self.items[self.start[rows][:, None] + offset].astype(np.int64)
        return torch.from_numpy(sequences), torch.from_numpy(length)


def training_windows(dataset: Dataset, users: NDArray[np.int64], max_history: int) -> Windows:
    """Windows of at most `max_history` + 1 events that cover the training events of `users`.

    Neighbouring windows share one event, so that every event but a user's first is a target exactly once.
    """
    start, length = [], []
    for user in users.tolist():
        end = dataset.train_length(user)
        while end >= 2:
            first = max(0, end - max_history - 1)
            start.append(int(dataset.offsets[user]) + first)
            length.append(end - first)
            end = first + 1
    return Windows(dataset.items, np.array(start, dtype=np.int64), np.array(length, dtype=np.int64))


def histories(dataset: Dataset, user: NDArray[np.integer], position: NDArray[np.integer], max_history: int) -> Windows:
    """The last `max_history` events before `position[r]` (>= 1) of `user[r]`, for each row r."""
    length = np.minimum(position, max_history).astype(np.int64)
    return Windows(dataset.items, dataset.offsets[user] + position - length, length)
