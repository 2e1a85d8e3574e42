"""The items file: which items there are, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gr2.catalog import Catalog
from gr2.data.columns import Ids, TableFile, is_text
from gr2.data.tables import read_table

__all__ = ["ItemTable", "read_items"]

TEXT = ("title", "brand", "description")


@dataclass(frozen=True)
class ItemTable:
    """The rows of an items file, in file order: distinct `ids`, and the columns that the file has."""

    ids: Ids
    data: Any  # pa.Table with some of title, brand, categories, price, description

    def catalog(self, rows: NDArray[np.int64]) -> Catalog:
        """The catalogue of the given rows (n,), in the given order; columns that the file lacks are unknown."""
        columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in (*TEXT, "price")}
        columns["categories"] = [[] for _ in range(len(rows))]
        for name in self.data.column_names:
            columns[name] = self.data.column(name).take(pa.array(rows)).to_pylist()
        return Catalog(self.ids.values.take(pa.array(self.ids.codes[rows])).to_pylist(), **columns)


def read_items(path: Path) -> ItemTable:
    """The items file at `path`: `item_id`, and `title`, `brand`, `description`, `categories`, `price` if it has them.

    `categories` is a list of names, leaf last, or one text with the names divided by `|`; `price` is a number, not
    negative. Raises DataError with the row and column of what breaks this, and at the second row of an item.
    """
    file = read_table(path, required=("item_id",), text=(*TEXT, "categories"), numeric=("price",))
    ids = file.ids("item_id")
    if len(ids.values) < len(ids.codes):
        first = np.unique(ids.codes, return_index=True)[1]
        row = int(np.setdiff1d(np.arange(len(ids.codes)), first)[0])
        earlier = int(first[ids.codes[row]]) + 1
        raise file.error(f"{ids.values[ids.codes[row]].as_py()!r} is already the item of row {earlier}", row, "item_id")
    columns = {name: file.text(name) for name in TEXT if name in file}
    if "categories" in file:
        columns["categories"] = _categories(file)
    if "price" in file:
        prices = file.numbers("price")
        negative = np.flatnonzero(prices < 0)
        if len(negative):
            row = int(negative[0])
            raise file.error(f"must not be negative (leave it empty if unknown), got {prices[row]:g}", row, "price")
        columns["price"] = pa.array(prices, from_pandas=True)
    return ItemTable(ids, pa.table(columns) if columns else pa.table({}))


def _categories(file: TableFile) -> Any:
    kind = pa.list_(pa.string())
    column = file.data.column("categories")
    if pa.types.is_null(column.type):
        return pa.array([[]] * len(column), kind)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        inner = column.type.value_type
        if not (is_text(inner) or pa.types.is_null(inner)):
            raise file.error(f"must be a list of names, got a list of {inner}", None, "categories")
        lists = column.cast(kind)
    else:
        lists = pc.split_pattern(file.text("categories").cast(pa.string()), "|")
    names = pc.list_flatten(lists)
    trimmed = pc.utf8_trim_whitespace(names)
    if names.null_count or pc.any(pc.or_(pc.equal(trimmed, ""), pc.not_equal(trimmed, names))).as_py():
        return pa.array(
            [[name.strip() for name in path or [] if name and name.strip()] for path in lists.to_pylist()], kind
        )
    return pc.if_else(pc.is_null(lists), pa.scalar([], kind), lists)
