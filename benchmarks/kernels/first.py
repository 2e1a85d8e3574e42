"""What a process's first request costs on a GPU, with kernels compiled ahead of time and without."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Figure

__all__ = ["compile_searches", "first_launches", "main"]

LEVELS, LEVEL_SIZE, CANDIDATES = 4, 256, 100
COMMAND = [sys.executable, "-m", "benchmarks.kernels.first"]


def first_launches(folder: str) -> tuple[list[Figure], dict[str, Any]]:
    """The figure and the table, from processes of their own that begin with empty caches below `folder`."""
    empty, full = Path(folder) / "empty", Path(folder) / "full"
    began = time.monotonic()
    _run("compile", full)
    compiling = time.monotonic() - began
    without, ahead, again = _run("launch", empty), _run("launch", full), _run("launch", empty)
    figure = Figure.judge("first request: seconds, kernels compiled ahead", float(ahead), 1.0, at_most=True, unit=" s")
    row = [without, ahead, again, f"{compiling:.1f}"]
    columns = [
        "no cache: s",
        "compiled ahead: s",
        "cache of an earlier process: s",
        "to compile ahead, with imports: s",
    ]
    return [figure], {"title": "the first score and the first decision of a process", "columns": columns, "rows": [row]}


def compile_searches(level_sizes: Iterable[int], beams: Iterable[int]) -> None:
    """The kernels of searches into Triton's cache, by other processes, so that measuring does not wait for them."""
    shapes = [(str(size), str(each)) for size, each in product(level_sizes, beams)]
    for process in [subprocess.Popen([*COMMAND, "search", *shape], cwd=ROOT) for shape in shapes]:
        if process.wait():
            raise RuntimeError(f"{process.args} failed")


def _run(what: str, folder: Path) -> str:
    """The last line that this module prints in a process whose cache is the folder."""
    command = [*COMMAND, what, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout.strip().rpartition("\n")[2]


def _compile_search(level_size: int, beams: int, target: str) -> None:
    """Every kernel that a level of a search may need, whatever the most children of its nodes."""
    import torch

    from gr2.decoding import CatalogTrie
    from gr2.kernels.ahead import compile_only
    from gr2.kernels.device_decoder import DeviceDecoder

    with compile_only(target) as (launch, _):
        decoder = DeviceDecoder("cpu", launch=launch)
        catalog = decoder.catalog(CatalogTrie(np.zeros((1, 2), np.uint16), level_size))
        for widest in (level_size, level_size // 2, level_size // 4, 64, 32, 16):
            catalog.widest[:] = [level_size, widest, 1]
            retriever = decoder.retriever(beams)
            retriever.start(catalog, 2)
            retriever.step(torch.zeros((2, 1, level_size)))
            retriever.step(torch.zeros((2, beams, level_size)))


def main(what: str, *arguments: str) -> None:
    """`compile FOLDER` for the device's target, `search V M` into Triton's cache, or `launch FOLDER`, the cache."""
    import torch
    import triton

    from gr2.kernels import CandidateTables
    from gr2.kernels.ahead import compile_kernels
    from gr2.kernels.device_decoder import DeviceDecoder

    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    folder = arguments[0]
    if what == "compile":
        sizes = {"levels": LEVELS, "level_size": LEVEL_SIZE, "candidates": CANDIDATES}
        print(len(compile_kernels(target, folder=Path(folder), **sizes)))
        return
    if what == "search":
        _compile_search(int(arguments[0]), int(arguments[1]), target)
        return
    triton.knobs.cache.dir = folder
    known = np.ones((1, CANDIDATES), np.bool_)
    codes = np.random.default_rng(0).integers(0, LEVEL_SIZE, (1, CANDIDATES, LEVELS)).astype(np.uint16)
    tables = CandidateTables.build(codes, known, LEVEL_SIZE)
    logits = torch.randn((1, tables.nodes, LEVEL_SIZE), device="cuda")
    prior = torch.zeros((1, CANDIDATES), device="cuda")
    torch.cuda.synchronize()
    began = time.monotonic()
    batch = DeviceDecoder("cuda").candidates(tables)
    batch.score(logits, prior)
    batch.generate().push(logits[:, 0])
    torch.cuda.synchronize()
    print(f"{time.monotonic() - began:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
