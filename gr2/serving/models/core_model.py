"""The model on the CPU, computed by the core from the bundle's weights, the rest of a request in Python."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from gr2.bundle import Bundle
from gr2.decoding import CoreStudent, PrefixCache
from gr2.serving.models.memory import Turns
from gr2.serving.models.query import Query, Scored

__all__ = ["CoreModel"]


class CoreModel:
    """A bundle's weights on the CPU. Thread-safe; encoded histories are kept as `SplitModel` keeps them."""

    def __init__(self, bundle: Bundle, student: CoreStudent, *, cache_bytes: int = 0) -> None:
        """Raises BundleError if the bundle's memory is not the model's."""
        self.cache = PrefixCache(cache_bytes)
        self._student, self._memory = student, bundle.memory()
        self._model = bundle.manifest.model
        self._turns = Turns()

    def score(self, query: Query, wanted: Callable[[], bool] | None = None) -> Scored:  # noqa: ARG002
        """The candidates ranked, at once. Raises UnrankableError if the model gives a value that is not finite."""
        # The wait of a large request for another is not the model's time.
        with self._turns.turn(query.run_bytes(self._model)):
            start = perf_counter_ns()
            past, rows = self._memory.find(query.past), self._memory.find(query.codes)
            known = self._memory.columns(past, query.past, rows, query.codes)
            key = query.past.tobytes()
            encoded = self.cache.find(key)
            if encoded is None:
                encoded = self._student.encode(query.past, past)
                self.cache.insert(key, encoded, encoded.nbytes)
            logits, prior = self._student.score(encoded, query.trie, query.codes, rows, query.features, known)
            end = perf_counter_ns()
            order, scores = query.rank(self._model, logits, prior)
        return Scored(order, scores, (start, end))

    def close(self) -> None:
        """Forget the histories."""
        self.cache.clear()
