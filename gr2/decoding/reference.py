"""The NumPy reference: what the C++ core, and every other implementation of constrained decoding, must compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MASKED", "ReferenceTrie", "reference_score", "reference_trie"]

MASKED = np.float32(-1e9)


@dataclass(frozen=True)
class ReferenceTrie:
    """What CandidateTrie computes. `prefixes[i]` is the code path of inner node i, the root's is ()."""

    prefixes: list[tuple[int, ...]]
    nodes: dict[int, NDArray[np.int64]]  # depth 1..L-1 -> (n_d,)
    parents: NDArray[np.int32]  # (n,)
    mask: NDArray[np.float32]  # (n, n)


def reference_trie(codes: NDArray[np.uint16], known: NDArray[np.bool_]) -> ReferenceTrie:
    """The trie over the known rows of `codes` (K, L): inner nodes breadth-first, within a depth by code path."""
    paths = [tuple(row) for row in codes[known].tolist()]
    depths = range(1, codes.shape[1])
    levels = {depth: sorted({path[:depth] for path in paths}) for depth in depths}
    prefixes = [(), *(prefix for depth in depths for prefix in levels[depth])]
    mask = [[0.0 if row[: len(column)] == column else MASKED for column in prefixes] for row in prefixes]
    return ReferenceTrie(
        prefixes,
        {depth: np.array([prefix[-1] for prefix in levels[depth]], dtype=np.int64) for depth in depths},
        np.array([-1, *(prefixes.index(prefix[:-1]) for prefix in prefixes[1:])], dtype=np.int32),
        np.array(mask, dtype=np.float32),
    )


def reference_score(
    codes: NDArray[np.uint16],
    known: NDArray[np.bool_],
    logits: NDArray[np.float32],
    prior: NDArray[np.float32] | None = None,
    *,
    normalization: str = "raw",
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Order (K,) int32, best first, and scores (K,) float64 by candidate, as CandidateTrie.score defines them.

    score = sum over levels d of log p(code_d | path to d) + prior. `raw` normalises p over the whole level, `local`
    over the codes that continue the path to some candidate. Ties keep the incoming order; unknown candidates come
    last, in incoming order, with -inf.
    """
    index = {prefix: node for node, prefix in enumerate(reference_trie(codes, known).prefixes)}
    paths = [tuple(row) for row in codes[known].tolist()]
    scores = np.full(len(codes), -np.inf)
    for candidate, path in zip(np.flatnonzero(known), paths, strict=True):
        total = 0.0 if prior is None else float(prior[candidate])
        for depth, code in enumerate(path):
            row = logits[index[path[:depth]]].astype(np.float64)
            children = sorted({other[depth] for other in paths if other[:depth] == path[:depth]})
            total += row[code] - np.logaddexp.reduce(row if normalization == "raw" else row[children])
        scores[candidate] = total
    return np.argsort(-scores, kind="stable").astype(np.int32), scores
