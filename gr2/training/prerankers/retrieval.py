"""What a trained pre-ranker says of a position: the rank of its target and its best unseen items."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import Gr2Error
from gr2.models.preranker import PreRanker
from gr2.training.prerankers.sequences import histories

__all__ = ["NOT_RANKED", "catalogue_metrics", "target_of", "target_ranks", "top_candidates"]

NOT_RANKED = np.iinfo(np.int64).max
BATCH = 128


def target_of(dataset: Dataset, user: NDArray[np.integer], position: NDArray[np.integer]) -> NDArray[np.int32]:
    """(R,) int32: the item at `position[r]` of `user[r]`."""
    target: NDArray[np.int32] = dataset.items[dataset.offsets[user] + position]
    return target


def target_ranks(
    model: PreRanker, dataset: Dataset, user: NDArray[np.integer], position: NDArray[np.integer]
) -> NDArray[np.int64]:
    """(R,) int64: the target's rank, from 1, among all items that the history `events[:position]` does not hold.

    Equal scores rank by item index, which is a seeded hash. A target that the history holds is never recommended:
    `NOT_RANKED`.
    """
    ranks = np.empty(len(user), dtype=np.int64)
    target = torch.from_numpy(target_of(dataset, user, position).astype(np.int64))[:, None]
    for rows, scores in _scores(model, dataset, user, position):
        columns = target[torch.from_numpy(rows)]
        own = scores.gather(1, columns)
        before = torch.arange(scores.shape[1]) < columns
        ahead = (scores > own).sum(1) + ((scores == own) & before).sum(1)
        ranks[rows] = torch.where(own[:, 0].isneginf(), NOT_RANKED, 1 + ahead).numpy()
    return ranks


def top_candidates(
    model: PreRanker, dataset: Dataset, user: NDArray[np.integer], position: NDArray[np.integer], size: int
) -> CandidateLists:
    """The `size` best unseen items for each row, with their scores; equal scores by item index."""
    width = min(size, len(dataset.catalog))
    candidates = np.full((len(user), width), PADDING, dtype=np.int32)
    best = np.full((len(user), width), -np.inf, dtype=np.float32)
    for rows, scores in _scores(model, dataset, user, position):
        values, items = (tensor.numpy() for tensor in torch.topk(scores, width, dim=1))
        order = np.lexsort((items, -values), axis=1)
        values = np.take_along_axis(values, order, axis=1)
        best[rows] = values
        candidates[rows] = np.where(np.isneginf(values), PADDING, np.take_along_axis(items, order, axis=1))
    target = target_of(dataset, user, position)
    return CandidateLists(user.astype(np.int32), position.astype(np.int32), target, candidates, best)


def catalogue_metrics(ranks: NDArray[np.int64]) -> dict[str, float]:
    """R@1, R@5, R@10, N@5 and N@10 of targets' ranks (from 1) in the whole catalogue; empty where there are none."""
    if not len(ranks):
        return {}
    gain = 1.0 / np.log2(1.0 + ranks)
    recall = {f"R@{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
    return recall | {f"N@{k}": float(np.where(ranks <= k, gain, 0.0).mean()) for k in (5, 10)}


def _scores(
    model: PreRanker, dataset: Dataset, user: NDArray[np.integer], position: NDArray[np.integer]
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Row numbers, (B,), and their scores over the catalogue, (B, V) float32, -inf for seen items.

    The scores are valid until the next step: every batch is written to the same memory. Raises Gr2Error if one is not
    finite: a NaN is neither above nor below a target's score, so that a diverged model would seem to rank perfectly.
    """
    windows = histories(dataset, user, position, model.max_history)
    weight = model.item.weight.detach()
    memory = torch.empty(min(BATCH, len(user)), len(weight))
    order = np.argsort(windows.length, kind="stable")
    model.eval()
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            query = model.last_query(*windows.batch(rows))
            scores = torch.mm(query, weight.t(), out=memory[: len(rows)])
            if not all(math.isfinite(bound) for bound in torch.aminmax(scores)):
                raise Gr2Error(
                    "the pre-ranker's scores are not finite, so its training has diverged: lower [prerank] "
                    "learning_rate, or raise warmup"
                )
            seen = [dataset.history(int(user[row]), int(position[row])) for row in rows]
            owner = np.repeat(np.arange(len(rows)), [len(history) for history in seen])
            scores[torch.from_numpy(owner), torch.from_numpy(np.concatenate(seen).astype(np.int64))] = -torch.inf
            yield rows, scores
