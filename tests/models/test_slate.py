"""Batches for the student: tries against a brute-force reference, histories, labels, and the order of an epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding.reference import reference_trie
from gr2.models.slate import build_slates, build_tries, list_features, pad_histories

LEVEL_SIZE = 5


def make_dataset() -> Dataset:
    ids: list[int | str] = list(range(10))
    catalog = Catalog(ids, [None] * 10, [None] * 10, [[] for _ in ids], [None] * 10, [None] * 10)
    offsets = np.array([0, 6, 9], dtype=np.int64)
    items = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5], dtype=np.int32)
    return Dataset(catalog, ["a", "b"], offsets, items, np.full(9, np.nan), np.zeros(2, dtype=np.bool_))


def make_lists() -> CandidateLists:
    return CandidateLists(
        np.array([0, 1], dtype=np.int32),
        np.array([4, 1], dtype=np.int32),
        np.array([5, 6], dtype=np.int32),
        np.array([[7, 5, 0], [8, 0, -1]], dtype=np.int32),
        np.array([[3.0, 2.0, 2.0], [1.0, 0.0, -np.inf]], dtype=np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    count=st.integers(1, 9),
    levels=st.integers(2, 5),
    size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_tries_equal_the_reference(batch: int, count: int, levels: int, size: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, size, (batch, count, levels))
    tries = build_tries(codes, size)
    for row in range(batch):
        expected = reference_trie(codes[row].astype(np.uint16), np.ones(count, dtype=np.bool_))
        columns = [0]
        start = 1
        for depth in range(1, levels):
            own = len(expected.nodes[depth])
            np.testing.assert_array_equal(tries.nodes[depth - 1][row, :own], expected.nodes[depth])
            columns += range(start, start + own)
            start += tries.nodes[depth - 1].shape[1]
        np.testing.assert_array_equal(tries.mask[row][np.ix_(columns, columns)], expected.mask)
        padding = np.setdiff1d(np.arange(start), columns)
        assert (tries.mask[row][np.ix_(columns, padding)] < 0).all()
        for candidate in range(count):
            for depth in range(levels):
                prefix = tuple(codes[row, candidate, :depth].tolist())
                assert tries.path[row, candidate, depth] == columns[expected.prefixes.index(prefix)]


def test_histories_are_right_aligned_and_cut_to_the_newest() -> None:
    items, lengths = pad_histories(make_dataset(), np.array([0, 1, 0]), np.array([5, 2, 0]), 3)
    np.testing.assert_array_equal(items, [[4, 1, 5], [0, 2, 6], [0, 0, 0]])
    np.testing.assert_array_equal(lengths, [3, 2, 0])


def test_target_outside_the_list_takes_a_column_of_its_own() -> None:
    dataset, lists = make_dataset(), make_lists()
    codes = np.random.default_rng(0).integers(0, LEVEL_SIZE, (10, 4)).astype(np.uint16)
    slates = build_slates(dataset, codes, lists, list_features(lists), level_size=LEVEL_SIZE, longest=50)
    np.testing.assert_array_equal(slates.label, [1, 3])
    np.testing.assert_array_equal(slates.valid, [[True, True, True, False], [True, True, False, False]])
    np.testing.assert_array_equal(slates.codes[0], codes[[7, 5, 0, 5]])
    np.testing.assert_array_equal(slates.codes[1], codes[[8, 0, 6, 6]])
    np.testing.assert_array_equal(slates.items[0], [7, 5, 0, 5])
    np.testing.assert_array_equal(slates.past[0], [3, 1, 4, 1])
    np.testing.assert_array_equal(slates.history[0], codes[[3, 1, 4, 1]])


def test_equal_scores_have_equal_features() -> None:
    features = list_features(make_lists())
    np.testing.assert_array_equal(features[0, 1], features[0, 2])
    assert features[0, 0, 2] == 0
    assert features[0, 1, 2] == 1
    assert not features[1, 2].any()
