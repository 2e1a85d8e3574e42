"""Constrained decoding over semantic IDs: the C++ core, and the NumPy reference that says what it must compute."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

try:
    from gr2._core import CandidateTrie, Codebook, CodebookBuilder
except ImportError as error:
    raise ImportError(
        f"gr2's C++ core cannot be loaded ({error}). Install the package with `pip install .`, which needs a C++20 "
        "compiler (on Debian or Ubuntu: apt install g++); in a checkout run `make dev`."
    ) from error

__all__ = [
    "MASKED",
    "CandidateTrie",
    "Codebook",
    "CodebookBuilder",
    "ReferenceTrie",
    "reference_score",
    "reference_trie",
    "write_codebook",
]

MASKED = np.float32(-1e9)


def write_codebook(
    path: str | os.PathLike[str],
    item_ids: NDArray[np.int64] | Sequence[str],
    codes: NDArray[np.uint16],
    level_size: int,
) -> None:
    """Write the codebook file of items that fit in memory, by `CodebookBuilder`, whose errors it raises.

    `codes` is (n, L); `item_ids` is an int64 array, or a sequence of str for a codebook of strings.
    """
    shape = np.shape(codes)
    builder = CodebookBuilder(
        path,
        levels=shape[1] if len(shape) == 2 else 1,
        level_size=level_size,
        id_type="int64" if isinstance(item_ids, np.ndarray) else "string",
    )
    builder.add(item_ids, codes)
    builder.finish()


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
