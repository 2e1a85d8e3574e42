"""The model on the CPU: requests one by one, each in its caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import Bundle, graph_outputs
from gr2.serving.models.memory import LargeRuns
from gr2.serving.models.query import Query, Scored
from gr2.serving.models.session import open_session

__all__ = ["HostModel"]


class HostModel:
    """A bundle's model on the CPU. Thread-safe."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Raises BundleError if the graph is not what the manifest describes."""
        self._model = bundle.manifest.model
        self._session = open_session(bundle, threads)
        self._outputs = list(graph_outputs())
        self._runs = LargeRuns()

    def score(self, query: Query, wanted: Callable[[], bool] | None = None) -> Scored:  # noqa: ARG002
        """The candidates ranked, at once. Raises UnrankableError if the model gives a value that is not finite."""
        # The wait of a large request for another is not the model's time.
        with self._runs.turn(query.run_bytes(self._model)) as options:
            feed = self._feed(query)
            start = perf_counter_ns()
            logits, prior = self._session.run(self._outputs, feed, options)
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
