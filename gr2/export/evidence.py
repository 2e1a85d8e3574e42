"""The evidence of `gr2.models.evidence`, computed inside the graph."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from gr2.export.builder import Builder
from gr2.export.lookup import CodeTable
from gr2.export.visibility import History
from gr2.models.evidence import DECAY, CoPurchase

__all__ = ["add_evidence", "item_rows"]


def item_rows(graph: Builder, table: CodeTable, missing: int, codes: str, *, output: str = "") -> str:
    """(N,) int64: `CodeTable.find` of codes (N, L)."""
    raised = graph.add("Add", codes, graph.integers(1))
    found = graph.integers(missing)
    for way in (1, 0):
        product = graph.add("Mul", raised, graph.constant(table.multipliers[way]))
        if graph.batched:
            # onnxruntime adds int64 up in float32 on a GPU; float64 holds these sums exactly.
            product = graph.add("Cast", product, to=TensorProto.DOUBLE)
        slot = graph.reduce("Sum", product, 1)
        if graph.batched:
            slot = graph.add("Cast", slot, to=TensorProto.INT64)
        slot = graph.add("Mod", slot, graph.integers(len(table.rows)))
        equal = graph.add("Equal", graph.add("Gather", graph.constant(table.codes), slot), codes)
        same = graph.reduce("Min", graph.add("Cast", equal, to=TensorProto.INT32), 1)
        same = graph.add("Cast", same, to=TensorProto.BOOL)
        row = graph.add("Gather", graph.constant(table.rows), slot)
        found = graph.add("Where", same, row, found, output="" if way else output)
    return found


def add_evidence(graph: Builder, table: CoPurchase, past: str, own: str, history: History) -> str:
    """(K, E): `evidence_columns` of the candidates' rows `own` (K,) with the history's rows `past` (T,)."""
    near = np.concatenate([table.neighbours.astype(np.int64), np.full((1, table.neighbours.shape[1]), -1)])
    counts = np.concatenate([table.counts, np.zeros((1, table.counts.shape[1]), dtype=np.float32)])
    popularity = np.concatenate([table.popularity, np.zeros(1, dtype=np.float32)])[:, None]
    wanted = graph.add("Unsqueeze", own, graph.integers(-2, -1))
    near_past, counts_past = (
        graph.facing(graph.add("Gather", graph.constant(each), past), -3) for each in (near.astype(np.int32), counts)
    )
    hit = graph.add("Equal", near_past, graph.add("Cast", wanted, to=TensorProto.INT32))
    nothing = graph.constant(np.zeros(1, dtype=np.float32))
    pairs = graph.add("Where", hit, counts_past, nothing)
    pairs = graph.reduce("Sum", pairs, 2)  # (K, T)

    levels = graph.add("Equal", graph.add("Unsqueeze", "candidates", graph.integers(-2)), graph.facing("history", -3))
    differs = graph.add("Cast", graph.add("Not", levels), to=TensorProto.FLOAT)  # (K, T, L)
    agree = graph.add("Equal", graph.add("CumSum", differs, graph.constant(np.array(-1))), nothing)
    shared = graph.reduce("Mean", graph.add("Cast", agree, to=TensorProto.FLOAT), 2)  # (K, T)
    one = graph.constant(np.ones(1, dtype=np.float32))
    if graph.batched:
        present = graph.facing(history.present, -2)
        pairs, shared = graph.add("Mul", pairs, present), graph.add("Mul", shared, present)
        size = graph.add("Max", graph.reduce("Sum", present, 1, keep=True), one)
    else:
        size = graph.add("Cast", graph.add("Max", history.width, graph.integers(1)), to=TensorProto.FLOAT)

    def total(x: str) -> str:
        return graph.reduce("Sum", x, 1, keep=True)

    def newest(x: str) -> str:
        end = graph.integers(np.iinfo(np.int64).max)
        return total(graph.slice(x, graph.integers(-1), end, axis=-1))

    def log(x: str) -> str:
        return graph.add("Log", graph.add("Add", x, one))

    popular = graph.add("Gather", graph.constant(popularity), own)  # (K, 1)
    norm = graph.add("Sqrt", graph.add("Add", popular, one))
    decay = (DECAY ** np.arange(history.longest - 1, -1, -1)).astype(np.float32)
    recent = graph.add("Mul", pairs, history.recent(graph, graph.constant(decay)))
    held = graph.add("Cast", graph.add("Greater", pairs, nothing), to=TensorProto.FLOAT)
    zero = graph.add("Mul", popular, nothing)  # (K, 1): the maximum over an empty history
    columns = [
        log(graph.add("Div", total(pairs), norm)),
        log(graph.add("Div", total(recent), norm)),
        log(graph.add("Div", newest(pairs), norm)),
        log(total(pairs)),
        log(newest(pairs)),
        graph.add("Div", total(held), size),
        log(popular),
        graph.add("Div", total(shared), size),
        graph.reduce("Max", graph.add("Concat", zero, shared, axis=-1), 1, keep=True),
        newest(shared),
    ]
    return graph.add("Concat", *columns, axis=-1)
