"""Partners of the contrastive loss."""

from __future__ import annotations

import numpy as np

from gr2.catalog import Catalog
from gr2.data.dataset import Dataset
from gr2.tokenizer.pairs import Partners, training_partners


def dataset(items: int, *events: list[int]) -> Dataset:
    blank: list[None] = [None] * items
    catalog = Catalog(list(range(items)), [None] * items, blank, [[]] * items, blank, blank)
    offsets = np.cumsum([0, *map(len, events)]).astype(np.int64)
    flat = np.concatenate(events).astype(np.int32)
    return Dataset(
        catalog, list(range(len(events))), offsets, flat, np.zeros(len(flat)), np.zeros(len(events), np.bool_)
    )


def lists(partners: Partners) -> list[list[int]]:
    return [part.tolist() for part in np.split(partners.items, partners.offsets[1:-1])]


def test_consecutive_training_events_are_partners_in_both_directions() -> None:
    made = training_partners(dataset(6, [0, 1, 2, 3, 4], [1, 2, 5, 5]), np.arange(6))
    assert lists(made) == [[1], [0, 2, 2], [1, 1], [], [], []]


def test_the_last_two_events_and_the_way_to_them_are_never_read() -> None:
    rng = np.random.default_rng(0)
    users = [rng.integers(0, 40, size=rng.integers(3, 12)).tolist() for _ in range(50)]
    held_out = [[*events[:-2], *rng.integers(40, 80, size=2).tolist()] for events in users]
    made, other = (training_partners(dataset(80, *logs), np.arange(80)) for logs in (users, held_out))
    np.testing.assert_array_equal(made.items, other.items)
    np.testing.assert_array_equal(made.offsets, other.offsets)
    assert other.items.max() < 40


def test_an_item_is_not_its_own_partner() -> None:
    assert lists(training_partners(dataset(3, [0, 0, 1, 2, 2]), np.arange(3))) == [[1], [0], []]


def test_users_order_and_items_numbering_have_no_influence() -> None:
    users = [[0, 1, 2, 3, 0], [3, 1, 0, 1, 1], [2, 1, 2, 0]]
    rename = np.array([2, 0, 3, 1])
    order = np.array([1, 3, 0, 2])
    renamed = [rename[events].tolist() for events in users[::-1]]
    made, other = training_partners(dataset(4, *users), order), training_partners(dataset(4, *renamed), rename[order])
    assert lists(made) == lists(other)
