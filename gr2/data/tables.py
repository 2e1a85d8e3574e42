"""Tables from Parquet, CSV, TSV and JSON Lines files, with the columns that are asked for."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from gr2.data.columns import TableFile
from gr2.data.locate import csv_error, json_error, json_records, open_bytes
from gr2.errors import DataError

__all__ = ["read_csv", "read_table"]

TEXT_FORMATS = {".csv": ",", ".tsv": "\t"}
JSON_FORMATS = (".jsonl", ".ndjson", ".json")
BLOCK_BYTES = 1 << 24
JSON_SAMPLE = 10_000  # records read to see which columns a JSON Lines file has, and of which kind


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
        return read_csv(path, required=required, numeric=numeric, text=text, delimiter=TEXT_FORMATS[suffix])
    elif suffix in JSON_FORMATS:
        table = _read_json(path, wanted, required, numeric)
    else:
        known = ", ".join((".parquet", *TEXT_FORMATS, *JSON_FORMATS))
        raise DataError(f"cannot tell the format from the name; expected one of {known}", path=path)
    return _filled(TableFile(path, table, typed=True))


def read_csv(
    path: Path,
    *,
    required: Sequence[str],
    numeric: Sequence[str] = (),
    text: Sequence[str] = (),
    delimiter: str = ",",
    header: Sequence[str] | None = None,
) -> TableFile:
    """Like `read_table`, for delimited text under any name; with `header`, the file has no header of its own."""
    present = _header(path, delimiter) if header is None else list(header)
    wanted = dict.fromkeys((*required, *text, *numeric))
    _require(path, present, required, wanted)
    chosen = [name for name in wanted if name in present]
    reading = pacsv.ReadOptions(block_size=BLOCK_BYTES, column_names=header)
    parsing = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    # Number types are guessed from the first block; where a later one does not fit, the columns are read as text.
    for guessed in (numeric, ()):
        kinds = {name: pa.string() for name in chosen if name not in guessed}
        converting = pacsv.ConvertOptions(column_types=kinds, include_columns=chosen, null_values=[""])
        try:
            with pa.input_stream(path) as stream:
                table = pacsv.read_csv(stream, reading, parsing, converting)
            break
        except (OSError, pa.ArrowException) as error:
            cause = error
    else:
        raise csv_error(path, delimiter, cause, header) from cause
    return _filled(TableFile(path, table, typed=False))


def _filled(file: TableFile) -> TableFile:
    if file.data.num_rows == 0:
        raise DataError("has no rows", path=file.path)
    return file


def _require(path: Path, present: Sequence[str], required: Sequence[str], wanted: Iterable[str]) -> None:
    for name in wanted:
        if present.count(name) > 1:
            raise DataError("appears more than once in the header", path=path, column=name)
    for name in required:
        if name not in present:
            others = [other for other in present if other not in required]
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.4)
            hint = f"the nearest column is {near[0]!r}" if near else f"columns: {', '.join(present) or 'none'}"
            raise DataError(f"required column is missing; {hint}", path=path, column=name)


def _read_parquet(path: Path, wanted: Mapping[str, None], required: Sequence[str]) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            _require(path, present, required, wanted)
            return file.read(columns=[name for name in wanted if name in present])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"is not a readable Parquet file: {error}", path=path) from error


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        with open_bytes(path) as file:
            lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            names = next(csv.reader(lines, delimiter=delimiter), [])
            "".join(names).encode("utf-8")
    except (OSError, EOFError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot be read as UTF-8 CSV: {error}", path=path) from error
    if not names:
        raise DataError("is empty", path=path)
    return names


def _read_json(path: Path, wanted: Mapping[str, None], required: Sequence[str], numeric: Sequence[str]) -> Any:
    # Types are those in the first records; where a later one does not fit, they are looked for in all records.
    for sample in (JSON_SAMPLE, None):
        present, kinds = _json_columns(path, wanted, sample)
        if not present:
            raise DataError("has no rows", path=path)
        _require(path, list(present), required, wanted)
        schema, expected = _json_schema(kinds, required, numeric)
        options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            with pa.input_stream(path) as stream:
                table = pajson.read_json(stream, pajson.ReadOptions(block_size=BLOCK_BYTES), options)
            break
        except (OSError, pa.ArrowException) as error:
            cause = error
    else:
        raise json_error(path, expected, cause) from cause
    return table.drop_columns(
        [name for name in wanted if name not in present and table.column(name).null_count == len(table)]
    )


def _json_columns(
    path: Path, wanted: Mapping[str, None], sample: int | None
) -> tuple[dict[str, None], dict[str, type]]:
    """The columns of the first `sample` records, and the type of each wanted column's first value there."""
    kinds: dict[str, type] = {}
    present: dict[str, None] = {}
    try:
        for _, record in itertools.islice(json_records(path), sample):
            present.update(dict.fromkeys(record))
            for name in wanted:
                if record.get(name) is not None:
                    kinds.setdefault(name, type(record[name]))
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from error
    return present, {name: kinds.get(name, type(None)) for name in wanted}


def _json_schema(
    kinds: Mapping[str, type], required: Sequence[str], numeric: Sequence[str]
) -> tuple[Any, dict[str, tuple[type, ...]]]:
    """The Arrow schema to read with, and the Python types of its values."""
    types = {str: pa.string(), int: pa.int64(), list: pa.list_(pa.string())}
    schema: dict[str, Any] = {}
    expected: dict[str, tuple[type, ...]] = {}
    for name, kind in kinds.items():
        if name in numeric and kind is not str:
            schema[name], expected[name] = pa.float64(), (int, float)
        else:
            known = kind in types and not (kind is list and name in required)
            schema[name], expected[name] = (types[kind], (kind,)) if known else (pa.string(), (str,))
    return pa.schema(list(schema.items())), expected
