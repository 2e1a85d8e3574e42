"""What is kept of pairs, and what is looked up of it, against loops over the dense matrix."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from gr2.models.pairs import Neighbours, newest, pair_weights, strongest

ITEMS, KEPT = 9, 3


def dense_of(near: Neighbours) -> np.ndarray:
    dense = np.zeros((len(near.items), len(near.items)), dtype=np.float32)
    for row, (items, weights) in enumerate(zip(near.items, near.weights, strict=True)):
        dense[row, items[items >= 0]] = weights[items >= 0]
    return dense


def test_the_strongest_pairs_are_kept_and_ties_break_by_index() -> None:
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((ITEMS, ITEMS)) < 0.5, rng.integers(1, 4, (ITEMS, ITEMS)), 0).astype(np.float32)
    weights[4] = 0
    norm = rng.integers(1, 3, ITEMS).astype(np.float32)
    near = strongest(sparse.csr_matrix(weights), KEPT, norm)
    assert (near.items.dtype, near.weights.dtype) == (np.int32, np.float32)
    for row in range(ITEMS):
        others = [item for item in range(ITEMS) if item != row and weights[row, item] > 0]
        best = sorted(others, key=lambda item: (-weights[row, item] / norm[item], item))[:KEPT]
        assert near.items[row].tolist() == best + [-1] * (KEPT - len(best))
        assert near.weights[row].tolist() == [weights[row, item] for item in best] + [0.0] * (KEPT - len(best))


def test_pairs_are_those_of_the_table() -> None:
    near = strongest(
        sparse.csr_matrix(np.random.default_rng(1).random((ITEMS, ITEMS))), KEPT, np.ones(ITEMS, np.float32)
    )
    history, candidates = np.array([[0, 4], [8, 2]]), np.array([[1, 2, 3], [5, 0, 8]])
    found = pair_weights(near, history, candidates)
    for row in range(2):
        np.testing.assert_array_equal(found[row], dense_of(near)[history[row]][:, candidates[row]].T)


def test_without_a_history_nothing_is_newest() -> None:
    pairs = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert newest(pairs).tolist() == [[1, 3, 5], [7, 9, 11]]
    assert newest(pairs[:, :, :0]).tolist() == [[0, 0, 0], [0, 0, 0]]
