"""How far the exported graph is from the trained student, measured on real requests through the serving path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CandidateTrie
from gr2.models.evidence import EVIDENCE
from gr2.models.scoring import slate_scores
from gr2.models.slate import build_slates, pad_histories
from gr2.models.student import Student
from gr2.progress import track

__all__ = ["Parity", "measure_parity"]

BATCH = 32


@dataclass(frozen=True)
class Parity:
    """`max_abs_difference` of the scores; the share of `identical_order`; the share of `broken_order`: requests whose
    order puts a candidate above one that the student scores higher by more than the tolerance.
    """

    requests: int
    max_abs_difference: float
    identical_order: float
    broken_order: float


def measure_parity(
    student: Student,
    graph: Path,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    features: NDArray[np.float32],
    *,
    tolerance: float,
) -> Parity:
    """Score every row of `lists` twice: in padded batches by torch, and one by one by onnxruntime and the C++ trie.

    `codes` (N, L) are the items' codes; each row needs one candidate at least. `features` (R, K, 3 + F + E) are the
    student's; the graph gets the first 3 + F columns and must find the evidence itself.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    width = student.config.features - len(EVIDENCE)
    size, longest = student.config.level_size, student.config.max_history
    difference, identical, broken = 0.0, 0, 0
    student.eval()
    with track(len(lists), "parity of the graph", unit="requests") as bar:
        for rows in np.array_split(np.arange(len(lists)), max(1, len(lists) // BATCH)):
            part = lists.take(rows)
            slates = build_slates(dataset, codes, part, features[rows], level_size=size, longest=longest)
            batch = slate_scores(student, slates)
            for place in range(len(rows)):
                count = int((part.candidates[place] != PADDING).sum())
                past, _ = pad_histories(dataset, part.user[place, None], part.position[place, None], longest)
                own = codes[part.candidates[place, :count]]
                order, scores = _serve(session, codes[past[0]], own, features[rows[place], :count, :width], size)
                expected = batch[place, :count]
                difference = max(difference, float(np.abs(scores - expected).max()))
                identical += bool(np.array_equal(order, np.argsort(-expected, kind="stable")))
                broken += bool((np.diff(expected[order]) > tolerance).any())
            bar.advance(len(rows), difference=difference)
    total = max(1, len(lists))
    return Parity(len(lists), difference, identical / total, broken / total)


def _serve(
    session: ort.InferenceSession,
    history: NDArray[np.uint16],
    candidates: NDArray[np.uint16],
    features: NDArray[np.float32],
    level_size: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The order and the scores of one request, computed as the serving engine does."""
    trie = CandidateTrie(candidates, np.ones(len(candidates), dtype=np.bool_), level_size)
    levels = candidates.shape[1]
    feed = {
        "history": history.astype(np.int64),
        "mask": trie.mask(),
        "features": features,
        "candidates": candidates.astype(np.int64),
    }
    feed |= {f"nodes_{depth}": trie.nodes(depth) for depth in range(1, levels)}
    logits, prior = session.run(["logits", "prior"], feed)
    return trie.score(logits, prior, normalization="raw")
