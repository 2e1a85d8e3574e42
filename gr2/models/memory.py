"""The memory: what is known of pairs of items, looked up for a candidate against each item of a history.

A small model cannot memorise what a table holds. Beside the evidence of `gr2.models.evidence`, pairs (c, h) of a
candidate and an item of the history h_1..h_T (h_T most recent) have, from the training split and the catalogue,

    F(c, h)     how often users went on from h to c: 1/d for c the d-th event after h, d at most `WINDOW`
    W(c, h)     the cosine of their titles' words, kept for each item's `neighbours` most similar titles only
    <c, h>_s    the product of their unit vectors in a space s: `together`, of the items that users have in common, and
                `text`, of what the catalogue says of them

and give, with n(c) the users with c and decay as in the evidence, the columns of `MEMORY`:

    log(1 + F(c, h_T) / sqrt(1 + n(c)))      log(1 + sum_t decay^(T-t) F(c, h_t) / sqrt(1 + n(c)))
    log(1 + F(c, h_T))      log(1 + sum_t F(c, h_t))      the mean and the maximum of W, and W(c, h_T)
    for each space: <c, h_T>, the mean and the maximum (of those above 0), sum_t decay^(T-t) <c, h_t>
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.evidence import DECAY, EVIDENCE, CoPurchase, evidence_columns
from gr2.models.pairs import Neighbours, list_columns, newest, pair_weights

__all__ = ["MEMORY", "SPACES", "WINDOW", "ItemMemory", "list_memory", "memory_columns"]

WINDOW = 3
SPACES = ("together", "text")
MEMORY = (
    *EVIDENCE,
    "following_last_weighted",
    "following_recent_weighted",
    "following_last",
    "following",
    "title_mean",
    "title_max",
    "title_last",
    *(f"{space}_{how}" for space in SPACES for how in ("last", "mean", "max", "recent")),
)


@dataclass(frozen=True)
class ItemMemory:
    """What is known of N items and their pairs. `following` has in row h the items c of the largest F(c, h);
    `together` (N, D) and `text` (N, E) float32 are vectors of length 1, or 0 where nothing is known.
    """

    copurchase: CoPurchase
    following: Neighbours
    titles: Neighbours
    together: NDArray[np.float32]
    text: NDArray[np.float32]


def memory_columns(
    memory: ItemMemory,
    codes: NDArray[np.uint16],
    history: NDArray[np.integer],
    lengths: NDArray[np.integer],
    candidates: NDArray[np.integer],
) -> NDArray[np.float32]:
    """(B, K, E) float32, E as in `MEMORY`, 0 where a candidate is padding (-1); arguments as of `evidence_columns`."""
    width = history.shape[1]
    present = (np.arange(width) >= width - lengths[:, None])[:, None]  # (B, 1, T)
    known = candidates >= 0
    chosen = np.where(known, candidates, 0)
    norm = np.sqrt(1 + memory.copurchase.popularity[chosen])
    decay = (DECAY ** np.arange(width - 1, -1, -1)).astype(np.float32)
    size = np.maximum(lengths, 1)[:, None].astype(np.float32)
    following = pair_weights(memory.following, history, chosen) * present
    titles = pair_weights(memory.titles, history, chosen) * present
    columns = [
        np.log1p(newest(following) / norm),
        np.log1p((following * decay).sum(-1) / norm),
        np.log1p(newest(following)),
        np.log1p(following.sum(-1)),
        titles.sum(-1) / size,
        titles.max(-1, initial=0.0),
        newest(titles),
    ]
    for space in SPACES:
        vectors = getattr(memory, space)
        close = vectors[chosen] @ vectors[history].transpose(0, 2, 1) * present
        columns += [newest(close), close.sum(-1) / size, close.max(-1, initial=0.0), (close * decay).sum(-1)]
    own = np.where(known[:, :, None], np.stack(columns, -1), 0).astype(np.float32)
    return np.concatenate([evidence_columns(memory.copurchase, codes, history, lengths, candidates), own], -1)


def list_memory(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, memory: ItemMemory, *, longest: int
) -> NDArray[np.float32]:
    """(R, K, E) float32: the columns of every list's candidates from the newest `longest` items of its history."""
    return list_columns(
        dataset, lists, len(MEMORY), lambda *rows: memory_columns(memory, codes, *rows), longest=longest
    )
