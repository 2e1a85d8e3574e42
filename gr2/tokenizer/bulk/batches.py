"""Batches of the items in a unit, every row checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.data.columns import TableFile
from gr2.errors import DataError
from gr2.tokenizer.bulk.source import Contents, Unit
from gr2.tokenizer.text import item_text

__all__ = ["Batch", "read_unit"]

BATCH_ROWS = 1 << 14
READ_BYTES = 1 << 20  # of a column at once, however large its row groups are


@dataclass(frozen=True)
class Batch:
    """Items of a unit, from its row `first` on: `ids`, a pa.Array, and their vectors (n, D) float32 or texts."""

    first: int
    ids: Any
    contents: NDArray[np.float32] | list[str]

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of some of its items, by their place in it."""
        if isinstance(self.contents, np.ndarray):
            return Batch(self.first, self.ids.take(pa.array(rows)), self.contents[rows])
        return Batch(self.first, self.ids.take(pa.array(rows)), [self.contents[row] for row in rows.tolist()])


def read_unit(unit: Unit, contents: Contents) -> Iterator[Batch]:
    """The unit's items, at most 16,384 at a time. Raises DataError with the row of what is wrong."""
    try:
        with pq.ParquetFile(unit.path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            columns = ["item_id", *(name for name in contents.columns if name in file.schema_arrow.names)]
            groups, first = range(unit.first, unit.first + unit.groups), 0
            for batch in file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=columns, use_threads=False):
                rows = UnitRows(Path(unit.path), pa.Table.from_batches([batch]), True, unit.before + first)
                read = rows.vectors(contents.width) if contents.width is not None else rows.texts()
                yield Batch(first, rows.item_ids(contents.id_type), read)
                first += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", path=unit.path) from error


@dataclass(frozen=True)
class UnitRows(TableFile):
    """Some rows of a file, of which `before` come before them."""

    before: int

    def error(self, message: str, row: int | None, column: str | None) -> DataError:
        """A DataError at the `row` of these, from 0."""
        return super().error(message, None if row is None else self.before + row, column)

    def item_ids(self, id_type: str) -> Any:
        """pa.Array of int64 or string."""
        column = self.data.column("item_id").combine_chunks()
        self._whole(column, "item_id")
        try:
            ids = column.cast(pa.string() if id_type == "string" else pa.int64())
        except pa.ArrowInvalid as error:
            raise self.error(f"must be 64-bit integers: {error}", None, "item_id") from error
        if id_type == "string":
            blank = pc.equal(pc.utf8_trim_whitespace(ids), "").to_numpy(zero_copy_only=False)
            if blank.any():
                raise self.error("is empty", int(blank.argmax()), "item_id")
        return ids

    def vectors(self, width: int) -> NDArray[np.float32]:
        """(n, D) float32, unchecked for infinite values."""
        column = self.data.column("vector").combine_chunks()
        self._whole(column, "vector")
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        if (lengths != width).any():
            row = int((lengths != width).argmax())
            raise self.error(f"has {lengths[row]} values, but the codes were learnt from {width}", row, "vector")
        values = column.flatten()
        if values.null_count:
            row = int(pc.is_null(values).to_numpy(zero_copy_only=False).argmax()) // width
            raise self.error("has a missing value", row, "vector")
        with np.errstate(over="ignore"):
            flat = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float32)
        return flat.reshape(len(column), width)

    def texts(self) -> list[str]:
        """The items' texts, as the stage `tokenize` makes them."""
        missing: list[Any] = [None] * len(self.data)
        title, brand, description = (
            self.text(name).to_pylist() if name in self else missing for name in ("title", "brand", "description")
        )
        prices = self.numbers("price") if "price" in self else np.full(len(missing), np.nan)
        if (prices < 0).any():
            row = int((prices < 0).argmax())
            raise self.error(f"must not be negative, got {prices[row]:g}", row, "price")
        price = [None if np.isnan(value) else value for value in prices.tolist()]
        return [item_text(*fields) for fields in zip(title, brand, self._categories(), price, description, strict=True)]

    def _categories(self) -> list[list[str]]:
        if "categories" not in self:
            return [[]] * len(self.data)
        paths = self.data.column("categories").to_pylist()
        split = (path.split("|") if isinstance(path, str) else path or [] for path in paths)
        return [[name.strip() for name in path if name and name.strip()] for path in split]

    def _whole(self, column: Any, name: str) -> None:
        if column.null_count:
            raise self.error("is missing", int(pc.is_null(column).to_numpy(zero_copy_only=False).argmax()), name)
