"""The memory's columns against sums written out by hand, and nothing where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from gr2.models.evidence import DECAY, EVIDENCE, CoPurchase
from gr2.models.memory import MEMORY, SPACES, ItemMemory, memory_columns
from gr2.models.pairs import Neighbours

ITEMS, DIM = 9, 4


def make_memory(seed: int = 0) -> tuple[ItemMemory, dict[str, np.ndarray]]:
    """A memory of random pairs, and the dense (N, N) matrices that it holds."""
    rng = np.random.default_rng(seed)
    dense, near = {}, {}
    for name in ("copurchase", "following", "titles"):
        items = np.stack([rng.permutation(ITEMS)[:4] for _ in range(ITEMS)]).astype(np.int32)
        items[rng.random(items.shape) < 0.3] = -1
        weights = np.where(items >= 0, rng.integers(1, 6, items.shape), 0).astype(np.float32)
        dense[name] = np.zeros((ITEMS, ITEMS))
        for row in range(ITEMS):
            dense[name][row, items[row][items[row] >= 0]] = weights[row][items[row] >= 0]
        near[name] = Neighbours(items, weights)
    vectors = [rng.normal(size=(ITEMS, DIM)).astype(np.float32) for _ in SPACES]
    together, text = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors)
    popularity = rng.integers(0, 30, ITEMS).astype(np.float32)
    copurchase = CoPurchase(near["copurchase"].items, near["copurchase"].weights, popularity)
    return ItemMemory(copurchase, near["following"], near["titles"], together, text), dense


@pytest.mark.parametrize("length", [0, 1, 3])
def test_columns_are_their_formulas(length: int) -> None:
    memory, dense = make_memory()
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, (ITEMS, 2)).astype(np.uint16)
    history = rng.integers(0, ITEMS, (1, 3))
    candidates = np.array([[4, 0, 7]])
    found = memory_columns(memory, codes, history, np.array([length]), candidates)[0]
    assert found.shape == (3, len(MEMORY))
    past = history[0, 3 - length :]
    for place, item in enumerate(candidates[0]):
        age = DECAY ** np.arange(length - 1, -1, -1)
        norm = np.sqrt(1 + memory.copurchase.popularity[item])
        follows, title = dense["following"][past, item], dense["titles"][past, item]
        last = follows[-1] if length else 0.0
        expected = [
            np.log1p(last / norm),
            np.log1p((follows * age).sum() / norm),
            np.log1p(last),
            np.log1p(follows.sum()),
            title.sum() / max(length, 1),
            title.max(initial=0.0),
            title[-1] if length else 0.0,
        ]
        for space in SPACES:
            vectors = getattr(memory, space)
            close = vectors[past] @ vectors[item]
            expected += [close[-1] if length else 0.0, close.sum() / max(length, 1), close.max(initial=0.0)]
            expected.append((close * age).sum())
        np.testing.assert_allclose(found[place, len(EVIDENCE) :], expected, atol=1e-5)


def test_padding_has_no_columns_and_changes_none() -> None:
    memory, _ = make_memory()
    codes = np.zeros((ITEMS, 2), dtype=np.uint16)
    history, lengths = np.array([[1, 2]]), np.array([2])
    alone = memory_columns(memory, codes, history, lengths, np.array([[3, 5]]))
    padded = memory_columns(memory, codes, history, lengths, np.array([[3, 5, -1]]))
    np.testing.assert_array_equal(padded[:, :2], alone)
    assert not padded[:, 2].any()


def test_the_order_of_the_candidates_changes_no_columns() -> None:
    memory, _ = make_memory()
    codes = np.zeros((ITEMS, 2), dtype=np.uint16)
    history, lengths, order = np.array([[1, 2, 8]]), np.array([3]), np.array([2, 0, 1])
    there = memory_columns(memory, codes, history, lengths, np.array([[3, 5, 6]]))
    back = memory_columns(memory, codes, history, lengths, np.array([[3, 5, 6]])[:, order])
    np.testing.assert_array_equal(back, there[:, order])
