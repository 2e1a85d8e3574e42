"""What a reasoner teaches: its distribution over the candidates of each list, made once and kept.

A candidate's score is the reasoner's log-likelihood of its codes after the history's (`item_likelihoods`): mode `score`
of one forward pass, without a prompt. The distribution is the softmax of the scores over the list, at a temperature.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import write_atomic
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.progress import track

if TYPE_CHECKING:
    from gr2.models.reasoner import Reasoner

__all__ = ["TEACHERS", "Lessons", "mixed_worth"]

TEACHERS = ("midtrain", "sft", "opd", "rl", "bypass")
CHUNK = 128


@dataclass(frozen=True)
class Lessons:
    """A reasoner that teaches; histories are their newest `longest` items. With `folder`, scores are kept there, a file
    for every `CHUNK` lists, so that a killed run goes on where it was: the folder belongs to the reasoner.
    """

    reasoner: Reasoner
    longest: int
    folder: Path | None = None

    def scores(self, dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists) -> NDArray[np.float32]:
        """(R, K) float32: the log-likelihood of every candidate, -inf in the padding; `codes` (N, L) by item."""
        found = np.full(lists.candidates.shape, -np.inf, dtype=np.float32)
        with track(len(lists), "the reasoner's lists", unit="lists") as bar:
            for first in range(0, len(lists), CHUNK):
                rows = np.arange(first, min(first + CHUNK, len(lists)))
                found[rows] = self._chunk(dataset, codes, lists.take(rows))
                bar.advance(len(rows))
        return found

    def _chunk(self, dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists) -> NDArray[np.float32]:
        parts = (lists.user, lists.position, lists.candidates, codes)
        key = hashlib.sha256(b"".join(each.tobytes() for each in parts) + bytes([min(self.longest, 255)])).hexdigest()
        path = None if self.folder is None else self.folder / f"{key[:32]}.npy"
        if path is not None and path.exists():
            kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
            return kept
        scores = self._read(dataset, codes, lists)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, scores, allow_pickle=False)
            write_atomic(path, buffer.getvalue())
        return scores

    def _read(self, dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists) -> NDArray[np.float32]:
        from gr2.models.item_likelihood import item_likelihoods

        def paths(items: NDArray[np.int32]) -> list[tuple[int, ...]]:
            return [tuple(path) for path in codes[items].tolist()]

        places = zip(lists.user.tolist(), lists.position.tolist(), strict=True)
        histories = [paths(dataset.history(user, position)[-self.longest :]) for user, position in places]
        candidates = [paths(row[row != PADDING]) for row in lists.candidates]
        scores = np.full(lists.candidates.shape, -np.inf, dtype=np.float32)
        for row, found in enumerate(item_likelihoods(self.reasoner, histories, candidates)):
            scores[row, : len(found)] = found
        return scores


def mixed_worth(
    worth: NDArray[np.float64], scores: NDArray[np.float32], weight: float, temperature: float
) -> NDArray[np.float64]:
    """(R, K): (1 - weight) `worth` + weight * sum(worth) softmax(scores / temperature), row by row.

    A row whose scores are all -inf has no lesson, and keeps its worth.
    """
    taught: NDArray[np.bool_] = np.isfinite(scores).max(1, initial=False)
    logits = np.where(taught[:, None], scores, 0.0).astype(np.float64) / temperature
    share = np.exp(logits - logits.max(1, keepdims=True))
    share *= worth.sum(1, keepdims=True) / share.sum(1, keepdims=True)
    return np.where(taught[:, None], (1 - weight) * worth + weight * share, worth)
