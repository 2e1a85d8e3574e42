"""`gr2 encode` on synthetic catalogues of growing size, and what that predicts for a thousand million items.

`python -m benchmarks.tokenizer.scale --items 100000 1000000 10000000`. Ten million items take 10 GB below `--scratch`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.tokenizer.bulk.buckets import BUCKET_ROWS, MOST_BUCKETS, BucketWriter, list_column, read_buckets
from gr2.tokenizer.bulk.source import UNIT_ROWS
from gr2.tokenizer.tokenize import TokenizeConfig, run

__all__ = ["main"]

WIDTH = 64
GROUP_ROWS, FILE_ROWS = 1 << 16, 1 << 20
CENTRES, SPREAD = 4000, 0.6
SAMPLE, ITERATIONS = 100_000, 10
TARGET, CORES = 10**9, 100
# Levels and codes a level, up to so many items: about one item in ten is to have a crowded prefix.
CODES = {10**6: (4, 256), 10**7: (4, 1024), TARGET: (5, 1024)}
# Of a worker, largest catalogue to smallest: a hundred times the items may cost it a whole bucket for half of one, and
# a level twice as wide, but no more.
MEMORY_BAR = 1.5


@dataclass(frozen=True)
class Measured:
    """One run of `gr2 encode`: the metrics of its artefact, and the seconds of the whole command."""

    items: int
    codes: tuple[int, int]
    metrics: dict[str, Any]
    seconds: float

    def rate(self, *phases: str) -> float:
        """Items a second in some phases."""
        return self.items / sum(float(self.metrics[f"{phase}_seconds"]) for phase in phases)

    def row(self) -> list[Any]:
        """The run's row in the table."""
        metrics = self.metrics
        return [
            f"{self.items:,}",
            "{} x {}".format(*self.codes),
            *(f"{self.rate(phase):,.0f}" for phase in ("encode", "assign", "codebook")),
            f"{self.seconds:,.0f}",
            *(f"{metrics[name] / 2**20:,.0f}" for name in ("driver_peak_bytes", "worker_peak_bytes")),
            f"{metrics['codebook_bytes']:,}",
            f"{metrics['codebook_bytes'] / self.items:.1f}",
            f"{metrics['crowded_prefixes']:,}",
            f"{metrics['overflow']:,}",
            f"{metrics['unique']:.4%}",
        ]


COLUMNS = [
    "items",
    "codes",
    "encode, items/s",
    "assign, items/s",
    "codebook, items/s",
    "seconds in all",
    "driver, MiB",
    "worker, MiB",
    "codebook, bytes",
    "bytes an item",
    "crowded prefixes",
    "moved items",
    "unique",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each size, print its row as it comes, and store the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--scratch", type=Path, help="a folder for the catalogues; by default the system's")
    options = parser.parse_args(arguments)
    sizes = sorted(options.items)
    runs = [measured(items, _codes(items), options.scratch) for items in sizes]
    # The codes that the target would have, on a catalogue that is quick to encode.
    wide = measured(min(10**6, sizes[-1]), CODES[TARGET], options.scratch)
    command = f"python -m benchmarks.tokenizer.scale --items {' '.join(map(str, sizes))}"
    table = {"title": f"vectors of {WIDTH}, two workers", "columns": COLUMNS}
    record = Record(
        "tokenizer.scale",
        "Semantic IDs at scale",
        command,
        figures(runs, wide),
        [table | {"rows": [each.row() for each in (*runs, wide)]}],
        prediction(runs[-1], wide, seconds_a_read(options.scratch)),
    )
    print(store(record).relative_to(ROOT))


def figures(runs: Sequence[Measured], wide: Measured) -> list[Figure]:
    """Unique IDs, and memory that does not grow."""
    lowest = min(100 * each.metrics["unique"] for each in (*runs, wide))
    what = f"unique IDs, {runs[0].items:,} to {runs[-1].items:,} items, after overflow"
    result = [Figure.judge(what, lowest, 100.0, unit=" %")]
    if len(runs) > 1:
        growth = runs[-1].metrics["worker_peak_bytes"] / runs[0].metrics["worker_peak_bytes"]
        what = f"peak memory of a worker, {runs[-1].items:,} items over {runs[0].items:,}"
        result.append(Figure.judge(what, growth, MEMORY_BAR, at_most=True))
    return result


def prediction(largest: Measured, wide: Measured, seconds_a_read: float) -> list[str]:
    """What the runs say of the target, as sentences.

    Encoding and the codebook cost what they cost with the target's codes. Assignment costs what it did in the largest
    run, whose prefixes are as crowded, and the reads of every bucket from every unit besides.
    """
    workers = 2
    reads = min(MOST_BUCKETS, -(-TARGET // BUCKET_ROWS)) * -(-TARGET // UNIT_ROWS)
    spread = TARGET / wide.rate("encode") + TARGET / largest.rate("assign") + reads * seconds_a_read / workers
    alone = TARGET / wide.rate("codebook")
    hours = ((spread * workers / cores + alone) / 3600 for cores in (workers, CORES))
    bytes_an_item = wide.metrics["codebook_bytes"] / wide.items
    scratch = max(each.metrics["scratch_bytes"] / each.items for each in (largest, wide))
    buckets = TARGET / MOST_BUCKETS
    return [
        "prediction for {:,} items with {} x {} codes: {:.1f} hours on these two cores, {:.2f} hours on {} (of which "
        "the codebook, on one core, {:.2f})".format(TARGET, *wide.codes, *hours, CORES, alone / 3600),
        f"its codebook has {bytes_an_item * TARGET / 1e9:.0f} GB, its scratch files {scratch * TARGET / 1e9:.0f} GB",
        f"at most {MOST_BUCKETS:,} buckets: {buckets:,.0f} items in each of them, so a worker that assigns holds "
        f"{(buckets - BUCKET_ROWS) * scratch * 2 / 2**20:.0f} MiB more than here",
        f"reading a bucket from a unit takes {seconds_a_read * 1e6:.0f} us, and there are {reads / 1e6:.1f} million of "
        "such reads in it",
        f"catalogues are mixtures of {CENTRES:,} clusters whose sizes are as 1 / rank; codes were learnt from a tenth "
        f"of the items, {SAMPLE:,} at most",
    ]


def measured(items: int, codes: tuple[int, int], scratch: Path | None) -> Measured:
    """Make a catalogue, learn codes from a sample of it, run `gr2 encode`, and delete it all."""
    with tempfile.TemporaryDirectory(prefix="gr2-scale-", dir=scratch) as name:
        folder = Path(name)
        write_catalogue(folder / "items", items)
        learn(folder, min(SAMPLE, items // 10), codes)
        command = [sys.executable, "-m", "gr2.cli", "encode", str(folder / "run.toml"), str(folder / "items")]
        began = time.monotonic()
        subprocess.run([*command, "--workers", "2"], cwd=ROOT, check=True)
        seconds = time.monotonic() - began
        result = Measured(items, codes, Artifact.load(folder / "encode", verify=True).metrics, seconds)
        assert result.metrics["items"] == items
    print(dict(zip(COLUMNS, result.row(), strict=True)), flush=True)
    return result


def write_catalogue(folder: Path, items: int) -> None:
    """Parquet files of a million items each, IDs from 0, in row groups of 65,536."""
    folder.mkdir()
    groups = catalogue(items)
    schema = pa.schema([("item_id", pa.int64()), ("vector", pa.list_(pa.float32(), WIDTH))])
    for number in range(-(-items // FILE_ROWS)):
        path = folder / f"{number:04d}.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for first, vectors in (next(groups) for _ in range(_groups_of_file(items, number))):
                ids = pa.array(np.arange(first, first + len(vectors)))
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
                writer.write_table(pa.Table.from_arrays([ids, column], schema=schema))


def catalogue(items: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Row groups: the first ID and the vectors (n, 64) float32 of points around centres of very uneven popularity."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, WIDTH), dtype=np.float32)
    shares = 1.0 / np.arange(1, CENTRES + 1)
    for first in range(0, items, GROUP_ROWS):
        rows = min(GROUP_ROWS, items - first)
        vectors = SPREAD * rng.standard_normal((rows, WIDTH), dtype=np.float32)
        yield first, vectors + centres[rng.choice(CENTRES, rows, p=shares / shares.sum())]


def learn(folder: Path, sample: int, codes: tuple[int, int]) -> None:
    """A run in `folder` whose codes are learnt from the first `sample` items."""
    table = pq.read_table(folder / "items" / "0000.parquet").slice(0, sample)
    pq.write_table(table, folder / "sample.parquet")
    blank: list[Any] = [None] * sample
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        ids = table.column("item_id").to_pylist()
        Catalog(ids, blank, blank, [[]] * sample, blank, blank).save(work.path / "items.parquet")
    settings: dict[str, Any] = {"vectors": str(folder / "sample.parquet")}
    settings |= dict(zip(("levels", "level_size"), codes, strict=True))
    inputs = {"prepare": Artifact.load(folder / "prepare")}
    run(TokenizeConfig(**settings, iterations=ITERATIONS), inputs, folder / "tokenize", seed=0)
    lines = [f"{key} = {value!r}" for key, value in settings.items()]
    (folder / "run.toml").write_text("\n".join([f"[run]\nout = {str(folder)!r}\n[tokenize]", *lines]) + "\n")


def seconds_a_read(scratch: Path | None) -> float:
    """Seconds to read one bucket of a unit's file that has the most buckets there can be."""
    numbers, rows = np.arange(UNIT_ROWS), np.zeros((UNIT_ROWS, 16), dtype=np.float32)
    columns = {name: pa.array(numbers) for name in ("item_id", "order", "row", "error")}
    columns |= {name: list_column(rows) for name in ("codes", "near", "distances")}
    schema = pa.schema([(name, column.type) for name, column in columns.items()])
    with tempfile.TemporaryDirectory(prefix="gr2-scale-", dir=scratch) as name:
        path = Path(name) / "unit.arrow"
        writer = BucketWriter(path, schema, MOST_BUCKETS)
        writer.add(list(columns.values()), (numbers % MOST_BUCKETS).astype(np.uint16))
        writer.close()
        began = time.monotonic()
        for bucket in range(0, MOST_BUCKETS, 4):
            read_buckets([path], schema, [bucket], MOST_BUCKETS)
        return (time.monotonic() - began) * 4 / MOST_BUCKETS


def _codes(items: int) -> tuple[int, int]:
    """Levels and codes a level for a catalogue."""
    return next((codes for most, codes in CODES.items() if items <= most), CODES[TARGET])


def _groups_of_file(items: int, number: int) -> int:
    return -(-min(FILE_ROWS, items - number * FILE_ROWS) // GROUP_ROWS)


if __name__ == "__main__":
    main()
