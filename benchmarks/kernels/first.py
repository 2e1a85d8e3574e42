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

LEVELS = 4
# V and candidates, on a GPU and in a dry run.
SIZES = {"cuda": (256, 100), "cpu": (16, 6)}
# What a process does before it can score, what the first score and decision wait for, and the same again.
PHASES = ("imports", "CUDA's context", "Triton's launcher", "score", "decision", "score and decision again")
WAITED = PHASES[2:5]
# The most children of nodes that have few.
FEW = (64, 32, 16)
MODULE = "benchmarks.kernels.first"


def first_launches(folder: str, device: str) -> tuple[list[Figure], dict[str, Any]]:
    """The figure and the table, from processes of their own that begin with empty caches below `folder`.

    On "cpu", a dry run, what is compiled ahead is for sm_90, and what is launched is interpreted.
    """
    empty, full = Path(folder) / "empty", Path(folder) / "full"
    began = time.monotonic()
    last_line(MODULE, "compile", full, device, TRITON_INTERPRET="0")
    compiling = time.monotonic() - began
    caches = {"no cache": empty, "compiled ahead": full, "cache of an earlier process": empty}
    times = {name: json.loads(last_line(MODULE, "launch", cache, device)) for name, cache in caches.items()}
    ahead = sum(times["compiled ahead"][phase] for phase in WAITED)
    what = "first score and decision of a process, which a server makes before it serves: seconds, compiled ahead"
    rows = [[name, *(f"{each[phase]:.3f}" for phase in PHASES)] for name, each in times.items()]
    title = f"the first score and decision of a process: seconds; {compiling:.0f} s to compile ahead, with imports"
    return [Figure.judge(what, ahead, 1.0, at_most=True, unit=" s")], {
        "title": title,
        "columns": ["", *PHASES],
        "rows": rows,
    }


def compile_searches(level_sizes: Iterable[int], beams: Iterable[int], device: str) -> None:
    """The kernels of searches into Triton's cache, by other processes, so that measuring does not wait for them."""
    commands = [
        [sys.executable, "-m", MODULE, "search", str(size), str(each), device]
        for size, each in product(level_sizes, beams)
    ]
    variables = {**os.environ, "TRITON_INTERPRET": "0"}
    for process in [subprocess.Popen(command, cwd=ROOT, env=variables) for command in commands]:
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
        for widest in {level_size, level_size // 2, level_size // 4, *(each for each in FEW if each < level_size)}:
            catalog.widest[:] = [level_size, widest, 1]
            retriever = decoder.retriever(beams)
            retriever.start(catalog, 2)
            retriever.step(torch.zeros((2, 1, level_size)))
            retriever.step(torch.zeros((2, beams, level_size)))


def _launch(folder: str, device: str) -> dict[str, float]:
    """Seconds of each of PHASES, with the kernels of the folder."""
    marks, (level_size, candidates) = [time.monotonic()], SIZES[device]

    def mark() -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.monotonic())

    import torch
    import triton

    from benchmarks.kernels.plan import DRY, FULL
    from gr2.kernels import CandidateTables, device_decoder

    assert device_decoder
    marks.append(time.monotonic())
    triton.knobs.cache.dir = folder
    codes = np.random.default_rng(0).integers(0, level_size, (1, candidates, LEVELS)).astype(np.uint16)
    tables = CandidateTables.build(codes, np.ones((1, candidates), np.bool_), level_size)
    logits = torch.randn((1, tables.nodes, level_size), device=device)
    prior = torch.zeros((1, candidates), device=device)
    mark()
    decoder = (FULL if device == "cuda" else DRY).decoder()
    if device == "cuda":
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
    """`compile FOLDER DEVICE`, `search V M DEVICE` into Triton's cache, or `launch FOLDER DEVICE`."""
    if what == "launch":
        print(json.dumps(_launch(*arguments)))
    elif what == "search":
        size, beams, device = arguments
        _compile_search(int(size), int(beams), _target(device))
    else:
        from gr2.kernels.ahead import compile_kernels

        folder, device = arguments
        level_size, candidates = SIZES[device]
        sizes = {"levels": LEVELS, "level_size": level_size, "candidates": candidates}
        print(len(compile_kernels(_target(device), folder=Path(folder), **sizes)))


def _target(device: str) -> str:
    import torch

    return "sm_{}{}".format(*torch.cuda.get_device_capability()) if device == "cuda" else "sm_90"


if __name__ == "__main__":
    main(*sys.argv[1:])
