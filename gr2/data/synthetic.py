"""A synthetic shop and its log, of any size: data with real structure for trials, tests and benchmarks.

People have tastes (segments that favour departments, categories, brands and prices), are loyal to a brand, buy what
completes what they have just bought, try variants, and refill what runs out; products differ in popularity and are
launched over time. Baskets share one day's timestamp and are stored in ascending item ID, as public review logs are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gr2.catalog import ItemId
from gr2.data.inputs import write_inputs, write_tables
from gr2.data.synthetic_clicks import Clicks, Events, click_tables
from gr2.data.synthetic_items import COMPLEMENTS, LAUNCHES_END, Shop, make_catalog, make_shop
from gr2.data.taxonomy import CATEGORIES, DEPARTMENTS, TIERS

__all__ = ["write_synthetic"]

SEGMENTS = 24
FEWEST_EVENTS = 5
EPOCH = 1_577_836_800  # 2020-01-01, Unix seconds
DAY = 86_400

COMPLEMENT, VARIANT, LOYAL, REFILL, NOISE, TASTE = range(6)
ACTIONS = (0.46, 0.1, 0.12, 0.03, 0.05, 0.24)
SAME_DAY = np.array([0.45, 0.2, 0.2, 0.0, 0.1, 0.2])
RECENT = (0.8, 0.15, 0.05)  # which of the last three products is completed
COMPLEMENT_RANK = (0.65, 0.2, 0.1, 0.05)


def write_synthetic(
    out: Path,
    *,
    users: int = 2000,
    items: int = 1000,
    seed: int = 0,
    id_type: Literal["string", "int64"] = "string",
    clicks: Clicks | None = None,
) -> tuple[Path, ...]:
    """The paths of `items.parquet` and `interactions.parquet`, written to the folder `out`.

    With `clicks`, also of `impressions.parquet` and of `truth.parquet`, which holds what no log does: `request_id`,
    `item_id` and `relevance`, the probability that the user wanted the item. Every user has at least five events, 8.7
    on average in a large shop. The same arguments write the same bytes; clicks change neither items nor events.
    Raises ValueError if `users` is below 1, `items` below 30, `id_type` unknown, or a slate longer than the catalogue.
    """
    if users < 1 or items < 30:
        raise ValueError(f"needs at least 1 user and 30 items, got {users} and {items}")
    if id_type not in ("string", "int64"):
        raise ValueError(f"id_type must be 'string' or 'int64', got {id_type!r}")
    rng = np.random.default_rng(seed)
    shop = make_shop(rng, items)
    item_ids = _ids(rng, items, "P", id_type)
    catalog = make_catalog(rng, shop, item_ids)
    user_ids = _ids(rng, users, "U", id_type)
    user, item, day, tastes = _simulate(rng, shop, users)
    happened = Events(user, item, day, tastes.weights(), tastes.segments, tastes.brand)

    item_rank = np.argsort(np.argsort(np.array(item_ids)))
    order = np.lexsort((item_rank[item], day, user))
    user, item, day = user[order], item[order], day[order]
    key = pa.string() if id_type == "string" else pa.int64()
    log = pa.table(
        {
            "user_id": pa.array(user_ids, key).take(pa.array(user)),
            "item_id": pa.array(item_ids, key).take(pa.array(item)),
            "timestamp": pa.array(EPOCH + day * DAY, pa.int64()),
        }
    )
    written = write_inputs(Path(out), catalog, log)
    if clicks is None:
        return written
    own = np.random.default_rng([seed, 1])
    shown, truth = click_tables(
        own, shop, happened, clicks, user_ids=pa.array(user_ids, key), item_ids=pa.array(item_ids, key)
    )
    return (*written, *write_tables(Path(out), {"impressions.parquet": shown, "truth.parquet": truth}))


@dataclass(frozen=True)
class _Tastes:
    """(S * N,) `bounds`: cumulative item weights of segment s, offset by s; each user's two segments and brand."""

    bounds: NDArray[np.float64]
    segments: NDArray[np.int64]  # (U, 2)
    brand: NDArray[np.int64]  # (U,)

    def weights(self) -> NDArray[np.float64]:
        """(S, N) float64: the products' weights in each segment, which sum to one."""
        return np.diff(self.bounds.reshape(SEGMENTS, -1) - np.arange(SEGMENTS)[:, None], axis=1, prepend=0.0)

    def draw(self, rng: np.random.Generator, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) int64: a product to the taste of each of `users` (n,)."""
        segment = self.segments[users, (rng.random(len(users)) < 0.25).astype(np.int64)]
        count = len(self.bounds) // SEGMENTS
        drawn = np.searchsorted(self.bounds, segment + rng.random(len(users)), side="right") - segment * count
        return np.asarray(np.clip(drawn, 0, count - 1))


def _tastes(rng: np.random.Generator, shop: Shop, users: int) -> _Tastes:
    department = np.array([DEPARTMENTS.index(category.department) for category in CATEGORIES])
    likes_category = rng.dirichlet(np.full(len(DEPARTMENTS), 0.4), SEGMENTS)[:, department]
    likes_category = (likes_category + 0.01) * rng.gamma(0.7, size=(SEGMENTS, len(CATEGORIES)))
    likes_brand = rng.gamma(0.2, size=(SEGMENTS, int(shop.brand.max()) + 1)) + 0.02
    band = rng.random(SEGMENTS) * (len(TIERS) - 1)
    likes_price = np.exp(-0.5 * (np.arange(len(TIERS)) - band[:, None]) ** 2)
    bounds = np.empty((SEGMENTS, len(shop)))
    for segment in range(SEGMENTS):
        weights = likes_category[segment, shop.category] * likes_brand[segment, shop.brand]
        weights *= likes_price[segment, shop.tier] * shop.popularity
        bounds[segment] = segment + np.cumsum(weights) / weights.sum()
        bounds[segment, -1] = segment + 1.0
    segments = rng.choice(SEGMENTS, (users, 2), p=rng.dirichlet(np.full(SEGMENTS, 3.0)))
    tastes = _Tastes(bounds.ravel(), segments, np.zeros(users, np.int64))
    return _Tastes(tastes.bounds, segments, shop.brand[tastes.draw(rng, np.arange(users))])


def _simulate(
    rng: np.random.Generator, shop: Shop, users: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], _Tastes]:
    """User, item and day of every event, and the tastes; no user buys one product twice on one day."""
    longest = min(80, max(FEWEST_EVENTS, len(shop) // 4))
    lengths = np.minimum(FEWEST_EVENTS + rng.negative_binomial(0.7, 0.7 / 4.5, users), longest)
    tastes = _tastes(rng, shop, users)
    bought = np.full((users, longest), -1, np.int64)
    days = np.zeros((users, longest), np.int64)
    now = np.floor(rng.random(users) * LAUNCHES_END).astype(np.int64)
    for step in range(int(lengths.max())):
        who = np.flatnonzero(lengths > step)
        past = bought[who, :step]
        action = rng.choice(len(ACTIONS), len(who), p=ACTIONS) if step else np.full(len(who), TASTE)
        item = _intend(rng, shop, tastes, who, past, action)
        again = (action == REFILL) & shop.refillable[item]
        same_day = (rng.random(len(who)) < SAME_DAY[action]) & (step > 0) & ~again
        gap = 1 + np.floor(rng.exponential(24.0, len(who))).astype(np.int64) + 20 * again
        now[who] += np.where(same_day | (step == 0), 0, gap)
        bought[who, step] = _settle(rng, shop, tastes, who, past, item, now[who], again)
        days[who, step] = now[who]
    user, column = np.nonzero(bought >= 0)
    return user, bought[user, column], days[user, column], tastes


def _intend(
    rng: np.random.Generator,
    shop: Shop,
    tastes: _Tastes,
    who: NDArray[np.int64],
    past: NDArray[np.int64],
    action: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(n,) int64: what each of `who` would buy next, by the action; `past` is (n, step)."""
    item = tastes.draw(rng, who)
    step = past.shape[1]
    noise = action == NOISE
    item[noise] = rng.choice(len(shop), int(noise.sum()), p=shop.popularity)
    loyal = action == LOYAL
    item[loyal] = _of_group(rng, shop, shop.brand, tastes.brand[who[loyal]])
    if step:
        rows = np.arange(len(who))
        recent = past[rows, step - 1 - np.minimum(rng.choice(len(RECENT), len(who), p=RECENT), step - 1)]
        rank = rng.choice(COMPLEMENTS, len(who), p=COMPLEMENT_RANK)
        item = np.where(action == COMPLEMENT, shop.complements[recent, rank], item)
        variant = action == VARIANT
        group = shop.category * (shop.line.max() + 1) + shop.line
        item[variant] = _of_group(rng, shop, group, group[past[variant, step - 1]])
        earlier = past[rows, (rng.random(len(who)) * step).astype(np.int64)]
        item = np.where((action == REFILL) & shop.refillable[earlier], earlier, item)
    return item


def _of_group(
    rng: np.random.Generator, shop: Shop, group: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(n,) int64: for each of `wanted` (n,) a product of that group (N,), the popular ones more often."""
    order = np.argsort(group, kind="stable")
    groups, bounds = group[order], np.concatenate([[0.0], np.cumsum(shop.popularity[order])])
    first, last = np.searchsorted(groups, wanted), np.searchsorted(groups, wanted, side="right")
    point = bounds[first] + rng.random(len(wanted)) * (bounds[last] - bounds[first])
    rank = np.searchsorted(bounds, point, side="right") - 1
    return np.asarray(order[np.clip(rank, first, last - 1)])


def _settle(
    rng: np.random.Generator,
    shop: Shop,
    tastes: _Tastes,
    who: NDArray[np.int64],
    past: NDArray[np.int64],
    item: NDArray[np.int64],
    now: NDArray[np.int64],
    again: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """`item` (n,) with what is not yet sold, or is owned and no refill, replaced by something to the taste."""
    item, rows = item.copy(), np.arange(len(who))
    attempt = 0
    while len(rows):
        chosen = item[rows]
        refused = (shop.launch[chosen] > now[rows]) | (~again[rows] & (past[rows] == chosen[:, None]).any(axis=1))
        if 0 < attempt < 4:  # old products lose to new ones
            age = np.maximum(now[rows] - shop.launch[chosen], 0.0)
            refused |= rng.random(len(rows)) > 0.3 + 0.7 * np.exp(-age / 300)
        rows = rows[refused]
        again[rows] = False
        item[rows] = tastes.draw(rng, who[rows]) if attempt < 6 else rng.integers(0, len(shop), len(rows))
        attempt += 1
    return item


def _ids(rng: np.random.Generator, count: int, letter: str, id_type: str) -> list[ItemId]:
    width = max(6, len(str(20 * count)))
    numbers = np.sort(rng.choice(10**width - 10 ** (width - 1), count, replace=False)) + 10 ** (width - 1)
    shuffled = rng.permutation(numbers).tolist()
    return [f"{letter}{number}" for number in shuffled] if id_type == "string" else shuffled
