"""What the model is asked about one request, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import ModelSpec
from gr2.decoding import CandidateTrie
from gr2.serving.models.memory import run_bytes

__all__ = ["Query", "Scored", "UnrankableError"]


@dataclass(frozen=True, slots=True)
class Query:
    """One request as codes. `past` (T, L) uint16 holds known items, at most as many as the model attends to; `codes`
    (K, L) uint16 and `known` (K,) are the candidates', at least one of them known; `features` is (K, columns) float32.
    """

    past: NDArray[np.uint16]
    codes: NDArray[np.uint16]
    known: NDArray[np.bool_]
    features: NDArray[np.float32]
    trie: CandidateTrie

    def run_bytes(self, model: ModelSpec) -> int:
        """About the bytes of memory that `model` takes to answer it alone."""
        return run_bytes(model, history=len(self.past), nodes=self.trie.node_count, candidates=len(self.codes))

    def rank(
        self, model: ModelSpec, logits: NDArray[np.float32], prior: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Order and scores (see `Scored`) by what `model` gave. Raises UnrankableError if that is not finite."""
        try:
            return self.trie.score(logits, prior, normalization=model.normalization)
        except ValueError as error:
            raise UnrankableError(str(error), in_prior=not np.isfinite(prior).all()) from error


@dataclass(frozen=True, slots=True)
class Scored:
    """`order` (K,) int32, best first, and `scores` (K,) float32 by candidate, -inf where unknown.

    `stamps` are the clock when the model began and when it ended.
    """

    order: NDArray[np.int32]
    scores: NDArray[np.float32]
    stamps: tuple[int, int]


class UnrankableError(ValueError):
    """The model gave a value that is not finite; `in_prior` says that the prior has one."""

    def __init__(self, reason: str, *, in_prior: bool) -> None:
        super().__init__(reason)
        self.in_prior = in_prior
