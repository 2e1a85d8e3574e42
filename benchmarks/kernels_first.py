"""What a process's first request costs on a GPU, with kernels compiled ahead of time and without."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Figure

__all__ = ["first_launches", "main"]

LEVELS, LEVEL_SIZE, CANDIDATES = 4, 256, 100


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


def _run(what: str, folder: Path) -> str:
    """The last line that this module prints in a process whose cache is the folder."""
    command = [sys.executable, "-m", "benchmarks.kernels_first", what, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout.strip().rpartition("\n")[2]


def main(what: str, folder: str) -> None:
    """`compile` into the folder for the device's target, or `launch` with it as the cache and print the seconds."""
    import torch
    import triton

    from gr2.kernels import CandidateTables
    from gr2.kernels.ahead import compile_kernels
    from gr2.kernels.device_decoder import DeviceDecoder

    if what == "compile":
        major, minor = torch.cuda.get_device_capability()
        sizes = {"levels": LEVELS, "level_size": LEVEL_SIZE, "candidates": CANDIDATES}
        print(len(compile_kernels(f"sm_{major}{minor}", folder=Path(folder), **sizes)))
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
