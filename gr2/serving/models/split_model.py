"""The model on the CPU in two steps: the history's encoding, kept from one request of a user to the next, and the rest.

The candidates' part depends on what the history's attention made of it: nothing of a slate that several users share can
be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import Bundle, graph_outputs
from gr2.decoding import ItemMemory, PrefixCache
from gr2.errors import BundleError
from gr2.serving.models.memory import LargeRuns
from gr2.serving.models.query import Query, Scored
from gr2.serving.models.session import open_pair

__all__ = ["SplitModel", "known_of"]


class SplitModel:
    """A bundle's encoder and scorer on the CPU, each run in its caller's thread. Thread-safe.

    Encoded histories are kept in `cache`, whose key is all that the encoder sees: the codes of the known items of the
    history, as many of the newest as the model attends to. A bundle's cache ends with it.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, cache_bytes: int = 0, variant: str = "") -> None:
        """Raises BundleError if the bundle has no such graphs or they are not what the manifest describes."""
        pair = bundle.graph_pair(variant)
        if pair is None:
            raise BundleError(f"{bundle.path}: holds no encoder and scorer; export it again")
        self.cache = PrefixCache(cache_bytes)
        self._memory = bundle.memory()
        self._model = bundle.manifest.model
        self._encoder, self._scorer = open_pair(bundle, pair, threads)
        self._encoded = [item.name for item in self._encoder.get_outputs()]
        self._taken = [{item.name for item in session.get_inputs()} for session in (self._encoder, self._scorer)]
        self._outputs = list(graph_outputs())
        self._runs = LargeRuns()

    def score(self, query: Query, wanted: Callable[[], bool] | None = None) -> Scored:  # noqa: ARG002
        """The candidates ranked, at once. Raises UnrankableError if the model gives a value that is not finite."""
        # The wait of a large request for another is not the model's time.
        with self._runs.turn(query.run_bytes(self._model)) as options:
            start = perf_counter_ns()
            feed = self._request(query)
            feed |= self._encode(query.past.tobytes(), feed)
            feed = {name: value for name, value in feed.items() if name in self._taken[1]}
            logits, prior = self._scorer.run(self._outputs, feed, options)
            end = perf_counter_ns()
            order, scores = query.rank(self._model, logits, prior)
        return Scored(order, scores, (start, end))

    def close(self) -> None:
        """Forget the histories."""
        self.cache.clear()

    def _encode(self, key: bytes, request: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The encoder's outputs by name, which nobody may change."""
        encoded: dict[str, NDArray[Any]] | None = self.cache.find(key)
        if encoded is None:
            feed = {name: request[name] for name in self._taken[0]}
            encoded = dict(zip(self._encoded, self._encoder.run(self._encoded, feed), strict=True))
            self.cache.insert(key, encoded, sum(array.nbytes for array in encoded.values()))
        return encoded

    def _request(self, query: Query) -> dict[str, NDArray[Any]]:
        trie = query.trie
        request: dict[str, NDArray[Any]] = {
            "history": query.past.astype(np.int64),
            "nodes": trie.tokens(),
            "counts": trie.counts(),
            "ancestors": trie.ancestors(),
            "features": query.features,
            "candidates": query.codes.astype(np.int64),
        }
        return request | known_of(self._memory, query)


def known_of(memory: ItemMemory, query: Query) -> dict[str, NDArray[Any]]:
    """What the memory knows: the rows of history and candidates, and the candidates' columns, by their names."""
    past, rows = memory.find(query.past), memory.find(query.codes)
    return {"past": past, "rows": rows, "memory": memory.columns(past, query.past, rows, query.codes)}
