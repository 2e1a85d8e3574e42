"""A Parquet file with columns of lists, read so that whatever does not fit can be named by row and column."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.catalog import ItemId
from gr2.errors import DataError

__all__ = ["ListFile", "is_list"]


@dataclass(frozen=True)
class ListFile:
    """R rows of the file `path`; `rows` (R,) int64 are their numbers in it, from 1."""

    path: str | os.PathLike[str]
    table: Any
    rows: NDArray[np.int64]

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, required: Sequence[str], optional: Sequence[str]) -> ListFile:
        """The columns `required` and those of `optional` that the file has. Raises DataError."""
        try:
            with pq.ParquetFile(Path(path)) as file:
                present = file.schema_arrow.names
                for name in (*required, *optional):
                    if present.count(name) > 1:
                        raise DataError("appears more than once", path=path, column=name)
                    if name in required and name not in present:
                        columns = ", ".join(present) or "none"
                        raise DataError(f"required column is missing; columns: {columns}", path=path, column=name)
                table = file.read(columns=[name for name in (*required, *optional) if name in present])
                table.validate(full=True)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read candidate lists: not a readable Parquet file: {error}", path=path) from error
        if not table.num_rows:
            raise DataError("has no rows", path=path)
        return cls(path, table, np.arange(1, table.num_rows + 1))

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def keep(self, rows: NDArray[np.bool_]) -> ListFile:
        """The rows that a mask selects; they keep their numbers."""
        return ListFile(self.path, self.table.filter(pa.array(rows)), self.rows[rows])

    def error(self, message: str, column: str, row: int | None = None) -> DataError:
        """A DataError about the column, at `row` of the R rows if one is given."""
        number = None if row is None else int(self.rows[row])
        return DataError(message, path=self.path, row=number, column=column)

    def column(self, name: str) -> Any:
        """The R values of a column, none of them null."""
        values = _plain(self.table.column(name))
        if values.null_count:
            raise self.error("is null", name, _first_null(values))
        return values

    def integers(self, name: str) -> NDArray[np.int64]:
        """(R,) int64: a column of integers."""
        values = self.column(name)
        if not pa.types.is_integer(values.type):
            raise self.error(f"expected integers, got {values.type}", name)
        numbers: NDArray[np.int64] = self._converted(values, pa.int64(), name).to_numpy()
        return numbers

    def strings(self, name: str) -> list[str]:
        """A column of strings."""
        values = self.column(name)
        if not _is_string(values.type):
            raise self.error(f"expected strings, got {values.type}", name)
        strings: list[str] = values.to_pylist()
        return strings

    def lists(self, name: str) -> tuple[Any, NDArray[np.int64]]:
        """A column of lists: all their entries in one array, and (R,) int64 the length of each list."""
        values = self.column(name)
        if not is_list(values.type):
            raise self.error(f"expected a list in each row, got {values.type}", name)
        return _plain(pc.list_flatten(values)), _lengths(values)

    def vectors(self, name: str, values: Any, owner: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        """Like `lists` for entries that are lists themselves; `owner[i]` is the row of entry i."""
        self._no_null(name, values, owner)
        return _plain(pc.list_flatten(values)), _lengths(values)

    def indices(
        self, name: str, values: Any, ids: Sequence[ItemId], *, unknown: str, owner: NDArray[np.int64] | None = None
    ) -> NDArray[np.int32]:
        """int32: where each value stands in `ids`; `owner[i]` is the row of value i, by default i.

        An ID that is not there is an error that begins with `unknown`, in which {} is the ID.
        """
        owner = np.arange(len(values)) if owner is None else owner
        self._no_null(name, values, owner)
        text = isinstance(ids[0], str)
        if not (_is_string(values.type) if text else pa.types.is_integer(values.type)):
            kind = "strings" if text else "integers"
            raise self.error(f"expected {kind}, as the IDs of the prepared data are; got {values.type}", name)
        key = pa.large_string() if text else pa.int64()
        found = pc.index_in(self._converted(values, key, name), value_set=pa.array(ids, key))
        if found.null_count:
            place = _first_null(found)
            raise self.error(unknown.format(repr(values[place].as_py())), name, int(owner[place]))
        indices: NDArray[np.int32] = found.to_numpy().astype(np.int32)
        return indices

    def floats(self, name: str, values: Any, owner: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32: finite numbers; `owner[i]` is the row of value i."""
        self._no_null(name, values, owner)
        if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
            raise self.error(f"expected lists of numbers, got lists of {values.type}", name)
        with np.errstate(over="ignore"):
            numbers: NDArray[np.float32] = values.to_numpy().astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            value = values[int(bad[0])].as_py()
            raise self.error(f"must be finite float32, got {value}", name, int(owner[bad[0]]))
        return numbers

    def _no_null(self, name: str, values: Any, owner: NDArray[np.int64]) -> None:
        if values.null_count:
            raise self.error("the list holds a null", name, int(owner[_first_null(values)]))

    def _converted(self, values: Any, kind: Any, name: str) -> Any:
        try:
            return values.cast(kind)
        except pa.ArrowException as error:
            raise self.error(f"cannot be read as {kind}: {error}", name) from error


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any sort."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plain(values: Any) -> Any:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _lengths(values: Any) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.list_value_length(values).to_numpy().astype(np.int64)
    return lengths


def _first_null(values: Any) -> int:
    return int(np.flatnonzero(pc.is_null(values).to_numpy())[0])
