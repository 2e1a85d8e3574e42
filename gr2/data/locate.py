"""Where a text file breaks: a slow second reading that is only made to tell a person the row and the column."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from gr2.errors import DataError

__all__ = ["csv_error", "json_error", "json_records", "open_bytes"]


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if its name ends in .gz."""
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def csv_error(path: Path, delimiter: str, cause: Exception, header: Sequence[str] | None = None) -> DataError:
    """The first row of a CSV file that is not UTF-8 or has another number of values than its (or the given) header."""
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter)
        try:
            header = next(reader) if header is None else header
            for row, values in enumerate((values for values in reader if values), start=1):
                for name, value in zip(header, values, strict=False):
                    if not _is_unicode(value):
                        return DataError("is not valid UTF-8", path=path, row=row, column=name)
                if len(values) != len(header):
                    message = f"has {len(values)} values, the header has {len(header)}"
                    return DataError(message, path=path, row=row)
        except (csv.Error, StopIteration, OSError, EOFError) as error:
            return DataError(f"cannot be read as CSV: {error or cause}", path=path)
    return DataError(f"cannot be read as CSV: {cause}", path=path)


def json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number (1-based, blank lines not counted) and object of each line. Raises DataError at the first bad line."""
    row = 0
    with open_bytes(path) as file:
        for line in file:
            if not line.strip():
                continue
            row += 1
            try:
                record = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"is not valid UTF-8: {error}", path=path, row=row) from error
            except ValueError as error:
                raise DataError(f"is not a JSON object on one line: {error}", path=path, row=row) from error
            if not isinstance(record, dict):
                message = f"expected one JSON object a line, found {type(record).__name__}"
                raise DataError(message, path=path, row=row)
            yield row, record


def json_error(path: Path, expected: Mapping[str, Sequence[type]], cause: Exception) -> DataError:
    """The first record of a JSON Lines file that is not an object, or whose value is not of the expected types."""
    try:
        for row, record in json_records(path):
            for name, kinds in expected.items():
                value = record.get(name)
                if value is not None and type(value) not in kinds:
                    wanted = " or ".join(kind.__name__ for kind in kinds)
                    message = f"expected {wanted}, found {type(value).__name__}: {value!r:.60}"
                    return DataError(message, path=path, row=row, column=name)
    except DataError as error:
        return error
    except (OSError, EOFError) as error:
        return DataError(f"cannot be read: {error}", path=path)
    return DataError(f"cannot be read as JSON Lines: {cause}", path=path)


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
