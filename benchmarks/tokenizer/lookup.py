"""Look-up of 100 random IDs among ten million: the codebook against pandas and NumPy, in one process, interleaved."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Figure, Record
from gr2.decoding import Codebook, CodebookBuilder

__all__ = ["lookup"]

ITEMS, SLATE, LEVELS, LEVEL_SIZE = 10_000_000, 100, 4, 256
REQUESTS, ROUNDS, CALLS = 2_000, 25, 200
PART = 500_000

SECOND_PROCESS = """
import sys
import numpy as np
from gr2._core import Codebook
codebook = Codebook(sys.argv[1])
requests = np.load(sys.argv[2])
for ids in requests:
    assert codebook.lookup(ids)[1].all()
fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
print(sum(int(value.split()[0]) for name, value in fields.items() if name.startswith("Private")) / 1024)
"""


def write_codebook(path: Path, ids: NDArray[np.int64], codes: NDArray[np.uint16], *, strings: bool) -> None:
    """The codebook of `ids`, or of their names."""
    kind = "string" if strings else "int64"
    builder = CodebookBuilder(path, levels=LEVELS, level_size=LEVEL_SIZE, id_type=kind)  # type: ignore[arg-type]
    for start in range(0, len(ids), PART):
        part = ids[start : start + PART]
        builder.add(names(part) if strings else part, codes[start : start + PART])
    builder.finish()


def names(ids: NDArray[np.int64]) -> list[str]:
    """String IDs of ten letters, as in the Amazon catalogues; `ids` are below 1e9."""
    return [f"B{item:09d}" for item in ids.tolist()]


def cycle(call: Callable[[Any], Any], requests: list[Any]) -> Callable[[], float]:
    """A function that answers the next CALLS requests and returns the seconds a call took."""
    position = 0

    def measure() -> float:
        nonlocal position
        chosen = [requests[(position + offset) % len(requests)] for offset in range(CALLS)]
        position += CALLS
        began = time.perf_counter()
        for request in chosen:
            call(request)
        return (time.perf_counter() - began) / CALLS

    return measure


def interleaved(methods: Mapping[str, Callable[[], float]]) -> dict[str, NDArray[np.float64]]:
    """Seconds a call, (ROUNDS,), of each method; every round measures each once."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS + 2):
        for name, measure in methods.items():
            times[name].append(measure())
    return {name: np.array(values[2:]) for name, values in times.items()}


def lookup() -> Record:
    """Ratios, the median of the rounds; answers are asserted equal first."""
    import pandas as pd

    rng = np.random.default_rng(0)
    ids = rng.permutation(np.unique(rng.integers(0, 10**9, ITEMS + ITEMS // 50)))[:ITEMS]
    codes = rng.integers(0, LEVEL_SIZE, (ITEMS, LEVELS)).astype(np.uint16)
    rows = rng.integers(0, ITEMS, (REQUESTS, SLATE))
    requests = list(ids[rows])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_codebook(folder / "numbers.bin", ids, codes, strings=False)
        write_codebook(folder / "strings.bin", ids, codes, strings=True)
        numbers, strings = Codebook(folder / "numbers.bin"), Codebook(folder / "strings.bin")
        index = pd.Index(ids)
        order = np.argsort(ids)
        keys, sorted_codes = ids[order], codes[order]
        calls: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
            "Codebook.lookup": (lambda wanted: numbers.lookup(wanted)[0], requests),
            "Codebook.lookup, string IDs": (
                lambda wanted: strings.lookup(wanted)[0],
                [names(each) for each in requests],
            ),
            "pandas get_indexer": (lambda wanted: codes[index.get_indexer(wanted)], requests),
            "numpy.searchsorted": (lambda wanted: sorted_codes[np.searchsorted(keys, wanted)], requests),
        }
        for call, wanted in calls.values():
            for request, chosen in list(zip(wanted, rows, strict=True))[:200]:
                assert np.array_equal(call(request), codes[chosen])
        gc.disable()
        times = interleaved({name: cycle(*each) for name, each in calls.items()})
        gc.enable()
        np.save(folder / "requests.npy", np.stack(requests))
        command = [sys.executable, "-c", SECOND_PROCESS, folder / "numbers.bin", folder / "requests.npy"]
        private = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        sizes = {name: (folder / f"{name}.bin").stat().st_size / ITEMS for name in ("numbers", "strings")}
    own = times["Codebook.lookup"]

    def ratio(name: str) -> float:
        return float(np.median(times[name] / own))

    figures = [
        Figure.judge("look-up at 1e7, times faster than pandas get_indexer", ratio("pandas get_indexer"), 8.0),
        Figure.judge("look-up at 1e7, times faster than numpy.searchsorted", ratio("numpy.searchsorted"), 15.0),
        Figure.judge("private memory of a second process", private, 40.0, at_most=True, unit=" MB"),
        Figure.judge(
            "look-up with string IDs over int64, times", ratio("Codebook.lookup, string IDs"), 2.0, at_most=True
        ),
    ]
    table = {
        "title": f"{SLATE} random IDs of {ITEMS:,}, the whole Python call, {ROUNDS} interleaved rounds",
        "columns": ["", "median us", "ratio", "ratio, 5 % to 95 % of rounds"],
        "rows": [
            [
                name,
                f"{1e6 * np.median(each):.2f}",
                f"{ratio(name):.2f}",
                between(each / own),
            ]
            for name, each in times.items()
        ],
    }
    notes = [
        f"file: {sizes['numbers']:.1f} bytes an item with int64 IDs, {sizes['strings']:.1f} with strings of 10; "
        "the index from codes to items is part of it",
        "the second process holds numpy and the interpreter, too; it has looked up all requests",
    ]
    return Record("tokenizer.lookup", "Looking up codes", "make show-tokenizer", figures, [table], notes)


def between(values: NDArray[np.float64]) -> str:
    """The 5 % and 95 % quantiles."""
    low, high = np.quantile(values, [0.05, 0.95])
    return f"{low:.2f} to {high:.2f}"
