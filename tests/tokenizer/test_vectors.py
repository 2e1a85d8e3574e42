"""Vectors of the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.catalog import Catalog, ItemId
from gr2.errors import DataError
from gr2.tokenizer.vectors import load_vectors, vector_files

Writer = Callable[[Path, Sequence[ItemId], Sequence[Sequence[float]]], Path]


def write_parquet(folder: Path, ids: Sequence[ItemId], vectors: Sequence[Sequence[float]]) -> Path:
    path = folder / "vectors.parquet"
    pq.write_table(pa.table({"item_id": list(ids), "vector": [list(vector) for vector in vectors]}), path)
    return path


def write_npz(folder: Path, ids: Sequence[ItemId], vectors: Sequence[Sequence[float]]) -> Path:
    path = folder / "vectors.npz"
    np.savez(path, item_id=np.array(ids), vector=np.array(vectors))
    return path


def write_npy(folder: Path, ids: Sequence[ItemId], vectors: Sequence[Sequence[float]]) -> Path:
    path = folder / "vectors.npy"
    np.save(path, np.array(vectors))
    np.save(folder / "vectors.ids.npy", np.array(ids))
    return path


@pytest.fixture(params=[write_parquet, write_npz, write_npy])
def write(request: pytest.FixtureRequest) -> Writer:
    writer: Writer = request.param
    return writer


def catalog(ids: list[ItemId]) -> Catalog:
    empty = [None] * len(ids)
    return Catalog(ids, list(empty), list(empty), [[] for _ in ids], list(empty), list(empty))


@pytest.mark.parametrize("ids", [[3, 1, 2], ["c", "a", "b"]])
def test_vectors_are_aligned_by_item_id(tmp_path: Path, write: Writer, ids: list[ItemId]) -> None:
    path = write(tmp_path, ids, [[3.0, 0.5], [1.0, 0.5], [2.0, 0.5]])
    vectors = load_vectors(path, catalog([ids[1], ids[2]]))
    np.testing.assert_array_equal(vectors, [[1.0, 0.5], [2.0, 0.5]])
    assert vectors.dtype == np.float32


def test_fixed_size_lists_are_read(tmp_path: Path) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    pq.write_table(pa.table({"item_id": [1, 2], "vector": column}), tmp_path / "v.parquet")
    np.testing.assert_array_equal(load_vectors(tmp_path / "v.parquet", catalog([2, 1])), [[3.0, 4.0], [1.0, 2.0]])


def test_missing_items_are_counted_and_named(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, [1, 2], [[1.0], [2.0]])
    with pytest.raises(DataError, match=r"2 of the catalogue's 3 items have no vector, first 7, 9"):
        load_vectors(path, catalog([7, 1, 9]))


def test_ids_of_another_type_are_explained(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, [1, 2], [[1.0], [2.0]])
    with pytest.raises(DataError, match=r"catalogue's IDs are string, the file's int64"):
        load_vectors(path, catalog(["1", "2"]))


def test_repeated_item_is_refused(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, [1, 2, 1], [[1.0], [2.0], [3.0]])
    with pytest.raises(DataError, match="item 1 comes more than once"):
        load_vectors(path, catalog([1, 2]))


def test_value_that_is_not_finite_is_located(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, [1, 2, 3], [[1.0], [float("nan")], [3.0]])
    with pytest.raises(DataError, match="row 2, column 'vector': NaN or infinite"):
        load_vectors(path, catalog([1, 2, 3]))
    np.testing.assert_array_equal(load_vectors(path, catalog([3, 1])), [[3.0], [1.0]])


@pytest.mark.parametrize("vectors", [[[1.0, 2.0], [1.0]], [[], []], [[1.0, 2.0], None]])
def test_ragged_and_empty_vectors_are_refused(tmp_path: Path, vectors: list[list[float] | None]) -> None:
    table = pa.table({"item_id": [1, 2], "vector": pa.array(vectors, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r"row [12], column 'vector': vectors must be lists of one length"):
        load_vectors(tmp_path / "v.parquet", catalog([1, 2]))


def test_file_without_ids_is_refused(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "v.csv", np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(DataError, match="must come with their item IDs"):
        load_vectors(tmp_path / "v.csv", catalog([1, 2]))


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PK\x03\x04garbage"])
def test_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot read"):
        load_vectors(tmp_path / name, catalog([1]))


def test_single_array_under_the_wrong_name_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "v.npz").open("wb") as file:
        np.save(file, np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(DataError, match="cannot read the arrays item_id and vector"):
        load_vectors(tmp_path / "v.npz", catalog([1, 2]))


@pytest.mark.parametrize(
    ("ids", "vectors", "match"),
    [
        ([1.5, 2.5], [[1.0], [2.0]], "item_id must be"),
        ([1, 2], [1.0, 2.0], "vector must be"),
        ([1, 2], [["a"], ["b"]], "vector must be"),
        ([1, 2, 3], [[1.0], [2.0]], "3 item IDs, but 2 vectors"),
    ],
)
def test_arrays_of_a_wrong_shape_or_type_are_refused(
    tmp_path: Path, ids: list[float], vectors: list[object], match: str
) -> None:
    np.savez(tmp_path / "v.npz", item_id=np.array(ids), vector=np.array(vectors))
    with pytest.raises(DataError, match=match):
        load_vectors(tmp_path / "v.npz", catalog([1, 2]))


def test_an_npy_without_its_ids_says_which_file_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"vectors\.ids\.npy: .*No such file"):
        load_vectors(tmp_path / "vectors.npy", catalog([1, 2]))
    assert [path.name for path in vector_files(tmp_path / "vectors.npy").values()] == ["vectors.npy", "vectors.ids.npy"]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.list_(pa.bool_()), pa.list_(pa.list_(pa.float32())), pa.string()]
)
def test_columns_that_hold_no_numbers_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"item_id": pa.array([1]), "vector": pa.nulls(1, kind)}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="column 'vector': must be lists of numbers"):
        load_vectors(tmp_path / "v.parquet", catalog([1]))


def test_ids_that_are_lists_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [[1]], "vector": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="column 'item_id': must be integers or strings"):
        load_vectors(tmp_path / "v.parquet", catalog([1]))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    table = pa.table({"item_id": pa.array([], pa.int64()), "vector": pa.array([], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match="no vectors"):
        load_vectors(tmp_path / "v.parquet", catalog([1]))


@pytest.mark.parametrize("writer", [write_npz, write_npy])
def test_damaged_arrays_are_refused_with_a_reason(tmp_path: Path, writer: Writer) -> None:
    path = writer(tmp_path, [1, 2], [[1.0], [2.0]])
    content, rng = path.read_bytes(), np.random.default_rng(0)
    flipped = [{at: content[at] ^ 1} for at in range(len(content))]
    places, values = rng.integers(0, len(content), (200, 3)).tolist(), rng.integers(0, 256, (200, 3)).tolist()
    for changes in [*flipped, *map(dict, map(zip, places, values))]:
        damaged = bytearray(content)
        for at, value in changes.items():
            damaged[at] = value
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            load_vectors(path, catalog([1, 2]))


def test_an_npz_named_npy_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path, [1], [[1.0]]).rename(tmp_path / "v.npy")
    np.save(tmp_path / "v.ids.npy", np.array([1]))
    with pytest.raises(DataError, match=r"v\.npy: cannot read an array"):
        load_vectors(tmp_path / "v.npy", catalog([1]))
