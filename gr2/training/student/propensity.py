"""How likely a place is to be looked at, and clicks weighed by it.

A click needs a look: P(click) = p_place * relevance. Where the places of a log follow a ranker's order, clicks say as
much of the places as of the items, and a student of them learns to keep the order. A click weighed by 1 / p_place
counts, on average, as it would had all places been looked at (Joachims, Swaminathan and Schnabel, WSDM 2017).

The propensities p, p_1 = 1 at the first place that is shown, are given, or estimated from the clicks:

    swaps  from slates whose places differ from the order of their scores by chance. C[r, k] clicks of N[r, k]
           candidates of rank r at place k are taken as Poisson with mean N[r, k] p_k q_r, and p is the likeliest
           (Agarwal et al., WSDM 2019, harvest such interventions pair by pair)
    em     by regression-EM (Wang et al., WSDM 2018): relevance is a logistic function of what is known of a candidate,
           its rank by score included where enough places differ from it. Without such slates, relevance that only the
           rank tells is taken for a bias
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.errors import DataError

__all__ = ["Method", "click_weights", "estimate_em", "estimate_swaps", "place_propensities"]

Method = Literal["off", "given", "swaps", "em"]
LEAST_MOVED = 100  # candidates at each place beside those of the rank that is usual there
SWAP_ROUNDS, EM_ROUNDS, NEWTON_STEPS = 500, 100, 3
RIDGE = 1.0
TINY = 1e-6


def place_propensities(
    method: Method,
    lists: CandidateLists,
    features: NDArray[np.float32],
    *,
    given: Sequence[float] = (),
    least: float = TINY,
) -> NDArray[np.float64] | None:
    """(P,) float64: the propensity of each place, from 1, as `method` has it, at least `least`; None if that is off.

    `lists` are impressions, `features` (R, K, F) what is known of their candidates but for their rank. A place that
    none of them holds is taken for the nearest held one above it. Raises DataError if there are no lists or they have
    no places, or if swaps are asked for and too few candidates were moved.
    """
    if method == "off":
        return None
    if lists.places is None or lists.grades is None:
        raise DataError(f"[distill] propensity = {method!r} needs lists of impressions, which have places and clicks")
    if method == "given":
        return np.maximum(given, least)
    shown = lists.candidates != PADDING
    if not shown.any():
        raise DataError(
            f"[distill] propensity = {method!r}: no training slate has a positive and a negative, so there are no "
            "clicks to estimate it from; take 'given' or 'off'"
        )
    held, places = np.unique(lists.places[shown], return_inverse=True)
    clicked, places = (lists.grades > 0)[shown], places + 1
    ranks = np.broadcast_to(1 + np.arange(lists.width), shown.shape)[shown]
    moved = _moved(places, ranks)
    if method == "swaps":
        if moved.min() < LEAST_MOVED:
            raise DataError(
                "[distill] propensity = 'swaps' needs slates whose places differ from the order of their scores: at "
                f"place {held[moved.argmin()]} only {moved.min()} candidates of other ranks were shown, {LEAST_MOVED} "
                "are needed; shuffle some slates, or take 'em' or 'given'"
            )
        found = estimate_swaps(clicked, places, ranks)
    else:
        told = features[shown]
        if moved.min() >= LEAST_MOVED:
            told = np.column_stack([told, np.log2(ranks), 1.0 / ranks]).astype(np.float32)
        found = estimate_em(clicked, places, told)
    above = np.searchsorted(held, np.arange(1, held[-1] + 1), side="right") - 1
    return np.maximum(found[np.maximum(above, 0)], least)


def click_weights(lists: CandidateLists, propensities: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """(R, K) float64: the gains of the lists over the propensities of their places, scaled to the sum of before."""
    gains, weighed = lists.gains(), lists.gains(propensities)
    total = float(weighed.sum())
    return weighed * (float(gains.sum()) / total) if total else weighed


def estimate_swaps(
    clicked: NDArray[np.bool_], places: NDArray[np.integer], ranks: NDArray[np.integer]
) -> NDArray[np.float64]:
    """(P,) propensities from n candidates, clicked (n,), shown at places (n,), of ranks (n,) by score, both from 1."""
    shown, clicks = _table(places, ranks), _table(places, ranks, clicked)
    wanted, seen = np.ones(shown.shape[0]), np.ones(shown.shape[1])
    for _ in range(SWAP_ROUNDS):
        wanted = clicks.sum(1) / np.maximum(shown @ seen, TINY)
        seen = clicks.sum(0) / np.maximum(wanted @ shown, TINY)
    return _scaled(seen)


def estimate_em(
    clicked: NDArray[np.bool_], places: NDArray[np.integer], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(P,) propensities from n candidates, clicked (n,), shown at places (n,), with features (n, F)."""
    columns = features.astype(np.float64)
    columns = (columns - columns.mean(0)) / np.maximum(columns.std(0), TINY)
    columns = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    place, count = places - 1, np.maximum(np.bincount(places - 1), 1)
    seen = np.maximum(np.bincount(place, weights=clicked) / count, TINY)
    seen = np.minimum(seen / seen.max(), 1.0 - TINY)
    weights = np.zeros(columns.shape[1])
    for _ in range(EM_ROUNDS):
        wanted = 1.0 / (1.0 + np.exp(-columns @ weights))
        looked = seen[place]
        unclicked = np.maximum(1.0 - looked * wanted, TINY)
        weights = _logistic(columns, np.where(clicked, 1.0, (1.0 - looked) * wanted / unclicked), weights)
        looked = np.where(clicked, 1.0, looked * (1.0 - wanted) / unclicked)
        seen = np.clip(np.bincount(place, weights=looked) / count, TINY, 1.0 - TINY)
    return _scaled(seen)


def _moved(places: NDArray[np.integer], ranks: NDArray[np.integer]) -> NDArray[np.int64]:
    """(P,) how many candidates each place held beside those of the rank that stands there most often."""
    shown = _table(places, ranks)
    moved: NDArray[np.int64] = (shown.sum(0) - shown.max(0)).astype(np.int64)
    return moved


def _table(
    places: NDArray[np.integer], ranks: NDArray[np.integer], weights: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """(Q, P) how many candidates of each rank stood at each place, or the sum of their weights."""
    shape = (int(ranks.max()), int(places.max()))
    cell = (ranks - 1) * shape[1] + places - 1
    table: NDArray[np.float64] = np.bincount(cell, weights, shape[0] * shape[1]).reshape(shape).astype(np.float64)
    return table


def _logistic(
    columns: NDArray[np.float64], target: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A few Newton steps of ridge logistic regression on soft targets (n,), from `weights`."""
    for _ in range(NEWTON_STEPS):
        share = 1.0 / (1.0 + np.exp(-columns @ weights))
        gradient = columns.T @ (share - target) + RIDGE * weights
        hessian = (columns * (share * (1.0 - share))[:, None]).T @ columns + RIDGE * np.eye(len(weights))
        weights = weights - np.linalg.solve(hessian, gradient)
    return weights


def _scaled(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Propensities relative to the first place's, none above 1 or at 0."""
    return np.clip(seen / max(float(seen[0]), TINY), TINY, 1.0)
