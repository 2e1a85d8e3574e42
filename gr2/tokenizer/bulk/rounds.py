"""What a worker does with a unit of the input, or with a bucket of items; what it makes is a file, written whole.

1. `Encode`: a unit's new items with their nearest codes, as a file of buckets.
2. `Assign`: a bucket's last codes, except in crowded prefixes.
3. `Revisit`: the vectors of a unit's items that have crowded prefixes, as a file of buckets.
4. `Settle`: the last codes in a bucket's crowded prefixes.

Each is called with a task and answers it, both JSON values: `number` is that of the unit or bucket, `peak` the
process's peak memory in bytes. What was made before is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gr2.artifact import Artifact
from gr2.errors import ArtifactError, DataError, Gr2Error
from gr2.tokenizer.bulk.batches import Batch, read_unit
from gr2.tokenizer.bulk.buckets import BucketWriter, buckets_of, list_column, read_buckets, replacing, rows_in
from gr2.tokenizer.bulk.crowds import settle
from gr2.tokenizer.bulk.encoder import NEAREST, Encoder, content_keys
from gr2.tokenizer.bulk.groups import Items, decide, prefix_keys
from gr2.tokenizer.bulk.source import Unit
from gr2.tokenizer.bulk.tables import CodeTable, read_facts
from gr2.tokenizer.residual_kmeans import are_finite

__all__ = ["Assign", "Encode", "Job", "Revisit", "Settle", "peak_memory", "record_schema"]

ATTEMPTS = 3
RECORDS = {
    "known": ("item_id", "codes"),
    "unit": ("item_id", "codes", "order", "row", "near", "distances", "error"),
    "revisited": ("item_id", "codes", "order", "residual"),
}


@dataclass(frozen=True)
class Job:
    """What all workers must know: the artefact `tokenize` and its digest, the codebook of the items known before, the
    folder of scratch files, how many there will be, and the folder that relative paths of the settings start in.

    `device` and `batch_size` are of the text encoder.
    """

    tokenizer: str
    codebook: str
    digest: str
    scratch: str
    units: int
    buckets: int
    device: str
    batch_size: int
    folder: str

    @property
    def encoder(self) -> Encoder:
        """The tokenizer, loaded once a process."""
        return _load(self.tokenizer, self.codebook, self.digest, self.device, self.batch_size, self.folder)

    @property
    def known(self) -> Path:
        """The items that had an ID before, as a file of buckets."""
        return Path(self.scratch) / "known.arrow"

    @property
    def crowded(self) -> Path:
        """The keys of all crowded prefixes, ascending."""
        return Path(self.scratch) / "crowded.npy"

    def unit(self, number: int) -> Path:
        """What `Encode` makes."""
        return Path(self.scratch) / f"unit-{number:06d}.arrow"

    def assigned(self, bucket: int) -> Path:
        """What `Assign` makes, with `undecided`."""
        return Path(self.scratch) / f"assigned-{bucket:04d}.parquet"

    def undecided(self, bucket: int) -> Path:
        """The keys of a bucket's crowded prefixes."""
        return Path(self.scratch) / f"undecided-{bucket:04d}.npy"

    def revisited(self, number: int) -> Path:
        """What `Revisit` makes."""
        return Path(self.scratch) / f"revisited-{number:06d}.arrow"

    def settled(self, bucket: int) -> Path:
        """What `Settle` makes."""
        return Path(self.scratch) / f"settled-{bucket:04d}.parquet"

    @contextmanager
    def attempt(self, path: Path) -> Iterator[None]:
        """Whatever makes the file `path`: Ray tries again for ever where a worker dies, for lack of memory perhaps."""
        marks = path.with_name(f".{path.name}.attempts")
        tried = marks.stat().st_size if marks.exists() else 0
        if tried == ATTEMPTS:
            marks.unlink()
            raise Gr2Error(
                f"{path.name}: {tried} workers died while making it; if the machine lacks memory, use fewer workers"
            )
        with marks.open("ab") as file:
            file.write(b".")
        yield
        marks.unlink()

    def records(self, paths: list[Path], kind: str, bucket: int) -> dict[str, Any]:
        """A bucket's records in files of that kind."""
        return read_buckets(paths, record_schema(kind, self.encoder), [bucket], self.buckets)


@dataclass(frozen=True)
class Encode:
    """A unit's items that have no ID yet, with their nearest codes. The answer's `rows` are they."""

    job: Job

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Encode one unit."""
        job, unit = self.job, Unit(**task)
        path = job.unit(unit.number)
        rows = rows_in(path)
        if rows is not None:
            return {"number": unit.number, "rows": rows, "peak": peak_memory()}
        with job.attempt(path), replacing(path) as temporary:
            writer = BucketWriter(temporary, record_schema("unit", job.encoder), job.buckets)
            for batch in read_unit(unit, job.encoder.contents):
                self._encode(unit, batch, writer)
            writer.close()
        return {"number": unit.number, "rows": writer.rows, "peak": peak_memory()}

    def _encode(self, unit: Unit, batch: Batch, writer: BucketWriter) -> None:
        encoder = self.job.encoder
        ids = batch.ids.to_pylist() if encoder.contents.id_type == "string" else batch.ids.to_numpy()
        rows = np.flatnonzero(~encoder.known.lookup(ids)[1])
        if not len(rows):
            return
        batch = batch if len(rows) == len(batch.ids) else batch.take(rows)
        points = encoder.points(encoder.vectors(batch))
        good = are_finite(points)
        if not good.all():
            row = unit.before + batch.first + int(rows[good.argmin()]) + 1
            raise DataError("NaN, infinite or too large value", path=unit.path, row=row, column="vector")
        encoded = encoder.encode(points)
        records = [
            batch.ids,
            list_column(encoded.codes),
            pa.array(content_keys(batch.contents, encoder.base.seed)),
            pa.array((batch.first + rows).astype(np.uint32)),
            list_column(encoded.near),
            list_column(encoded.distances),
            pa.array(encoded.errors),
        ]
        writer.add(records, buckets_of(encoded.codes, self.job.buckets))


@dataclass(frozen=True)
class Assign:
    """A bucket's items with their last codes, except in crowded prefixes. The answer is the table's `Facts`."""

    job: Job

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Assign in one bucket."""
        job, bucket = self.job, int(task["number"])
        path = job.assigned(bucket)
        if not path.exists():
            with job.attempt(path):
                known = job.records([job.known], "known", bucket)
                items = job.records([job.unit(number) for number in range(job.units)], "unit", bucket)
                self._assign(known, items, bucket)
        return {"number": bucket, **asdict(read_facts(path)), "peak": peak_memory()}

    def _assign(self, known: Mapping[str, Any], items: dict[str, Any], bucket: int) -> None:
        job, encoder = self.job, self.job.encoder
        size, seed, codes = encoder.config.level_size, encoder.base.seed, items["codes"]
        decision = decide(
            Items(items["item_id"], codes, items["order"]),
            items.pop("near"),
            items.pop("distances"),
            taken=known["codes"],
            size=size,
            seed=seed,
        )
        undecided = np.unique(prefix_keys(codes[decision.open], size))
        with replacing(job.undecided(bucket)) as temporary, temporary.open("wb") as file:
            np.save(file, undecided, allow_pickle=False)
        done, errors = ~decision.open, np.full(len(known["codes"]), np.nan, dtype=np.float32)
        codes[:, -1] = decision.last
        table = CodeTable(known["item_id"], known["codes"], errors).with_items(
            items["item_id"].filter(pa.array(done)), codes[done], decision.distances[done]
        )
        measured = decision.distances[done] if encoder.measures_last else items["error"]
        table.save(job.assigned(bucket), measured=float(measured.sum(dtype=np.float64)), crowded=len(undecided))


@dataclass(frozen=True)
class Revisit:
    """What the first L - 2 codes leave of a unit's items that have crowded prefixes, from the input again."""

    job: Job

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Revisit one unit."""
        job, unit = self.job, Unit(**task)
        path = job.revisited(unit.number)
        if rows_in(path) is None:
            with job.attempt(path), replacing(path) as temporary:
                writer = BucketWriter(temporary, record_schema("revisited", job.encoder), job.buckets)
                rows, codes = self._wanted(unit)
                for batch in read_unit(unit, job.encoder.contents) if len(rows) else ():
                    first, end = np.searchsorted(rows, [batch.first, batch.first + len(batch.ids)])
                    if first < end:
                        self._write(batch.take(rows[first:end] - batch.first), codes[first:end], writer)
                writer.close()
        return {"number": unit.number, "peak": peak_memory()}

    def _wanted(self, unit: Unit) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Rows of the unit, ascending, and their codes."""
        job = self.job
        schema = pa.schema([record_schema("unit", job.encoder).field(name) for name in ("row", "codes")])
        records = read_buckets([job.unit(unit.number)], schema, range(job.buckets), job.buckets)
        crowded = np.load(job.crowded, mmap_mode="r", allow_pickle=False)
        keys = prefix_keys(records["codes"], job.encoder.config.level_size)
        places = np.minimum(np.searchsorted(crowded, keys), len(crowded) - 1)
        wanted = np.flatnonzero(crowded[places] == keys)
        wanted = wanted[np.argsort(records["row"][wanted])]
        return records["row"][wanted].astype(np.int64), records["codes"][wanted]

    def _write(self, batch: Batch, codes: NDArray[np.uint16], writer: BucketWriter) -> None:
        encoder = self.job.encoder
        residuals = encoder.residuals(encoder.points(encoder.vectors(batch)), codes)
        order = pa.array(content_keys(batch.contents, encoder.base.seed))
        records = [batch.ids, list_column(codes), order, list_column(residuals)]
        writer.add(records, buckets_of(codes, self.job.buckets))


@dataclass(frozen=True)
class Settle:
    """A bucket's whole table, crowded prefixes and all. The answer is the table's `Facts`."""

    job: Job

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Settle one bucket."""
        job, bucket = self.job, int(task["number"])
        path = job.settled(bucket)
        if not path.exists():
            with job.attempt(path):
                items = job.records([job.revisited(number) for number in range(job.units)], "revisited", bucket)
                self._settle(items, bucket)
        return {"number": bucket, **asdict(read_facts(path)), "peak": peak_memory()}

    def _settle(self, items: Mapping[str, Any], bucket: int) -> None:
        job, encoder = self.job, self.job.encoder
        assigned = CodeTable.load(job.assigned(bucket))
        settled = settle(
            Items(items["item_id"], items["codes"], items["order"]),
            items["residual"],
            taken=assigned.codes,
            centroids=encoder.centroids,
            seed=encoder.base.seed,
        )
        measured = read_facts(job.assigned(bucket)).measured
        if encoder.measures_last:
            measured += float(settled.distances.sum(dtype=np.float64))
        table = assigned.with_items(items["item_id"], settled.codes, settled.distances)
        table.save(job.settled(bucket), measured=measured, moved=items["codes"][settled.moved, :-1])


@lru_cache(maxsize=1)
def _load(tokenizer: str, codebook: str, digest: str, device: str, batch_size: int, folder: str) -> Encoder:
    os.chdir(folder)
    base = Artifact.load(tokenizer, "tokenize")
    if base.digest != digest:
        raise ArtifactError(f"{tokenizer}: has changed since the job began; start it again")
    return Encoder(base, Path(codebook), device=device, batch_size=batch_size)


def record_schema(kind: str, encoder: Encoder) -> Any:
    """The columns of a file of buckets: of items `known` before, of a `unit`, of a unit `revisited`."""
    levels, size, width = encoder.centroids.shape
    near = min(NEAREST, size)
    columns = {
        "item_id": pa.string() if encoder.contents.id_type == "string" else pa.int64(),
        "codes": pa.list_(pa.uint16(), levels),
        "order": pa.uint64(),
        "row": pa.uint32(),
        "near": pa.list_(pa.uint16(), near),
        "distances": pa.list_(pa.float32(), near),
        "error": pa.float32(),
        "residual": pa.list_(pa.float32(), width),
    }
    return pa.schema([pa.field(name, columns[name]) for name in RECORDS[kind]])


def peak_memory() -> int:
    """Bytes of memory that this process has had resident at most."""
    # ru_maxrss is no less than what the parent had when it started this process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
