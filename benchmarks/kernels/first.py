"""What a process's first score and decision cost on a GPU, with kernels compiled ahead of time and without.

A server makes them before it serves; a program of one's own, when it first calls the decoder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Figure

__all__ = ["compile_searches", "first_launches", "last_line", "main"]

LEVELS, LEVEL_SIZE, CANDIDATES = 4, 256, 100
# What a process does before it can score, what the first score and decision wait for, and the same again.
PHASES = ("imports", "CUDA's context", "Triton's launcher", "score", "decision", "score and decision again")
WAITED = PHASES[2:5]
MODULE = "benchmarks.kernels.first"


def first_launches(folder: str) -> tuple[list[Figure], dict[str, Any]]:
    """The figure and the table, from processes of their own that begin with empty caches below `folder`."""
    empty, full = Path(folder) / "empty", Path(folder) / "full"
    began = time.monotonic()
    last_line(MODULE, "compile", full)
    compiling = time.monotonic() - began
    caches = {"no cache": empty, "compiled ahead": full, "cache of an earlier process": empty}
    times = {name: json.loads(last_line(MODULE, "launch", cache)) for name, cache in caches.items()}
    ahead = sum(times["compiled ahead"][phase] for phase in WAITED)
    what = "first score and decision of a process, which a server makes before it serves: seconds, compiled ahead"
    rows = [[name, *(f"{each[phase]:.3f}" for phase in PHASES)] for name, each in times.items()]
    title = f"the first score and decision of a process: seconds; {compiling:.0f} s to compile ahead, with imports"
    return [Figure.judge(what, ahead, 1.0, at_most=True, unit=" s")], {
        "title": title,
        "columns": ["", *PHASES],
        "rows": rows,
    }


def compile_searches(level_sizes: Iterable[int], beams: Iterable[int]) -> None:
    """The kernels of searches into Triton's cache, by other processes, so that measuring does not wait for them."""
    shapes = [(str(size), str(each)) for size, each in product(level_sizes, beams)]
    for process in [subprocess.Popen([sys.executable, "-m", MODULE, "search", *shape], cwd=ROOT) for shape in shapes]:
        if process.wait():
            raise RuntimeError(f"{process.args} failed")


def last_line(module: str, *arguments: object, **environment: str) -> str:
    """The last line that a module of Python prints, in a process of its own. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    variables = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
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


def _launch(folder: str) -> dict[str, float]:
    """Seconds of each of PHASES, with the kernels of the folder."""
    marks = [time.monotonic()]

    def mark() -> None:
        torch.cuda.synchronize()
        marks.append(time.monotonic())

    import torch
    import triton

    from gr2.kernels import CandidateTables, device_decoder, make_decoder

    assert device_decoder
    marks.append(time.monotonic())
    triton.knobs.cache.dir = folder
    codes = np.random.default_rng(0).integers(0, LEVEL_SIZE, (1, CANDIDATES, LEVELS)).astype(np.uint16)
    tables = CandidateTables.build(codes, np.ones((1, CANDIDATES), np.bool_), LEVEL_SIZE)
    logits = torch.randn((1, tables.nodes, LEVEL_SIZE), device="cuda")
    prior = torch.zeros((1, CANDIDATES), device="cuda")
    mark()
    decoder = make_decoder("cuda")
    triton.runtime.driver.active.get_current_target()
    mark()
    batch = decoder.candidates(tables)
    batch.score(logits, prior)
    mark()
    batch.generate().push(logits[:, 0])
    mark()
    batch.score(logits, prior)
    batch.generate().push(logits[:, 0])
    mark()
    return {phase: end - begin for phase, begin, end in zip(PHASES, marks, marks[1:], strict=False)}


def main(what: str, *arguments: str) -> None:
    """`compile FOLDER` for the device's target, `search V M` into Triton's cache, or `launch FOLDER`, the cache."""
    if what == "launch":
        print(json.dumps(_launch(arguments[0])))
        return
    import torch

    from gr2.kernels.ahead import compile_kernels

    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if what == "search":
        _compile_search(int(arguments[0]), int(arguments[1]), target)
        return
    sizes = {"levels": LEVELS, "level_size": LEVEL_SIZE, "candidates": CANDIDATES}
    print(len(compile_kernels(target, folder=Path(arguments[0]), **sizes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
