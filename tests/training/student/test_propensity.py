"""Propensities come out as they went in, and clicks weighed by them count as if all places had been looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gr2.data.candidates import CandidateLists
from gr2.errors import DataError
from gr2.metrics import weighed_values
from gr2.training.distill import DistillConfig
from gr2.training.student.propensity import Method, click_weights, estimate_em, estimate_swaps, place_propensities

WIDTH = 6
LOOKED = 1.0 / np.arange(1, WIDTH + 1)


def impressions(rows: int, seed: int, *, shuffled: float = 0.2) -> tuple[CandidateLists, np.ndarray, np.ndarray]:
    """Slates with clicks by LOOKED, their candidates' true relevance, and a column that tells it."""
    rng = np.random.default_rng(seed)
    told = rng.normal(size=(rows, WIDTH))
    order = np.argsort(-(told + rng.normal(size=told.shape)), axis=1)
    told = np.take_along_axis(told, order, axis=1)
    relevance = 1 / (1 + np.exp(1.0 - 1.5 * told))
    places = np.tile(np.arange(1, WIDTH + 1), (rows, 1))
    moved = rng.random(rows) < shuffled
    places[moved] = rng.permuted(places[moved], axis=1)
    clicked = (rng.random(told.shape) < LOOKED[places - 1]) & (rng.random(told.shape) < relevance)
    lists = CandidateLists(
        np.zeros(rows, dtype=np.int32),
        np.zeros(rows, dtype=np.int32),
        np.zeros(rows, dtype=np.int32),
        np.tile(np.arange(WIDTH, dtype=np.int32), (rows, 1)),
        np.tile(-np.arange(WIDTH, dtype=np.float32), (rows, 1)),
        grades=clicked.astype(np.int8),
        places=places.astype(np.int32),
    )
    return lists, relevance, told[:, :, None].astype(np.float32)


def test_swaps_find_how_often_places_are_looked_at() -> None:
    lists, _, features = impressions(20_000, 0)
    found = place_propensities("swaps", lists, features)
    np.testing.assert_allclose(found, LOOKED, rtol=0.15)


def test_em_finds_it_without_swaps_where_features_tell_the_relevance() -> None:
    lists, _, features = impressions(20_000, 1, shuffled=0.0)
    found = place_propensities("em", lists, features)
    np.testing.assert_allclose(found, LOOKED, rtol=0.25)


def test_em_reads_the_rank_where_slates_were_moved() -> None:
    lists, _, features = impressions(20_000, 8)
    blind = np.zeros_like(features)
    np.testing.assert_allclose(place_propensities("em", lists, blind), LOOKED, rtol=0.25)
    alone, _, _ = impressions(20_000, 8, shuffled=0.0)
    mistaken = place_propensities("em", alone, blind)
    assert mistaken is not None
    assert mistaken[-1] < 0.5 * LOOKED[-1]  # relevance that only the rank tells is taken for a bias


def test_swaps_need_slates_that_were_moved() -> None:
    lists, _, features = impressions(500, 2, shuffled=0.0)
    with pytest.raises(DataError, match="at place 1 only 0 candidates of other ranks were shown, 100 are needed"):
        place_propensities("swaps", lists, features)


@pytest.mark.parametrize("method", ["swaps", "em"])
def test_places_that_no_slate_holds_are_taken_for_the_nearest_above(method: Method) -> None:
    lists, _, features = impressions(20_000, 0)
    assert lists.places is not None
    plain = place_propensities(method, lists, features)
    apart = np.where(lists.places > 3, lists.places + 90, lists.places) + 10  # 11, 12, 13 and 104, 105, 106
    found = place_propensities(method, replace(lists, places=apart.astype(np.int32)), features)
    assert plain is not None
    assert found is not None
    assert found.shape == (106,)
    np.testing.assert_allclose(found[[10, 11, 12, 103, 104, 105]], plain)
    assert (found[:10] == found[10]).all()
    assert (found[13:103] == found[12]).all()


def test_slates_of_a_second_page_are_not_moved() -> None:
    lists, _, features = impressions(500, 2, shuffled=0.0)
    assert lists.places is not None
    below = replace(lists, places=lists.places + np.int32(10))
    with pytest.raises(DataError, match="at place 11 only 0 candidates of other ranks were shown"):
        place_propensities("swaps", below, features)


@pytest.mark.parametrize("method", ["swaps", "em"])
def test_without_a_slate_there_is_nothing_to_estimate_from(method: Method) -> None:
    lists, _, features = impressions(10, 2)
    with pytest.raises(DataError, match="no training slate has a positive and a negative"):
        place_propensities(method, lists.take(np.arange(0)), features[:0])


def test_weighed_clicks_are_in_proportion_to_the_relevance() -> None:
    lists, relevance, _ = impressions(40_000, 3)
    plain, weighed = click_weights(lists, None), click_weights(lists, LOOKED)
    expected = relevance.mean(0) / relevance.mean()
    np.testing.assert_allclose(weighed.mean(0) / weighed.mean(), expected, rtol=0.06)
    assert plain.mean(0)[0] / plain.mean() > 1.5 * expected[0]
    assert weighed.sum() == pytest.approx(plain.sum())


def test_weighed_clicks_judge_a_ranking_as_its_relevance_does() -> None:
    lists, relevance, told = impressions(40_000, 9)
    assert lists.grades is not None
    judged = np.flatnonzero(lists.grades.any(axis=1))
    orders = {"shown": np.tile(np.arange(WIDTH), (len(judged), 1)), "told": np.argsort(-told[judged, :, 0], axis=1)}
    truth, weighed, plain = {}, {}, {}
    for name, order in orders.items():
        everywhere = np.tile(np.arange(WIDTH), (40_000, 1)) if name == "shown" else np.argsort(-told[:, :, 0], axis=1)
        ranked = np.take_along_axis(relevance, everywhere, axis=1)
        truth[name] = np.average(weighed_values(ranked)["D@3"], weights=ranked.sum(axis=1))
        for found, looked in ((weighed, LOOKED), (plain, None)):
            gains = np.take_along_axis(lists.take(judged).gains(looked), order, axis=1)
            found[name] = np.average(weighed_values(gains)["D@3"], weights=gains.sum(axis=1))
    assert weighed == pytest.approx(truth, abs=0.01)
    assert truth["told"] > truth["shown"] + 0.03
    assert plain["told"] < plain["shown"]  # by clicks as they are, what was shown is best


def test_no_click_weighs_more_than_the_least_propensity_allows() -> None:
    lists, _, features = impressions(200, 4)
    found = place_propensities("given", lists, features, given=LOOKED.tolist(), least=0.5)
    weighed = click_weights(lists, found)
    assert weighed[weighed > 0].max() == pytest.approx(2 * weighed[weighed > 0].min())


def test_conversions_count_by_their_gain() -> None:
    lists, _, _ = impressions(200, 5)
    assert lists.grades is not None
    weighed = click_weights(replace(lists, grades=(lists.grades * 2).astype(np.int8)), LOOKED)
    np.testing.assert_allclose(weighed, 3 * click_weights(lists, LOOKED))


def test_estimates_of_nothing_but_looks_are_flat() -> None:
    rng = np.random.default_rng(6)
    places = rng.integers(1, 5, 20_000)
    clicked = rng.random(20_000) < 0.3
    features = rng.normal(size=(20_000, 2)).astype(np.float32)
    np.testing.assert_allclose(estimate_swaps(clicked, places, rng.integers(1, 5, 20_000)), 1.0, atol=0.1)
    np.testing.assert_allclose(estimate_em(clicked, places, features), 1.0, atol=0.1)


def test_lists_without_places_have_no_propensities() -> None:
    lists, _, features = impressions(10, 7)
    with pytest.raises(DataError, match="needs lists of impressions"):
        place_propensities("em", replace(lists, grades=None, places=None), features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"propensity": "given"}, "propensities go with"),
        ({"propensities": (1.0,)}, "propensities go with"),
        ({"propensity": "given", "propensities": (1.0, 0.0)}, "must be in"),
        ({"least_propensity": 0.0}, "least_propensity must be in"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)
