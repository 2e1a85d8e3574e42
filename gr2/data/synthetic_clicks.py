"""What the synthetic shop showed and what was clicked: impressions with position bias, and the truth beside them.

A slate is shown before each day on which a user buys, but for the first. A candidate's relevance is the probability
that the user wants it, from the tastes, complements and brands that also drive what is bought. The user examines place
k with probability k^-bias, and clicks on what is examined if it is wanted, or by mistake. The pre-ranker that ordered
the slates knows little of all this, so what stands on top is clicked for standing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gr2.data.synthetic_items import Shop

__all__ = ["Clicks", "Events", "click_tables"]

RECENT = 3  # products whose complements are offered and wanted
BROAD, NARROW = 0.75, 0.25  # of a user's two segments
TASTE, COMPLEMENT, BRAND = 0.5, 2.5, 1.0
USUAL = -2.2  # the log odds that something ordinary is wanted
KNOWS, NOISE = 0.35, 1.0  # of the pre-ranker's scores
CONVERTS = 0.25  # share of the wanted clicks that end in a purchase
HOUR, DAY, EPOCH = 3600, 86_400, 1_577_836_800


@dataclass(frozen=True)
class Clicks:
    """How slates are shown and clicked.

    Attributes:
        slate: candidates of a slate.
        bias: place k, from 1, is examined with probability k^-bias; 0 examines all.
        mistakes: the share of what is examined and not wanted that is clicked all the same.
        shuffled: the share of the slates that are shown in random order, from which a bias can be measured.
    """

    slate: int = 10
    bias: float = 1.0
    mistakes: float = 0.02
    shuffled: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.slate <= 100:
            raise ValueError(f"slate must be 2 to 100, got {self.slate}")
        if not 0 <= self.bias <= 10:
            raise ValueError(f"bias must be 0 to 10, got {self.bias}")
        for name in ("mistakes", "shuffled"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Events:
    """E events as they happened, grouped by user, and what drives them.

    `taste` (S, N) are the weights of the products in each segment, `segments` (U, 2) and `brand` (U,) the users'.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    day: NDArray[np.int64]
    taste: NDArray[np.float64]
    segments: NDArray[np.int64]
    brand: NDArray[np.int64]


def click_tables(
    rng: np.random.Generator, shop: Shop, events: Events, clicks: Clicks, *, user_ids: Any, item_ids: Any
) -> tuple[Any, Any]:
    """The impressions as a pa.Table, one row a candidate, and the truth: `request_id`, `item_id`, `relevance`.

    `user_ids` and `item_ids` are pa.Arrays. Raises ValueError if a slate is longer than the catalogue.
    """
    if clicks.slate > len(shop):
        raise ValueError(f"slate must be at most the {len(shop)} items, got {clicks.slate}")
    first = np.flatnonzero((np.diff(events.user, prepend=-1) == 0) & (np.diff(events.day, prepend=-1) > 0))
    slates = _slates(rng, shop, events, first, clicks.slate)
    wanted = _utility(shop, events, first, slates)
    relevance = 1.0 / (1.0 + np.exp(-wanted))
    scores = KNOWS * wanted + NOISE * rng.normal(size=wanted.shape)
    places = 1 + np.argsort(np.argsort(-scores, axis=1), axis=1)
    random = rng.random(len(first)) < clicks.shuffled
    places[random] = rng.permuted(places[random], axis=1)
    examined = rng.random(places.shape) < places.astype(np.float64) ** -clicks.bias
    drawn = rng.random(places.shape) < relevance
    clicked = examined & (drawn | (rng.random(places.shape) < clicks.mistakes))
    label = clicked.astype(np.int64) + (clicked & drawn & (rng.random(places.shape) < CONVERTS))
    request = np.repeat(np.arange(len(first)), clicks.slate)
    request_id = pa.array([f"R{number:08d}" for number in range(len(first))]).take(pa.array(request))
    order = np.lexsort((places.ravel(), request))
    items = item_ids.take(pa.array(slates.ravel()))
    taste = np.log(_taste(events, first, slates) * len(shop) + 0.01) + rng.normal(size=wanted.shape)
    shown = pa.table(
        {
            "request_id": request_id,
            "user_id": user_ids.take(pa.array(np.repeat(events.user[first], clicks.slate))),
            "timestamp": pa.array(np.repeat(EPOCH + events.day[first] * DAY - HOUR, clicks.slate)),
            "item_id": items,
            "position": pa.array(places.ravel()),
            "score": pa.array(scores.ravel().astype(np.float32)),
            "label": pa.array(label.ravel()),
            "feature_taste": pa.array(taste.ravel().astype(np.float32)),
        }
    )
    truth = pa.table({"request_id": request_id, "item_id": items, "relevance": pa.array(relevance.ravel())})
    return shown.take(pa.array(order)), truth.take(pa.array(order))


def _past(events: Events, first: NDArray[np.int64]) -> NDArray[np.int64]:
    """(R, 3) int64: the products that a user bought last before each event, newest first, -1 where there are fewer."""
    back = first[:, None] - 1 - np.arange(RECENT)
    own = (back >= 0) & (events.user[np.maximum(back, 0)] == events.user[first][:, None])
    return np.where(own, events.item[np.maximum(back, 0)], -1)


def _slates(
    rng: np.random.Generator, shop: Shop, events: Events, first: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    """(R, width) int64: what is bought next, complements of what was bought, things to the taste, popular things."""
    past = _past(events, first)
    complements = shop.complements[past].reshape(len(first), -1)
    complements = np.where(np.repeat(past, complements.shape[1] // RECENT, axis=1) >= 0, complements, -1)
    bounds = np.cumsum(events.taste, axis=1)
    liked = np.empty((len(first), width), dtype=np.int64)
    for segment in range(len(bounds)):
        rows = events.segments[events.user[first], 0] == segment
        liked[rows] = np.searchsorted(bounds[segment] / bounds[segment, -1], rng.random((int(rows.sum()), width)))
    popular = rng.choice(len(shop), (len(first), 3 * width), p=shop.popularity)
    some = rng.permuted(complements, axis=1)[:, : max(1, width // 3)]
    enough = np.broadcast_to(np.arange(width), liked.shape)
    offered = [events.item[first][:, None], some, liked[:, : max(1, width // 3)], popular, enough]
    pool = np.concatenate(offered, axis=1)
    out = np.empty((len(pool), width), dtype=np.int64)
    for row, offers in enumerate(pool):
        distinct = dict.fromkeys(offers.tolist())
        distinct.pop(-1, None)
        out[row] = list(distinct)[:width]
    return out


def _taste(events: Events, first: NDArray[np.int64], slates: NDArray[np.int64]) -> NDArray[np.float64]:
    segments = events.segments[events.user[first]]
    broad, narrow = (events.taste[segments[:, column, None], slates] for column in (0, 1))
    return np.asarray(BROAD * broad + NARROW * narrow)


def _utility(shop: Shop, events: Events, first: NDArray[np.int64], slates: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, K) float64: the log odds that a candidate is wanted."""
    taste = np.log(_taste(events, first, slates) * len(shop) + 0.05)
    completes = np.zeros(slates.shape)
    for age, recent in enumerate(_past(events, first).T):
        found = (shop.complements[recent][:, None, :] == slates[:, :, None]).any(axis=2) & (recent >= 0)[:, None]
        completes = np.maximum(completes, found / (1.0 + age))
    loyal = shop.brand[slates] == events.brand[events.user[first]][:, None]
    odds: NDArray[np.float64] = USUAL + TASTE * taste + COMPLEMENT * completes + BRAND * loyal
    return odds
