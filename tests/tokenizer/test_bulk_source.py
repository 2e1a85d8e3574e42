"""The files with the items to encode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.data.items import read_items
from gr2.errors import DataError
from gr2.tokenizer.bulk import source
from gr2.tokenizer.bulk.batches import read_unit
from gr2.tokenizer.bulk.source import Contents, Source
from gr2.tokenizer.text import item_texts

VECTORS, TEXTS = Contents("int64", 3), Contents("string", None)
ROWS: list[list[float] | None] = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
FLOATS = pa.list_(pa.float32())


def write(path: Path, groups: int | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=groups)
    return path


def read(paths: list[Path], contents: Contents = VECTORS) -> list[tuple[list[Any], Any]]:
    batches = [batch for unit in Source.find(paths, contents).units for batch in read_unit(unit, contents)]
    return [(batch.ids.to_pylist(), batch.contents) for batch in batches]


@pytest.mark.parametrize(
    "kind",
    [FLOATS, pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3), pa.list_(pa.int16())],
)
def test_vectors_are_read_from_lists_of_any_numbers(tmp_path: Path, kind: Any) -> None:
    path = write(tmp_path / "a.parquet", item_id=pa.array([1, 2, 3], pa.int32()), vector=pa.array(ROWS, kind))
    [(ids, vectors)] = read([path])
    assert ids == [1, 2, 3]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, ROWS)


def test_units_are_row_groups_and_small_ones_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "UNIT_ROWS", 25)
    folder = tmp_path / "items"
    for name, rows, group in (("b/2.parquet", 30, 40), ("a/1.parquet", 60, 10), (".hidden.parquet", 9, 9)):
        vectors = pa.array(np.arange(3.0 * rows).reshape(rows, 3).tolist(), FLOATS)
        write(folder / name, group, item_id=list(range(rows)), vector=vectors)
    units = Source.find([folder], VECTORS).units
    assert [(Path(unit.path).name, unit.first, unit.groups, unit.rows, unit.before) for unit in units] == [
        ("1.parquet", 0, 2, 20, 0),
        ("1.parquet", 2, 2, 20, 20),
        ("1.parquet", 4, 2, 20, 40),
        ("2.parquet", 0, 1, 30, 0),
    ]
    assert [unit.number for unit in units] == [0, 1, 2, 3]
    [batch] = read_unit(units[1], VECTORS)
    assert batch.ids.to_pylist() == list(range(20, 40))
    np.testing.assert_array_equal(batch.contents[0], [60.0, 61.0, 62.0])


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    values = pa.array(np.zeros(2_400_000, dtype=np.float32))
    vectors = pa.FixedSizeListArray.from_arrays(values, 3)
    table = pa.table({"item_id": np.arange(800_000), "vector": vectors})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=800_000, compression="none", use_dictionary=False)
    size = table.nbytes
    del table, vectors, values
    [unit] = Source.find([tmp_path / "a.parquet"], VECTORS).units
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_unit(unit, VECTORS)]
    assert len(held) == 49
    assert max(held) < size / 4


def test_digest_follows_size_rows_and_time_of_change(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", item_id=[1, 2, 3], vector=pa.array(ROWS, FLOATS))
    first = Source.find([path], VECTORS).digest
    assert Source.find([tmp_path], VECTORS).digest == first
    os.utime(path, ns=(1, 1))
    assert Source.find([path], VECTORS).digest != first


def test_texts_are_those_of_the_stage(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "item_id": ["a", "b", "c"],
        "title": ["Red <b>soap</b>", None, " "],
        "brand": pa.array(["Fine &amp; Co", "", None]).dictionary_encode(),
        "categories": [["Beauty", "Soap"], None, [" ", "Bath "]],
        "price": [3.5, None, 0.0],
        "description": pa.array(["long", None, "short"], pa.large_string()),
    }
    path = write(tmp_path / "a.parquet", **columns)
    expected = item_texts(read_items(path).catalog(np.arange(3)))
    assert read([path], TEXTS) == [(["a", "b", "c"], expected)]
    write(path, item_id=["a"], categories=["Beauty| Soap"])
    assert read([path], TEXTS)[0][1] == ["Category: Beauty > Soap"]


IDS = [1, 2, 3]
WRONG_VECTORS: list[tuple[dict[str, Any], str]] = [
    ({"id": IDS, "vector": ROWS}, r"column 'item_id': required column is missing; columns: id, vector"),
    ({"item_id": IDS, "vectors": ROWS}, r"column 'vector': required column is missing: .* columns: item_id, vectors"),
    ({"item_id": ["1", "2", "3"], "vector": ROWS}, "item IDs must be int64, as the catalogue's, got string"),
    ({"item_id": [1.0, 2.0, 3.0], "vector": ROWS}, "item IDs must be int64, as the catalogue's, got double"),
    ({"item_id": [1, None, 3], "vector": ROWS}, "row 2, column 'item_id': is missing"),
    ({"item_id": pa.array([1, 2**63, 3], pa.uint64()), "vector": ROWS}, "column 'item_id': must be 64-bit integers"),
    ({"item_id": IDS, "vector": ["a", "b", "c"]}, "column 'vector': must be a list of numbers, got string"),
    ({"item_id": IDS, "vector": [["a"], ["b"], []]}, "must be a list of numbers, got list<.*string>"),
    ({"item_id": IDS, "vector": [ROWS[0], [1.0, 2.0], None]}, "row 3, column 'vector': is missing"),
    ({"item_id": IDS, "vector": [ROWS[0], [1.0, 2.0], []]}, "row 2, column 'vector': has 2 values, .* learnt from 3"),
    ({"item_id": IDS, "vector": [ROWS[0], [1.0, None, 2.0], ROWS[1]]}, "row 2, column 'vector': has a missing value"),
    ({"item_id": [1], "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}, "has 2 values, .* learnt from 3"),
    ({"item_id": pa.array([], pa.int64()), "vector": pa.array([], FLOATS)}, "no rows"),
]


@pytest.mark.parametrize(("columns", "message"), WRONG_VECTORS)
def test_wrong_vectors_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet.*{message}"):
        read([write(tmp_path / "a.parquet", **columns)])


WRONG_TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"item_id": [1], "title": ["a"]}, "item IDs must be string, as the catalogue's, got int64"),
    ({"item_id": ["a", " "], "title": ["a", "b"]}, "row 2, column 'item_id': is empty"),
    ({"item_id": ["a"], "vector": [[1.0]]}, "learnt from text: expected some of title, .* got item_id, vector"),
    ({"item_id": ["a"], "title": [1]}, "column 'title': must be text, got int64"),
    ({"item_id": ["a"], "categories": [[1]]}, "column 'categories': must be lists of names, or text"),
    ({"item_id": ["a", "b"], "price": [1.0, -2.0]}, "row 2, column 'price': must not be negative, got -2"),
    ({"item_id": ["a", "b"], "price": [1.0, float("inf")]}, "row 2, column 'price': must be finite"),
]


@pytest.mark.parametrize(("columns", "message"), WRONG_TEXTS)
def test_wrong_texts_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet.*{message}"):
        read([write(tmp_path / "a.parquet", **columns)], TEXTS)


def test_rows_of_later_row_groups_are_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    vectors = pa.array([*ROWS, *ROWS, [1.0]], FLOATS)
    path = write(tmp_path / "a.parquet", 2, item_id=list(range(7)), vector=vectors)
    with pytest.raises(DataError, match="row 7, column 'vector': has 1 values"):
        read([path])


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "items" / "a.parquet", item_id=IDS, vector=pa.array(ROWS, FLOATS))
    (tmp_path / "text.parquet").write_text("item_id,vector\n")
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([tmp_path / "absent"], "no such file"),
        ([tmp_path / "text.parquet"], "is not a readable Parquet file"),
        ([tmp_path / "empty"], "has no .parquet files"),
        ([path, tmp_path / "items"], "is given more than once"),
    ):
        with pytest.raises(DataError, match=message):
            Source.find(paths, VECTORS)
