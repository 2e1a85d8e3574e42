"""Slates with several positives: which history and split they have, what is left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.impressions import read_impressions
from gr2.errors import DataError

NAN = float("nan")


def dataset(timestamps: tuple[float, ...] = (10, 20, 30, 40)) -> Dataset:
    ids: list[Any] = ["a", "b", "c", "d", "e"]
    none: list[Any] = [None] * 5
    catalog = Catalog(ids, none, none, [[] for _ in ids], none, none)
    times = np.array([*timestamps, *timestamps], dtype=np.float64)
    items = np.array([0, 1, 2, 3, 4, 3, 2, 1], dtype=np.int32)
    return Dataset(catalog, ["u", "v"], np.array([0, 4, 8]), items, times, np.zeros(2, np.bool_))


def slate(request: str, user: str, time: float, items: str, labels: list[int], **more: list[float]) -> list[dict]:
    places = more.pop("position", [float(place) for place in range(1, len(items) + 1)])
    rows = zip(items, labels, places, strict=True)
    return [
        {
            "request_id": request,
            "user_id": user,
            "timestamp": time,
            "item_id": item,
            "label": label,
            "position": int(at),
        }
        | {name: values[number] for name, values in more.items()}
        for number, (item, label, at) in enumerate(rows)
    ]


def write(folder: Path, *slates: list[dict]) -> Path:
    path = folder / "impressions.parquet"
    pq.write_table(pa.Table.from_pylist([row for rows in slates for row in rows]), path)
    return path


def test_the_split_is_that_of_the_event_that_may_follow(tmp_path: Path) -> None:
    moments = [5, 15, 25, 30, 35, 40, 45]
    path = write(tmp_path, *(slate(f"r{moment}", "u", moment, "abc", [0, 1, 0]) for moment in moments))
    found = read_impressions(path, dataset())
    splits, counts = found.splits(dataset())
    assert {name: lists.position.tolist() for name, lists in splits.items()} == {
        "train": [0, 1],
        "val": [2, 2],  # an event at the very moment of the slate is no history
        "test": [3, 3, 4],
    }
    assert found.requests == [f"r{moment}" for moment in moments]
    assert counts["requests"] == 7
    assert counts["without_positive"] == 0


def test_a_guard_shortens_histories_and_moves_no_slate(tmp_path: Path) -> None:
    path = write(tmp_path, slate("r", "u", 35, "abc", [0, 1, 0]))
    splits, _ = read_impressions(path, dataset(), guard=10).splits(dataset())
    assert splits["test"].position.tolist() == [2]


def test_candidates_are_in_the_order_of_scores_and_keep_their_places(tmp_path: Path) -> None:
    rows = slate("r", "u", 35, "abc", [1, 0, 2], score=[0.1, 0.9, 0.5], feature_price=[1.0, 2.0, 3.0])
    lists = read_impressions(write(tmp_path, rows), dataset()).lists
    assert lists.candidates.tolist() == [[1, 2, 0]]
    assert lists.grades is not None
    assert lists.places is not None
    assert lists.features is not None
    assert lists.grades.tolist() == [[0, 2, 1]]
    assert lists.places.tolist() == [[2, 3, 1]]
    assert lists.features[0, :, 0].tolist() == [2.0, 3.0, 1.0]
    assert lists.target.tolist() == [2]
    assert lists.label().tolist() == [1]
    assert lists.gains().tolist() == [[0.0, 3.0, 1.0]]


def test_without_scores_the_places_are_the_order(tmp_path: Path) -> None:
    rows = slate("r", "u", 35, "abc", [1, 0, 0], position=[3.0, 1.0, 2.0])
    lists = read_impressions(write(tmp_path, rows), dataset()).lists
    assert lists.candidates.tolist() == [[1, 2, 0]]
    assert lists.scores.tolist() == [[-1.0, -2.0, -3.0]]


def test_slates_that_say_nothing_of_an_order_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        slate("good", "u", 35, "abc", [0, 1, 2]),
        slate("none", "u", 36, "abcd", [0, 0, 0, 0]),
        slate("all", "v", 37, "ab", [1, 1]),
        slate("stranger", "w", 38, "ab", [0, 1]),
    )
    splits, counts = read_impressions(path, dataset()).splits(dataset())
    assert [len(splits[name]) for name in ("train", "val", "test")] == [0, 0, 1]
    assert counts == {
        "requests": 3, "unknown_users": 1, "without_positive": 1, "without_negative": 1, "positives": 2.0,
    }  # fmt: skip


def test_slates_that_all_say_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, slate("none", "u", 35, "abc", [0, 0, 0]), slate("all", "v", 36, "ab", [2, 1]))
    with pytest.raises(DataError, match=r"no slate .* has a positive and a negative: 2 requests"):
        read_impressions(path, dataset()).splits(dataset())


def test_graded_lists_come_back_from_their_file(tmp_path: Path) -> None:
    path = write(tmp_path, slate("r", "u", 35, "abc", [1, 0, 2]), slate("s", "v", 35, "de", [0, 1]))
    lists = read_impressions(path, dataset()).lists
    lists.save(tmp_path / "lists.parquet")
    loaded = CandidateLists.load(tmp_path / "lists.parquet")
    for name in ("candidates", "grades", "places", "target"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(lists, name), strict=True)
    top = loaded.top(1)
    assert top.grades is not None
    assert top.grades.shape == (2, 1)
    assert len(top.with_target()) == 0  # one candidate cannot be ordered


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (slate("r", "u", 35, "abz", [0, 1, 0]), r"row 3, column 'item_id': unknown item"),
        (slate("r", "u", 35, "abc", [0, 3, 0]), r"row 2, column 'label': must be 0 \(none\), 1 \(click\) or 2"),
        (slate("r", "u", 35, "ab", [0, 1], position=[0.0, 1.0]), r"row 1, column 'position': must be an integer"),
        (slate("r", "u", 35, "ab", [0, 1], position=[1.0, 5e9]), r"row 2, .*: must be an integer from 1 to 10,000"),
        (slate("r", "u", 35, "ab", [0, 1], position=[1.0, 1.0]), r"row 2, column 'position': comes twice"),
        (slate("r", "u", 35, "aa", [0, 1]), r"row 2, column 'item_id': comes twice"),
        (slate("r", "u", 35, "ab", [0, 1], score=[1.0, NAN]), r"column 'score': must be finite"),
        (slate("r", "u", 35, "a", [1]) + slate("r", "v", 35, "b", [0]), r"column 'user_id': is not that of the other"),
        (slate("r", "u", 35, "a", [1]) + slate("r", "u", 36, "b", [0]), r"'timestamp': is not that of the other"),
        (slate("r", "x", 35, "ab", [0, 1]), "no user of the impressions is in the prepared data"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_place(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_impressions(write(tmp_path, rows), dataset())


def test_events_without_timestamps_cannot_date_a_history(tmp_path: Path) -> None:
    path = write(tmp_path, slate("r", "u", 35, "ab", [0, 1]))
    with pytest.raises(DataError, match="events of user 'u' have no timestamps"):
        read_impressions(path, dataset((NAN,) * 4))


def test_a_file_without_a_column_names_it(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "label"} for row in slate("r", "u", 35, "ab", [0, 1])]
    with pytest.raises(DataError, match="column 'label': required column is missing"):
        read_impressions(write(tmp_path, rows), dataset())
