from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists, import_lists
from gr2.data.dataset import Dataset
from gr2.errors import DataError

ITEMS = [f"item{number}" for number in range(8)]
INF = np.inf


@pytest.fixture
def dataset() -> Dataset:
    count = len(ITEMS)
    catalog = Catalog(ITEMS, [None] * count, [None] * count, [[]] * count, [None] * count, [None] * count)
    items = np.array([0, 1, 2, 3, 4, 5, 6], dtype=np.int32)
    offsets = np.array([0, 3, 7], dtype=np.int64)
    return Dataset(catalog, [70, 30], offsets, items, np.full(7, np.nan), np.zeros(2, dtype=np.bool_))


def lists(features: bool = False) -> CandidateLists:
    return CandidateLists(
        np.array([0, 0, 1], dtype=np.int32),
        np.array([1, 2, 3], dtype=np.int32),
        np.array([4, 9, 6], dtype=np.int32),
        np.array([[4, 2, 7], [1, -1, -1], [5, 6, -1]], dtype=np.int32),
        np.array([[3, 2, 2], [0.5, -INF, -INF], [1, -1, -INF]], dtype=np.float32),
        np.arange(18, dtype=np.float32).reshape(3, 3, 2) if features else None,
    )


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "lists.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def assert_same(left: CandidateLists, right: CandidateLists) -> None:
    for name in ("user", "position", "target", "candidates", "scores"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)


def test_label_is_the_targets_column() -> None:
    np.testing.assert_array_equal(lists().label(), [0, -1, 1])
    kept = lists().with_target()
    assert kept.user.tolist() == [0, 1]
    assert kept.target.tolist() == [4, 6]


def test_top_keeps_the_first_columns() -> None:
    top = lists(features=True).top(2)
    assert top.width == 2
    assert top.features is not None
    assert top.features.shape == (3, 2, 2)
    assert lists().top(99).width == 3


def test_saved_lists_come_back(tmp_path: Path) -> None:
    lists(features=True).save(tmp_path / "lists.parquet")
    loaded = CandidateLists.load(tmp_path / "lists.parquet")
    assert_same(loaded, lists())
    padded = lists().candidates == -1
    assert loaded.features is not None
    np.testing.assert_array_equal(loaded.features[~padded], lists(features=True).features[~padded])  # type: ignore[index]


def test_no_lists_can_be_saved(tmp_path: Path) -> None:
    lists().take(np.array([], dtype=np.int64)).save(tmp_path / "lists.parquet")
    assert len(CandidateLists.load(tmp_path / "lists.parquet")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": np.zeros((3, 3))}, r"candidates must be int32 \(3, 3\), got float64"),
        ({"user": np.zeros(2, dtype=np.int32)}, r"position must be int32 \(2,\)"),
        (
            {"candidates": np.array([[4, 4, 7], [1, -1, -1], [5, 6, -1]], dtype=np.int32)},
            "list 0 holds a candidate twice",
        ),
        (
            {"candidates": np.array([[4, 2, 7], [-1, 1, -1], [5, 6, -1]], dtype=np.int32)},
            "list 1 holds a candidate after",
        ),
        (
            {"scores": np.array([[3, 2, 2], [1, -INF, -INF], [1, 2, -INF]], dtype=np.float32)},
            "list 2 holds a score above",
        ),
        (
            {"scores": np.array([[3, 2, np.nan], [1, -INF, -INF], [1, 1, -INF]], dtype=np.float32)},
            "list 0 .* not finite",
        ),
        ({"scores": np.array([[3, 2, 2], [1, 0, -INF], [1, 1, -INF]], dtype=np.float32)}, "list 1 holds padding whose"),
    ],
)
def test_lists_that_break_the_contract_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(lists(), **change)


@pytest.mark.parametrize("content", [b"", b"not parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lists.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"lists\.parquet: not candidate lists"):
        CandidateLists.load(path)


def test_imported_lists_are_for_the_last_event(tmp_path: Path, dataset: Dataset) -> None:
    path = write(tmp_path, user_id=[30, 70], candidates=[["item6", "item1"], ["item5", "item2", "item0"]])
    imported = import_lists(path, dataset)
    assert imported.user.tolist() == [0, 1]
    assert imported.position.tolist() == [2, 3]
    assert imported.target.tolist() == [2, 6]
    assert imported.candidates.tolist() == [[5, 2, 0], [6, 1, -1]]
    np.testing.assert_array_equal(imported.scores, np.array([[0, -1, -2], [0, -1, -INF]], dtype=np.float32))


def test_the_order_of_imported_rows_changes_nothing(tmp_path: Path, dataset: Dataset) -> None:
    rows = [(30, ["item6", "item1"], [0.5, 0.5]), (70, ["item5", "item2"], [3.0, -1.0])]
    imported = []
    for order in (rows, rows[::-1]):
        users, candidates, scores = zip(*order, strict=True)
        imported.append(import_lists(write(tmp_path, user_id=users, candidates=candidates, scores=scores), dataset))
    assert_same(*imported)
    assert imported[0].scores.tolist() == [[3.0, -1.0], [0.5, 0.5]]


def test_one_ranker_is_chosen(tmp_path: Path, dataset: Dataset) -> None:
    path = write(tmp_path, ranker=["a", "b"], user_id=[30, 30], candidates=[["item0"], ["item1"]])
    assert import_lists(path, dataset, ranker="b").candidates.tolist() == [[1]]
    with pytest.raises(DataError, match="choose one of a, b"):
        import_lists(path, dataset)
    with pytest.raises(DataError, match="no ranker 'c'; the file has a, b"):
        import_lists(path, dataset, ranker="c")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [70, 71], "candidates": [["item0"], ["item1"]]}, r"row 2, column 'user_id': unknown user 71"),
        ({"user_id": [70, 70], "candidates": [["item0"], ["item1"]]}, r"row 2.*user 70 has a list in row 1 already"),
        ({"user_id": [70], "candidates": [["item0", "item9"]]}, r"row 1, column 'candidates': unknown item 'item9'"),
        ({"user_id": [70], "candidates": [["item1", "item0", "item1"]]}, r"row 1.*candidate 'item1' comes twice"),
        ({"user_id": [30, 70], "candidates": [["item1"], []]}, r"row 2, column 'candidates': no candidates"),
        ({"user_id": [70], "candidates": [["item1"]], "scores": [[1.0, 2.0]]}, r"2 scores for 1 candidates"),
        ({"user_id": [70], "candidates": [["item1", "item2"]], "scores": [[1.0, 2.0]]}, r"not increase"),
        ({"user_id": [70]}, r"lists.parquet: cannot read candidate lists"),
    ],
)
def test_imported_lists_that_do_not_fit_are_refused(
    tmp_path: Path, dataset: Dataset, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_lists(write(tmp_path, **columns), dataset)
