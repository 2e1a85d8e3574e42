"""Checked columns of a table that was read from a file: IDs, numbers and text, with every error located."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gr2.errors import DataError

__all__ = ["Ids", "TableFile", "is_text"]

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

    def not_integral(self) -> int:
        """The first row, from 0, whose value is not an integer in its usual spelling; there must be one."""
        wrong = [place for place, value in enumerate(self.values) if not _is_integer(value)]
        return int(np.argmax(np.isin(self.codes, wrong)))


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
        kind = "string" if is_text(column.type) else "int64"
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

        Date-times are kept to the microsecond. Raises DataError at a value that is not a number, is NaN or infinite,
        or is an integer beyond 2^53.
        """
        column = self._column(name)
        wanted = "a number or an ISO 8601 date-time" if dates else "a number"
        if is_text(column.type):
            column = self._parse_text(column, name, wanted, dates)
        if dates and (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
            column = self._seconds(column, name)
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
        if not is_text(column.type):
            raise self.error(f"must be text, got {column.type}", None, name)
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, column.type), column)

    def _column(self, name: str) -> Any:
        column = self.data.column(name)
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def _seconds(self, column: Any, name: str) -> Any:
        # A nanosecond's rest does not fit; of coarser units, nothing is lost but what overflows.
        zone = getattr(column.type, "tz", None)
        safe = not (pa.types.is_timestamp(column.type) and column.type.unit == "ns")
        try:
            whole = column.cast(pa.timestamp("us", zone), safe=safe).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise self.error(f"is out of range: {error}", None, name) from error
        return pc.divide(whole.cast(pa.float64()), 1e6)

    def _parse_text(self, column: Any, name: str, wanted: str, dates: bool) -> Any:
        column = self.text(name) if not pa.types.is_null(column.type) else column
        kinds = [pa.float64(), *([pa.timestamp("us", "UTC"), pa.timestamp("us")] if dates else [])]
        for kind in kinds:
            try:
                return column.cast(kind)
            except pa.ArrowInvalid:
                continue
        first, spelled = next((row, value) for row, value in enumerate(column) if value.as_py() is not None)
        own = [kind for kind in kinds if _casts(spelled, kind)]
        for row, value in enumerate(column):
            if value.as_py() is None:
                continue
            if not any(_casts(value, kind) for kind in kinds):
                raise self.error(f"must be {wanted}, got {value.as_py()!r}", row, name)
            own = [kind for kind in own if _casts(value, kind)]
            if not own:
                message = f"must be spelled as in row {first + 1} ({spelled.as_py()!r}), got {value.as_py()!r}"
                raise self.error(message, row, name)
        raise self.error(f"must be {wanted}", None, name)


def is_text(kind: Any) -> bool:
    """True for the Arrow types that hold text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _numpy(column: Any) -> NDArray[Any]:
    array: NDArray[Any] = (
        column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    )
    return array


def _first(mask: Any) -> int:
    return int(np.argmax(_numpy(mask)))


def _is_integer(value: Any) -> bool:
    try:
        return bool(str(value.cast(pa.int64()).as_py()) == value.as_py())
    except pa.ArrowInvalid:
        return False


def _casts(value: Any, kind: Any) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True
