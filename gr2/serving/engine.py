"""The engine: one bundle, answering in process. The gRPC server and the tests rank through it alike."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from gr2.bundle import Bundle, graph_inputs, graph_outputs
from gr2.catalog import ItemId
from gr2.decoding import CandidateTrie
from gr2.errors import BundleError, Gr2Error, RequestError
from gr2.features import candidate_features
from gr2.serving.ranking import CandidateStatus, RankedItem, Ranking, Timings
from gr2.serving.request import RequestRules, Slate, float_array, split_ids, text, whole_number

__all__ = ["Answer", "Engine"]

# A request with more trie nodes gives its memory back once it is done. 1,024 candidates take 450 ms that way and leave
# 150 MB resident; keeping the memory takes 260 ms and 300 MB for good, and an allocator that keeps none takes 660 ms.
# One such request runs at a time, since each takes hundreds of MB while it does.
LARGE = 1024


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
    """

    def __init__(self, bundle: str | os.PathLike[str] | Bundle, *, threads: int = 1) -> None:
        """Load the bundle and warm the model up. Raises BundleError."""
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.rules = RequestRules(self.bundle.manifest)
        self._model = self.bundle.manifest.model
        self._features = self.bundle.manifest.features
        self._codebook = self.bundle.codebook()
        self._session = _open_session(self.bundle, threads)
        self._outputs = list(graph_outputs())
        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._one_large = threading.Lock()
        self._warm_up()

    @property
    def version(self) -> str:
        """The version of the bundle."""
        return self.bundle.version

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

    def rank(self, slate: Slate, start: int) -> Answer:
        """The answer to a checked request whose parsing began when `perf_counter_ns()` was `start`.

        Raises RequestError if the request's features overflow the model, Gr2Error if the model gives no finite score.
        """
        parsed = perf_counter_ns()
        past, past_known = self._lookup("history", slate.history)
        codes, known = self._lookup("candidates", slate.keys)
        unknown_history = int(past_known.size - np.count_nonzero(past_known))
        if unknown_history:
            past = past[past_known]
        past = past[-self._model.max_history :]
        looked_up = perf_counter_ns()
        if not known.any():
            order, scores = np.arange(len(known), dtype=np.int32), np.zeros(len(known), dtype=np.float32)
            stamps = (start, parsed, looked_up, looked_up, looked_up, perf_counter_ns())
            return Answer(order[: slate.top_n], scores, known, unknown_history, stamps)
        trie = CandidateTrie(codes, known, self._model.level_size)
        large = trie.node_count > LARGE
        # The wait of a large request for another counts as its trie's time.
        with self._one_large if large else nullcontext():
            feed = self._feed(past, trie, self._dense(slate), codes)
            built = perf_counter_ns()
            logits, prior = self._session.run(self._outputs, feed, self._shrinking if large else None)
            modelled = perf_counter_ns()
            order, scores = self._score(trie, logits, prior, slate)
        scores[~known] = 0.0
        stamps = (start, parsed, looked_up, built, modelled, perf_counter_ns())
        return Answer(order[: slate.top_n], scores, known, unknown_history, stamps)

    def _dense(self, slate: Slate) -> NDArray[np.float32]:
        """The model's `features` input."""
        count, dense = len(slate.candidates), slate.features
        if dense is None and self._features.width:
            dense = np.zeros((count, self._features.width), dtype=np.float32)
        return candidate_features(count, scores=slate.scores if self._features.scores else None, dense=dense)

    def _score(
        self, trie: CandidateTrie, logits: NDArray[np.float32], prior: NDArray[np.float32], slate: Slate
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        try:
            return trie.score(logits, prior, normalization=self._model.normalization)
        except ValueError as error:
            if slate.features is not None and not np.isfinite(prior).all():
                raise RequestError("features", "too large: the model's score is not finite") from error
            raise Gr2Error(f"bundle {self.version}: the model's output cannot be ranked: {error}") from error

    def _lookup(self, field: str, ids: NDArray[np.int64] | list[str]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        try:
            return self._codebook.lookup(ids)
        except UnicodeEncodeError as error:
            raise RequestError(field, f"item IDs must be valid Unicode: {error}") from error

    def _feed(
        self, past: NDArray[np.uint16], trie: CandidateTrie, features: NDArray[np.float32], codes: NDArray[np.uint16]
    ) -> dict[str, NDArray[Any]]:
        nodes: dict[str, NDArray[Any]] = {f"nodes_{depth}": trie.nodes(depth) for depth in range(1, self._model.levels)}
        feed = {"history": past.astype(np.int64), **nodes, "mask": trie.mask(), "features": features}
        if self._model.takes_candidates:
            feed["candidates"] = codes.astype(np.int64)
        return feed

    def _warm_up(self) -> None:
        """Run the shortest and a long history, so that a graph that breaks the contract is refused before it serves."""
        model = self._model
        for events, count in ((0, 1), (model.max_history, 8)):
            past = np.zeros((events, model.levels), dtype=np.uint16)
            codes = np.repeat(np.arange(count) % model.level_size, model.levels).reshape(count, -1).astype(np.uint16)
            trie = CandidateTrie(codes, np.ones(count, dtype=np.bool_), model.level_size)
            width = self._features.width
            dense = np.zeros((count, width), dtype=np.float32) if width else None
            scores = -np.arange(count, dtype=np.float32)
            feed = self._feed(past, trie, candidate_features(count, scores=scores, dense=dense), codes)
            where = f"{self.bundle.graph}: warm-up with {events} history items and {count} candidates"
            try:
                logits, prior = self._session.run(self._outputs, feed)
                trie.score(logits, prior, normalization=model.normalization)
            except Exception as error:
                raise BundleError(f"{where} failed: {error}") from error


def _open_session(bundle: Bundle, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Shapes differ from request to request: memory planned for one is of no use to the next, and is never freed.
    options.enable_mem_pattern = False
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    # The hash covers the graph's own bytes only: external data is sought where nothing can be.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    graph = bundle.read_graph()
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"{bundle.graph}: onnxruntime cannot load it: {error}") from error
    manifest = bundle.manifest
    wrong = [
        *_mismatches(
            session.get_inputs(), graph_inputs(manifest.model.levels, candidates=manifest.model.takes_candidates)
        ),
        *_mismatches(session.get_outputs(), graph_outputs()),
    ]
    widths = {item.name: item.shape[-1] for item in [*session.get_inputs(), *session.get_outputs()] if item.shape}
    expected = {
        "history": manifest.model.levels,
        "candidates": manifest.model.levels,
        "features": manifest.features.columns,
        "logits": manifest.model.level_size,
    }
    for name, width in expected.items():
        if isinstance(widths.get(name), int) and widths[name] != width:
            wrong.append(f"{name} has width {widths[name]}, expected {width}")
    if wrong:
        raise BundleError(f"{bundle.graph}: not the graph that the manifest describes: {'; '.join(wrong)}")
    return session


def _mismatches(values: Sequence[Any], expected: dict[str, tuple[str, int]]) -> list[str]:
    """What differs between a graph's inputs or outputs and the contract."""
    names = {"tensor(int64)": "int64", "tensor(float)": "float32"}
    found = {value.name: (names.get(value.type, value.type), len(value.shape)) for value in values}
    return [
        f"{name} is {_say(found.get(name))}, expected {_say(expected.get(name))}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]


def _say(kind: tuple[str, int] | None) -> str:
    return "absent" if kind is None else f"{kind[0]} of rank {kind[1]}"
