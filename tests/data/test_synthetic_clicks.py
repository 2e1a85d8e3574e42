"""The click simulator: what is examined depends on the place, what is wanted on the truth, and the log is as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr2.data.synthetic import write_synthetic
from gr2.data.synthetic_clicks import Clicks


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
