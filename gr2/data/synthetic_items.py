"""The catalogue of the synthetic shop: brands with their ranges, products, titles, prices and what completes what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.catalog import Catalog, ItemId
from gr2.data.taxonomy import ADJECTIVES, CATEGORIES, CONCERNS, DEPARTMENTS, LINES, SHADES, SYLLABLES, TIERS

__all__ = ["COMPLEMENTS", "LAUNCHES_END", "Shop", "make_catalog", "make_shop"]

COMPLEMENTS = 4
LAUNCHES_END = 900  # days
LINES_PER_BRAND = 3


@dataclass(frozen=True)
class Shop:
    """N products by index, and the hidden structure that makes people buy them.

    Attributes:
        category, brand, line, tier: (N,) int64; `line` numbers the brand's ranges over all brands.
        popularity: (N,) float64 weights that sum to one, with a heavy tail.
        launch: (N,) float64: the day from which a product is sold.
        complements: (N, 4) int64: the products bought after this one, most usual first: of the same range of the brand
            in a complementary category if there is one, else of the brand, else of the category.
    """

    category: NDArray[np.int64]
    brand: NDArray[np.int64]
    line: NDArray[np.int64]
    tier: NDArray[np.int64]
    popularity: NDArray[np.float64]
    launch: NDArray[np.float64]
    complements: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.category)

    @property
    def refillable(self) -> NDArray[np.bool_]:
        """(N,) bool: products that run out and are bought again."""
        return np.array([category.refill for category in CATEGORIES])[self.category]


def make_shop(rng: np.random.Generator, items: int) -> Shop:
    """A shop with `items` products."""
    brands = max(4, round(items / 40))
    departments = np.array([DEPARTMENTS.index(category.department) for category in CATEGORIES])
    affinity = rng.dirichlet(np.full(len(DEPARTMENTS), 0.25), brands)[:, departments]
    affinity *= rng.gamma(0.8, size=affinity.shape)
    size = _zipf(rng, brands, 0.6)
    brand = rng.choice(brands, items, p=size)
    category = _sample_rows(rng, affinity / affinity.sum(axis=1, keepdims=True), brand)
    line = brand * LINES_PER_BRAND + rng.integers(0, LINES_PER_BRAND, items)
    tier = rng.choice(len(TIERS), brands, p=[0.25, 0.4, 0.25, 0.1])[brand]
    popularity = _zipf(rng, items, 0.6)
    launch = np.where(rng.permutation(items) < 0.6 * items, 0.0, np.floor(rng.random(items) * LAUNCHES_END))
    complements = _complements(rng, category, brand, line)
    return Shop(category, brand, line, tier, popularity, launch, complements)


def make_catalog(rng: np.random.Generator, shop: Shop, ids: list[ItemId]) -> Catalog:
    """The shop's public side, as real catalogues are: some brands, prices and descriptions are missing."""
    count = len(shop)
    brand_names = _brand_names(rng, int(shop.brand.max()) + 1)
    line_names = _line_names(rng, len(brand_names))
    adjective, shade, concern = (rng.integers(0, len(words), count) for words in (ADJECTIVES, SHADES, CONCERNS))
    noun, size = (rng.random(count) for _ in range(2))
    spread = rng.lognormal(0.0, 0.25, count)
    missing = rng.random((count, 3)) < (0.03, 0.04, 0.1)
    titles: list[str | None] = []
    brands, paths, prices, descriptions = [], [], [], []
    seen: dict[str, int] = {}
    for row in range(count):
        kind = CATEGORIES[shop.category[row]]
        name, line = brand_names[shop.brand[row]], line_names[shop.line[row]]
        what = kind.nouns[int(noun[row] * len(kind.nouns))]
        parts = [name, line, ADJECTIVES[adjective[row]], what, *([SHADES[shade[row]]] if kind.shaded else [])]
        title = " ".join([*parts, kind.sizes[int(size[row] * len(kind.sizes))]])
        seen[title] = seen.get(title, 0) + 1
        titles.append(title if seen[title] == 1 else f"{title} (Edition {seen[title]})")
        brands.append(None if missing[row, 0] else name)
        paths.append([kind.department, kind.name, *([what] if len(kind.nouns) > 2 else [])])
        price = kind.price * TIERS[shop.tier[row]][1] * spread[row]
        prices.append(None if missing[row, 1] else float(np.floor(price) + 0.99))
        text = f"{ADJECTIVES[adjective[row]]} {what.lower()} with {line.lower()}, made for {CONCERNS[concern[row]]}."
        descriptions.append(None if missing[row, 2] else f"{text} Part of the {line} range by {name}.")
    return Catalog(ids, titles, brands, paths, prices, descriptions)


def _sample_rows(rng: np.random.Generator, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) int64: for each of `rows` (n,) a column drawn from that row of `weights` (R, C), whose rows sum to one."""
    bounds = np.cumsum(weights, axis=1)
    bounds[:, -1] = 1.0
    flat = (bounds + np.arange(len(weights))[:, None]).ravel()
    drawn = np.searchsorted(flat, rows + rng.random(len(rows)), side="right") - rows * weights.shape[1]
    return np.asarray(np.clip(drawn, 0, weights.shape[1] - 1))


def _complements(
    rng: np.random.Generator,
    category: NDArray[np.int64],
    brand: NDArray[np.int64],
    line: NDArray[np.int64],
) -> NDArray[np.int64]:
    count, lines = len(category), int(line.max()) + 1
    index = {kind.name: number for number, kind in enumerate(CATEGORIES)}
    then = np.array([[index[kind.then[slot % len(kind.then)]] for slot in range(COMPLEMENTS)] for kind in CATEGORIES])
    key = category * lines + line
    order = np.argsort(key, kind="stable")
    keys = key[order]
    result = np.empty((count, COMPLEMENTS), np.int64)
    for slot in range(COMPLEMENTS):
        target = then[category, slot] * lines
        first = np.zeros(count, np.int64)
        last = np.full(count, count)
        ranges = (
            (target, target + lines),
            (target + brand * LINES_PER_BRAND, target + (brand + 1) * LINES_PER_BRAND),
            (target + line, target + line + 1),
        )
        for low, high in ranges:
            start, stop = np.searchsorted(keys, low), np.searchsorted(keys, high)
            first, last = np.where(stop > start, start, first), np.where(stop > start, stop, last)
        result[:, slot] = order[first + np.floor(rng.random(count) * (last - first)).astype(np.int64)]
    return result


def _zipf(rng: np.random.Generator, count: int, exponent: float) -> NDArray[np.float64]:
    weights = (1.0 + rng.permutation(count)) ** -exponent
    return np.asarray(weights / weights.sum())


def _brand_names(rng: np.random.Generator, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = [part[number] for part in SYLLABLES for number in [int(rng.integers(0, len(part)))]]
        extra = SYLLABLES[1][int(rng.integers(0, len(SYLLABLES[1])))] if len(names) > 3000 else ""
        names["".join([*syllables[:2], extra, syllables[2]])] = None
    return list(names)


def _line_names(rng: np.random.Generator, brands: int) -> list[str]:
    return [LINES[number] for _ in range(brands) for number in rng.permutation(len(LINES))[:LINES_PER_BRAND]]
