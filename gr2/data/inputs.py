"""The files that `prepare` and `prerank` read, as the importers and the synthetic shop write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gr2.catalog import Catalog

__all__ = ["write_inputs", "write_tables"]


def write_inputs(folder: Path, catalog: Catalog, log: Any) -> tuple[Path, Path]:
    """The paths of items.parquet and interactions.parquet in `folder`, each put in its place whole.

    `log` is a pa.Table with user_id, item_id and timestamp.
    """
    items, interactions = write_tables(folder, {"items.parquet": catalog.table(), "interactions.parquet": log})
    return items, interactions


def write_tables(folder: Path, tables: Mapping[str, Any]) -> tuple[Path, ...]:
    """The paths of pa.Tables written as Parquet to `folder`, each put in its place whole, after all were written."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {folder / name: folder / f".{name}.{os.getpid()}.tmp" for name in tables}
    try:
        for temporary, table in zip(partial.values(), tables.values(), strict=True):
            pq.write_table(table, temporary)
        for path, temporary in partial.items():
            temporary.replace(path)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)
    return tuple(partial)
