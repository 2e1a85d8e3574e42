"""The dense features of a slate's candidates, computed alike in training and in serving."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCORE_FEATURES", "candidate_features", "score_ranks"]

SCORE_FEATURES = ("has_score", "reciprocal_rank", "log_rank")


def score_ranks(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(K,) int64 ranks from 0: rank 0 has the highest score; equal scores share the best rank among them.

    Shared ranks make the result independent of the order in which the candidates came.
    """
    return np.searchsorted(np.sort(-scores), -scores, side="left").astype(np.int64)


def candidate_features(
    count: int, *, scores: NDArray[np.float32] | None, dense: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """(K, 3 + F) float32: what the pre-ranker's scores say of each candidate, then the caller's dense features.

    `scores` (K,) float32 are the pre-ranker's, higher is better; only their order is used, so that lists of different
    rankers are comparable. Without scores the first three columns are 0. `dense` is (K, F) float32.
    The row of a candidate does not depend on its position in the slate.
    """
    columns = np.zeros((count, len(SCORE_FEATURES)), dtype=np.float32)
    if scores is not None:
        ranks = score_ranks(scores).astype(np.float32)
        columns[:, 0] = 1.0
        columns[:, 1] = 1.0 / (1.0 + ranks)
        columns[:, 2] = np.log2(1.0 + ranks)
    return columns if dense is None else np.concatenate([columns, dense.astype(np.float32)], axis=1)
