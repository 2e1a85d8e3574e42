"""Traces: what a reasoner is to answer, list by list, as one Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gr2.errors import DataError

__all__ = ["Trace", "load_traces", "save_traces"]

SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("position", pa.int32()),
        ("target", pa.int32()),
        ("candidates", pa.list_(pa.int32())),
        ("explanation", pa.string()),
        ("ranking", pa.list_(pa.int32())),
        ("sampling", pa.string()),
        ("attempts", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Trace:
    """An accepted answer about the list that may follow `events[:position]` of a user.

    `target` and `candidates` are item indices, the candidates in incoming order; `ranking` are places in them, best
    first; `explanation` is empty where none was asked for; `attempts` is how many it took.
    """

    user: int
    position: int
    target: int
    candidates: tuple[int, ...]
    explanation: str
    ranking: tuple[int, ...]
    sampling: str
    attempts: int


def save_traces(path: Path, traces: Sequence[Trace]) -> None:
    """Write one row a trace."""
    columns = {name: [getattr(trace, name) for trace in traces] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def load_traces(path: Path) -> list[Trace]:
    """The traces that `save_traces` wrote. Raises DataError if the file is missing, damaged or something else."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, schema=SCHEMA).to_pylist()
        return [_trace(row) for row in rows]
    except (OSError, pa.ArrowException, TypeError) as error:
        raise DataError(f"not traces written by gr2: {error}", path=path) from error


def _trace(row: dict[str, Any]) -> Trace:
    return Trace(**row | {name: tuple(row[name]) for name in ("candidates", "ranking")})
