"""Columns of catalogue attributes against the formulas of their docstring, pair by pair."""

from __future__ import annotations

import numpy as np

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.training.teachers.attributes import ATTRIBUTES, Attributes, attribute_columns, title_words

TITLES = ["Argan Oil shampoo", "argan hair mask", "Red nail polish 2oz", None, "Oil of argan, 100 ml", ""]
BRANDS = ["A", "A", "B", None, "A", ""]
PATHS = [["Hair", "Wash"], ["Hair", "Mask"], ["Nails"], [], ["Hair", "Wash", "Oils"], ["Hair"]]
PRICES = [10.0, 12.0, 3.0, None, 0.0, 40.0]


def dataset() -> Dataset:
    blank: list[str | None] = [None] * 6
    catalog = Catalog(list(range(6)), list(TITLES), list(BRANDS), PATHS, list(PRICES), blank)
    events = np.array([2, 3, 0, 1, 5, 5], dtype=np.int32)
    return Dataset(catalog, [0], np.array([0, 6]), events, np.full(6, np.nan), np.zeros(1, np.bool_))


def found() -> dict[str, np.ndarray]:
    """The columns of the list [1, 4, 3, padding] after the history 2, 3, 0."""
    lists = CandidateLists(
        np.zeros(1, np.int32),
        np.full(1, 3, np.int32),
        np.ones(1, np.int32),
        np.array([[1, 4, 3, -1]], np.int32),
        np.array([[3, 2, 1, -np.inf]], np.float32),
    )
    data = dataset()
    columns = attribute_columns(Attributes.of(data.catalog), data, lists, longest=3)
    assert columns.shape == (1, 4, len(ATTRIBUTES))
    return dict(zip(ATTRIBUTES, columns[0].T, strict=True))


def test_categories_are_compared_from_the_root() -> None:
    columns = found()
    np.testing.assert_allclose(columns["category_last"], [1 / 2, 2 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(columns["category_max"], [1 / 2, 2 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(columns["category_mean"], [1 / 6, 2 / 9, 0, 0], rtol=1e-6)


def test_brands_that_are_unknown_are_not_equal() -> None:
    columns = found()
    np.testing.assert_allclose(columns["brand_share"], [1 / 3, 1 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(columns["brand_last"], [1, 1, 0, 0])


def test_prices_are_compared_with_the_median_of_those_known() -> None:
    columns = found()
    middle = (np.log(3) + np.log(10)) / 2
    np.testing.assert_allclose(columns["price_closeness"], [np.exp(-(np.log(12) - middle)), 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(columns["price_known"], [1, 0, 0, 0])


def test_titles_are_compared_by_rare_words() -> None:
    words = [title_words(title) for title in TITLES]
    assert words[2] == {"red", "nail", "polish"}
    assert words[3] == frozenset()
    every = sorted(set().union(*words))
    weight = {word: -np.log(sum(word in each for each in words) / 6) for word in every}

    def cosine(left: int, right: int) -> float:
        both = sum(weight[word] ** 2 for word in words[left] & words[right])
        sizes = [np.sqrt(sum(weight[word] ** 2 for word in words[item])) for item in (left, right)]
        return float(both / (sizes[0] * sizes[1])) if min(sizes) else 0.0

    columns = found()
    np.testing.assert_allclose(columns["title_last"][:3], [cosine(item, 0) for item in (1, 4, 3)], rtol=1e-5)
    np.testing.assert_allclose(
        columns["title_mean"][:3],
        [np.mean([cosine(item, past) for past in (2, 3, 0)]) for item in (1, 4, 3)],
        rtol=1e-5,
    )
    assert columns["title_last"][0] > 0


def test_columns_do_not_depend_on_the_lists_beside() -> None:
    data = dataset()
    rows = 40
    rng = np.random.default_rng(0)
    lists = CandidateLists(
        np.zeros(rows, np.int32),
        rng.integers(1, 4, rows).astype(np.int32),
        np.ones(rows, np.int32),
        np.stack([rng.permutation(6)[:4] for _ in range(rows)]).astype(np.int32),
        np.tile(np.arange(4, 0, -1).astype(np.float32), (rows, 1)),
    )
    attributes = Attributes.of(data.catalog)
    whole = attribute_columns(attributes, data, lists, longest=3)
    alone = [attribute_columns(attributes, data, lists.take(np.array([row])), longest=3)[0] for row in range(rows)]
    np.testing.assert_array_equal(whole, np.stack(alone))


def test_words_of_any_script_are_compared_without_regard_to_case() -> None:
    assert title_words("KÉRASTASE Crème, 125ml 3XL") == {"kérastase", "crème"}
    assert title_words("Шампунь для ВОЛОС") == {"шампунь", "для", "волос"}
    assert title_words("STRASSE Straße") == {"strasse"}
    assert title_words(None) == frozenset()
