"""The engine: one bundle, answering in process. The gRPC server and the tests rank through it alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gr2._core import ServiceTimes
from gr2.bundle import Bundle
from gr2.catalog import ItemId
from gr2.decoding import CandidateTrie, PrefixCache
from gr2.errors import BundleError, ConfigError, Gr2Error, RequestError
from gr2.features import candidate_features
from gr2.serving.models.batcher import BatchLimits
from gr2.serving.models.core_model import CoreModel
from gr2.serving.models.device import choose_device, say_fallback
from gr2.serving.models.device_model import DeviceModel
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.memory import MOST_OF_REQUEST
from gr2.serving.models.native_model import NativeModel, native_runtime
from gr2.serving.models.query import Query, UnrankableError
from gr2.serving.models.split_model import SplitModel
from gr2.serving.ranking import CandidateStatus, RankedItem, Ranking, Timings
from gr2.serving.request import RequestRules, Slate, float_array, split_ids, text, whole_number

__all__ = ["CACHE_BYTES", "Answer", "Engine"]

CACHE_BYTES = 64 << 20
# Candidates of the requests of a GPU's first batch.
TYPICAL = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """A ranked slate as arrays over its K candidates. `order` lists the best `top_n`; unknown items score 0.

    `stamps` are the clock at the start and after each phase: parse, lookup, trie, model, rank.
    """

    order: NDArray[np.int32]  # (top_n,)
    scores: NDArray[np.float32]  # (K,)
    known: NDArray[np.bool_]  # (K,)
    unknown_history: int
    stamps: tuple[int, ...]


class Engine:
    """Re-ranks slates with the model of one bundle. Safe to call from many threads at once.

    `threads` is how many threads one model run uses; a server that answers requests in parallel is best with 1.
    `device` is "cpu", "cuda", or "auto": a GPU if it can be used, else the CPU and one line in the log that says why.
    On a CPU, `cache_bytes` bound the encoded histories that are kept for users who come again; 0 keeps none.
    On a GPU, requests of several threads are answered in batches within `batches`; on a CPU each is run by its caller,
    since batches never help there. With `native` the C++ core runs the model on the CPU, and answers whole requests
    (see `NativeModel.start`); where it cannot, one line in the log says why, and the package onnxruntime runs it.
    `times` is what an admission learns of how long its requests take.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        threads: int = 1,
        device: str = "cpu",
        batches: BatchLimits | None = None,
        cache_bytes: int = CACHE_BYTES,
        native: bool = False,
    ) -> None:
        """Load the bundle and warm the model up. Raises BundleError, and ConfigError if "cuda" cannot be had.

        With "auto", a GPU that is there but on which the model does not run is as none.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.rules = RequestRules(self.bundle.manifest)
        self._spec = self.bundle.manifest.model
        self._features = self.bundle.manifest.features
        self._codebook = self.bundle.codebook()
        self.most_bytes = MOST_OF_REQUEST
        self.times = ServiceTimes()
        self.device = choose_device(device, self.bundle)
        self._cache_bytes = cache_bytes
        self._model: NativeModel | HostModel | SplitModel | CoreModel | DeviceModel
        self.native: NativeModel | None = None
        limits = batches or BatchLimits()
        try:
            self._open(threads, limits, native=native)
        except Gr2Error as error:
            if device != "auto" or self.device == "cpu":
                raise
            say_fallback(str(error))
            self.device = "cpu"
            self._open(threads, limits, native=native)

    @property
    def version(self) -> str:
        """The version of the bundle."""
        return self.bundle.version

    @property
    def cache(self) -> PrefixCache | NativeModel | None:
        """What tells the `counts` of encoded histories; None if the bundle's graphs or the device allow none."""
        if self.native is not None:
            return self.native if self.native.splits else None
        return self._model.cache if isinstance(self._model, SplitModel | CoreModel) else None

    def close(self) -> None:
        """Answer what was asked and end the engine's threads; no request may follow."""
        self._model.close()

    def rerank(
        self,
        history: Sequence[ItemId] | NDArray[Any],
        candidates: Sequence[ItemId] | NDArray[Any],
        *,
        scores: ArrayLike | None = None,
        features: ArrayLike | None = None,
        top_n: int = 0,
        request_id: str = "",
    ) -> Ranking:
        """The slate in the model's order.

        `history` is oldest first; `candidates` in the pre-ranker's order. `scores` (K,) are the pre-ranker's, higher is
        better. `features` are (K, F) or flat, F the bundle's feature width; absent features count as zeros.
        `top_n` limits the answer; 0, or more than there are candidates, lists all. Raises RequestError.
        """
        start = perf_counter_ns()
        slate = self.rules.check(
            split_ids("history", history),
            split_ids("candidates", candidates),
            scores=None if scores is None else float_array("scores", scores),
            features=None if features is None else float_array("features", features),
            top_n=whole_number("top_n", top_n),
            request_id=text("request_id", request_id),
        )
        answer = self.rank(slate, start)
        values, known, ids = answer.scores.tolist(), answer.known.tolist(), slate.candidates
        status = (CandidateStatus.UNKNOWN_ITEM, CandidateStatus.SCORED)
        items = [RankedItem(at, ids[at], values[at], status[known[at]]) for at in answer.order.tolist()]
        timings = Timings.between(answer.stamps, perf_counter_ns())
        return Ranking(items, self.version, timings, answer.unknown_history, request_id)

    def rank(self, slate: Slate, start: int, wanted: Callable[[], bool] | None = None) -> Answer:
        """The answer to a checked request whose parsing began when `perf_counter_ns()` was `start`.

        Raises RequestError if the request takes too much memory or its features overflow the model, Gr2Error if the
        model gives no finite score. On a GPU also OverloadError if too many requests wait for a batch, and
        CancelledError if `wanted()` was false once its batch began.
        """
        parsed = perf_counter_ns()
        past, past_known = self._lookup("history", slate.history)
        codes, known = self._lookup("candidates", slate.keys)
        unknown_history = int(past_known.size - np.count_nonzero(past_known))
        if unknown_history:
            past = past[past_known]
        past = past[-self._spec.max_history :]
        looked_up = perf_counter_ns()
        if not known.any():
            order, scores = np.arange(len(known), dtype=np.int32), np.zeros(len(known), dtype=np.float32)
            stamps = (start, parsed, looked_up, looked_up, looked_up, perf_counter_ns())
            return Answer(order[: slate.top_n], scores, known, unknown_history, stamps)
        trie = CandidateTrie(codes, known, self._spec.level_size)
        query = Query(past, codes, known, self._dense(slate), trie)
        self._check_memory(query)
        try:
            scored = self._model.score(query, wanted)
        except UnrankableError as error:
            if slate.features is not None and error.in_prior:
                raise RequestError("features", "too large: the model's score is not finite") from error
            raise Gr2Error(f"bundle {self.version}: the model's output cannot be ranked: {error}") from error
        order, scores = scored.order, scored.scores
        scores[~known] = 0.0
        stamps = (start, parsed, looked_up, *scored.stamps, perf_counter_ns())
        return Answer(order[: slate.top_n], scores, known, unknown_history, stamps)

    def _check_memory(self, query: Query) -> None:
        needed = query.run_bytes(self._spec)
        if needed > self.most_bytes:
            raise RequestError(
                "candidates",
                f"{len(query.codes)} of them with {len(query.past)} history items take about {needed >> 20} MB of "
                f"memory, at most {self.most_bytes >> 20} MB are given to a request: send fewer, or a shorter history",
            )

    def _dense(self, slate: Slate) -> NDArray[np.float32]:
        """The model's `features` input."""
        count, dense = len(slate.candidates), slate.features
        if dense is None and self._features.width:
            dense = np.zeros((count, self._features.width), dtype=np.float32)
        return candidate_features(count, scores=slate.scores if self._features.scores else None, dense=dense)

    def _lookup(self, field: str, ids: NDArray[np.int64] | list[str]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        try:
            return self._codebook.lookup(ids)
        except UnicodeEncodeError as error:
            raise RequestError(field, f"item IDs must be valid Unicode: {error}") from error

    def _open(self, threads: int, batches: BatchLimits, *, native: bool) -> None:
        """The model on the engine's device, warm. Raises BundleError and ConfigError; nothing is left open then."""
        split = self.bundle.graph_pair() is not None
        runtime = native_runtime() if native and self.device == "cpu" else None
        if runtime is not None:
            self._model = self.native = NativeModel(
                self.bundle, self._codebook, runtime, threads=threads, cache_bytes=self._cache_bytes
            )
        elif self.device == "cpu" and (student := self.bundle.student()) is not None:
            self._model = CoreModel(self.bundle, student, cache_bytes=self._cache_bytes)
        elif self.device == "cpu":
            self._model = (
                SplitModel(self.bundle, threads=threads, cache_bytes=self._cache_bytes)
                if split
                else HostModel(self.bundle, threads=threads)
            )
        else:
            try:
                self._model = DeviceModel(self.bundle, self.device, limits=batches, threads=threads)
            except Gr2Error:
                raise
            except Exception as error:
                raise ConfigError(f"device {self.device}: it cannot be used: {error}") from error
        try:
            self._warm_up(batches.size)
        except BaseException:
            self._model.close()
            raise

    def _warm_up(self, batch: int) -> None:
        """Run the shortest and a long history, so that a graph that breaks the contract is refused before it serves.

        A GPU's kernels are compiled by the number of candidates, so that each of its powers of two is run there; and
        CUDA loads the code of its libraries when it is first used, so that a full batch is run as well.
        """
        model, most = self._spec, self.bundle.manifest.limits.max_candidates
        sizes = [(0, 1), (model.max_history, 8)]
        if self.device == "cuda":
            sizes += [(model.max_history, 2**power) for power in range(5, 11) if 2 ** (power - 1) < most]
        for events, count in sizes:
            where = f"{self.bundle.graph}: warm-up with {events} history items and {count} candidates"
            try:
                self._model.score(self._example(events, count))
            except Exception as error:
                raise BundleError(f"{where} failed: {error}") from error
        if isinstance(self._model, DeviceModel):
            try:
                self._model.run([self._example(model.max_history, min(most, TYPICAL))] * batch)
            except Exception as error:
                raise ConfigError(f"device {self.device}: a batch of {batch} requests failed: {error}") from error

    def _example(self, events: int, count: int) -> Query:
        levels, size, width = self._spec.levels, self._spec.level_size, self._features.width
        codes = np.repeat(np.arange(count) % size, levels).reshape(count, -1).astype(np.uint16)
        known = np.ones(count, dtype=np.bool_)
        dense = np.zeros((count, width), dtype=np.float32) if width else None
        features = candidate_features(count, scores=-np.arange(count, dtype=np.float32), dense=dense)
        past = np.zeros((events, levels), dtype=np.uint16)
        return Query(past, codes, known, features, CandidateTrie(codes, known, size))
