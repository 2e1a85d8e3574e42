"""Evidence for a candidate that counting gives better than a small network: co-purchases, popularity, shared codes.

Counts come from the training split only. A candidate c and a history h_1..h_T (h_T most recent) give, with C(a, b) the
users whose training events hold both items, n(c) the users with c, and s(c, h) the length of the common prefix of two
semantic IDs,

    log(1 + sum_t C(c, h_t) / sqrt(1 + n(c)))         log(1 + sum_t decay^(T-t) C(c, h_t) / sqrt(1 + n(c)))
    log(1 + C(c, h_T) / sqrt(1 + n(c)))               log(1 + sum_t C(c, h_t))         log(1 + C(c, h_T))
    share of the history with C > 0                   log(1 + n(c))
    mean of s / L, its maximum, and s(c, h_T) / L

C is kept for each item's strongest `neighbours` only, so the table stays small enough to live inside the served graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.pairs import Neighbours, list_columns, newest, pair_weights, strongest, training_events

__all__ = [
    "DECAY",
    "EVIDENCE",
    "CoPurchase",
    "CrossFit",
    "count_copurchases",
    "cross_fitted",
    "cross_fitted_evidence",
    "evidence_columns",
    "evidence_folds",
    "list_evidence",
]

DECAY = 0.8
EVIDENCE = (
    "copurchase_weighted",
    "copurchase_recent",
    "copurchase_last_weighted",
    "copurchase",
    "copurchase_last",
    "copurchase_share",
    "popularity",
    "prefix_mean",
    "prefix_max",
    "prefix_last",
)


@dataclass(frozen=True)
class CoPurchase:
    """Row i: item i's strongest neighbours (N, M) int32, -1 where there are fewer, and C of each, (N, M) float32;
    `popularity` (N,) float32.
    """

    neighbours: NDArray[np.int32]
    counts: NDArray[np.float32]
    popularity: NDArray[np.float32]


@dataclass(frozen=True)
class CrossFit:
    """How training lists get evidence of other users: each item's strongest `neighbours` and the newest `longest` items
    of a history count, and users are dealt into `folds` by the seed.
    """

    neighbours: int
    longest: int
    folds: int
    seed: int


def count_copurchases(
    dataset: Dataset, users: NDArray[np.integer], *, neighbours: int, scale: float = 1.0
) -> CoPurchase:
    """The table of the training events of `users`, every count times `scale`.

    An item's neighbours j are those with the highest C(i, j) / sqrt(n(j)), ties by index, which is a seeded hash.
    """
    owner, items = training_events(dataset, users)
    count = len(dataset.catalog)
    table = sparse.csr_matrix((np.ones(len(owner), np.float32), (owner, items)), shape=(len(users), count))
    table.data[:] = 1.0  # an item that a user has twice counts once
    popularity = np.bincount(items[_first_of_user(owner, items)], minlength=count).astype(np.float32)
    near = strongest(table.T @ table, neighbours, np.sqrt(popularity))
    return CoPurchase(near.items, near.weights * np.float32(scale), popularity * np.float32(scale))


def evidence_columns(
    table: CoPurchase,
    codes: NDArray[np.uint16],
    history: NDArray[np.integer],
    lengths: NDArray[np.integer],
    candidates: NDArray[np.integer],
) -> NDArray[np.float32]:
    """(B, K, E) float32, E as in `EVIDENCE`, 0 where a candidate is padding (-1).

    `codes` (N, L); history (B, T) item indices, right-aligned, of which the last `lengths` (B,) count; candidates
    (B, K).
    """
    width, levels = history.shape[1], codes.shape[1]
    present = np.arange(width) >= width - lengths[:, None]  # (B, T)
    known = candidates >= 0
    chosen = np.where(known, candidates, 0)
    pairs = pair_weights(Neighbours(table.neighbours, table.counts), history, chosen)  # C(c, h_t)
    shared = np.zeros_like(pairs)
    for step in range(width):
        equal = codes[chosen] == codes[history[:, step]][:, None]
        shared[:, :, step] = np.cumprod(equal, axis=-1).sum(-1) / levels
    pairs *= present[:, None]
    shared *= present[:, None]
    decay = (DECAY ** np.arange(width - 1, -1, -1)).astype(np.float32)
    popularity = table.popularity[chosen]
    norm = np.sqrt(1 + popularity)
    total = pairs.sum(-1)
    size = np.maximum(lengths, 1)[:, None].astype(np.float32)
    last = newest(pairs)
    columns = [
        np.log1p(total / norm),
        np.log1p((pairs * decay).sum(-1) / norm),
        np.log1p(last / norm),
        np.log1p(total),
        np.log1p(last),
        (pairs > 0).sum(-1) / size,
        np.log1p(popularity),
        shared.sum(-1) / size,
        shared.max(-1, initial=0.0),
        newest(shared),
    ]
    return np.where(known[:, :, None], np.stack(columns, -1), 0).astype(np.float32)


def _first_of_user(owner: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each (user, item) pair occurs first."""
    _, first = np.unique(np.stack([owner, items]), axis=1, return_index=True)
    return first


def list_evidence(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, table: CoPurchase, *, longest: int
) -> NDArray[np.float32]:
    """(R, K, E) float32: the evidence of every list's candidates from the newest `longest` items of its history."""
    return list_columns(
        dataset, lists, len(EVIDENCE), lambda *rows: evidence_columns(table, codes, *rows), longest=longest
    )


def evidence_folds(users: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(U,) int64: the fold of each user in `cross_fitted_evidence`."""
    return np.random.default_rng(seed).integers(0, folds, users)


def cross_fitted_evidence(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, fit: CrossFit
) -> NDArray[np.float32]:
    """`list_evidence` of training lists, each with the counts of other users: a table that has counted a user's events
    knows the user's targets. Counts are scaled up for the share of users left out.
    """

    def columns_of(others: NDArray[np.int64], own: CandidateLists, scale: float) -> NDArray[np.float32]:
        table = count_copurchases(dataset, others, neighbours=fit.neighbours, scale=scale)
        return list_evidence(dataset, codes, own, table, longest=fit.longest)

    return cross_fitted(dataset, lists, len(EVIDENCE), fit, columns_of)


def cross_fitted(
    dataset: Dataset,
    lists: CandidateLists,
    width: int,
    fit: CrossFit,
    columns_of: Callable[[NDArray[np.int64], CandidateLists, float], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """(R, K, `width`) float32: what `columns_of` says of each fold's lists, from the users in other folds.

    It takes those users, the lists, and what to scale their counts by.
    """
    fold = evidence_folds(dataset.users, fit.folds, fit.seed)
    columns = np.zeros((*lists.candidates.shape, width), dtype=np.float32)
    for number in range(fit.folds):
        rows = np.flatnonzero(fold[lists.user] == number)
        others = np.flatnonzero(fold != number)
        columns[rows] = columns_of(others, lists.take(rows), fit.folds / (fit.folds - 1))
    return columns
