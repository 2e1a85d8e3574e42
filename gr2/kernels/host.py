"""What the GPU's decoder does for a batch of requests, by the C++ core, a request after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gr2.decoding import CandidateDecoder, CandidateTrie
from gr2.kernels.arguments import as_array, check_mode, check_normalization, seed_array
from gr2.kernels.candidates import CandidateTables

__all__ = ["HostCandidates", "HostGeneration"]


class HostCandidates:
    """The tries of B requests, as DeviceCandidates has them; `order` (B, K) and `scores` (B, K) are the last ones."""

    def __init__(self, tables: CandidateTables) -> None:
        """The tables of the first requests; later ones are of their shape."""
        self._take(tables)
        shape = (len(self.tries), tables.candidates)
        self.order, self.scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        self._faulty, self._reason = np.zeros((2, len(self.tries)), np.bool_), ""

    def load(self, tables: CandidateTables) -> None:
        """Take other requests of the same shape. Raises ValueError on another one."""
        tables.check_shape(self.tables.shape)
        self._take(tables)

    def _take(self, tables: CandidateTables) -> None:
        self.tables = tables
        self.tries = [_trie(tables, request) for request in range(len(tables.counts))]

    def score(
        self, logits: Any, prior: Any = None, *, normalization: Literal["raw", "local"] = "raw"
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Order (B, K) int32 and scores (B, K) float32 from `logits` (B, n, V) and `prior` (B, K), both float32.

        Arrays, or what has `__dlpack__` and lies in memory. A request with a value that is not finite keeps its
        incoming order, its scores are NaN, and `check` names the value. The result is overwritten by the next call.
        Raises TypeError and ValueError on other dtypes, shapes and devices.
        """
        check_normalization(normalization)
        rows = as_array("logits", logits, (len(self.tries), self.tables.nodes, self.tables.level_size))
        extra = None if prior is None else as_array("prior", prior, self.scores.shape)
        for request, trie in enumerate(self.tries):
            own = None if extra is None else extra[request]
            try:
                ranked = trie.score(rows[request, : trie.node_count], own, normalization=normalization)
                self.order[request], self.scores[request] = ranked
            except ValueError as error:
                self._note(request, own, f"request {request}: {error}")
                self.order[request], self.scores[request] = np.arange(self.tables.candidates), np.nan
        return self.order, self.scores

    def _note(self, request: int, prior: NDArray[np.float32] | None, reason: str) -> None:
        """That a value of the request is not finite; the core looks at the prior first."""
        in_prior = prior is not None and not bool(np.isfinite(prior).all())
        self._faulty[int(in_prior), request] = True
        self._reason = self._reason or reason

    def faulty(self) -> NDArray[np.bool_]:
        """(2, B): requests in which a logit, or a prior, was not finite since the last `check`."""
        return self._faulty.copy()

    def fetch(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
        """`order`, `scores` and what `faulty` says."""
        return self.order.copy(), self.scores.copy(), self.faulty()

    def check(self) -> None:
        """Raises ValueError that names the first value of the calls of `score` that was not finite."""
        reason, self._reason = self._reason, ""
        self._faulty[:] = False
        if reason:
            raise ValueError(reason)

    def generate(
        self,
        *,
        mode: Literal["greedy", "sample"] = "greedy",
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> HostGeneration:
        """A CandidateDecoder for each request, whose arguments and errors these are."""
        check_mode(mode)
        given = seed_array(seeds, len(self.tries))
        decoders = [
            CandidateDecoder(trie, mode=mode, seed=seed, temperature=temperature, top_n=top_n)
            for trie, seed in zip(self.tries, given.tolist(), strict=True)
        ]
        return HostGeneration(decoders, self.tables, given)


class HostGeneration:
    """The generation of a batch of requests, as DeviceGeneration has it; its arrays are made when asked for."""

    def __init__(self, decoders: list[CandidateDecoder], tables: CandidateTables, seeds: NDArray[np.uint64]) -> None:
        """Use HostCandidates.generate."""
        self.decoders, self._tables, self._seeds = decoders, tables, seeds

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
        return self._rows([each.order for each in self.decoders], self._tables.candidates, np.int32)

    @property
    def codes(self) -> NDArray[np.int16]:
        """(B, K * L), of which `lengths` are written, as of the three that follow."""
        return self._rows([each.codes for each in self.decoders], self._places, np.int16)

    @property
    def forced(self) -> NDArray[np.int8]:
        """(B, K * L): 1 where the code was no decision."""
        return self._rows([each.forced for each in self.decoders], self._places, np.int8)

    @property
    def local(self) -> NDArray[np.float32]:
        """(B, K * L): the codes' log-probabilities among those allowed."""
        return self._rows([each.log_probs("local") for each in self.decoders], self._places, np.float32)

    @property
    def raw(self) -> NDArray[np.float32]:
        """(B, K * L): the codes' log-probabilities among all of the level, NaN for forced ones."""
        return self._rows([each.log_probs("raw") for each in self.decoders], self._places, np.float32)

    @property
    def _places(self) -> int:
        return self._tables.candidates * int(self._tables.path_codes.shape[1])

    def _rows(self, values: list[Any], width: int, dtype: Any) -> NDArray[Any]:
        """Values of each request, filled up with zeros, (B, width)."""
        rows = np.zeros((len(values), width), dtype)
        for row, own in zip(rows, values, strict=True):
            row[: len(own)] = own
        return rows

    def reset(self, seeds: Sequence[int] | None = None) -> None:
        """Back to the start, with other `seeds`, one for each request, or the same."""
        if seeds is not None:
            self._seeds = seed_array(seeds, len(self.decoders))
        for each, seed in zip(self.decoders, self._seeds.tolist(), strict=True):
            each.reset(seed)

    def push(self, logits: Any) -> NDArray[np.int32]:
        """The codes (B,) chosen by `logits` (B, V), -1 where none was due or all were masked.

        Raises TypeError and ValueError on other dtypes and shapes, and ValueError that names the first request with a
        NaN or +inf: such requests stay where they are, and the others go on.
        """
        rows = as_array("logits", logits, (len(self.decoders), self._tables.level_size))
        chosen, bad = np.full(len(self.decoders), -1, np.int32), None
        for i, (each, row) in enumerate(zip(self.decoders, rows, strict=True)):
            try:
                chosen[i] = -1 if each.done else each.push(row, row=i)
            except ValueError as error:
                bad = bad or error
        if bad is not None:
            raise bad
        return chosen

    def check(self) -> None:
        """Nothing is left to raise."""

    def ranking(self, scores: Any = None) -> NDArray[np.int32]:
        """(B, K): the emitted candidates, the other known ones by `scores` (B, K), and then the unknown.

        Ties, and without scores all, are in incoming order. Raises TypeError and ValueError on other dtypes and
        shapes, and ValueError that names a score that is NaN.
        """
        shape = (len(self.decoders), self._tables.candidates)
        given = np.zeros(shape, np.float32) if scores is None else as_array("scores", scores, shape)
        ranking = np.empty(shape, np.int32)
        for request, (each, row) in enumerate(zip(self.decoders, given, strict=True)):
            try:
                ranking[request] = each.ranking(row)
            except ValueError as error:
                raise ValueError(f"request {request}: {error}") from error
        return ranking


def _trie(tables: CandidateTables, request: int) -> CandidateTrie:
    known = np.zeros(tables.candidates, np.bool_)
    codes = np.zeros((tables.candidates, tables.path_codes.shape[1]), np.uint16)
    places = tables.positions[request]
    codes[places] = tables.path_codes[request].T
    known[places[: tables.counts[request, 1]]] = True
    return CandidateTrie(codes, known, tables.level_size)
