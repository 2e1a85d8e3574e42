"""The memory that a run of the model takes, known before it is run: what a client can ask for has a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from gr2.bundle import ModelSpec

__all__ = [
    "ATTENTION",
    "CAUSAL",
    "EVIDENCE",
    "HIDDEN",
    "LARGE",
    "MOST_OF_BATCH",
    "MOST_OF_REQUEST",
    "LargeRuns",
    "Turns",
    "run_bytes",
]

# Bytes: of a request that shares the memory with no other large one, of a batch, and of a request that is refused.
LARGE, MOST_OF_BATCH, MOST_OF_REQUEST = 64 << 20, 1 << 30, 2 << 30
# Bytes that onnxruntime's arena grew by, a cell of each: a query and a key (two heads' weights before and after the
# softmax, and masks), two keys (the causal mask), a position's hidden values, and a candidate with an event (64
# co-purchases of the event, and half as many items that follow it and that have titles like its own).
ATTENTION, CAUSAL, HIDDEN, EVIDENCE = 32, 6, 48, 18 * 64


def run_bytes(model: ModelSpec, *, history: int, nodes: int, candidates: int) -> int:
    """About the bytes that a run holds at once for each request that is padded to these sizes.

    For students as `gr2.export.onnx` writes them; one with more heads or neighbours takes more. `nodes` are the trie's
    inner ones. Attention and evidence are computed one after the other, in the same memory.
    """
    width = 1 + history * model.tokens + nodes
    # The last layer computes the nodes' rows only.
    rows = nodes if model.layers == 1 else width
    attention = (ATTENTION * rows + CAUSAL * width + HIDDEN * model.dim) * width
    evidence = EVIDENCE * candidates * history if model.takes_candidates else 0
    # The logits are written by level and then as one.
    return max(attention, evidence) + 8 * nodes * model.level_size


class Turns:
    """One large run of a model on the CPU at a time; what runs beside it takes at most `LARGE` bytes in each thread.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._one = threading.Lock()

    @contextmanager
    def turn(self, wanted: int) -> Iterator[bool]:
        """Waits for the turn of a run that holds `wanted` bytes, and says whether that is large."""
        large = wanted > LARGE
        with self._one if large else nullcontext():
            yield large


class LargeRuns:
    """The runs of one model's sessions on the CPU, which take turns. Thread-safe.

    A large run gives its memory back once it is done. 1,024 candidates take 450 ms that way and leave 150 MB resident;
    keeping the memory takes 260 ms and 300 MB for good, and an allocator that keeps none takes 660 ms.
    """

    def __init__(self) -> None:
        import onnxruntime as ort

        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._turns = Turns()

    @contextmanager
    def turn(self, wanted: int) -> Iterator[Any]:
        """Waits for the turn of a run that holds `wanted` bytes, and gives the options to run it with, or None."""
        with self._turns.turn(wanted) as large:
            yield self._shrinking if large else None
