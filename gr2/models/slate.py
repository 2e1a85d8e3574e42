"""Training batches for the student: padded histories, one mini-trie an example, and every candidate's path in it.

Everything is vectorised over the batch. Node columns: 0 is the root, then the inner nodes of depths 1..L-1, each depth
padded to the widest row of the batch, a row's nodes sorted by code path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.features import candidate_features

__all__ = ["Slates", "Tries", "build_slates", "build_tries", "list_features", "pad_histories"]

MASKED = np.float32(-1e9)


@dataclass(frozen=True)
class Tries:
    """The mini-tries of B examples.

    nodes: L-1 arrays (B, n_d) int64, the codes of the inner nodes at depths 1..L-1, 0 in the padding.
    mask: (B, n, n) float32, 0 where row node sees column node (itself and its ancestors), MASKED elsewhere.
    path: (B, K, L) int64, the node column at which each of a candidate's codes is predicted.
    """

    nodes: tuple[NDArray[np.int64], ...]
    mask: NDArray[np.float32]
    path: NDArray[np.int64]


@dataclass(frozen=True)
class Slates:
    """A batch of B examples with up to K candidates; padding repeats another candidate, and `valid` is False there.

    past (B, T) int64 item indices and history (B, T, L) int64 their codes, right-aligned, oldest first; lengths (B,)
    int64; tries; items (B, K) int64 and their codes (B, K, L); features (B, K, F) float32; valid (B, K) bool; label
    (B,) int64 is the target's column; a target that was not in the list takes one of its own.
    """

    past: NDArray[np.int64]
    history: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tries: Tries
    items: NDArray[np.int64]
    codes: NDArray[np.int64]
    features: NDArray[np.float32]
    valid: NDArray[np.bool_]
    label: NDArray[np.int64]


def build_tries(codes: NDArray[np.int64], level_size: int) -> Tries:
    """The mini-tries over the candidates' codes (B, K, L)."""
    batch, _, levels = codes.shape
    row = np.arange(batch)
    parent = np.broadcast_to(row[:, None], codes.shape[:2])  # the root of row b is node b of depth 0
    path = np.zeros(codes.shape, dtype=np.int64)
    nodes: list[NDArray[np.int64]] = []
    up: list[NDArray[np.int64]] = []  # (B, n_d): the parent's column
    start, owner = 1, row  # owner: the row of each node of the depth above
    columns = np.zeros(batch, dtype=np.int64)  # the column of each node of the depth above
    for depth in range(1, levels):
        keys, inverse = np.unique(parent * level_size + codes[:, :, depth - 1], return_inverse=True)
        above = keys // level_size
        owner = owner[above]
        place = np.arange(len(keys)) - np.searchsorted(owner, row)[owner]
        width = int(place.max(initial=-1)) + 1
        padded, link = np.zeros((batch, width), dtype=np.int64), np.zeros((batch, width), dtype=np.int64)
        padded[owner, place] = keys % level_size
        link[owner, place] = columns[above]
        nodes.append(padded)
        up.append(link)
        columns = start + place
        parent = inverse.reshape(codes.shape[:2])
        path[:, :, depth] = columns[parent]
        start += width
    mask = np.full((batch, start, start), MASKED, dtype=np.float32)
    every = np.arange(start)
    mask[:, every, every] = 0.0
    links = np.concatenate([np.zeros((batch, 1), dtype=np.int64), *up], axis=1)  # (B, n)
    ancestor = links
    for _ in range(1, levels):
        mask[row[:, None], every[None, :], ancestor] = 0.0
        ancestor = np.take_along_axis(links, ancestor, axis=1)
    return Tries(tuple(nodes), mask, path)


def pad_histories(
    dataset: Dataset, users: NDArray[np.integer], positions: NDArray[np.integer], longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B, T) int64 item indices, right-aligned and 0 in the padding, and (B,) int64 lengths, at most `longest`."""
    lengths = np.minimum(positions, longest).astype(np.int64)
    width = int(lengths.max(initial=0))
    column = np.arange(width)
    source = (dataset.offsets[users] + positions)[:, None] - width + column
    inside = column >= width - lengths[:, None]
    return np.where(inside, dataset.items[np.where(inside, source, 0)], 0).astype(np.int64), lengths


def list_features(lists: CandidateLists) -> NDArray[np.float32]:
    """(R, K, 3 + F) float32: `candidate_features` of each list, 0 in the padding."""
    kept = lists.candidates != PADDING
    dense = lists.features
    width = candidate_features(0, scores=None, dense=None).shape[1] + (0 if dense is None else dense.shape[2])
    out = np.zeros((*kept.shape, width), dtype=np.float32)
    for row, count in enumerate(kept.sum(1).tolist()):
        own = None if dense is None else dense[row, :count]
        out[row, :count] = candidate_features(count, scores=lists.scores[row, :count], dense=own)
    return out


def build_slates(
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    features: NDArray[np.float32],
    *,
    level_size: int,
    longest: int,
) -> Slates:
    """The batch of all rows of `lists`; codes (N, L) by item, features (R, K, F) from `list_features`."""
    label = lists.label()
    listed = label >= 0
    rows = np.arange(len(lists))
    items, valid = lists.candidates, lists.candidates != PADDING
    if not listed.all():
        extra = np.where(listed, PADDING, lists.target)[:, None].astype(np.int32)
        items = np.concatenate([items, extra], axis=1)
        valid = np.concatenate([valid, np.zeros((len(lists), 1), dtype=np.bool_)], axis=1)
        features = np.concatenate([features, np.zeros_like(features[:, :1])], axis=1)
        label = np.where(listed, label, items.shape[1] - 1)
    filled = np.where(items == PADDING, items[rows, label][:, None], items).astype(np.int64)
    past, lengths = pad_histories(dataset, lists.user, lists.position, longest)
    own = codes.astype(np.int64)
    tries = build_tries(own[filled], level_size)
    return Slates(past, own[past], lengths, tries, filled, own[filled], features, valid, label.astype(np.int64))
