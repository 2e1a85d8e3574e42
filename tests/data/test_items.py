from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.catalog import Catalog
from gr2.data.items import read_items
from gr2.errors import DataError


def parquet(folder: Path, **columns: object) -> Path:
    path = folder / "items.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def catalog(path: Path) -> Catalog:
    table = read_items(path)
    return table.catalog(np.arange(len(table.ids.codes)))


def test_only_the_id_is_required(tmp_path: Path) -> None:
    none = [None, None]
    assert catalog(parquet(tmp_path, item_id=["b", "a"])) == Catalog(["b", "a"], none, none, [[], []], none, none)


def test_every_column_is_read_and_others_are_not(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        item_id=[4, 2],
        title=["Soap", "  "],
        brand=pa.nulls(2),
        categories=[["Bath", "Soaps"], None],
        price=[1.5, None],
        description=["Clean.", ""],
        colour=["red", "blue"],
    )
    assert catalog(path) == Catalog(
        [4, 2], ["Soap", None], [None, None], [["Bath", "Soaps"], []], [1.5, None], ["Clean.", None]
    )


def test_rows_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    table = read_items(parquet(tmp_path, item_id=["c", "a", "b"], title=["C", "A", "B"]))
    assert table.catalog(np.array([2, 0])).ids == ["b", "c"]
    assert table.catalog(np.array([2, 0])).title == ["B", "C"]


def test_csv_divides_categories_by_bars(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,categories,price\n1,300,Bath | Soaps|,2\n2,"a,b",,\n')
    assert catalog(path) == Catalog(
        ["1", "2"], ["300", "a,b"], [None, None], [["Bath", "Soaps"], []], [2.0, None], [None, None]
    )


def test_json_lines_hold_lists(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": 1, "title": "2001-01-01"}\n{"item_id": 2, "categories": ["x", "y"], "price": 3}\n')
    assert catalog(path) == Catalog(
        [1, 2], ["2001-01-01", None], [None, None], [[], ["x", "y"]], [None, 3.0], [None, None]
    )


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"item_id": ["a", "b", "a"]}, "row 3, column 'item_id': 'a' is already the item of row 1"),
        ({"item_id": ["a", None]}, "row 2, column 'item_id': is missing"),
        ({"item_id": ["a", ""]}, "row 2, column 'item_id': is empty"),
        ({"id": ["a"]}, "column 'item_id': required column is missing; the nearest column is 'id'"),
        ({"item_id": ["a", "b"], "price": ["1.5", "cheap"]}, "row 2, column 'price': must be a number, got 'cheap'"),
        ({"item_id": ["a", "b"], "price": [1.0, float("nan")]}, "row 2, column 'price': must be finite"),
        ({"item_id": ["a", "b"], "price": [1.0, -1.0]}, "row 2, column 'price': must not be negative"),
        ({"item_id": ["a"], "title": [5]}, "column 'title': must be text, got int64"),
        ({"item_id": ["a"], "categories": [[["x"]]]}, "column 'categories': must be a list of names"),
        ({"item_id": ["a"], "categories": [3]}, "column 'categories': must be text"),
        ({"item_id": pa.array([], pa.string())}, "has no rows"),
    ],
)
def test_what_breaks_the_contract_is_refused(tmp_path: Path, columns: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=rf"items\.parquet.*{complaint}"):
        read_items(parquet(tmp_path, **columns))
