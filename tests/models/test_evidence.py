"""Evidence: counts and columns against sums written out by hand, and no user's own events in the cross-fitted ones."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.evidence import (
    DECAY,
    EVIDENCE,
    CrossFit,
    count_copurchases,
    cross_fitted_evidence,
    evidence_columns,
    evidence_folds,
    list_evidence,
)

ITEMS = 12


def make_dataset(users: int = 30, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    ids: list[int | str] = list(range(ITEMS))
    catalog = Catalog(ids, [None] * ITEMS, [None] * ITEMS, [[] for _ in ids], [None] * ITEMS, [None] * ITEMS)
    lengths = rng.integers(3, 9, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(0, ITEMS, offsets[-1]).astype(np.int32)
    return Dataset(catalog, list(range(users)), offsets, items, np.full(len(items), np.nan), np.zeros(users, np.bool_))


def make_lists(dataset: Dataset) -> CandidateLists:
    rng = np.random.default_rng(1)
    users = np.arange(dataset.users, dtype=np.int32)
    candidates = np.stack([rng.permutation(ITEMS)[:4] for _ in users]).astype(np.int32)
    scores = np.tile(np.arange(4, 0, -1, dtype=np.float32), (len(users), 1))
    position = (dataset.lengths - 2).astype(np.int32)
    return CandidateLists(users, position, dataset.items[dataset.offsets[users] + position], candidates, scores)


def brute_counts(dataset: Dataset, users: list[int]) -> tuple[Counter[tuple[int, int]], Counter[int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    single: Counter[int] = Counter()
    for user in users:
        held = set(dataset.events(user)[:-2].tolist())
        single.update(held)
        pairs.update(permutations(held, 2))
    return pairs, single


def test_counts_are_of_users_and_of_the_training_split_only() -> None:
    dataset = make_dataset()
    pairs, single = brute_counts(dataset, list(range(10, 30)))
    table = count_copurchases(dataset, np.arange(10, 30), neighbours=ITEMS, scale=2.0)
    for item in range(ITEMS):
        found = {int(j): float(c) for j, c in zip(table.neighbours[item], table.counts[item], strict=True) if j >= 0}
        assert found == {j: 2.0 * pairs[item, j] for j in range(ITEMS) if pairs[item, j]}
        assert table.popularity[item] == 2.0 * single[item]


def test_a_small_table_keeps_the_strongest_neighbours() -> None:
    dataset = make_dataset()
    pairs, single = brute_counts(dataset, list(range(30)))
    table = count_copurchases(dataset, np.arange(30), neighbours=2)
    for item in range(ITEMS):
        strength = sorted((pairs[item, j] / np.sqrt(single[j]) for j in range(ITEMS) if pairs[item, j]), reverse=True)
        kept = [pairs[item, j] / np.sqrt(single[j]) for j in table.neighbours[item] if j >= 0]
        np.testing.assert_allclose(kept, strength[:2], rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 4])
def test_columns_are_their_formulas(length: int) -> None:
    dataset = make_dataset()
    table = count_copurchases(dataset, np.arange(30), neighbours=ITEMS)
    pairs, single = brute_counts(dataset, list(range(30)))
    rng = np.random.default_rng(length)
    codes = rng.integers(0, 2, (ITEMS, 3)).astype(np.uint16)
    history = rng.integers(0, ITEMS, length)
    padded = np.concatenate([[5, 5], history])[None]
    candidates = np.array([[3, 7, -1]])
    columns = evidence_columns(table, codes, padded, np.array([length]), candidates)
    assert not columns[0, 2].any()
    for place, item in enumerate([3, 7]):
        counts = [pairs[item, int(h)] for h in history]
        prefixes = [next((d for d in range(3) if codes[item, d] != codes[h, d]), 3) / 3 for h in history]
        norm = np.sqrt(1 + single[item])
        recent = sum(c * DECAY ** (length - 1 - t) for t, c in enumerate(counts))
        last = counts[-1] if length else 0
        expected = [
            np.log1p(sum(counts) / norm),
            np.log1p(recent / norm),
            np.log1p(last / norm),
            np.log1p(sum(counts)),
            np.log1p(last),
            sum(c > 0 for c in counts) / max(1, length),
            np.log1p(single[item]),
            sum(prefixes) / max(1, length),
            max(prefixes, default=0),
            prefixes[-1] if length else 0,
        ]
        assert len(expected) == len(EVIDENCE)
        np.testing.assert_allclose(columns[0, place], expected, rtol=1e-5, atol=1e-6)


def test_cross_fitted_evidence_does_not_depend_on_the_users_own_events() -> None:
    dataset = make_dataset()
    lists = make_lists(dataset)
    codes = np.random.default_rng(3).integers(0, 4, (ITEMS, 3)).astype(np.uint16)
    fit = CrossFit(neighbours=ITEMS, longest=50, folds=3, seed=5)
    before = cross_fitted_evidence(dataset, codes, lists, fit)
    user, popularity = 4, EVIDENCE.index("popularity")
    items = dataset.items.copy()
    start = dataset.offsets[user]
    items[start] = (items[start] + 1) % ITEMS
    changed = Dataset(dataset.catalog, dataset.user_ids, dataset.offsets, items, dataset.timestamps, dataset.tied)
    after = cross_fitted_evidence(changed, codes, lists, fit)
    np.testing.assert_array_equal(after[user, :, popularity], before[user, :, popularity])
    full = [
        list_evidence(d, codes, lists, count_copurchases(d, np.arange(30), neighbours=ITEMS), longest=50)
        for d in (dataset, changed)
    ]
    assert not np.array_equal(full[0][:, :, popularity], full[1][:, :, popularity])


def test_counts_of_the_other_folds_stand_for_as_many_users_as_there_are() -> None:
    dataset = make_dataset()
    lists = make_lists(dataset)
    codes = np.zeros((ITEMS, 3), dtype=np.uint16)
    fit = CrossFit(neighbours=ITEMS, longest=50, folds=3, seed=5)
    found = cross_fitted_evidence(dataset, codes, lists, fit)[:, :, EVIDENCE.index("popularity")]
    fold = evidence_folds(dataset.users, 3, 5)
    for row, user in enumerate(lists.user.tolist()):
        _, single = brute_counts(dataset, np.flatnonzero(fold != fold[user]).tolist())
        expected = [np.log1p(1.5 * single[item]) for item in lists.candidates[row].tolist()]
        np.testing.assert_allclose(found[row], expected, rtol=1e-6)
