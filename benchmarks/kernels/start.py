"""What the start of an engine takes, and its first request: `python -m benchmarks.kernels.start BUNDLE DEVICE`.

In a process of its own, whose kernels were compiled ahead, or not.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.kernels.first import last_line
from benchmarks.results import Figure

__all__ = ["main", "starts"]

LATER = 200
PHASES = ("imports", "engine", "first", "later")


def starts(bundle: Path, device: str) -> tuple[list[Figure], dict[str, Any]]:
    """The figure and the table, of "cuda" with an empty cache of kernels, too."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {"no kernels compiled ahead": _start(bundle, device, Path(folder, "empty"))} if device == "cuda" else {}
        rows["kernels compiled ahead"] = _start(bundle, device, _compiled(bundle, device, Path(folder, "ahead")))
    ahead = rows["kernels compiled ahead"]
    what = "first request of an engine whose kernels were compiled ahead: times the median of later ones"
    columns = ["", "imports: s", "bundle, session and warm-up: s", "first request: ms", "later ones, median: ms"]
    scales = dict(zip(PHASES, (1, 1, 1e3, 1e3), strict=True))
    cells = [[name, *(f"{row[phase] * scale:.2f}" for phase, scale in scales.items())] for name, row in rows.items()]
    title = "From the start of a process to its answers, 100 candidates a request"
    figures = [Figure.judge(what, ahead["first"] / ahead["later"], 10, at_most=True)]
    return figures, {"title": title, "columns": columns, "rows": cells}


def _compiled(bundle: Path, device: str, folder: Path) -> Path:
    """The folder, with the kernels of the bundle for this machine's GPU."""
    if device == "cuda":
        import torch

        target = "sm_{}{}".format(*torch.cuda.get_device_capability())
        last_line("gr2.cli", "kernels", "compile", "--bundle", bundle, "--target", target, "--out", folder)
    return folder


def _start(bundle: Path, device: str, cache: Path) -> dict[str, float]:
    """Seconds of each phase, in a process of its own."""
    line = last_line("benchmarks.kernels.start", bundle, device, TRITON_CACHE_DIR=str(cache))
    found: dict[str, float] = json.loads(line)
    return found


def main(bundle: str, device: str) -> None:
    """Print the seconds of each phase in this process, as JSON."""
    marks = [time.perf_counter()]
    from gr2.serving.engine import Engine

    if device == "cuda":
        import torch

        from gr2.kernels import device_decoder

        assert device_decoder
        assert torch.cuda.is_available()
    marks.append(time.perf_counter())
    engine = Engine(bundle, device=device)
    marks.append(time.perf_counter())
    from benchmarks.kernels.serving import make_requests

    requests = make_requests(engine.bundle, 1 + LATER, full=True)
    times = []
    for request in requests:
        begin = time.perf_counter()
        engine.rerank(**request.arguments)
        times.append(time.perf_counter() - begin)
    engine.close()
    values = (marks[1] - marks[0], marks[2] - marks[1], times[0], median(times[1:]))
    print(json.dumps(dict(zip(PHASES, values, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
