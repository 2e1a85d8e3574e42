"""The job: semantic IDs of a whole catalogue by what the stage `tokenize` learnt, without holding it in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import Artifact, Workspace, open_stage
from gr2.decoding import CodebookBuilder
from gr2.errors import ArtifactError, ConfigError, DataError
from gr2.progress import track
from gr2.tokenizer.add import require_model
from gr2.tokenizer.bulk.buckets import BucketWriter, bucket_count, buckets_of, list_column, replacing
from gr2.tokenizer.bulk.encoder import Encoder
from gr2.tokenizer.bulk.known import Known
from gr2.tokenizer.bulk.rounds import Assign, Encode, Job, Revisit, Settle, peak_memory, record_schema
from gr2.tokenizer.bulk.source import Source
from gr2.tokenizer.bulk.tables import LARGEST, CodeTable, Facts

__all__ = ["STAGE", "Pool", "Work", "encode_items"]

STAGE = "encode"
Work = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Pool(Protocol):
    """Workers: processes here or on other machines that see the same files."""

    def run(self, work: Work, tasks: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The answers of a copy of `work` to the tasks, in any order."""


def encode_items(
    inputs: Mapping[str, Artifact],
    items: Sequence[Path],
    out: Path,
    *,
    workers: AbstractContextManager[Pool],
    device: str | None = None,
    batch_size: int | None = None,
) -> Artifact:
    """Write the IDs of `inputs`' items and of those in the Parquet files `items` to the artefact `out`.

    `inputs` has the artefacts `prepare` and `tokenize`; their items keep their IDs and are passed over in the files, as
    are those of an earlier job in `out`, or else those that `--add` gave IDs to (`Known`).
    The files have `item_id`, and `vector` where the codes were learnt from vectors, or else columns of text. The order
    of their rows, their number and the number of `workers` have no influence, with text up to the rounding of its
    encoder. Without overflow, codes are those of `extend_codes` over items in `content_order`, except that items of
    equal content may exchange theirs: there that function is decided by rounding.

    Files: `codes/BUCKET.parquet` (`item_id`, `codes`, and for new items `error`, the squared distance to their codes)
    in the order of the codes, and `codebook.bin`. What is up to date is left as it is, and a job that was killed goes
    on with the files that it had written; inputs are the same if their path, size, rows and time of change are.
    Raises DataError at a wrong or repeated item, ConfigError if there are more items than IDs, ArtifactError if the
    text encoder has changed since the codes were learnt.
    """
    prepare, base = inputs["prepare"], inputs["tokenize"]
    if base.parents.get("prepare") != prepare.digest:
        raise ArtifactError(f"{base.path} was made from another prepare; run tokenize again first")
    known = Known.find(prepare, base, out)
    encoder = Encoder(base, known.codebook, device=device, batch_size=batch_size)
    _check_size(encoder)
    encoder.check_ready()
    require_model(encoder.config, base)
    source = Source.find(items, encoder.contents)
    parents = {"prepare": prepare.digest, "tokenize": base.digest, "items": source.digest} | known.parents
    if known.items is None and known.source.parents["items"] == source.digest:
        return Artifact.load(out, STAGE, verify=True)
    with open_stage(out, STAGE, encoder.learnt, parents, base.seed) as work, workers as pool:
        job = Job(
            tokenizer=str(base.path.resolve()),
            codebook=str(known.codebook.resolve()),
            digest=base.digest,
            scratch=str(work.checkpoints.resolve()),
            units=len(source.units),
            buckets=bucket_count(source.rows),
            device=encoder.config.device,
            batch_size=encoder.config.batch_size,
            folder=str(Path.cwd()),
        )
        log = _Log(work)
        with log.phase("encode"):
            _write_known(job, encoder, known)
            _encode(job, source, encoder, pool, log)
        with log.phase("assign"):
            facts = _assign(job, source, pool, log)
        with log.phase("codebook"):
            _write_codebook(job, encoder, work, sum(each.items for each in facts))
        _measure(job, encoder, facts, work)
    return Artifact.load(out, STAGE)


class _Log:
    """Seconds of each phase, and the largest worker."""

    def __init__(self, work: Workspace) -> None:
        self.metrics = work.metrics
        self.metrics |= {"worker_peak_bytes": 0, "total_seconds": 0.0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.metrics[f"{name}_seconds"] = time.monotonic() - began
        self.metrics["total_seconds"] += self.metrics[f"{name}_seconds"]

    def answers(self, pool: Pool, work: Work, tasks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The pool's answers, without the memory that it took to give them."""
        for answer in pool.run(work, tasks):
            given = dict(answer)
            self.metrics["worker_peak_bytes"] = max(self.metrics["worker_peak_bytes"], given.pop("peak"))
            yield given


def _check_size(encoder: Encoder) -> None:
    levels, size, _ = encoder.centroids.shape
    if size ** (levels - 1) > 2**64:
        raise ConfigError(
            f"{levels} levels of {size} codes make more than 2^64 prefixes, which gr2 encode cannot number; "
            "learn fewer levels or a smaller level_size"
        )


def _write_known(job: Job, encoder: Encoder, known: Known) -> None:
    if job.known.exists():
        return
    schema = record_schema("known", encoder)
    with replacing(job.known) as temporary:
        writer = BucketWriter(temporary, schema, job.buckets)
        for ids, codes in known.parts(schema.field("item_id").type):
            writer.add([ids, list_column(codes)], buckets_of(codes, job.buckets))
        writer.close()


def _encode(job: Job, source: Source, encoder: Encoder, pool: Pool, log: _Log) -> None:
    tasks, rows = [asdict(unit) for unit in source.units], 0
    with track(source.rows, "encode items", unit="items") as bar:
        for answer in log.answers(pool, Encode(job), tasks):
            rows += answer["rows"]
            bar.advance(source.units[answer["number"]].rows)
    levels, size, _ = encoder.centroids.shape
    total = rows + len(encoder.known)
    if total > size**levels:
        raise ConfigError(f"{total:,} items, but {levels} levels of {size} codes make {size**levels:,} IDs")


def _assign(job: Job, source: Source, pool: Pool, log: _Log) -> list[Facts]:
    """What the tables of all buckets say of themselves."""
    facts = _decide(Assign(job), range(job.buckets), "assign codes", pool, log)
    crowded = [bucket for bucket, each in facts.items() if each.crowded]
    log.metrics["crowded_prefixes"] = sum(each.crowded for each in facts.values())
    if crowded:
        keys = [np.load(job.undecided(bucket), allow_pickle=False) for bucket in crowded]
        with replacing(job.crowded) as temporary, temporary.open("wb") as file:
            np.save(file, np.sort(np.concatenate(keys)), allow_pickle=False)
        with track(source.rows, "revisit items", unit="items") as bar:
            for answer in log.answers(pool, Revisit(job), [asdict(unit) for unit in source.units]):
                bar.advance(source.units[answer["number"]].rows)
        facts |= _decide(Settle(job), crowded, "settle crowded prefixes", pool, log)
    return [facts[bucket] for bucket in range(job.buckets)]


def _decide(work: Work, buckets: Sequence[int], name: str, pool: Pool, log: _Log) -> dict[int, Facts]:
    facts = {}
    with track(len(buckets), name, unit="buckets") as bar:
        for answer in log.answers(pool, work, [{"number": bucket} for bucket in buckets]):
            bucket = answer.pop("number")
            facts[bucket] = Facts(**answer)
            bar.advance()
    return facts


def _tables(job: Job) -> Iterator[tuple[int, Path]]:
    """The final table of each bucket."""
    for bucket in range(job.buckets):
        settled = job.settled(bucket)
        yield bucket, settled if settled.exists() else job.assigned(bucket)


def _write_codebook(job: Job, encoder: Encoder, work: Workspace, items: int) -> None:
    levels, size, _ = encoder.centroids.shape
    id_type = encoder.contents.id_type
    builder = CodebookBuilder(
        work.path / "codebook.bin", levels=levels, level_size=size, id_type=id_type, scratch=work.checkpoints
    )
    with track(items, "write codebook", unit="items") as bar:
        for _, path in _tables(job):
            table = CodeTable.load(path)
            ids: NDArray[np.int64] | list[str] = table.ids.to_pylist() if id_type == "string" else table.ids.to_numpy()
            builder.add(ids, table.codes)
            bar.advance(len(table.codes))
        try:
            builder.finish()
        except ValueError as error:
            raise DataError(f"an item comes more than once in the files given: {error}", column="item_id") from error


def _measure(job: Job, encoder: Encoder, facts: Sequence[Facts], work: Workspace) -> None:
    """Put the metrics, and move the tables to where they stay."""
    scratch = sum(path.stat().st_size for path in work.checkpoints.iterdir())
    (work.path / "codes").mkdir()
    for bucket, path in list(_tables(job)):
        path.rename(work.path / "codes" / f"{bucket:04d}.parquet")
    items, added = sum(each.items for each in facts), sum(each.added for each in facts)
    error = sum(each.measured for each in facts) / max(1, added) / encoder.dimensions
    before = float(encoder.base.metrics["levels"][encoder.measured]["reconstruction_error"])
    moved_from = sorted((entry for each in facts for entry in each.moved_from), key=lambda entry: (-entry[1], entry[0]))
    work.metrics |= {
        "items": items,
        "added": added,
        "unique": sum(each.distinct for each in facts) / max(1, items),
        "prefixes": sum(each.prefixes for each in facts),
        "overflow": sum(each.moved for each in facts),
        "overflow_prefixes": [{"codes": codes, "items": count} for codes, count in moved_from[:LARGEST]],
        "reconstruction_error": error,
        "drift": error / before if before and added else None,
        "items_per_second": items / work.metrics["total_seconds"],
        "driver_peak_bytes": peak_memory(),
        "codebook_bytes": (work.path / "codebook.bin").stat().st_size,
        "scratch_bytes": scratch,
    }
