"""Item vectors of the user's own, from a Parquet, `.npz` or `.npy` file, aligned by item ID."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.catalog import Catalog, ItemId
from gr2.errors import DataError

__all__ = ["DAMAGED", "load_vectors", "vector_files"]

COLUMNS = ("item_id", "vector")
# What reading a damaged `.npy` or `.npz` raises: its header is Python source, its members may be deflated or encrypted.
DAMAGED = (
    OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, RuntimeError, MemoryError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def load_vectors(path: str | os.PathLike[str], catalog: Catalog) -> NDArray[np.float32]:
    """(N, D) float32: the vector of each item of the catalogue, in catalogue order.

    The file holds `item_id` and `vector`: two columns of Parquet (lists of equal length), or two arrays of an `.npz`,
    (M,) and (M, D). An `.npy` holds the vectors, and the file `.ids.npy` beside it the IDs. There may be more items
    than in the catalogue. Raises DataError that says which item or row is wrong.
    """
    path = Path(path)
    readers = {".parquet": _read_parquet, ".npz": _read_npz, ".npy": _read_npy}
    if path.suffix not in readers:
        raise DataError(
            "vectors must come with their item IDs, as .parquet (columns item_id, vector), as "
            ".npz (np.savez(path, item_id=..., vector=...)), or as .npy with the IDs in .ids.npy beside it",
            path=path,
        )
    ids, vectors = readers[path.suffix](path)
    if len(ids) != len(vectors):
        raise DataError(f"{len(ids):,} item IDs, but {len(vectors):,} vectors", path=path)
    rows = {item: row for row, item in enumerate(ids)}
    if len(rows) != len(ids):
        repeated = next(item for row, item in enumerate(ids) if rows[item] != row)
        raise DataError(f"item {repeated!r} comes more than once", path=path, column="item_id")
    absent = [item for item in catalog.ids if item not in rows]
    if absent:
        names = ", ".join(map(repr, absent[:3]))
        raise DataError(
            f"{len(absent):,} of the catalogue's {len(catalog):,} items have no vector, first {names}; "
            f"the catalogue's IDs are {catalog.id_type}, the file's {'string' if _is_text(ids) else 'int64'}",
            path=path,
            column="item_id",
        )
    order = np.array([rows[item] for item in catalog.ids], dtype=np.int64)
    finite = np.isfinite(vectors[order]).all(axis=1)
    if not finite.all():
        row = int(order[~finite].min())
        raise DataError("NaN or infinite value", path=path, row=row + 1, column="vector")
    return np.ascontiguousarray(vectors[order], dtype=np.float32)


def vector_files(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The files that `load_vectors` reads: `vectors` and, of an `.npy`, `vector_ids`."""
    path = Path(path)
    return {"vectors": path} | ({"vector_ids": path.with_suffix(".ids.npy")} if path.suffix == ".npy" else {})


def _read_parquet(path: Path) -> tuple[list[ItemId], NDArray[np.float32]]:
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
        _check_types(table.schema, path)
        ids, column = table.column("item_id").to_pylist(), table.column("vector").combine_chunks()
        widths = np.asarray(pa.compute.list_value_length(column).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the columns item_id and vector: {error}", path=path) from error
    wrong = np.flatnonzero(widths != (widths[0] if len(widths) else 0))
    if len(wrong) or (len(widths) and not widths[0] > 0):
        row = int(wrong[0]) if len(wrong) else 0
        raise DataError("vectors must be lists of one length, not empty", path=path, row=row + 1, column="vector")
    if not len(ids):
        raise DataError("no vectors", path=path)
    return ids, _floats(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(ids), -1)


def _check_types(schema: pa.Schema, path: Path) -> None:
    kind, vector = schema.field("item_id").type, schema.field("vector").type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"must be integers or strings, got {kind}", path=path, column="item_id")
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    numbers = (pa.types.is_floating, pa.types.is_integer)
    if not any(test(vector) for test in lists) or not any(test(vector.value_type) for test in numbers):
        raise DataError(f"must be lists of numbers, got {vector}", path=path, column="vector")


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32; what is too large becomes infinite, which is refused where an item of the catalogue has it."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)


def _read_npz(path: Path) -> tuple[list[ItemId], NDArray[np.float32]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            ids, vectors = arrays["item_id"], arrays["vector"]
    except DAMAGED as error:
        raise DataError(f"cannot read the arrays item_id and vector: {error}", path=path) from error
    return _checked(ids, vectors, path)


def _read_npy(path: Path) -> tuple[list[ItemId], NDArray[np.float32]]:
    arrays = {}
    for name, file in vector_files(path).items():
        try:
            with file.open("rb") as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
        except DAMAGED as error:
            raise DataError(f"cannot read an array: {error}", path=file) from error
    return _checked(arrays["vector_ids"], arrays["vectors"], path)


def _checked(ids: NDArray[Any], vectors: NDArray[Any], path: Path) -> tuple[list[ItemId], NDArray[np.float32]]:
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise DataError(f"item_id must be (M,) integers or strings, got {ids.dtype} {ids.shape}", path=path)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise DataError(f"vector must be (M, D) numbers, got {vectors.dtype} {vectors.shape}", path=path)
    return ids.tolist(), _floats(vectors)


def _is_text(ids: list[ItemId]) -> bool:
    return bool(ids) and isinstance(ids[0], str)
