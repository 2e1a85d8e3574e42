"""Requests through exported graphs and the C++ trie, as the serving engine does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gr2.serving.padding import pad
from gr2.serving.query import Query

__all__ = ["Scorer", "batch_scorer", "encode", "open_graph", "pair_scorer", "scorer_feed", "whole_scorer"]

# The scores (K,) of each of some requests.
Scorer = Callable[[Sequence[Query]], list[NDArray[np.float32]]]


def open_graph(graph: bytes | Path) -> ort.InferenceSession:
    """A session on one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def whole_scorer(graph: Path) -> Scorer:
    """Scores by a whole graph, one request a run."""
    session = open_graph(graph)

    def score(query: Query) -> NDArray[np.float32]:
        feed: dict[str, NDArray[Any]] = {
            "history": query.past.astype(np.int64),
            "mask": query.trie.mask(),
            "features": query.features,
        }
        feed |= {f"nodes_{depth}": query.trie.nodes(depth) for depth in range(1, query.trie.levels)}
        return _scores(query, session.run(["logits", "prior"], {**feed, "candidates": query.codes.astype(np.int64)}))

    return lambda queries: [score(query) for query in queries]


def pair_scorer(encoder: Path, scorer: Path) -> Scorer:
    """Scores by an encoder and a scorer, one request a run."""
    first, second = open_graph(encoder), open_graph(scorer)

    def score(query: Query) -> NDArray[np.float32]:
        return _scores(query, second.run(["logits", "prior"], scorer_feed(query, encode(first, query))))

    return lambda queries: [score(query) for query in queries]


def batch_scorer(graph: Path, *, longest: int) -> Scorer:
    """Scores by a graph for batches, all requests in one run."""
    session = open_graph(graph)

    def score(queries: Sequence[Query]) -> list[NDArray[np.float32]]:
        batch = pad(queries, lambda size: np.empty(size, dtype=np.uint8), max_history=longest, candidates=True)
        logits, prior = session.run(["logits", "prior"], batch.arrays)
        return [
            _scores(query, (logits[place, : query.trie.node_count], prior[place, : len(query.codes)]))
            for place, query in enumerate(queries)
        ]

    return score


def encode(encoder: ort.InferenceSession, query: Query, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The encoder's outputs, or those in `names`, by name."""
    names = names or [item.name for item in encoder.get_outputs()]
    return dict(zip(names, encoder.run(names, {"history": query.past.astype(np.int64)}), strict=True))


def scorer_feed(query: Query, encoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A scorer's inputs."""
    trie = query.trie
    own: dict[str, NDArray[Any]] = {"history": query.past.astype(np.int64), "features": query.features}
    own |= {"nodes": trie.tokens(), "counts": trie.counts(), "ancestors": trie.ancestors()}
    return {**encoded, **own, "candidates": query.codes.astype(np.int64)}


def _scores(query: Query, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return query.trie.score(*outputs, normalization="raw")[1]
