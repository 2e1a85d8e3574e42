"""The catalogue: item IDs and what is known of each item, addressed by a dense index.

An item's index carries no information: items are numbered by a seeded hash of their ID, never by ID order or by first
appearance, so nothing downstream can learn from the numbering.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.errors import DataError

__all__ = ["Catalog", "ItemId", "hashed_order"]

ItemId = int | str
COLUMNS = ("item_id", "title", "brand", "categories", "price", "description")


def hashed_order(ids: Sequence[ItemId], seed: int) -> NDArray[np.int64]:
    """(N,) int64: the permutation that sorts `ids` by a seeded hash, whatever order they come in."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = [hashlib.blake2b(repr(item).encode(), digest_size=16, key=key).digest() for item in ids]
    return np.array(sorted(range(len(ids)), key=digests.__getitem__), dtype=np.int64)


@dataclass(frozen=True)
class Catalog:
    """Items by index: `ids` are all int or all str; the other columns are None where unknown, one entry an item.

    `categories` are paths with the leaf last.
    """

    ids: list[ItemId]
    title: list[str | None]
    brand: list[str | None]
    categories: list[list[str]]
    price: list[float | None]
    description: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def id_type(self) -> str:
        """`"int64"` or `"string"`."""
        return "string" if self.ids and isinstance(self.ids[0], str) else "int64"

    @cached_property
    def index(self) -> dict[ItemId, int]:
        """Item ID to index."""
        return {item: position for position, item in enumerate(self.ids)}

    def take(self, order: NDArray[np.int64]) -> Catalog:
        """The catalogue with its items in the given order (a selection is allowed)."""
        rows = order.tolist()
        columns = (self.ids, self.title, self.brand, self.categories, self.price, self.description)
        return Catalog(*[[column[row] for row in rows] for column in columns])  # type: ignore[arg-type]

    def keys(self) -> NDArray[np.int64] | list[str]:
        """The IDs in index order as a codebook takes them."""
        if self.id_type == "string":
            return [str(item) for item in self.ids]
        return np.array(self.ids, dtype=np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the catalogue as Parquet, in index order."""
        pq.write_table(self.table(), path)

    def table(self) -> Any:
        """The catalogue as a pa.Table, in index order."""
        key = pa.string() if self.id_type == "string" else pa.int64()
        return pa.table(
            {
                "item_id": pa.array(self.ids, key),
                "title": pa.array(self.title, pa.string()),
                "brand": pa.array(self.brand, pa.string()),
                "categories": pa.array(self.categories, pa.list_(pa.string())),
                "price": pa.array(self.price, pa.float64()),
                "description": pa.array(self.description, pa.string()),
            }
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Catalog:
        """The catalogue that `save` wrote. Raises DataError if the file is missing or damaged."""
        try:
            table = pq.read_table(Path(path))
            columns = [table.column(name).to_pylist() for name in COLUMNS]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"not a catalogue written by gr2: {error}", path=path) from error
        return cls(*columns)
