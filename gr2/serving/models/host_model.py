"""The model on the CPU: requests one by one, each in its caller's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import Bundle, graph_outputs
from gr2.serving.models.memory import LARGE
from gr2.serving.models.query import Query, Scored
from gr2.serving.models.session import open_session

__all__ = ["HostModel"]


class HostModel:
    """A bundle's model on the CPU. Thread-safe.

    A large request gives its memory back once it is done. 1,024 candidates take 450 ms that way and leave 150 MB
    resident; keeping the memory takes 260 ms and 300 MB for good, and an allocator that keeps none takes 660 ms. One
    such request runs at a time: what runs beside it takes at most `gr2.serving.models.memory.LARGE` bytes in each
    thread.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Raises BundleError if the graph is not what the manifest describes."""
        import onnxruntime as ort

        self._model = bundle.manifest.model
        self._session = open_session(bundle, threads)
        self._outputs = list(graph_outputs())
        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._one_large = threading.Lock()

    def score(self, query: Query, wanted: Callable[[], bool] | None = None) -> Scored:  # noqa: ARG002
        """The candidates ranked, at once. Raises UnrankableError if the model gives a value that is not finite."""
        large = query.run_bytes(self._model) > LARGE
        # The wait of a large request for another is not the model's time.
        with self._one_large if large else nullcontext():
            feed = self._feed(query)
            start = perf_counter_ns()
            logits, prior = self._session.run(self._outputs, feed, self._shrinking if large else None)
            end = perf_counter_ns()
            order, scores = query.rank(self._model, logits, prior)
        return Scored(order, scores, (start, end))

    def close(self) -> None:
        """Nothing to end: there are no threads."""

    def _feed(self, query: Query) -> dict[str, NDArray[Any]]:
        nodes = {f"nodes_{depth}": query.trie.nodes(depth) for depth in range(1, self._model.levels)}
        feed: dict[str, NDArray[Any]] = {"history": query.past.astype(np.int64), **nodes, "mask": query.trie.mask()}
        feed["features"] = query.features
        if self._model.takes_candidates:
            feed["candidates"] = query.codes.astype(np.int64)
        return feed
