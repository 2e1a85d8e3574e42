"""Every figure of the decoding core, one line each: `python -m benchmarks.decoding.show`.

Fuzzing and the emulated processors are read from docs/results/; the rest runs now.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.decoding.checks import checks, sanitizers
from benchmarks.decoding.request import request
from benchmarks.results import Record
from benchmarks.show import show

__all__ = ["main"]

STORED = {"decoding.fuzz": "make decoding-fuzz", "decoding.processors": "make decoding-processors"}


def retrieve() -> Record:
    """STATIC needs torch, which only the training half brings."""
    from benchmarks.decoding import retrieve

    return retrieve.retrieve()


def cost() -> Record:
    """The picture needs matplotlib."""
    from benchmarks.decoding import cost

    return cost.cost()


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    measures: list[tuple[str, Callable[[], Record]]] = [
        ("bounds of a request", request),
        ("retrieval beside STATIC", retrieve),
        ("the cost curve", cost),
        ("answers and refusals", checks),
        ("sanitizers", sanitizers),
    ]
    show("decoding", "the decoding core", stored=STORED, measures=measures)


if __name__ == "__main__":
    main()
