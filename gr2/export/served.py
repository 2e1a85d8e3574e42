"""Requests through exported graphs and the C++ trie, as the serving engine does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gr2.decoding import CoreStudent, ItemMemory
from gr2.serving.models.padding import pad
from gr2.serving.models.query import Query

__all__ = [
    "Scorer",
    "batch_scorer",
    "core_scorer",
    "encoder_feed",
    "open_graph",
    "pair_scorer",
    "scorer_feed",
    "whole_scorer",
]

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


def pair_scorer(encoder: Path, scorer: Path, memory: ItemMemory) -> Scorer:
    """Scores by an encoder and a scorer, one request a run."""
    first, second = open_graph(encoder), open_graph(scorer)
    names = [item.name for item in first.get_outputs()]

    def score(query: Query) -> NDArray[np.float32]:
        encoded = dict(zip(names, first.run(names, encoder_feed(query, memory)), strict=True))
        return _scores(query, second.run(["logits", "prior"], scorer_feed(query, memory, encoded)))

    return lambda queries: [score(query) for query in queries]


def core_scorer(student: CoreStudent, memory: ItemMemory) -> Scorer:
    """Scores by the core, one request at a time."""

    def score(query: Query) -> NDArray[np.float32]:
        past, rows = memory.find(query.past), memory.find(query.codes)
        known = memory.columns(past, query.past, rows, query.codes)
        encoded = student.encode(query.past, past)
        return _scores(query, student.score(encoded, query.trie, query.codes, rows, query.features, known))

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


def encoder_feed(query: Query, memory: ItemMemory) -> dict[str, NDArray[Any]]:
    """An encoder's inputs."""
    return {"history": query.past.astype(np.int64), "past": memory.find(query.past)}


def scorer_feed(query: Query, memory: ItemMemory, encoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A scorer's inputs; `encoded` are the encoder's outputs by name."""
    trie, past, rows = query.trie, memory.find(query.past), memory.find(query.codes)
    return {
        **encoded,
        "nodes": trie.tokens(),
        "counts": trie.counts(),
        "ancestors": trie.ancestors(),
        "features": query.features,
        "memory": memory.columns(past, query.past, rows, query.codes),
        "candidates": query.codes.astype(np.int64),
        "rows": rows,
    }


def _scores(query: Query, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return query.trie.score(*outputs, normalization="raw")[1]
