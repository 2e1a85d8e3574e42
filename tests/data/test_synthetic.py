from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr2.data.dataset import Dataset
from gr2.data.prepare import PrepareConfig, prepare
from gr2.data.synthetic import write_synthetic
from gr2.data.taxonomy import CATEGORIES, DEPARTMENTS


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_synthetic(tmp_path_factory.mktemp("shop"), users=3000, items=800, seed=1)


@pytest.fixture(scope="module")
def dataset(shop: tuple[Path, Path]) -> Dataset:
    return prepare(PrepareConfig(items=str(shop[0]), interactions=str(shop[1])), seed=0)[0]


def transitions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Items of consecutive training events on different days."""
    same_user = np.repeat(np.arange(dataset.users), dataset.lengths)
    train = np.arange(len(dataset.items)) < np.repeat(dataset.offsets[1:] - 2, dataset.lengths)
    follows = (same_user[1:] == same_user[:-1]) & (np.diff(dataset.timestamps) > 0) & train[1:]
    return dataset.items[:-1][follows], dataset.items[1:][follows]


def test_complements_name_categories() -> None:
    names = [category.name for category in CATEGORIES]
    assert len(set(names)) == len(names)
    assert all(then in names and then != category.name for category in CATEGORIES for then in category.then)
    assert {category.department for category in CATEGORIES} == set(DEPARTMENTS)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    written = [
        [path.read_bytes() for path in write_synthetic(tmp_path / str(number), users=50, items=60, seed=seed)]
        for number, seed in enumerate((4, 4, 5))
    ]
    assert written[0] == written[1]
    assert written[0][0] != written[2][0]
    assert written[0][1] != written[2][1]
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["interactions.parquet", "items.parquet"]


@pytest.mark.parametrize(("users", "items"), [(1, 30), (200, 30), (40, 500)])
@pytest.mark.parametrize("id_type", ["string", "int64"])
def test_any_size_gives_a_log_that_prepare_takes(tmp_path: Path, users: int, items: int, id_type: str) -> None:
    paths = write_synthetic(tmp_path, users=users, items=items, seed=3, id_type=id_type)
    dataset, metrics = prepare(PrepareConfig(items=str(paths[0]), interactions=str(paths[1]), core=0), seed=0)
    assert (metrics["users"], metrics["items"]) == (users, items)
    assert dataset.lengths.min() >= 5
    assert dataset.catalog.id_type == id_type
    assert {type(user) for user in dataset.user_ids} == {str if id_type == "string" else int}


@pytest.mark.parametrize("wrong", [{"users": 0}, {"items": 29}, {"id_type": "int32"}])
def test_impossible_shops_are_refused(tmp_path: Path, wrong: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match=r"needs at least|id_type must be"):
        write_synthetic(tmp_path, **wrong)


def test_most_users_and_items_survive_a_five_core(dataset: Dataset) -> None:
    assert dataset.users > 2850
    assert len(dataset.catalog) > 560
    assert 8 < dataset.lengths.mean() < 9.5
    assert 0.2 < dataset.tied.mean() < 0.45


def test_baskets_are_stored_in_ascending_item_id(shop: tuple[Path, Path]) -> None:
    log = pq.read_table(shop[1]).to_pydict()
    events = list(zip(log["user_id"], log["timestamp"], log["item_id"], strict=True))
    pairs = [(a, b) for a, b in itertools.pairwise(events) if a[:2] == b[:2]]
    assert len(pairs) > 1000
    assert all(before[2] < after[2] for before, after in pairs)
    assert all(time % 86_400 == 0 for time in log["timestamp"])


def test_products_look_real(shop: tuple[Path, Path]) -> None:
    rows = pq.read_table(shop[0]).to_pylist()
    titles = [row["title"] for row in rows]
    assert len(set(titles)) == len(titles)
    assert all(len(title.split()) >= 4 for title in titles)
    assert {len(row["categories"]) for row in rows} == {2, 3}
    assert all(row["price"] is None or 0 < row["price"] < 1000 for row in rows)
    for name, share in (("brand", 0.03), ("price", 0.04), ("description", 0.1)):
        assert 0 < np.mean([row[name] is None for row in rows]) < 2 * share
    tiers: dict[str, list[float]] = {}
    for row in rows:
        if row["brand"] and row["price"] and row["categories"][1] == "Face Creams":
            tiers.setdefault(row["brand"], []).append(row["price"])
    means = [np.mean(prices) for prices in tiers.values()]
    assert max(means) > 2 * min(means)


def test_ids_say_nothing_of_popularity(dataset: Dataset) -> None:
    popularity = np.bincount(dataset.items, minlength=len(dataset.catalog))
    rank = np.argsort(np.argsort(np.array(dataset.catalog.ids)))
    assert abs(np.corrcoef(rank, popularity)[0, 1]) < 0.15


def test_popularity_is_skewed(dataset: Dataset) -> None:
    counts = np.sort(np.bincount(dataset.items))[::-1]
    assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_what_completes_what_is_directed(dataset: Dataset) -> None:
    first = {category.name: category.then[0] for category in CATEGORIES}
    category = [path[1] for path in dataset.catalog.categories]
    pairs = Counter((category[a], category[b]) for a, b in zip(*transitions(dataset), strict=True))
    one_way = {(a, b) for a, b in first.items() if first[b] != a}
    forward = sum(pairs[pair] for pair in one_way)
    backward = sum(pairs[pair[::-1]] for pair in one_way)
    assert forward > 2 * backward


def test_brands_hold_their_buyers(dataset: Dataset) -> None:
    brand = np.array([name or "" for name in dataset.catalog.brand])
    before, after = transitions(dataset)
    shuffled = np.random.default_rng(0).permutation(after)
    assert np.mean(brand[before] == brand[after]) > 2 * np.mean(brand[before] == brand[shuffled])


def test_only_what_runs_out_is_bought_again(dataset: Dataset) -> None:
    refill = {category.name for category in CATEGORIES if category.refill}
    repeats = [
        item
        for user in range(dataset.users)
        for item, count in Counter(dataset.events(user).tolist()).items()
        if count > 1
    ]
    assert len(repeats) > 100
    assert {dataset.catalog.categories[item][1] for item in repeats} <= refill


def test_the_next_item_can_be_learnt_from_sequences_and_from_co_purchases(dataset: Dataset) -> None:
    count = len(dataset.catalog)
    follows, bought = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(follows, transitions(dataset), 1)
    for user in range(dataset.users):
        train = dataset.events(user)[:-2]
        bought[np.ix_(train, train)] += 1
    popularity = np.diag(bought)
    ranks: dict[str, list[int]] = {"popularity": [], "sequence": [], "co-purchase": []}
    for user in range(0, dataset.users, 3):
        history, target = dataset.events(user)[:-1], dataset.events(user)[-1]
        together = (bought[history] / np.sqrt(popularity + 1)).sum(axis=0)
        for name, score in (("popularity", popularity), ("sequence", follows[history[-1]]), ("co-purchase", together)):
            score = score + 1e-6 * popularity
            score[history] = -1
            ranks[name].append(int((score > score[target]).sum()))
    hits = {name: np.mean(np.array(rank) < 10) for name, rank in ranks.items()}
    assert hits["sequence"] > 2 * hits["popularity"]
    assert hits["co-purchase"] > 2 * hits["popularity"]
