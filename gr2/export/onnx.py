"""The student as an ONNX graph: one request, any number of history items, nodes and candidates, or a batch of them.

The graph is written operator by operator rather than traced: it has a third of the nodes of a traced one, nothing in it
depends on an example input (no history, no candidates and one candidate all work), and the same weights give the same
bytes. Constant sums and the attention's scale are folded into the weights. `gr2.export.parity` proves it equal to the
torch model.

The batched form is a graph of its own: with a batch axis of 1 it takes about a fifth longer on a CPU.
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
from gr2.export.evidence import add_evidence, item_rows
from gr2.export.lookup import build_code_table
from gr2.export.visibility import History, add_history, masks, tree_mask
from gr2.models.evidence import EVIDENCE, CoPurchase
from gr2.models.student import Block, CodeSum, Head, Prior, Student

__all__ = ["export_graph", "graph_names", "student_graph"]


def graph_names(levels: int, *, batched: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the graph's inputs and outputs, in order."""
    nodes = tuple(f"nodes_{depth}" for depth in range(1, levels))
    sight = ("parents", "rows") if batched else ("mask",)
    return ("history", *nodes, *sight, "features", "candidates"), ("logits", "prior")


def export_graph(
    student: Student, table: CoPurchase, codes: NDArray[np.integer], path: Path, *, batched: bool = False
) -> None:
    """Write the graph of `student_graph` to `path`, atomically."""
    model = student_graph(student, table, codes, batched=batched)
    write_atomic(path, model.SerializeToString(deterministic=True))


def student_graph(
    student: Student, table: CoPurchase, codes: NDArray[np.integer], *, batched: bool = False
) -> onnx.ModelProto:
    """The graph: history (T, L), nodes_1..nodes_{L-1} (n_d,), mask (n, n), features (K, 3 + F) and candidates (K, L)
    -> logits (n, V), prior (K,).

    With `batched` all have a batch axis before these, and T is at least 1. Histories are right-aligned, their padding's
    first code is -1. Each depth's nodes are padded to N_d; instead of the mask come, for the N = 1 + sum N_d nodes, the
    `parents` (B, N), the root's 0, and `rows` (B, n): which of the B * N nodes each row of the logits (B, n, V) is of.
    Padding nodes and candidates may hold any codes from -1 on; what is computed for them has no meaning.

    `codes` (N, L) are the catalogue's; `table` the co-purchases that the graph's evidence is computed from. Codes of no
    item are allowed: they have no co-purchases, and the head knows their codes only.
    """
    config = student.config
    graph = Builder(batched=batched)
    history = add_history(graph, config.max_history)
    logits = _path_logits(graph, student, history)
    if batched:
        flat = graph.add("Reshape", graph.add("Concat", *logits, axis=-2), graph.integers(-1, config.level_size))
        graph.add("Gather", flat, "rows", axis=0, output="logits")
    else:
        graph.add("Concat", *logits, axis=-2, output="logits")

    rows = item_rows(graph, build_code_table(codes), len(codes), graph.add("Concat", "history", "candidates", axis=-2))
    end = graph.integers(np.iinfo(np.int64).max)
    past = graph.slice(rows, graph.integers(0), history.width, axis=-1)
    own = graph.slice(rows, history.width, end, axis=-1)
    evidence = add_evidence(graph, table, past, own, history)
    features = graph.add("Concat", "features", evidence, axis=-1)
    weights = [graph.constant(np.array([value], dtype=np.float32)) for value in student.weights.tolist()]
    prior = graph.add("Mul", _prior(graph, student.prior, features), weights[0])
    head = graph.add("Mul", _head(graph, student.head, past, own, history), weights[1])
    graph.add("Squeeze", graph.add("Add", prior, head), graph.integers(-1), output="prior")
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    batch = ("B",) if batched else ()
    shapes: dict[str, Shape] = {
        "history": (integer, (*batch, "T", config.levels)),
        **{f"nodes_{depth}": (integer, (*batch, f"n_{depth}")) for depth in range(1, config.levels)},
        "mask": (real, ("n", "n")),
        "parents": (integer, ("B", "N")),
        "rows": (integer, ("B", "n")),
        "features": (real, (*batch, "K", config.features - len(EVIDENCE))),
        "candidates": (integer, (*batch, "K", config.levels)),
        "logits": (real, (*batch, "n", config.level_size)),
        "prior": (real, (*batch, "K")),
    }
    inputs, outputs = ({name: shapes[name] for name in names} for names in graph_names(config.levels, batched=batched))
    return graph.model("student", inputs, outputs)


def _path_logits(graph: Builder, student: Student, history: History) -> list[str]:
    """The logits of each depth's nodes: the transformer over begin token, history and trie."""
    config = student.config
    recency = history.recent(graph, graph.weight(student.position))
    items = graph.add("Add", _code_sum(graph, student.item, "history"), recency)
    names = [f"nodes_{depth}" for depth in range(1, config.levels)]
    begin, root = graph.weight(student.begin), graph.weight(student.root + student.depth[0])
    if graph.batched:
        zero = graph.facing(history.zero, -1)
        begin, root = graph.add("Add", zero, begin), graph.add("Add", zero, root)
    parts = [begin, items, root]
    for depth, name in enumerate(names, 1):
        rows = student.node.weight[(depth - 1) * config.level_size : depth * config.level_size]
        parts.append(graph.add("Gather", graph.weight(rows + student.depth[depth]), name, axis=0))
    x = graph.add("Concat", *parts, axis=-2)  # (S, d)
    context = graph.add("Add", history.width, graph.integers(1))
    tree = tree_mask(graph, config.levels) if graph.batched else "mask"
    full, below = masks(graph, context, tree, history)
    last = len(student.blocks) - 1
    for place, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        x = _block(graph, block, x, below if place == last else full, context if place == last else None)
    states = _norm(graph, student.norm, x)
    sizes = graph.add("Concat", graph.integers(1), *(graph.add("Shape", name, start=-1) for name in names), axis=0)
    split = graph.add_many("Split", config.levels, states, sizes, axis=-2)
    weights = [graph.weight(student.logits[depth].T) for depth in range(config.levels)]
    return [graph.add("MatMul", part, weight) for part, weight in zip(split, weights, strict=True)]


def _code_sum(graph: Builder, codes: CodeSum, name: str) -> str:
    """(N, d): the sum of the vectors of codes (N, L)."""
    index = graph.add("Add", name, graph.constant(codes.offsets.numpy()))
    return graph.reduce("Sum", graph.add("Gather", graph.weight(codes.table.weight), index), 1)


def _block(graph: Builder, block: Block, x: str, mask: str, start: str | None) -> str:
    """A transformer block; with `start`, only its rows from there on."""
    dim, heads = block.query.in_features, block.heads
    normed = _norm(graph, block.norm_attention, x)
    rows = normed
    if start is not None:
        end = graph.integers(np.iinfo(np.int64).max)
        rows, x = (graph.slice(each, start, end, axis=-2) for each in (normed, x))
    scale = (dim // heads) ** -0.5
    query = graph.dense(rows, block.query.weight * scale, block.query.bias * scale)
    weight, bias = block.key_value.weight, block.key_value.bias
    key, value = graph.dense(normed, weight[:dim], bias[:dim]), graph.dense(normed, weight[dim:], bias[dim:])
    query, key, value = (
        graph.transpose(graph.reshape(part, -1, heads, dim // heads), perm)
        for part, perm in ((query, (1, 0, 2)), (key, (1, 2, 0)), (value, (1, 0, 2)))
    )
    weights = graph.add("Softmax", graph.add("Add", graph.add("MatMul", query, key), mask), axis=-1)
    mixed = graph.reshape(graph.transpose(graph.add("MatMul", weights, value), (1, 0, 2)), -1, dim)
    x = graph.add("Add", x, graph.dense(mixed, block.out.weight, block.out.bias))
    hidden = graph.dense(_norm(graph, block.norm_mlp, x), block.up.weight, block.up.bias)
    return graph.add("Add", x, graph.dense(graph.add("Gelu", hidden), block.down.weight, block.down.bias))


def _norm(graph: Builder, norm: nn.LayerNorm, x: str) -> str:
    return graph.add("LayerNormalization", x, graph.weight(norm.weight), graph.weight(norm.bias), epsilon=norm.eps)


def _prior(graph: Builder, prior: Prior, features: str) -> str:
    """(K, 1): the part of the score that comes from features (K, F)."""
    linear = graph.add("MatMul", features, graph.weight(prior.linear.weight.T))
    hidden = graph.add("Gelu", graph.dense(features, prior.up.weight, prior.up.bias))
    return graph.add("Add", linear, graph.add("MatMul", hidden, graph.weight(prior.down.weight.T)))


def _head(graph: Builder, head: Head, past: str, own: str, history: History) -> str:
    """(K, 1): the head's scores; `past` (T,) and `own` (K,) are rows, of which the one past the last is no item's."""
    memory = graph.weight(torch.cat([head.memory.weight, torch.zeros_like(head.memory.weight[:1])]))
    items, candidates = (
        graph.add("Add", _code_sum(graph, head.codes, codes), graph.add("Gather", memory, rows))
        for codes, rows in (("history", past), ("candidates", own))
    )
    recency = graph.weight(head.recency.exp())
    weighted = graph.add("Mul", items, history.recent(graph, recency))
    if graph.batched:
        weighted = graph.add("Mul", weighted, graph.facing(history.present, -1))
    pooled = graph.reduce("Sum", weighted, 0, keep=True)
    pooled = _norm(graph, head.norm_pool, graph.add("Add", pooled, graph.weight(head.begin)))
    hidden = graph.add("Gelu", graph.dense(pooled, head.up.weight, head.up.bias))
    query = graph.add("Add", pooled, graph.dense(hidden, head.down.weight, head.down.bias))
    query = graph.add("Add", _norm(graph, head.norm_query, query), graph.weight(head.bias.weight))
    return graph.add("MatMul", candidates, graph.transpose(query, (1, 0)))
