"""The memory of `gr2.models.memory`, looked up inside the graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from gr2.export.builder import Builder
from gr2.export.evidence import add_evidence
from gr2.export.visibility import History
from gr2.models.evidence import DECAY
from gr2.models.memory import SPACES, ItemMemory
from gr2.models.pairs import Neighbours

__all__ = ["add_memory"]


def add_memory(graph: Builder, memory: ItemMemory, past: str, own: str, history: History) -> str:
    """(K, E): `memory_columns` of the candidates' rows `own` (K,) with the history's rows `past` (T,)."""
    columns = [add_evidence(graph, memory.copurchase, past, own, history)]
    one = graph.constant(np.ones(1, dtype=np.float32))
    popularity = np.append(memory.copurchase.popularity, np.float32(0))[:, None]
    popular = graph.add("Gather", graph.constant(popularity), own)  # (K, 1)
    norm = graph.add("Sqrt", graph.add("Add", popular, one))
    zero = graph.add("Mul", popular, graph.constant(np.zeros(1, dtype=np.float32)))
    present = graph.facing(history.present, -2) if graph.batched else ""
    decay = (DECAY ** np.arange(history.longest - 1, -1, -1)).astype(np.float32)
    decay_row = history.recent(graph, graph.constant(decay))
    if graph.batched:
        size = graph.add("Max", graph.reduce("Sum", present, 1, keep=True), one)
    else:
        size = graph.add("Cast", graph.add("Max", history.width, graph.integers(1)), to=TensorProto.FLOAT)

    def seen(x: str) -> str:
        return graph.add("Mul", x, present) if graph.batched else x

    def total(x: str) -> str:
        return graph.reduce("Sum", x, 1, keep=True)

    def newest(x: str) -> str:
        return total(graph.slice(x, graph.integers(-1), graph.integers(np.iinfo(np.int64).max), axis=-1))

    def recent(x: str) -> str:
        return total(graph.add("Mul", x, decay_row))

    def mean(x: str) -> str:
        return graph.add("Div", total(x), size)

    def largest(x: str) -> str:
        # 0 is the maximum over an empty history.
        return graph.reduce("Max", graph.add("Concat", zero, x, axis=-1), 1, keep=True)

    def log(x: str) -> str:
        return graph.add("Log", graph.add("Add", x, one))

    following = seen(_pairs(graph, memory.following, past, own))
    titles = seen(_pairs(graph, memory.titles, past, own))
    columns += [
        log(graph.add("Div", newest(following), norm)),
        log(graph.add("Div", recent(following), norm)),
        log(newest(following)),
        log(total(following)),
        mean(titles),
        largest(titles),
        newest(titles),
    ]
    for space in SPACES:
        close = seen(_products(graph, getattr(memory, space), past, own))
        columns += [newest(close), mean(close), largest(close), recent(close)]
    return graph.add("Concat", *columns, axis=-1)


def _pairs(graph: Builder, near: Neighbours, past: str, own: str) -> str:
    """(K, T): `pair_weights` of the candidates with the history."""
    items = np.concatenate([near.items, np.full((1, near.items.shape[1]), -1, dtype=np.int32)])
    weights = np.concatenate([near.weights, np.zeros((1, near.weights.shape[1]), dtype=np.float32)])
    wanted = graph.add("Cast", graph.add("Unsqueeze", own, graph.integers(-2, -1)), to=TensorProto.INT32)
    items_past, weights_past = (
        graph.facing(graph.add("Gather", graph.constant(each), past), -3) for each in (items, weights)
    )
    nothing = graph.constant(np.zeros(1, dtype=np.float32))
    hit = graph.add("Where", graph.add("Equal", items_past, wanted), weights_past, nothing)
    return graph.reduce("Sum", hit, 2)


def _products(graph: Builder, vectors: NDArray[np.float32], past: str, own: str) -> str:
    """(K, T): products of the candidates' vectors with the history's; those of unknown items are 0."""
    table = graph.constant(np.concatenate([vectors, np.zeros((1, vectors.shape[1]), dtype=np.float32)]))
    candidates, items = (graph.add("Gather", table, rows) for rows in (own, past))
    return graph.add("MatMul", candidates, graph.transpose(items, (1, 0)))
