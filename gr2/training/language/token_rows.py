"""Rows of tokens of any length, which of them are learnt, and batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TokenRows"]

# Rows drawn together are this many batches, sorted by length: little padding, and still a random order.
SORTED_BATCHES = 16


@dataclass(frozen=True)
class TokenRows:
    """R rows in one array: row r is `tokens[offsets[r]:offsets[r + 1]]`, int32.

    `learnt` (T,) bool says which tokens a model is asked to predict; a row's first is none of them.
    """

    tokens: NDArray[np.int32]
    learnt: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) int64: tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """(R,) int64: tokens of each row that are learnt."""
        return np.diff(np.concatenate([[0], np.cumsum(self.learnt)])[self.offsets])

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.integer]], learnt: Sequence[NDArray[np.bool_]]) -> TokenRows:
        """The rows as one array, without those of which nothing is learnt."""
        kept = [number for number, mask in enumerate(learnt) if mask[1:].any()]
        offsets = np.concatenate([[0], np.cumsum([len(rows[number]) for number in kept])]).astype(np.int64)
        tokens = np.concatenate([*(rows[number] for number in kept), np.zeros(0)]).astype(np.int32)
        mask = np.concatenate([*(learnt[number] for number in kept), np.zeros(0)]).astype(np.bool_)
        mask[offsets[:-1]] = False
        return cls(tokens, mask, offsets)

    @classmethod
    def join(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """All rows of the parts, in order."""
        starts = np.concatenate([[0], np.cumsum([len(part.tokens) for part in parts])])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1].tolist(), strict=True)]
        return cls(
            np.concatenate([part.tokens for part in parts] or [np.zeros(0, np.int32)]),
            np.concatenate([part.learnt for part in parts] or [np.zeros(0, np.bool_)]),
            np.concatenate([np.zeros(1, np.int64), *offsets]),
        )

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Token IDs (B, T) int64, padded with 0 at the end, and (B, T) bool, which of them are learnt."""
        start, length = self.offsets[rows], self.lengths[rows]
        column = np.arange(length.max())
        inside = column < length[:, None]
        place = start[:, None] + np.minimum(column, length[:, None] - 1)
        tokens = np.where(inside, self.tokens[place], 0).astype(np.int64)
        return torch.from_numpy(tokens), torch.from_numpy(self.learnt[place] & inside)

    def batches(self, rows: NDArray[np.int64], tokens: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """`rows` (row numbers) in batches of at most `tokens` tokens, padding included, or one row; in random order."""
        order = generator.permutation(rows)
        longest = max(1, int(self.lengths[rows].mean())) if len(rows) else 1
        group = max(1, tokens // longest) * SORTED_BATCHES
        batches: list[NDArray[np.int64]] = []
        for first in range(0, len(order), group):
            part = order[first : first + group]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += _cut(part, self.lengths[part], tokens)
        return [batches[number] for number in generator.permutation(len(batches))]


def _cut(rows: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
    """Runs of `rows`, whose lengths ascend, as long as rows times the longest stays within `tokens`."""
    runs, first = [], 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - first) * int(lengths[end]) > tokens:
            runs.append(rows[first:end])
            first = end
    return runs
