"""The trie and the scores of one slate in NumPy, without a loop over candidates: what a Python service would do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["NumpyTrie"]

MASKED = np.float32(-1e9)


class NumpyTrie:
    """The inner nodes of the slate's codes (K, L), breadth-first, within a depth by code path; all items are known."""

    def __init__(self, codes: NDArray[np.integer], level_size: int) -> None:
        self._codes = codes
        keys = np.zeros(len(codes), dtype=np.int64)
        starts = [0, 1]
        # The candidates' node at each depth, and the last codes of the nodes.
        self.places, self.nodes, parents = [np.zeros(len(codes), dtype=np.int64)], [], [np.array([-1])]
        for level in range(codes.shape[1] - 1):
            keys = keys * level_size + codes[:, level]
            found, first, place = np.unique(keys, return_index=True, return_inverse=True)
            self.nodes.append((found % level_size).astype(np.int64))
            parents.append(self.places[-1][first])
            self.places.append(place + starts[-1])
            starts.append(starts[-1] + len(found))
        self._parents = np.concatenate(parents)
        self.count = len(self._parents)

    def mask(self) -> NDArray[np.float32]:
        """(n, n): 0 where the row's node sees the column's, itself and its ancestors, and -1e9 elsewhere."""
        mask = np.full((self.count, self.count), MASKED, dtype=np.float32)
        rows = above = np.arange(self.count)
        while len(rows):
            mask[rows, above] = 0
            above = self._parents[above]
            rows, above = rows[above >= 0], above[above >= 0]
        return mask

    def score(
        self, logits: NDArray[np.float32], prior: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Order (K,), best first, and scores (K,): log-likelihoods over whole levels, and the prior."""
        most = logits.max(-1)
        log_sums = most + np.log(np.exp(logits - most[:, None]).sum(-1))
        scores = prior.copy()
        for level, place in enumerate(self.places):
            scores += logits[place, self._codes[:, level]] - log_sums[place]
        return np.argsort(-scores, kind="stable"), scores
