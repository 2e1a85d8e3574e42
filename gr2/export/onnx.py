"""The student as an ONNX graph without a batch axis: one request, any number of history items, nodes and candidates.

The graph is written operator by operator rather than traced: it has a third of the nodes of a traced one, nothing in it
depends on an example input (no history, no candidates and one candidate all work), and the same weights give the same
bytes. Constant sums and the attention's scale are folded into the weights. `gr2.export.parity` proves it equal to the
torch model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from gr2.artifact import write_atomic
from gr2.export.builder import Builder, Shape
from gr2.export.lookup import CodeTable, build_code_table
from gr2.models.evidence import DECAY, EVIDENCE, CoPurchase
from gr2.models.student import MASKED, Block, CodeSum, Head, Prior, Student

__all__ = ["export_graph", "graph_names", "student_graph"]


def graph_names(levels: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the graph's inputs and outputs, in order."""
    nodes = tuple(f"nodes_{depth}" for depth in range(1, levels))
    return ("history", *nodes, "mask", "features", "candidates"), ("logits", "prior")


def export_graph(student: Student, table: CoPurchase, codes: NDArray[np.integer], path: Path) -> None:
    """Write the graph of `student_graph` to `path`, atomically."""
    write_atomic(path, student_graph(student, table, codes).SerializeToString(deterministic=True))


def student_graph(student: Student, table: CoPurchase, codes: NDArray[np.integer]) -> onnx.ModelProto:
    """The graph: history (T, L), nodes_1..nodes_{L-1} (n_d,), mask (n, n), features (K, 3 + F) and candidates (K, L)
    -> logits (n, V), prior (K,).

    `codes` (N, L) are the catalogue's; `table` the co-purchases that the graph's evidence is computed from. Codes of no
    item are allowed: they have no co-purchases, and the head knows their codes only.
    """
    config = student.config
    graph = Builder()
    length = graph.add("Shape", "history", start=0, end=1)
    first = graph.add("Sub", graph.integers(config.max_history), length)
    logits = _path_logits(graph, student, length, first)
    graph.add("Concat", *logits, axis=0, output="logits")

    rows = _rows(graph, build_code_table(codes), len(codes), graph.add("Concat", "history", "candidates", axis=0))
    end = graph.integers(np.iinfo(np.int64).max)
    past, own = graph.slice(rows, graph.integers(0), length), graph.slice(rows, length, end)
    evidence = _evidence(graph, table, past, own, length, first, config.max_history)
    features = graph.add("Concat", "features", evidence, axis=1)
    weights = [graph.constant(np.array([value], dtype=np.float32)) for value in student.weights.tolist()]
    prior = graph.add("Mul", _prior(graph, student.prior, features), weights[0])
    head = graph.add("Mul", _head(graph, student.head, past, own, first), weights[1])
    graph.add("Squeeze", graph.add("Add", prior, head), graph.integers(1), output="prior")
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    shapes: dict[str, Shape] = {
        "history": (integer, ("T", config.levels)),
        **{f"nodes_{depth}": (integer, (f"n_{depth}",)) for depth in range(1, config.levels)},
        "mask": (real, ("n", "n")),
        "features": (real, ("K", config.features - len(EVIDENCE))),
        "candidates": (integer, ("K", config.levels)),
        "logits": (real, ("n", config.level_size)),
        "prior": (real, ("K",)),
    }
    inputs, outputs = ({name: shapes[name] for name in names} for names in graph_names(config.levels))
    return graph.model("student", inputs, outputs)


def _path_logits(graph: Builder, student: Student, length: str, first: str) -> list[str]:
    """The logits of each depth's nodes: the transformer over begin token, history and trie."""
    config = student.config
    limit = graph.integers(config.max_history)
    recency = graph.slice(graph.weight(student.position), first, limit)
    items = graph.add("Add", _code_sum(graph, student.item, "history"), recency)
    names = [f"nodes_{depth}" for depth in range(1, config.levels)]
    parts = [graph.weight(student.begin), items, graph.weight(student.root + student.depth[0])]
    for depth, name in enumerate(names, 1):
        rows = student.node.weight[(depth - 1) * config.level_size : depth * config.level_size]
        parts.append(graph.add("Gather", graph.weight(rows + student.depth[depth]), name, axis=0))
    x = graph.add("Concat", *parts, axis=0)  # (S, d)
    context = graph.add("Add", length, graph.integers(1))
    full, below = _masks(graph, context, graph.add("Shape", "mask", start=0, end=1), 1 + config.max_history)
    last = len(student.blocks) - 1
    for place, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        x = _block(graph, block, x, below if place == last else full, context if place == last else None)
    states = _norm(graph, student.norm, x)
    sizes = graph.add("Concat", graph.integers(1), *(graph.add("Shape", name) for name in names), axis=0)
    split = graph.add_many("Split", config.levels, states, sizes, axis=0)
    weights = [graph.weight(student.logits[depth].T) for depth in range(config.levels)]
    return [graph.add("MatMul", part, weight) for part, weight in zip(split, weights, strict=True)]


def _code_sum(graph: Builder, codes: CodeSum, name: str) -> str:
    """(N, d): the sum of the vectors of codes (N, L)."""
    index = graph.add("Add", name, graph.constant(codes.offsets.numpy()))
    return graph.add(
        "ReduceSum", graph.add("Gather", graph.weight(codes.table.weight), index), graph.integers(1), keepdims=0
    )


def _rows(graph: Builder, table: CodeTable, missing: int, codes: str) -> str:
    """(N,) int64: `CodeTable.find` of codes (N, L)."""
    raised = graph.add("Add", codes, graph.integers(1))
    found = graph.integers(missing)
    for way in (1, 0):
        product = graph.add("Mul", raised, graph.constant(table.multipliers[way]))
        slot = graph.add("ReduceSum", product, graph.integers(1), keepdims=0)
        slot = graph.add("Mod", slot, graph.integers(len(table.rows)))
        equal = graph.add("Equal", graph.add("Gather", graph.constant(table.codes), slot), codes)
        same = graph.add("ReduceMin", graph.add("Cast", equal, to=TensorProto.INT32), graph.integers(1), keepdims=0)
        same = graph.add("Cast", same, to=TensorProto.BOOL)
        found = graph.add("Where", same, graph.add("Gather", graph.constant(table.rows), slot), found)
    return found


def _evidence(graph: Builder, table: CoPurchase, past: str, own: str, length: str, first: str, longest: int) -> str:
    """(K, E): `evidence_columns` of the candidates' rows `own` (K,) with the history's rows `past` (T,)."""
    axis, last = graph.integers(1), graph.integers(2)
    near = np.concatenate([table.neighbours.astype(np.int64), np.full((1, table.neighbours.shape[1]), -1)])
    counts = np.concatenate([table.counts, np.zeros((1, table.counts.shape[1]), dtype=np.float32)])
    popularity = np.concatenate([table.popularity, np.zeros(1, dtype=np.float32)])[:, None]
    wanted = graph.add("Unsqueeze", own, graph.integers(1, 2))
    hit = graph.add(
        "Equal",
        graph.add("Gather", graph.constant(near.astype(np.int32)), past),
        graph.add("Cast", wanted, to=TensorProto.INT32),
    )
    nothing = graph.constant(np.zeros(1, dtype=np.float32))
    pairs = graph.add("Where", hit, graph.add("Gather", graph.constant(counts), past), nothing)
    pairs = graph.add("ReduceSum", pairs, last, keepdims=0)  # (K, T)

    levels = graph.add("Equal", graph.add("Unsqueeze", "candidates", axis), "history")  # (K, T, L)
    differs = graph.add("Cast", graph.add("Not", levels), to=TensorProto.FLOAT)
    agree = graph.add("Equal", graph.add("CumSum", differs, graph.constant(np.array(2))), nothing)
    shared = graph.add("ReduceMean", graph.add("Cast", agree, to=TensorProto.FLOAT), last, keepdims=0)  # (K, T)

    def total(x: str) -> str:
        return graph.add("ReduceSum", x, axis, keepdims=1)

    def newest(x: str) -> str:
        end = graph.integers(np.iinfo(np.int64).max)
        return total(graph.add("Slice", x, graph.integers(-1), end, axis))

    one = graph.constant(np.ones(1, dtype=np.float32))

    def log(x: str) -> str:
        return graph.add("Log", graph.add("Add", x, one))

    popular = graph.add("Gather", graph.constant(popularity), own)  # (K, 1)
    norm = graph.add("Sqrt", graph.add("Add", popular, one))
    decay = (DECAY ** np.arange(longest - 1, -1, -1)).astype(np.float32)
    recent = graph.add("Mul", pairs, graph.slice(graph.constant(decay), first, graph.integers(longest)))
    size = graph.add("Cast", graph.add("Max", length, graph.integers(1)), to=TensorProto.FLOAT)
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
        graph.add("ReduceMax", graph.add("Concat", zero, shared, axis=1), axis, keepdims=1),
        newest(shared),
    ]
    return graph.add("Concat", *columns, axis=1)


def _masks(graph: Builder, context: str, count: str, longest: int) -> tuple[str, str]:
    """The additive masks (S, S) of all rows and (n, S) of the nodes' rows; history is causal, nodes see all of it."""
    causal = graph.constant(np.triu(np.full((longest, longest), MASKED, dtype=np.float32), 1))
    both = graph.add("Concat", context, context, axis=0)
    past = graph.add("Slice", causal, graph.integers(0, 0), both, graph.integers(0, 1))
    shape = graph.add("Concat", context, count, axis=0)
    unseen = graph.add("Expand", graph.constant(np.array([[MASKED]], dtype=np.float32)), shape)
    turned = graph.add("Concat", count, context, axis=0)
    seen = graph.add("Expand", graph.constant(np.zeros((1, 1), dtype=np.float32)), turned)
    below = graph.add("Concat", seen, "mask", axis=1)
    above = graph.add("Concat", past, unseen, axis=1)
    return graph.add("Concat", above, below, axis=0), below


def _block(graph: Builder, block: Block, x: str, mask: str, start: str | None) -> str:
    """A transformer block; with `start`, only its rows from there on."""
    dim, heads = block.query.in_features, block.heads
    normed = _norm(graph, block.norm_attention, x)
    rows = normed
    if start is not None:
        end = graph.integers(np.iinfo(np.int64).max)
        rows, x = graph.slice(normed, start, end), graph.slice(x, start, end)
    scale = (dim // heads) ** -0.5
    query = graph.gemm(rows, block.query.weight * scale, block.query.bias * scale)
    weight, bias = block.key_value.weight, block.key_value.bias
    key, value = graph.gemm(normed, weight[:dim], bias[:dim]), graph.gemm(normed, weight[dim:], bias[dim:])
    shape = graph.integers(-1, heads, dim // heads)
    query, key, value = (
        graph.add("Transpose", graph.add("Reshape", part, shape), perm=perm)
        for part, perm in ((query, (1, 0, 2)), (key, (1, 2, 0)), (value, (1, 0, 2)))
    )
    weights = graph.add("Softmax", graph.add("Add", graph.add("MatMul", query, key), mask), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, value), perm=(1, 0, 2))
    mixed = graph.add("Reshape", mixed, graph.integers(-1, dim))
    x = graph.add("Add", x, graph.gemm(mixed, block.out.weight, block.out.bias))
    hidden = graph.gemm(_norm(graph, block.norm_mlp, x), block.up.weight, block.up.bias)
    return graph.add("Add", x, graph.gemm(graph.add("Gelu", hidden), block.down.weight, block.down.bias))


def _norm(graph: Builder, norm: nn.LayerNorm, x: str) -> str:
    return graph.add("LayerNormalization", x, graph.weight(norm.weight), graph.weight(norm.bias), epsilon=norm.eps)


def _prior(graph: Builder, prior: Prior, features: str) -> str:
    """(K, 1): the part of the score that comes from features (K, F)."""
    linear = graph.add("MatMul", features, graph.weight(prior.linear.weight.T))
    hidden = graph.add("Gelu", graph.gemm(features, prior.up.weight, prior.up.bias))
    return graph.add("Add", linear, graph.add("MatMul", hidden, graph.weight(prior.down.weight.T)))


def _head(graph: Builder, head: Head, past: str, own: str, first: str) -> str:
    """(K, 1): the head's scores; `past` (T,) and `own` (K,) are rows, of which the one past the last is no item's."""
    memory = graph.weight(torch.cat([head.memory.weight, torch.zeros_like(head.memory.weight[:1])]))
    items, candidates = (
        graph.add("Add", _code_sum(graph, head.codes, codes), graph.add("Gather", memory, rows))
        for codes, rows in (("history", past), ("candidates", own))
    )
    recency = graph.weight(head.recency.exp())
    weighted = graph.add("Mul", items, graph.slice(recency, first, graph.integers(len(head.recency))))
    pooled = graph.add("ReduceSum", weighted, graph.integers(0), keepdims=1)
    pooled = _norm(graph, head.norm_pool, graph.add("Add", pooled, graph.weight(head.begin)))
    hidden = graph.add("Gelu", graph.gemm(pooled, head.up.weight, head.up.bias))
    query = graph.add("Add", pooled, graph.gemm(hidden, head.down.weight, head.down.bias))
    query = graph.add("Add", _norm(graph, head.norm_query, query), graph.weight(head.bias.weight))
    return graph.add("MatMul", candidates, graph.add("Transpose", query, perm=(1, 0)))
