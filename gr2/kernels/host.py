"""What the GPU's decoder does for a batch of requests, by the C++ core, a request after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gr2.decoding import CandidateDecoder, CandidateTrie
from gr2.kernels.candidates import CandidateTables

__all__ = ["HostCandidates", "HostGeneration"]


class HostCandidates:
    """The tries of B requests, as DeviceCandidates has them; errors in values are raised at once."""

    def __init__(self, tables: CandidateTables) -> None:
        self.load(tables)

    def load(self, tables: CandidateTables) -> None:
        """Take other requests."""
        self.tables = tables
        self.tries = [_trie(tables, request) for request in range(len(tables.counts))]

    def score(
        self,
        logits: NDArray[np.float32],
        prior: NDArray[np.float32] | None = None,
        *,
        normalization: Literal["raw", "local"] = "raw",
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Order (B, K) and scores (B, K) from `logits` (B, n, V) and `prior` (B, K).

        Raises ValueError that names the request, row and column of a value that is not finite.
        """
        shape = (len(self.tries), self.tables.candidates)
        order, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        for request, trie in enumerate(self.tries):
            own = None if prior is None else prior[request]
            try:
                ranked = trie.score(logits[request, : trie.node_count], own, normalization=normalization)
            except ValueError as error:
                raise ValueError(f"request {request}: {error}") from error
            order[request], scores[request] = ranked
        return order, scores

    def check(self) -> None:
        """Nothing is left to raise."""

    def generate(
        self,
        *,
        mode: Literal["greedy", "sample"] = "greedy",
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> HostGeneration:
        """A CandidateDecoder for each request, whose arguments and errors these are."""
        given = [0] * len(self.tries) if seeds is None else seeds
        if len(given) != len(self.tries):
            raise ValueError(f"seeds must be {len(self.tries)}, one for each request, got {len(given)}")
        decoders = [
            CandidateDecoder(trie, mode=mode, seed=seed, temperature=temperature, top_n=top_n)
            for trie, seed in zip(self.tries, given, strict=True)
        ]
        return HostGeneration(decoders, self.tables)


class HostGeneration:
    """The generation of a batch of requests, as DeviceGeneration has it; its arrays are made when asked for."""

    def __init__(self, decoders: list[CandidateDecoder], tables: CandidateTables) -> None:
        self.decoders, self._tables = decoders, tables

    @property
    def node(self) -> NDArray[np.int32]:
        """(B,) where the next decision is due, -1 where none is."""
        return np.array([each.node for each in self.decoders], np.int32)

    @property
    def emitted(self) -> NDArray[np.int32]:
        """(B,)."""
        return np.array([len(each.order) for each in self.decoders], np.int32)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(B,) codes since the start."""
        return np.array([len(each.codes) for each in self.decoders], np.int32)

    @property
    def fresh(self) -> NDArray[np.int32]:
        """(B,) codes before the last decision."""
        return self.lengths - np.array([len(each.next()[0]) for each in self.decoders], np.int32)

    @property
    def order(self) -> NDArray[np.int32]:
        """(B, K), of which `emitted` are written."""
        order = np.zeros((len(self.decoders), self._tables.candidates), np.int32)
        for row, each in zip(order, self.decoders, strict=True):
            row[: len(each.order)] = each.order
        return order

    @property
    def codes(self) -> NDArray[np.int16]:
        """(B, K * L), of which `lengths` are written."""
        codes = np.zeros((len(self.decoders), self._tables.candidates * self._tables.path_codes.shape[1]), np.int16)
        for row, each in zip(codes, self.decoders, strict=True):
            row[: len(each.codes)] = each.codes
        return codes

    def reset(self, seeds: Sequence[int]) -> None:
        """Back to the start."""
        for each, seed in zip(self.decoders, seeds, strict=True):
            each.reset(seed)

    def push(self, logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """The codes (B,) chosen by `logits` (B, V), -1 where none was due or all were masked. Raises ValueError."""
        rows = enumerate(zip(self.decoders, logits, strict=True))
        return np.array([-1 if each.done else each.push(row, row=i) for i, (each, row) in rows], np.int32)

    def check(self) -> None:
        """Nothing is left to raise."""

    def ranking(self, scores: NDArray[np.float32] | None = None) -> NDArray[np.int32]:
        """(B, K): the emitted candidates, the other known ones by `scores` (B, K), and then the unknown."""
        given = np.zeros((len(self.decoders), self._tables.candidates), np.float32) if scores is None else scores
        return np.stack([each.ranking(row) for each, row in zip(self.decoders, given, strict=True)])


def _trie(tables: CandidateTables, request: int) -> CandidateTrie:
    known = np.zeros(tables.candidates, np.bool_)
    codes = np.zeros((tables.candidates, tables.path_codes.shape[1]), np.uint16)
    places = tables.positions[request]
    codes[places] = tables.path_codes[request].T
    known[places[: tables.counts[request, 1]]] = True
    return CandidateTrie(codes, known, tables.level_size)
