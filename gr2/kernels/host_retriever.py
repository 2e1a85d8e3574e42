"""Beam search over a catalogue by the C++ core, as the GPU's decoder has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gr2.decoding import CatalogTrie, ItemFilter, Retriever
from gr2.kernels.arguments import as_array

__all__ = ["HostRetriever"]


class HostRetriever:
    """gr2.decoding.Retriever with the interface of DeviceRetriever; errors in values are raised at once."""

    def __init__(self, beams: int, *, normalization: Literal["raw", "local"] = "raw") -> None:
        self._search = Retriever(beams, normalization=normalization)

    @property
    def beams(self) -> int:
        """M."""
        return self._search.beams

    @property
    def batch(self) -> int:
        """B."""
        return self._search.batch

    @property
    def level(self) -> int:
        """Steps done."""
        return self._search.level

    def start(
        self,
        catalog: CatalogTrie,
        batch: int = 1,
        *,
        filters: ItemFilter | Sequence[ItemFilter | None] | None = None,
    ) -> None:
        """Begin `batch` searches; `filters` is one for all, or one for each."""
        self._search.start(catalog, batch, filters=filters)

    def step(self, logits: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Parents, codes and scores (B, M) of the new beams; ValueError names a logit that was NaN or +inf.

        `logits` are float32: an array, or what has `__dlpack__` and lies in memory.
        """
        return self._search.step(as_array("logits", logits))

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The M best items of each search and their scores, (B, M)."""
        return self._search.finish()

    def check(self) -> None:
        """Nothing is left to raise."""

    def paths(self) -> NDArray[np.uint16]:
        """(B, M, level) codes on the beams' paths so far; (B, 1, 0) before the first step."""
        return self._search.paths()

    def nodes(self) -> NDArray[np.int64]:
        """(B, M), (B, 1) before the first step: the beams' nodes."""
        return self._search.nodes()
