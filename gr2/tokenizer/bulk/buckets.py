"""Scratch files whose records are grouped by bucket, so that one bucket of many files can be read without the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gr2.errors import ArtifactError

__all__ = ["BucketWriter", "bucket_count", "buckets_of", "list_column", "lists", "read_buckets", "replacing", "rows_in"]

BUCKET_ROWS = 250_000
MOST_BUCKETS = 1024
CHUNK_BYTES = 1 << 24  # records that a writer holds before it sorts and writes them
MIX = np.uint64(0x9E3779B97F4A7C15)


def bucket_count(items: int) -> int:
    """How many buckets `items` are divided into: about 250,000 in each, 1,024 buckets at most."""
    return max(1, min(MOST_BUCKETS, -(-items // BUCKET_ROWS)))


def buckets_of(codes: NDArray[np.uint16], buckets: int) -> NDArray[np.uint16]:
    """(n,) uint16: the bucket of semantic IDs (n, L), by a hash of their first L - 2 codes.

    All prefixes that an item of a full one may move to are in the same bucket.
    """
    mixed = np.zeros(len(codes), dtype=np.uint64)
    for level in range(codes.shape[1] - 2):
        mixed += codes[:, level] + np.uint64(1)
        mixed *= MIX
        mixed ^= mixed >> np.uint64(32)
    return (mixed % np.uint64(buckets)).astype(np.uint16)


class BucketWriter:
    """Writes records to an Arrow file as rounds of `buckets` record batches, one a bucket.

    `close` ends the file; `rows` are those taken so far.
    """

    def __init__(self, path: Path, schema: Any, buckets: int) -> None:
        self._writer = pa.ipc.new_file(path, schema)
        self._schema, self._buckets = schema, buckets
        self._held: list[Any] = []
        self._owners: list[NDArray[np.uint16]] = []
        self._bytes = self.rows = 0

    def add(self, records: Sequence[Any], owners: NDArray[np.uint16]) -> None:
        """Take a batch of records, one array a column of the schema, that belong to the buckets `owners`."""
        batch = pa.RecordBatch.from_arrays(list(records), schema=self._schema)
        self._held.append(batch)
        self._owners.append(owners)
        self.rows += len(owners)
        self._bytes += batch.nbytes
        if self._bytes >= CHUNK_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is held, and the end of the file."""
        if self._held:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        owners = np.concatenate(self._owners)
        order = np.argsort(owners, kind="stable")
        table = pa.Table.from_batches(self._held).combine_chunks().take(pa.array(order)).combine_chunks()
        ends = np.cumsum(np.bincount(owners, minlength=self._buckets)).tolist()
        for whole in table.to_batches():  # one, or none if there are no records
            for start, end in zip([0, *ends], ends, strict=False):
                self._writer.write_batch(whole.slice(start, end - start))
        self._held, self._owners, self._bytes = [], [], 0


def read_buckets(paths: Sequence[Path], schema: Any, buckets: Sequence[int], count: int) -> dict[str, Any]:
    """The records of some of `count` buckets in several files, by column: lists as arrays (n, k), IDs as a pa.Array.

    Columns that `schema` lacks are left out. Raises ArtifactError if a file is damaged.
    """
    empty = pa.RecordBatch.from_pylist([], schema=schema)
    parts = {name: [_copied(empty.column(name))] for name in schema.names}
    for path in paths:
        with _opened(path) as reader:
            for start in range(0, reader.num_record_batches, count):
                for bucket in buckets:
                    batch = reader.get_batch(start + bucket)
                    for name, columns in parts.items():
                        columns.append(_copied(batch.column(name)))
    # One column after the other: of what is read, no more than one is there twice.
    return {name: _joined(parts.pop(name)) for name in schema.names}


def rows_in(path: Path) -> int | None:
    """How many records a file has; None if there is no such file, or not a whole one."""
    try:
        with _opened(path) as reader:
            return sum(int(reader.get_batch(number).num_rows) for number in range(reader.num_record_batches))
    except (OSError, ArtifactError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with pa.OSFile(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowException as error:
            raise ArtifactError(f"{path}: not a whole file of records: {error}; delete it to make it again") from error
        yield reader


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` at the end of the block; after an exception nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copied(column: Any) -> Any:
    """The column in memory of its own, so that the file can be let go: an array, or of IDs a pa.Array."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        return lists(column).copy()
    if pa.types.is_string(kind) or pa.types.is_int64(kind):
        return column.take(pa.array(np.arange(len(column))))
    return column.to_numpy().copy()


def _joined(parts: list[Any]) -> Any:
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)


def list_column(rows: NDArray[Any]) -> Any:
    """The Arrow column of an array (n, k): lists of k."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def lists(column: Any) -> NDArray[Any]:
    """The array (n, k) of an Arrow column made by `list_column`."""
    array: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return array.reshape(len(column), column.type.list_size)
