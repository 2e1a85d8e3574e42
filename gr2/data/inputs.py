"""The pair of files that `prepare` reads, as the importers and the synthetic shop write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gr2.catalog import Catalog

__all__ = ["write_inputs"]


def write_inputs(folder: Path, catalog: Catalog, log: Any) -> tuple[Path, Path]:
    """The paths of items.parquet and interactions.parquet in `folder`, each put in its place whole.

    `log` is a pa.Table with user_id, item_id and timestamp.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items, interactions = folder / "items.parquet", folder / "interactions.parquet"
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (items, interactions)}
    try:
        catalog.save(partial[items])
        pq.write_table(log, partial[interactions])
        for path, temporary in partial.items():
            temporary.replace(path)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)
    return items, interactions
