"""The student as an ONNX graph: one request, any number of history items, nodes and candidates, or a batch of them.

The graph is written operator by operator rather than traced: it has a third of the nodes of a traced one, nothing in it
depends on an example input (no history, no candidates and one candidate all work), and the same weights give the same
bytes. Constant sums and the attention's scale are folded into the weights. `gr2.export.parity` proves it equal to the
torch model.

The batched form is a graph of its own: with a batch axis of 1 it takes about a fifth longer on a CPU.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from gr2.export.builder import Builder, Shape
from gr2.export.evidence import item_rows
from gr2.export.layers import (
    add_items,
    add_mlp,
    add_norm,
    add_prior,
    add_query,
    add_tokens,
    attention_weights,
)
from gr2.export.lookup import build_code_table
from gr2.export.memory import add_memory
from gr2.export.visibility import History, add_history, masks, tree_mask
from gr2.models.memory import MEMORY, ItemMemory
from gr2.models.student import Block, Head, Student

__all__ = ["graph_names", "student_graph"]


def graph_names(levels: int, *, batched: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the graph's inputs and outputs, in order."""
    nodes = tuple(f"nodes_{depth}" for depth in range(1, levels))
    sight = ("parents", "rows") if batched else ("mask",)
    return ("history", *nodes, *sight, "features", "candidates"), ("logits", "prior")


def student_graph(
    student: Student,
    memory: ItemMemory,
    codes: NDArray[np.integer],
    *,
    graph: Builder | None = None,
    pruned: bool = True,
) -> onnx.ModelProto:
    """The graph: history (T, L), nodes_1..nodes_{L-1} (n_d,), mask (n, n), features (K, 3 + F) and candidates (K, L)
    -> logits (n, V), prior (K,).

    `graph` is an empty builder, by default one of float32. With a batched one all have a batch axis before these, and T
    is at least 1. Histories are right-aligned, their padding's first code is -1. Each depth's nodes are padded to N_d;
    instead of the mask come, for the N = 1 + sum N_d nodes, the `parents` (B, N), the root's 0, and `rows` (B, n):
    which of the B * N nodes each row of the logits (B, n, V) is of. Padding nodes and candidates may hold any codes
    from -1 on; what is computed for them has no meaning.

    `codes` (N, L) are the catalogue's; `memory` is what the graph looks pairs of items up in. Codes of no item are
    allowed: the memory knows nothing of them, and the head knows their codes only. Without `pruned` the last block
    computes its rows of the history too, of which nothing is used: the baseline of benchmarks.
    """
    config = student.config
    graph = graph or Builder()
    batched = graph.batched
    history = add_history(graph, config)
    logits = _path_logits(graph, student, history, pruned=pruned)
    if batched:
        flat = graph.add("Reshape", graph.add("Concat", *logits, axis=-2), graph.integers(-1, config.level_size))
        graph.add("Gather", flat, "rows", axis=0, output="logits")
    else:
        graph.add("Concat", *logits, axis=-2, output="logits")

    rows = item_rows(graph, build_code_table(codes), len(codes), graph.add("Concat", "history", "candidates", axis=-2))
    end = graph.integers(np.iinfo(np.int64).max)
    past = graph.slice(rows, graph.integers(0), history.width, axis=-1)
    own = graph.slice(rows, history.width, end, axis=-1)
    known = add_memory(graph, memory, past, own, history)
    features = graph.add("Concat", "features", known, axis=-1)
    first, second = student.weights.tolist()
    prior = add_prior(graph, student.prior, features, first)
    head = _head(graph, student.head, past, own, history, second)
    graph.add("Squeeze", graph.add("Add", prior, head), graph.integers(-1), output="prior")
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    batch = ("B",) if batched else ()
    shapes: dict[str, Shape] = {
        "history": (integer, (*batch, "T", config.levels)),
        **{f"nodes_{depth}": (integer, (*batch, f"n_{depth}")) for depth in range(1, config.levels)},
        "mask": (real, ("n", "n")),
        "parents": (integer, ("B", "N")),
        "rows": (integer, ("B", "n")),
        "features": (real, (*batch, "K", config.features - len(MEMORY))),
        "candidates": (integer, (*batch, "K", config.levels)),
        "logits": (real, (*batch, "n", config.level_size)),
        "prior": (real, (*batch, "K")),
    }
    inputs, outputs = ({name: shapes[name] for name in names} for names in graph_names(config.levels, batched=batched))
    return graph.model("student", inputs, outputs)


def _path_logits(graph: Builder, student: Student, history: History, *, pruned: bool) -> list[str]:
    """The logits of each depth's nodes: the transformer over begin token, history and trie."""
    config = student.config
    items = add_tokens(graph, student, history)
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
    context = graph.add("Add", history.columns, graph.integers(1))
    tree = tree_mask(graph, config.levels) if graph.batched else "mask"
    full, below = masks(graph, context, tree, history)
    last = len(student.blocks) - 1 if pruned else -1
    for place, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        x = _block(graph, block, x, below if place == last else full, context if place == last else None)
    if not pruned:
        x = graph.slice(x, context, graph.integers(np.iinfo(np.int64).max), axis=-2)
    states = add_norm(graph, student.norm, x)
    sizes = graph.add("Concat", graph.integers(1), *(graph.add("Shape", name, start=-1) for name in names), axis=0)
    return graph.project_parts(states, sizes, list(student.logits))


def _block(graph: Builder, block: Block, x: str, mask: str, start: str | None) -> str:
    """A transformer block; with `start`, only its rows from there on."""
    dim, heads = block.query.in_features, block.heads
    normed = add_norm(graph, block.norm_attention, x)
    rows = normed
    if start is not None:
        end = graph.integers(np.iinfo(np.int64).max)
        rows, x = (graph.slice(each, start, end, axis=-2) for each in (normed, x))
    query, key, value = (
        graph.project(each, *weights)
        for each, weights in zip((rows, normed, normed), attention_weights(block), strict=True)
    )
    query, key, value = (
        graph.transpose(graph.reshape(part, -1, heads, dim // heads), perm)
        for part, perm in ((query, (1, 0, 2)), (key, (1, 2, 0)), (value, (1, 0, 2)))
    )
    weights = graph.add("Softmax", graph.add("Add", graph.add("MatMul", query, key), mask), axis=-1)
    mixed = graph.reshape(graph.transpose(graph.add("MatMul", weights, value), (1, 0, 2)), -1, dim)
    x = graph.add("Add", x, graph.project(mixed, block.out.weight, block.out.bias))
    return add_mlp(graph, block, x)


def _head(graph: Builder, head: Head, past: str, own: str, history: History, weight: float) -> str:
    """(K, 1): the head's scores, times its weight; `past` (T,) and `own` (K,) are rows, the one past the last none."""
    items, candidates = (
        add_items(graph, head, codes, rows) for codes, rows in (("history", past), ("candidates", own))
    )
    return graph.add("MatMul", candidates, graph.transpose(add_query(graph, head, items, history, weight), (1, 0)))
