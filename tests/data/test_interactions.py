from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.data.interactions import chronological_order, k_core, read_interactions
from gr2.errors import DataError

Event = tuple[str, str, int]


def write(folder: Path, **columns: object) -> Path:
    path = folder / "interactions.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def write_events(folder: Path, events: list[Event], **more: object) -> Path:
    users, items, times = (list(column) for column in zip(*events, strict=True))
    return write(folder, user_id=users, item_id=items, timestamp=times, **more)


def sequences(path: Path, *, ties: str = "shuffle", seed: int = 0) -> dict[str | int, list[str | int]]:
    log = read_interactions(path)
    result: dict[str | int, list[str | int]] = {}
    for row in chronological_order(log, ties=ties, seed=seed):
        user, item = (ids.values[ids.codes[row]].as_py() for ids in (log.users, log.items))
        result.setdefault(user, []).append(item)
    return result


def core_model(pairs: list[tuple[int, int]], user_core: int, item_core: int) -> list[bool]:
    keep = [True] * len(pairs)
    while True:
        users = Counter(user for (user, _), kept in zip(pairs, keep, strict=True) if kept)
        items = Counter(item for (_, item), kept in zip(pairs, keep, strict=True) if kept)
        fresh = [
            kept and users[user] >= user_core and items[item] >= item_core
            for (user, item), kept in zip(pairs, keep, strict=True)
        ]
        if fresh == keep:
            return keep
        keep = fresh


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=80),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_k_core_is_the_largest_set_that_meets_the_counts(
    pairs: list[tuple[int, int]], user_core: int, item_core: int
) -> None:
    users, items = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    kept = k_core(users, items, user_core=user_core, item_core=item_core)
    assert kept.tolist() == core_model(pairs, user_core, item_core)


events_with_ties = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from([f"i{n}" for n in range(8)]), st.integers(0, 3)),
    min_size=1,
    max_size=40,
    unique=True,
)


@settings(deadline=None, max_examples=60)
@given(events_with_ties, st.integers(0, 3), st.randoms(use_true_random=False))
def test_shuffled_ties_do_not_depend_on_the_order_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], seed: int, chance: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("ties")
    straight = sequences(write_events(folder, events), seed=seed)
    assert sequences(write_events(folder, chance.sample(events, len(events))), seed=seed) == straight
    for user, items in straight.items():
        times = {item: sorted(time for u, i, time in events if (u, i) == (user, item)) for item in items}
        replayed = [times[item].pop(0) for item in items]
        assert replayed == sorted(replayed)


@settings(deadline=None, max_examples=60)
@given(events_with_ties)
def test_stored_ties_keep_the_order_of_the_rows(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    stable: dict[str, list[str]] = {}
    for user, item, _ in sorted(events, key=lambda event: event[2]):
        stable.setdefault(user, []).append(item)
    assert sequences(write_events(tmp_path_factory.mktemp("ties"), events), ties="stored") == stable


def test_stored_ties_follow_the_position_column(tmp_path: Path) -> None:
    path = write_events(tmp_path, [("u", "a", 5), ("u", "b", 5), ("u", "c", 1)], position=[2, 1, 0])
    assert sequences(path, ties="stored") == {"u": ["c", "b", "a"]}


def test_shuffling_is_even_and_follows_the_seed(tmp_path: Path) -> None:
    path = write_events(tmp_path, [(f"u{n}", item, 7) for n in range(3000) for item in "abc"])
    orders = Counter("".join(map(str, items)) for items in sequences(path).values())
    assert len(orders) == 6
    assert all(400 < count < 600 for count in orders.values())
    assert sequences(path) == sequences(path)
    changed = sequences(path, seed=1)
    assert 0.7 < np.mean([changed[user] != items for user, items in sequences(path).items()]) < 0.95


def test_timestamps_win_over_positions(tmp_path: Path) -> None:
    path = write_events(tmp_path, [("u", "a", 3), ("u", "b", 1), ("u", "c", 2)], position=[0, 1, 2])
    assert sequences(path) == {"u": ["b", "c", "a"]}


def test_a_user_without_all_timestamps_is_ordered_by_position(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        user_id=["u", "u", "u", "v", "v"],
        item_id=["a", "b", "c", "a", "b"],
        timestamp=[30, None, 10, 2, 1],
        position=[0, 2, 1, 0, 1],
    )
    assert sequences(path) == {"u": ["a", "c", "b"], "v": ["b", "a"]}


def test_position_alone_orders_events(tmp_path: Path) -> None:
    path = write(tmp_path, user_id=[1, 1, 2], item_id=["a", "b", "c"], position=[9.5, 2.0, 0.0])
    assert sequences(path) == {1: ["b", "a"], 2: ["c"]}


def test_a_product_may_be_bought_again(tmp_path: Path) -> None:
    assert sequences(write_events(tmp_path, [("u", "a", 2), ("u", "b", 1), ("u", "a", 0)])) == {"u": ["a", "b", "a"]}


EVENTS = {"user_id": ["u", "u", "v", "u"], "item_id": ["a", "b", "a", "a"]}


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"timestamp": [1, 2, 1, 1]}, "row 4, column 'timestamp': repeats row 1: same user, item and timestamp .*'a'"),
        ({"position": [1, 2, 1, 2]}, "row 4, column 'position': repeats row 2: same user and position"),
        ({"timestamp": [1, 2, 1, 4], "position": [1, 2, 1, 2]}, "row 4, column 'position': repeats row 2"),
        ({"timestamp": [1, 2, None, 4]}, "row 3, column 'timestamp': is missing, and user 'v'"),
        ({"timestamp": [1, 2, None, 4], "position": [1, 2, None, 3]}, "row 3, column 'position': is missing"),
        ({"timestamp": ["1", "2", "later", "4"]}, "row 3, column 'timestamp': must be a number or .*'later'"),
        ({"timestamp": [1, 2, float("nan"), 4]}, "row 3, column 'timestamp': must be finite"),
        ({"timestamp": [1, 2, float("inf"), 4]}, "row 3, column 'timestamp': must be finite"),
        ({"position": ["1", "2", "x", "4"]}, "row 3, column 'position': must be a number, got 'x'"),
        ({"time": [1, 2, 3, 4]}, "needs a column 'timestamp' or 'position'"),
        ({"user_id": ["u", None, "v", "u"], "timestamp": [1, 2, 3, 4]}, "row 2, column 'user_id': is missing"),
        ({"item_id": ["a", "b", "", "u"], "timestamp": [1, 2, 3, 4]}, "row 3, column 'item_id': is empty"),
        ({"item_id": None, "itemid": EVENTS["item_id"], "timestamp": [1, 2, 3, 4]}, "column 'item_id': .*'itemid'"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_refused(tmp_path: Path, columns: dict[str, object], complaint: str) -> None:
    given = {name: column for name, column in {**EVENTS, **columns}.items() if column is not None}
    path = write(tmp_path, **given)
    with pytest.raises(DataError, match=rf"interactions\.parquet.*{complaint}"):
        chronological_order(read_interactions(path), ties="shuffle", seed=0)
