"""Amazon reviews as their owners distribute them (2014, 2018, 2023): records, product texts and prices as they come."""

from __future__ import annotations

import ast
import html
import itertools
import json
import math
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gr2.data.columns import TableFile
from gr2.data.locate import open_bytes
from gr2.data.tables import read_csv, read_table
from gr2.errors import DataError

__all__ = ["read_products", "read_reviews"]

REVIEW_COLUMNS = (  # user, item, rating, time
    ("user_id", "parent_asin", "rating", "timestamp"),  # 2023
    ("reviewerID", "asin", "overall", "unixReviewTime"),  # 2014, 2018
)
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
PRICE = re.compile(r"\s*(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)\b")
TAG = re.compile(r"<[^<>]*>")
SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
ASIN_LENGTH = 10
SAMPLE_ROWS = 1000


def read_reviews(path: Path) -> TableFile:
    """A reviews or ratings file, with the columns user_id, item_id, rating and timestamp (as in the file).

    JSON Lines of any of the three editions; ratings CSV with the header of 2023, or without one: user, item, rating,
    time in 2014 and item, user, rating, time in 2018, told apart by the length of the item IDs.
    """
    if not path.is_file():
        raise DataError("no such file", path=path)
    if ".csv" in path.suffixes:
        return _read_ratings(path)
    _, first = next(_records(path), (0, None))
    if first is None:
        raise DataError("has no rows", path=path)
    names = next((names for names in REVIEW_COLUMNS if names[0] in first), None)
    if names is None:
        keys = ", ".join(map(repr, first))
        raise DataError(f"expected 'reviewerID' or 'user_id' among the keys, found {keys}", path=path, row=1)
    if _is_json(path):
        file = read_table(path, required=names[:2], numeric=names[2:])
        missing = [name for name in names[2:] if name not in file]
        if missing:
            raise DataError("required column is missing", path=path, column=missing[0])
        return TableFile(path, file.data.select(names).rename_columns(COLUMNS), typed=True)
    return _from_literals(path, names)


def read_products(path: Path, wanted: Container[str]) -> dict[str, dict[str, Any]]:
    """Item ID to title, brand, categories, price and description, of the `wanted` items of a metadata file.

    Lines are JSON or, in 2014, Python literals. Where an item has several lines, the first counts. Markup and entities
    are removed; what cannot be a title or a price becomes None. Raises DataError at a line that is neither, or that
    has no `parent_asin` or `asin`.
    """
    products: dict[str, dict[str, Any]] = {}
    for row, record in _records(path):
        item = record.get("parent_asin", record.get("asin"))
        if not isinstance(item, str) or not item.strip():
            raise DataError(f"must be an item ID, got {item!r}", path=path, row=row, column="asin")
        if item in wanted and item not in products:
            products[item] = _product(record)
    return products


def _read_ratings(path: Path) -> TableFile:
    with open_bytes(path) as file:
        head = [line.decode("utf-8", "replace").strip().split(",") for line in itertools.islice(file, SAMPLE_ROWS)]
    if not head:
        raise DataError("has no rows", path=path)
    for names in REVIEW_COLUMNS:
        if names[0] in head[0]:
            ratings = read_csv(path, required=names, numeric=names[2:])
            return TableFile(path, ratings.data.select(names).rename_columns(COLUMNS), typed=True)
    rows = [row for row in head if len(row) == len(COLUMNS)]
    items = [bool(rows) and all(len(row[column]) == ASIN_LENGTH for row in rows) for column in (0, 1)]
    if items[0] == items[1]:
        message = "cannot tell users from items: one of the first two columns should hold item IDs of 10 characters"
        raise DataError(message, path=path, row=1)
    header = ("item_id", "user_id", "rating", "timestamp") if items[0] else COLUMNS
    ratings = read_csv(path, required=COLUMNS[:2], numeric=COLUMNS[2:], header=header)
    return TableFile(path, ratings.data, typed=True)


def _from_literals(path: Path, names: tuple[str, ...]) -> TableFile:
    columns: list[list[Any]] = [[] for _ in names]
    for row, record in _records(path):
        for name, column in zip(names, columns, strict=True):
            if name not in record:
                raise DataError("is missing", path=path, row=row, column=name)
            column.append(record[name])
    try:
        kinds = (pa.string(), pa.string(), pa.float64(), pa.float64())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"IDs must be text, ratings and times numbers: {error}", path=path) from error
    return TableFile(path, pa.table(arrays, COLUMNS), typed=True)


def _is_json(path: Path) -> bool:
    with open_bytes(path) as file:
        try:
            json.loads(next(line for line in file if line.strip()))
        except ValueError:
            return False
    return True


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    try:
        with open_bytes(path) as file:
            for line in file:
                if line.strip():
                    row += 1
                    yield row, _record(line, path, row)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", path=path, row=row + 1) from error


def _record(line: bytes, path: Path, row: int) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"is not valid UTF-8: {error}", path=path, row=row) from error
    try:
        record = json.loads(text)
    except ValueError:
        try:
            record = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"is neither JSON nor a Python literal: {error}", path=path, row=row) from error
    if not isinstance(record, dict):
        raise DataError(f"expected an object, found {type(record).__name__}", path=path, row=row)
    return record


def _product(record: dict[str, Any]) -> dict[str, Any]:
    details = record.get("details")
    brand = record.get("brand") or (details.get("Brand") if isinstance(details, dict) else None) or record.get("store")
    title = record.get("title")
    # In 2018 some titles are the page's scripts.
    scripted = isinstance(title, str) and "getTime" in title
    return {
        "title": None if scripted else _text(title),
        "brand": _text(brand),
        "categories": _categories(record),
        "price": _price(record.get("price")),
        "description": _text(record.get("description")),
    }


def _text(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        value = " ".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return None
    plain = TAG.sub(" ", SCRIPT.sub(" ", html.unescape(value)))
    return " ".join(plain.split()) or None


def _categories(record: dict[str, Any]) -> list[str]:
    value = record.get("categories") or record.get("category") or []
    if isinstance(value, str):
        value = [value]
    if value and isinstance(value[0], list | tuple):
        value = max(value, key=len)  # 2014: several paths; the deepest says most
    names = [_text(name) for name in value if isinstance(name, str) and "</" not in name]
    path = [name for name in names if name]
    if not path:
        root = _text(record.get("main_category"))
        return [root] if root else []
    return path


def _price(value: Any) -> float | None:
    """The number, or the lower end of a range such as `$9.99 - $24.99`; None for anything else."""
    if isinstance(value, str):
        match = PRICE.match(value)
        value = float(match[1].replace(",", "")) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(np.round(value, 2))
