"""The click simulator: what is examined depends on the place, what is wanted on the truth, and the log is as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.data.synthetic import write_synthetic
from gr2.data.synthetic_clicks import BRAND, COMPLEMENT, CONVERTS, TASTE, USUAL, Clicks, Events, click_tables
from gr2.data.synthetic_items import make_shop


def simulate(folder: Path, clicks: Clicks, *, users: int = 1200, seed: int = 0) -> dict[str, np.ndarray]:
    paths = write_synthetic(folder, users=users, items=80, seed=seed, clicks=clicks)
    shown, truth = (pq.read_table(path) for path in paths[2:])
    assert shown.column("request_id").equals(truth.column("request_id"))
    assert shown.column("item_id").equals(truth.column("item_id"))
    columns = {name: shown.column(name).to_numpy() for name in ("position", "label", "score", "request_id")}
    return {**columns, "relevance": truth.column("relevance").to_numpy()}


def test_clicks_change_neither_items_nor_events(tmp_path: Path) -> None:
    plain = write_synthetic(tmp_path / "plain", users=60, items=60, seed=4)
    clicked = write_synthetic(tmp_path / "clicked", users=60, items=60, seed=4, clicks=Clicks())
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in clicked[:2]]
    again = write_synthetic(tmp_path / "again", users=60, items=60, seed=4, clicks=Clicks())
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in clicked]


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_places_are_clicked_as_they_are_examined_and_wanted(tmp_path: Path, bias: float) -> None:
    log = simulate(tmp_path, Clicks(slate=6, bias=bias, mistakes=0.0))
    for place in range(1, 7):
        rows = log["position"] == place
        expected = place**-bias * log["relevance"][rows].mean()
        spread = 4 * np.sqrt(expected / rows.sum())
        assert abs((log["label"][rows] > 0).mean() - expected) < spread


def test_what_is_wanted_is_clicked_by_mistake_too_and_only_wants_convert(tmp_path: Path) -> None:
    log = simulate(tmp_path, Clicks(slate=6, bias=0.0, mistakes=0.4))
    wanted, count = log["relevance"].mean(), len(log["label"])
    for least, expected in ((1, wanted + 0.4 * (1 - wanted)), (2, CONVERTS * wanted)):
        spread = 4 * np.sqrt(expected / count)
        assert abs((log["label"] >= least).mean() - expected) < spread


def test_a_slate_is_shown_between_the_days_of_two_purchases(tmp_path: Path) -> None:
    paths = write_synthetic(tmp_path, users=60, items=60, seed=4, clicks=Clicks())
    log, shown = (pq.read_table(path).to_pydict() for path in paths[1:3])
    bought: dict[Any, set[int]] = {}
    for user, moment in zip(log["user_id"], log["timestamp"], strict=True):
        bought.setdefault(user, set()).add(moment)
    slates = dict.fromkeys(zip(shown["user_id"], shown["timestamp"], strict=True))
    assert len(slates) == sum(len(days) - 1 for days in bought.values())
    for user, moment in slates:
        assert min(bought[user]) < moment
        assert {moment + 3600} <= bought[user]


def test_relevance_is_of_what_was_bought_before_the_slate() -> None:
    shop = make_shop(np.random.default_rng(0), 40)
    user, day = np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 3, 3, 7, 9, 1, 2])
    rng = np.random.default_rng(1)
    item = rng.integers(0, 40, 7)
    taste, segments, brand = rng.dirichlet(np.ones(40), 3), rng.integers(0, 3, (2, 2)), np.array([0, 1])
    events = Events(user, item, day, taste, segments, brand)
    ids = pa.array(range(40), pa.int64())
    _, truth = click_tables(rng, shop, events, Clicks(slate=8), user_ids=pa.array(["u", "v"]), item_ids=ids)
    found = truth.column("relevance").to_numpy().reshape(-1, 8)
    for row, next_one in enumerate((1, 3, 4, 6)):  # what begins a day, but for the first
        owner = user[next_one]
        past = [int(item[place]) for place in range(next_one) if user[place] == owner][::-1][:3]
        for column, candidate in enumerate(truth.column("item_id").to_pylist()[8 * row : 8 * row + 8]):
            share = 0.75 * taste[segments[owner, 0], candidate] + 0.25 * taste[segments[owner, 1], candidate]
            completes = max(((candidate in shop.complements[own]) / (1 + age) for age, own in enumerate(past)))
            odds = USUAL + TASTE * np.log(share * 40 + 0.05) + COMPLEMENT * completes
            odds += BRAND * (shop.brand[candidate] == brand[owner])
            assert found[row, column] == pytest.approx(1 / (1 + np.exp(-odds)))


def test_shuffled_slates_hold_the_scores_against_the_places(tmp_path: Path) -> None:
    log = simulate(tmp_path, Clicks(slate=5, shuffled=0.3))
    scores, places = (log[name].reshape(-1, 5) for name in ("score", "position"))
    assert (places == np.arange(1, 6)).all()  # rows are in the order in which they were shown
    ordered = (np.diff(scores, axis=1) <= 0).all(axis=1).mean()
    assert ordered == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize("wrong", [{"slate": 1}, {"bias": -1.0}, {"shuffled": 2.0}, {"mistakes": -0.1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Clicks(**wrong)


def test_a_slate_longer_than_the_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most the 30 items, got 40"):
        write_synthetic(tmp_path, users=10, items=30, clicks=Clicks(slate=40))
