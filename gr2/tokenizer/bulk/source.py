"""The Parquet files with the items to encode, checked as far as their schemas tell, and divided into units of work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gr2.data.columns import is_text
from gr2.errors import DataError

__all__ = ["TEXT", "Contents", "Source", "Unit"]

TEXT = ("title", "brand", "categories", "price", "description")
UNIT_ROWS = 1 << 17


@dataclass(frozen=True)
class Unit:
    """Row groups `first` to `first + groups` of the file `path`; `before` of its rows come before them."""

    number: int
    path: str
    first: int
    groups: int
    rows: int
    before: int


@dataclass(frozen=True)
class Contents:
    """What the codes were learnt from: vectors of `width` columns, or text if it is None; `id_type` is the items'."""

    id_type: Literal["int64", "string"]
    width: int | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that say what an item is."""
        return TEXT if self.width is None else ("vector",)


@dataclass(frozen=True)
class Source:
    """The files of a catalogue."""

    units: list[Unit]
    digest: str

    @cached_property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(unit.rows for unit in self.units)

    @classmethod
    def find(cls, paths: Sequence[Path], contents: Contents) -> Source:
        """The Parquet files among `paths` and in folders of them, by name; a unit is a file's row groups.

        `digest` covers each file's path, size, rows and time of last change: hashing terabytes would take longer than
        encoding them. Raises DataError for what is missing, unreadable, given twice or of other columns.
        """
        files = [path for given in paths for path in _files(given)]
        seen: set[Path] = set()
        units, stamps = list[Unit](), []
        for path in files:
            if path in seen:
                raise DataError("is given more than once", path=path)
            seen.add(path)
            metadata = _check_file(path, contents)
            status = path.stat()
            stamps.append((str(path), status.st_size, metadata.num_rows, status.st_mtime_ns))
            units += _units(path, metadata, len(units))
        if not units:
            raise DataError("no rows", path=", ".join(map(str, paths)))
        return cls(units, hashlib.sha256(json.dumps(sorted(stamps)).encode()).hexdigest())


def _files(path: Path) -> list[Path]:
    path = path.resolve()
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    if not files:
        raise DataError("has no .parquet files", path=path)
    return files


def _check_file(path: Path, contents: Contents) -> Any:
    """The file's Parquet metadata."""
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"is not a readable Parquet file: {error}", path=path) from error
    if "item_id" not in schema.names:
        raise DataError(f"required column is missing; columns: {', '.join(schema.names)}", path=path, column="item_id")
    kind = schema.field("item_id").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (is_text(kind) if contents.id_type == "string" else pa.types.is_integer(kind)):
        message = f"item IDs must be {contents.id_type}, as the catalogue's, got {kind}"
        raise DataError(message, path=path, column="item_id")
    _check_contents(path, schema, contents)
    return metadata


def _check_contents(path: Path, schema: Any, contents: Contents) -> None:
    if contents.width is None:
        if not set(TEXT).intersection(schema.names):
            message = f"the codes were learnt from text: expected some of {', '.join(TEXT)}, got "
            raise DataError(message + ", ".join(schema.names), path=path)
        if "categories" in schema.names:
            _check_categories(path, schema.field("categories").type)
        return
    if "vector" not in schema.names:
        columns = ", ".join(schema.names)
        message = f"required column is missing: the codes were learnt from vectors; columns: {columns}"
        raise DataError(message, path=path, column="vector")
    kind = schema.field("vector").type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not nested or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"must be a list of numbers, got {kind}", path=path, column="vector")
    if pa.types.is_fixed_size_list(kind) and kind.list_size != contents.width:
        message = f"has {kind.list_size} values, but the codes were learnt from {contents.width}"
        raise DataError(message, path=path, column="vector")


def _check_categories(path: Path, kind: Any) -> None:
    names = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (is_text(names) or pa.types.is_null(names)):
        raise DataError(f"must be lists of names, or text, got {kind}", path=path, column="categories")


def _units(path: Path, metadata: Any, number: int) -> Iterator[Unit]:
    """Units of at least one row group and, where the groups are small, of about 131,072 rows."""
    first = rows = before = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        last = group + 1 == metadata.num_row_groups
        if rows and (last or rows + metadata.row_group(group + 1).num_rows > UNIT_ROWS):
            yield Unit(number, str(path), first, group + 1 - first, rows, before)
            number, first, before, rows = number + 1, group + 1, before + rows, 0
