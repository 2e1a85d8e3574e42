"""Tasks in one array of rows, and which rows of each an epoch learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.training.language.token_rows import TokenRows

__all__ = ["Mix"]


@dataclass(frozen=True)
class Mix:
    """Rows of all tasks. Task i has rows `starts[i]` to `starts[i + 1]`; an epoch draws `shares[i]` of them."""

    rows: TokenRows
    starts: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, tasks: Mapping[str, TokenRows], shares: Mapping[str, float]) -> Mix:
        """The mix of named tasks; those whose share is 0 are left out."""
        names = [name for name in tasks if shares[name] > 0]
        starts = np.concatenate([[0], np.cumsum([len(tasks[name]) for name in names])]).astype(int)
        joined = TokenRows.join([tasks[name] for name in names])
        return cls(joined, tuple(starts.tolist()), tuple(shares[name] for name in names))

    def draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """The rows of one epoch: of each task as often as its share says, the part of a whole at random."""
        drawn = [np.zeros(0, dtype=np.int64)]
        for start, end, share in zip(self.starts, self.starts[1:], self.shares, strict=False):
            whole, rest = divmod(share, 1.0)
            rows = np.arange(start, end)
            drawn += [rows] * int(whole)
            drawn.append(generator.permutation(rows)[: round(rest * len(rows))])
        return np.concatenate(drawn)
