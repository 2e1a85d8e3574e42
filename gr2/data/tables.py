"""Tables from Parquet, CSV, TSV and JSON Lines files, with the columns checked and every error located."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.data.locate import csv_error, json_error, json_records, open_bytes
from gr2.errors import DataError

__all__ = ["Ids", "TableFile", "read_table"]

TEXT_FORMATS = {".csv": ",", ".tsv": "\t"}
JSON_FORMATS = (".jsonl", ".ndjson", ".json")
BLOCK_BYTES = 1 << 24
JSON_SAMPLE = 10_000  # records read to see which columns a JSON Lines file has, and of which kind
EXACT = 2.0**53  # up to here a float64 holds every integer


@dataclass(frozen=True)
class Ids:
    """A column of IDs: `codes` (N,) int64 into `values`, which are distinct.

    `kind` is "int64" or "string", or "text" for a CSV column, which may become either.
    """

    codes: NDArray[np.int64]
    values: Any  # pa.Array of int64 or string
    kind: str

    def as_kind(self, kind: str) -> Ids:
        """The same IDs as "int64" or "string"; raises pa.ArrowInvalid if text is not an integer."""
        return Ids(self.codes, self.values.cast(pa.int64() if kind == "int64" else pa.string()), kind)

    def is_integral(self) -> bool:
        """True if every value is an integer in its usual spelling: `007` is not."""
        if self.kind != "text":
            return self.kind == "int64"
        try:
            return bool(pc.all(pc.equal(self.values.cast(pa.int64()).cast(pa.string()), self.values)).as_py())
        except pa.ArrowInvalid:
            return False


@dataclass(frozen=True)
class TableFile:
    """The columns read from a file; `typed` is False where the format holds only text (CSV)."""

    path: Path
    data: Any  # pa.Table
    typed: bool

    def __contains__(self, name: str) -> bool:
        return name in self.data.column_names

    def error(self, message: str, row: int | None, column: str | None) -> DataError:
        """A DataError at the 0-based `row` of this file."""
        return DataError(message, path=self.path, row=None if row is None else row + 1, column=column)

    def ids(self, name: str) -> Ids:
        """A column of IDs. Raises DataError at a missing or empty one, or if they are neither integers nor text."""
        column = self._column(name)
        kind = "string" if _is_text(column.type) else "int64"
        if pa.types.is_null(column.type):
            raise self.error("is missing", 0, name)
        if kind == "int64" and not pa.types.is_integer(column.type):
            raise self.error(f"must be text or 64-bit integers, got {column.type}", None, name)
        if column.null_count:
            raise self.error("is missing", _first(pc.is_null(column)), name)
        try:
            whole = column.cast(pa.large_string() if kind == "string" else pa.int64()).combine_chunks()
        except pa.ArrowInvalid as error:
            raise self.error(f"must be text or 64-bit integers: {error}", None, name) from error
        encoded = pc.dictionary_encode(whole)
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        values = encoded.dictionary
        if kind == "string":
            blank = np.flatnonzero(_numpy(pc.equal(pc.utf8_trim_whitespace(values), "")))
            if len(blank):
                raise self.error("is empty", int(np.flatnonzero(np.isin(codes, blank))[0]), name)
            values, kind = values.cast(pa.string()), "string" if self.typed else "text"
        return Ids(codes, values, kind)

    def numbers(self, name: str, *, dates: bool = False) -> NDArray[np.float64]:
        """(N,) float64, NaN where missing. With `dates`, date-times are taken too, as Unix seconds (UTC if no zone).

        Raises DataError at a value that is not a number, is NaN or infinite, or is an integer beyond 2^53.
        """
        column = self._column(name)
        wanted = "a number or an ISO 8601 date-time" if dates else "a number"
        if _is_text(column.type):
            column = self._parse_text(column, name, wanted, dates)
        if pa.types.is_temporal(column.type) and dates and not pa.types.is_time(column.type):
            column = pc.divide(column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
        if pa.types.is_null(column.type):
            return np.full(len(column), np.nan)
        if not (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
        ):
            raise self.error(f"must be {wanted}, got {column.type}", None, name)
        missing = _numpy(pc.is_null(column))
        values = _numpy(column.cast(pa.float64(), safe=False)).astype(np.float64)
        for bad, reason in (
            (~np.isfinite(values), "must be finite"),
            (np.abs(values) > EXACT, "is too large to be exact (above 2^53); use a coarser unit"),
        ):
            rows = np.flatnonzero(bad & ~missing)
            if len(rows):
                raise self.error(f"{reason}, got {column[int(rows[0])].as_py()}", int(rows[0]), name)
        return values

    def text(self, name: str) -> Any:
        """pa.ChunkedArray of strings, null where missing or blank."""
        column = self._column(name)
        if pa.types.is_null(column.type):
            return column.cast(pa.string())
        if not _is_text(column.type):
            raise self.error(f"must be text, got {column.type}", None, name)
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, column.type), column)

    def _column(self, name: str) -> Any:
        column = self.data.column(name)
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def _parse_text(self, column: Any, name: str, wanted: str, dates: bool) -> Any:
        column = self.text(name) if not pa.types.is_null(column.type) else column
        kinds = [pa.float64(), *([pa.timestamp("us", "UTC"), pa.timestamp("us")] if dates else [])]
        for kind in kinds:
            try:
                return column.cast(kind)
            except pa.ArrowInvalid:
                continue
        for row, value in enumerate(column):
            if value.as_py() is not None and not any(_casts(value, kind) for kind in kinds):
                raise self.error(f"must be {wanted}, got {value.as_py()!r}", row, name)
        raise self.error(f"must be {wanted}, and the same of them in every row", None, name)


def read_table(
    path: Path, *, required: Sequence[str], numeric: Sequence[str] = (), text: Sequence[str] = ()
) -> TableFile:
    """The columns `required`, and those of `numeric` and `text` that are there, of a file.

    The format follows the name: .parquet, .csv, .tsv, .jsonl, .ndjson, .json; the last five may end in .gz.
    Raises DataError if the file is not what its name says, has no rows, or lacks a required column.
    """
    if not path.is_file():
        raise DataError("is a folder, not a file" if path.is_dir() else "no such file", path=path)
    suffix = Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    wanted = dict.fromkeys((*required, *text, *numeric))
    if suffix in (".parquet", ".pq"):
        table = _read_parquet(path, wanted, required)
    elif suffix in TEXT_FORMATS:
        table = _read_csv(path, TEXT_FORMATS[suffix], wanted, required, numeric)
    elif suffix in JSON_FORMATS:
        table = _read_json(path, wanted, required, numeric)
    else:
        known = ", ".join((".parquet", *TEXT_FORMATS, *JSON_FORMATS))
        raise DataError(f"cannot tell the format from the name; expected one of {known}", path=path)
    if table.num_rows == 0:
        raise DataError("has no rows", path=path)
    return TableFile(path, table, suffix not in TEXT_FORMATS)


def _require(path: Path, present: Sequence[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
            hint = (
                f"the nearest column there is {near[0]!r}" if near else f"columns there: {', '.join(present) or 'none'}"
            )
            raise DataError(f"required column is missing; {hint}", path=path, column=name)


def _read_parquet(path: Path, wanted: Mapping[str, None], required: Sequence[str]) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            _require(path, present, required)
            return file.read(columns=[name for name in wanted if name in present])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"is not a readable Parquet file: {error}", path=path) from error


def _read_csv(
    path: Path, delimiter: str, wanted: Mapping[str, None], required: Sequence[str], numeric: Sequence[str]
) -> Any:
    try:
        with open_bytes(path) as file:
            lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            present = next(csv.reader(lines, delimiter=delimiter), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as UTF-8 CSV: {error}", path=path) from error
    if not present:
        raise DataError("is empty", path=path)
    _require(path, present, required)
    chosen = [name for name in wanted if name in present]
    options = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in chosen if name not in numeric},
        include_columns=chosen,
        null_values=[""],
    )
    try:
        with pa.input_stream(path) as stream:
            return pacsv.read_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=options,
            )
    except (OSError, pa.ArrowException) as error:
        raise csv_error(path, delimiter, error) from error


def _read_json(path: Path, wanted: Mapping[str, None], required: Sequence[str], numeric: Sequence[str]) -> Any:
    kinds: dict[str, type] = {}
    try:
        for _, record in itertools.islice(json_records(path), JSON_SAMPLE):
            for name, value in record.items():
                if name in wanted and kinds.get(name, type(None)) is type(None):
                    kinds[name] = type(value)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from error
    if not kinds and not any(True for _ in json_records(path)):
        raise DataError("has no rows", path=path)
    _require(path, list(kinds), required)
    types = {str: pa.string(), int: pa.int64(), list: pa.list_(pa.string())}
    schema: dict[str, Any] = {}
    expected: dict[str, tuple[type, ...]] = {}
    for name, kind in kinds.items():
        if name in numeric and kind is not str:
            schema[name], expected[name] = pa.float64(), (int, float)
        else:
            schema[name], expected[name] = types.get(kind, pa.string()), (kind if kind in types else str,)
    options = pajson.ParseOptions(explicit_schema=pa.schema(list(schema.items())), unexpected_field_behavior="ignore")
    try:
        with pa.input_stream(path) as stream:
            reading = pajson.ReadOptions(block_size=BLOCK_BYTES)
            return pajson.read_json(stream, read_options=reading, parse_options=options)
    except (OSError, pa.ArrowException) as error:
        raise json_error(path, expected, error) from error


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _numpy(column: Any) -> NDArray[Any]:
    array: NDArray[Any] = (
        column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    )
    return array


def _first(mask: Any) -> int:
    return int(np.argmax(_numpy(mask)))


def _casts(value: Any, kind: Any) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True
