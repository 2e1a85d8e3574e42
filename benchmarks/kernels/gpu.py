"""The Triton kernels on a GPU: checked, then timed beside PyTorch: `python -m benchmarks.kernels.gpu`.

Times are medians of replays of CUDA graphs, and of calls from Python where the column says so. What is measured is
stored at once. With `--dry` the same code runs without a GPU, on small shapes in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.check import check_generate, check_retrieve, check_score
from benchmarks.kernels.first import compile_searches, first_launches
from benchmarks.kernels.plan import DRY, FULL, Plan
from benchmarks.kernels.ranking import generation, scoring
from benchmarks.kernels.report import Report
from benchmarks.kernels.retrieval import Index, retrieval
from benchmarks.kernels.timing import Timer
from benchmarks.results import FOLDER, Figure, Record

__all__ = ["main"]

PARTS = ("checks", "generation", "retrieval", "scores", "first launches")
NOTES = (
    "ours is a replay of a CUDA graph; from Python, launches are what takes the time. CSR eager and compiled are "
    "called from Python, which the ratios compare with, and shown as graphs, too",
    "both searches are checked at every level of every row against float64; rows differ where scores nearer than "
    "rounding change places, as logits come by rank",
)


def prepare(plan: Plan) -> tuple[list[Index], list[list[str]]]:
    """The catalogues, and what the checks say; meanwhile other processes compile what will be timed."""
    decoder = plan.decoder()
    with ThreadPoolExecutor() as pool:
        ahead = pool.submit(compile_searches, plan.level_sizes, plan.beams, plan.device)
        shapes = itertools.product(plan.items, plan.level_sizes)
        building = [pool.submit(Index.build, *shape, plan.device) for shape in shapes]
        checks = [
            ["constrained_step", check_retrieve(decoder, small=plan.dry)],
            ["trie_score", check_score(decoder, small=plan.dry)],
            ["rank_step", check_generate(decoder, small=plan.dry)],
        ]
        indices = [each.result() for each in building]
        ahead.result()
    return indices, checks


def measure(plan: Plan, report: Report, began: float) -> None:
    """Every part, each stored as soon as it is there."""
    indices, checks = prepare(plan)
    print(checks, f"at {time.monotonic() - began:.0f} s", flush=True)
    rate = Timer(plan.device).bandwidth(plan.copied)
    equal = Figure("kernels equal to the C++ core on the device", str(len(checks)), "3", "ok")
    title = "checked against the C++ core before any time is taken"
    notes = [
        f"bandwidth: {rate / 1e9:.0f} GB/s, read and written, of a copy of {4 * plan.copied / 2**20:.4g} MiB; the "
        "floor reads the logits once",
        f"torch {torch.__version__}; logits float32 unless said otherwise, {plan.rotated / 1e6:.4g} MB in turn or one "
        "set",
    ]
    report.put("checks", [equal], [{"title": title, "columns": ["kernel", ""], "rows": checks}], notes)
    figures, table = generation(plan)
    report.put("generation", figures, [table])
    print(table["rows"], f"at {time.monotonic() - began:.0f} s", flush=True)
    for figures, tables in retrieval(plan, indices, rate, began):
        report.put("retrieval", figures, tables, NOTES)
    report.put("scores", [], [scoring(plan, rate)])
    print(f"scores at {time.monotonic() - began:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures, table = first_launches(folder, plan.device)
    report.put("first launches", figures, [table])


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure and store; exit with 1 if a figure is short. A dry run is never short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="without a GPU, on small shapes: times say nothing")
    parser.add_argument("--out", type=Path, help="a folder for the record; docs/results if there is a GPU")
    options: Any = parser.parse_args(arguments)
    if options.dry and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("benchmarks.kernels.gpu --dry needs TRITON_INTERPRET=1")
    if options.dry and options.out is None:
        sys.exit("benchmarks.kernels.gpu --dry needs --out: what it stores is no result")
    if not options.dry and not torch.cuda.is_available():
        sys.exit("benchmarks.kernels.gpu needs a CUDA device, and torch sees none")
    torch.manual_seed(0)
    began = time.monotonic()
    report = Report(Record("kernels.gpu", "Kernels on a GPU", "make kernels-gpu", []), PARTS, options.out or FOLDER)
    measure(DRY if options.dry else FULL, report, began)
    for figure in report.record.figures:
        print(figure, flush=True)
    print(f"{time.monotonic() - began:.0f} s in all")
    sys.exit(not options.dry and any(figure.status == "short" for figure in report.record.figures))


if __name__ == "__main__":
    main()
