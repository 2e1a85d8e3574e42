"""Making the memory: counts against loops over the events, no user's own events in what the user's lists get."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.evidence import CrossFit
from gr2.models.memory import WINDOW
from gr2.training.student.remember import catalog_memory, cross_fitted_memory, item_memory

ITEMS = 12


def make_dataset(users: int = 30, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    ids: list[int | str] = list(range(ITEMS))
    titles: list[str | None] = [f"{'red' if item % 2 else 'blue'} lamp number{item // 4}" for item in ids]
    paths = [["Home", f"c{item % 3}"] for item in range(ITEMS)]
    catalog = Catalog(ids, titles, ["Acme", None] * 6, paths, [None] * ITEMS, [None] * ITEMS)
    lengths = rng.integers(3, 9, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(0, ITEMS, offsets[-1]).astype(np.int32)
    return Dataset(catalog, list(range(users)), offsets, items, np.full(len(items), np.nan), np.zeros(users, np.bool_))


def make_lists(dataset: Dataset) -> CandidateLists:
    rng = np.random.default_rng(1)
    users = np.flatnonzero(dataset.lengths > 3).astype(np.int32)
    position = np.ones(len(users), dtype=np.int32)
    candidates = np.stack([rng.permutation(ITEMS)[:5] for _ in users]).astype(np.int32)
    scores = np.tile(np.arange(5, 0, -1, dtype=np.float32), (len(users), 1))
    return CandidateLists(users, position, dataset.items[dataset.offsets[users] + 1], candidates, scores)


def test_what_follows_is_counted_in_the_training_split_only() -> None:
    dataset = make_dataset()
    known = catalog_memory(dataset.catalog, None, neighbours=3, dim=4)
    memory = item_memory(dataset, np.arange(10, 30), known, neighbours=ITEMS, dim=4, scale=2.0)
    counts: Counter[tuple[int, int]] = Counter()
    for user in range(10, 30):
        events = dataset.events(user)[:-2].tolist()
        for place, first in enumerate(events):
            for distance, then in enumerate(events[place + 1 : place + 1 + WINDOW], 1):
                counts[first, then] += 2.0 / distance
    for item in range(ITEMS):
        near = zip(memory.following.items[item], memory.following.weights[item], strict=True)
        found = {int(other): float(weight) for other, weight in near if other >= 0}
        expected = {other: counts[item, other] for other in range(ITEMS) if other != item and counts[item, other]}
        assert found == pytest.approx(expected, rel=1e-5)


def test_similar_titles_are_neighbours() -> None:
    known = catalog_memory(make_dataset().catalog, None, neighbours=2, dim=4)
    for item in range(ITEMS):
        twin = item ^ 2  # of one colour and number
        assert known.titles.items[item, 0] == twin
        assert known.titles.weights[item, 0] == pytest.approx(1.0, abs=1e-6)
    assert (known.titles.items != np.arange(ITEMS)[:, None]).all()


def test_vectors_have_length_one_or_none() -> None:
    dataset = make_dataset()
    vectors = np.random.default_rng(2).normal(size=(ITEMS, 5)).astype(np.float32)
    known = catalog_memory(dataset.catalog, vectors, neighbours=2, dim=3)
    memory = item_memory(dataset, np.arange(dataset.users), known, neighbours=4, dim=3)
    assert known.text.shape == (ITEMS, 6)
    for each in (memory.together, memory.text):
        lengths = np.linalg.norm(each, axis=1)
        assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()


def test_vectors_of_items_are_near_where_users_have_both() -> None:
    dataset = make_dataset()
    known = catalog_memory(dataset.catalog, None, neighbours=2, dim=3)
    found = item_memory(dataset, np.arange(dataset.users), known, neighbours=4, dim=ITEMS).together
    held = [set(dataset.events(user)[:-2].tolist()) for user in range(dataset.users)]
    number = [sum(item in own for own in held) for item in range(ITEMS)]
    common = np.zeros((ITEMS, ITEMS))
    for a, b in permutations(range(ITEMS), 2):
        both = sum(a in own and b in own for own in held)
        common[a, b] = both / np.sqrt((1 + number[a]) * (1 + number[b]))
    values, vectors = np.linalg.eigh(common)
    products = vectors * np.abs(values) @ vectors.T
    lengths = np.sqrt(np.diag(products))
    np.testing.assert_allclose(found @ found.T, products / np.outer(lengths, lengths), atol=1e-5)


def test_a_catalogue_without_words_has_a_memory() -> None:
    nothing: list[str | None] = [None] * ITEMS
    catalog = Catalog(list(range(ITEMS)), nothing, nothing, [[] for _ in nothing], [None] * ITEMS, nothing)
    known = catalog_memory(catalog, None, neighbours=2, dim=4)
    assert (known.titles.items == -1).all()
    assert not known.text.any()


def test_a_training_list_gets_the_memory_of_others() -> None:
    dataset = make_dataset()
    lists = make_lists(dataset)
    codes = np.random.default_rng(3).integers(0, 3, (ITEMS, 2)).astype(np.uint16)
    known = catalog_memory(dataset.catalog, None, neighbours=3, dim=4)
    fit = CrossFit(neighbours=ITEMS, longest=5, folds=3, seed=0)
    before = cross_fitted_memory(dataset, codes, lists, known, fit, dim=4)
    user = int(lists.user[0])
    items = dataset.items.copy()
    # The user's training events from the target on; the list's history is what came before it.
    own = slice(int(dataset.offsets[user]) + 1, int(dataset.offsets[user + 1]) - 2)
    items[own] = (items[own] + 1) % ITEMS
    changed = cross_fitted_memory(replace(dataset, items=items), codes, lists, known, fit, dim=4)
    np.testing.assert_array_equal(changed[0], before[0])
    assert (changed[1:] != before[1:]).any()
