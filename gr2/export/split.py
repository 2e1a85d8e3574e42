"""The student as two graphs: an encoder of the history, whose outputs may be kept, and a scorer of candidates.

The trie's root sees the history alone and belongs to the encoder. Below it a node sees the encoded history, the nodes
above it and itself: the scorer gathers these few rows instead of masking a square of nodes, so that its time grows with
the number of nodes and not with the square of it. A node's input has few values: the first block's queries, keys and
values of nodes are tables.

Both together compute what the whole graph of `gr2.export.onnx` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from gr2.export.builder import Builder, Shape
from gr2.export.layers import add_items, add_mlp, add_norm, add_prior, add_query, add_tokens, attention_weights
from gr2.export.visibility import add_history
from gr2.models.memory import MEMORY
from gr2.models.student import MASKED, Block, Student

__all__ = ["encoder_graph", "scorer_graph"]

END = np.iinfo(np.int64).max


def encoded_shapes(student: Student) -> dict[str, Shape]:
    """The encoder's outputs, which are inputs of the scorer, C columns: begin token, the history's tokens, root.

    Keys and values of each block, the root's logits and the head's query.
    """
    config, real = student.config, TensorProto.FLOAT
    heads, width = config.heads, config.dim // config.heads
    shapes: dict[str, Shape] = {}
    for layer in range(config.layers):
        shapes[f"keys_{layer}"] = (real, (heads, width, "C"))
        shapes[f"values_{layer}"] = (real, (heads, "C", width))
    shapes["root"] = (real, (1, config.level_size))
    shapes["query"] = (real, (config.dim, 1))
    return shapes


def encoder_graph(student: Student, *, graph: Builder | None = None) -> onnx.ModelProto:
    """The graph, written to an empty builder: history (T, L), past (T,) -> `encoded_shapes`.

    `past` are the rows of the history's items in the catalogue that the student was trained with, N for others.
    """
    config, graph = student.config, graph or Builder()
    history = add_history(graph, config)
    weight = float(student.weights[1])
    query = add_query(graph, student.head, add_items(graph, student.head, "history", "past"), history, weight)
    graph.add("Transpose", query, perm=(1, 0), output="query")

    items = add_tokens(graph, student, history)
    begin, root = graph.weight(student.begin), graph.weight(student.root + student.depth[0])
    x = graph.add("Concat", begin, items, root, axis=0)  # (C, d)
    width = graph.add("Add", history.columns, graph.integers(2))
    causal = np.triu(np.full((config.max_history * config.tokens + 2,) * 2, MASKED, dtype=np.float32), 1)
    both = graph.add("Concat", width, width, axis=0)
    mask = graph.add("Slice", graph.constant(causal), graph.integers(0, 0), both, graph.integers(0, 1))
    for layer, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        x = _encode(graph, block, x, layer, mask if layer < config.layers - 1 else None)
    graph.add("MatMul", add_norm(graph, student.norm, x), graph.weight(student.logits[0].T), output="root")
    inputs: dict[str, Shape] = {
        "history": (TensorProto.INT64, ("T", config.levels)),
        "past": (TensorProto.INT64, ("T",)),
    }
    return graph.model("encoder", inputs, encoded_shapes(student))


def _encode(graph: Builder, block: Block, x: str, layer: int, mask: str | None) -> str:
    """A block over (C, d) that names its keys and values; without a mask, the last row alone, which sees all."""
    normed = add_norm(graph, block.norm_attention, x)
    rows = normed
    if mask is None:
        rows, x = (graph.slice(each, graph.integers(-1), graph.integers(END)) for each in (normed, x))
    query, key, value = (
        graph.project(each, *weights)
        for each, weights in zip((rows, normed, normed), attention_weights(block), strict=True)
    )
    query = _heads(graph, block, query)
    key = graph.transpose(graph.reshape(key, *_width(block)), (1, 2, 0), output=f"keys_{layer}")
    value = graph.transpose(graph.reshape(value, *_width(block)), (1, 0, 2), output=f"values_{layer}")
    scores = graph.add("MatMul", query, key)
    weights = graph.add("Softmax", scores if mask is None else graph.add("Add", scores, mask), axis=-1)
    return _finish(graph, block, x, graph.add("MatMul", weights, value))


def scorer_graph(student: Student, *, graph: Builder | None = None) -> onnx.ModelProto:
    """The graph, written to an empty builder: `encoded_shapes`, nodes (m,), counts (L - 1,), ancestors (m, L - 1),
    features (K, 3 + F), memory (K, E), candidates (K, L) and rows (K,) -> logits (1 + m, V), prior (K,).

    `nodes` are the trie's inner nodes below the root, V * (depth - 1) + code, and `counts` how many each depth has.
    `ancestors` has for each of them its own number, its parent's and so on, counted without the root; -1 from there on.
    `memory` are the columns of `gr2.models.memory`, and `rows` as `past` of the encoder.
    """
    config, graph = student.config, graph or Builder()
    graph.add("Concat", *["root", *_node_logits(graph, student)], axis=0, output="logits")
    features = graph.add("Concat", "features", "memory", axis=-1)
    prior = add_prior(graph, student.prior, features, float(student.weights[0]))
    head = graph.add("MatMul", add_items(graph, student.head, "candidates", "rows"), "query")
    graph.add("Squeeze", graph.add("Add", prior, head), graph.integers(-1), output="prior")
    integer, real, levels = TensorProto.INT64, TensorProto.FLOAT, config.levels
    inputs: dict[str, Shape] = {
        **encoded_shapes(student),
        "nodes": (integer, ("m",)),
        "counts": (integer, (levels - 1,)),
        "ancestors": (integer, ("m", levels - 1)),
        "features": (real, ("K", config.features - len(MEMORY))),
        "memory": (real, ("K", len(MEMORY))),
        "candidates": (integer, ("K", levels)),
        "rows": (integer, ("K",)),
    }
    return graph.model("scorer", inputs, {"logits": (real, ("n", config.level_size)), "prior": (real, ("K",))})


def _node_logits(graph: Builder, student: Student) -> list[str]:
    """The logits of each depth's nodes."""
    config = student.config
    if config.levels == 1:
        return []
    # Sums over what a node sees are fast along an axis before the nodes'.
    above = graph.add("Transpose", "ancestors", perm=(1, 0))  # (L - 1, m)
    values = [graph.constant(np.array([value], dtype=np.float32)) for value in (MASKED, 0)]
    mask = graph.add("Where", graph.add("Less", above, graph.integers(0)), *values)
    inputs = [
        student.node.weight[at * config.level_size : (at + 1) * config.level_size] + student.depth[at + 1]
        for at in range(config.levels - 1)
    ]
    table = torch.cat(inputs).detach()
    x = graph.add("Gather", graph.weight(table), "nodes", axis=0)
    for layer, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        x = _score(graph, block, x, _Sight(above, mask, config.levels - 1), layer, table if layer == 0 else None)
    states = add_norm(graph, student.norm, x)
    return graph.project_parts(states, "counts", list(student.logits[1:]))


@dataclass(frozen=True)
class _Sight:
    """What a node sees of the nodes: their numbers (count, m), the additive mask (count, m), and how many at most."""

    above: str
    mask: str
    count: int


def _score(graph: Builder, block: Block, x: str, sight: _Sight, layer: int, table: Tensor | None) -> str:
    """A block over the nodes (m, d); `table` (N, d): what rows of `x` may be."""
    if table is None:
        rows, chosen = add_norm(graph, block.norm_attention, x), sight.above
        query, key, value = (_heads(graph, block, graph.project(rows, *each)) for each in attention_weights(block))
    else:
        rows, chosen = block.norm_attention(table), graph.add("Gather", "nodes", sight.above, axis=0)
        query, key, value = (graph.weight(_by_head(block, F.linear(rows, *each))) for each in attention_weights(block))
        query = graph.add("Gather", query, "nodes", axis=1)
    key, value = (graph.add("Gather", each, chosen, axis=1) for each in (key, value))  # (h, L - 1, m, d / h)
    near = graph.reduce("Sum", graph.add("Mul", graph.add("Unsqueeze", query, graph.integers(1)), key), 3)
    near = graph.add("Transpose", graph.add("Add", near, sight.mask), perm=(0, 2, 1))
    far = graph.add("MatMul", query, f"keys_{layer}")
    weights = graph.add("Softmax", graph.add("Concat", far, near, axis=-1), axis=-1)
    far = graph.slice(weights, graph.integers(0), graph.integers(-sight.count), axis=-1)
    near = graph.slice(weights, graph.integers(-sight.count), graph.integers(END), axis=-1)
    near = graph.add("Unsqueeze", graph.add("Transpose", near, perm=(0, 2, 1)), graph.integers(-1))
    near = graph.reduce("Sum", graph.add("Mul", near, value), 1)
    return _finish(graph, block, x, graph.add("Add", graph.add("MatMul", far, f"values_{layer}"), near))


def _heads(graph: Builder, block: Block, x: str) -> str:
    """(h, N, d / h) of rows `x` (N, d)."""
    return graph.transpose(graph.reshape(x, *_width(block)), (1, 0, 2))


def _width(block: Block) -> tuple[int, int, int]:
    """The shape of rows by head."""
    return -1, block.heads, block.query.in_features // block.heads


def _by_head(block: Block, x: Tensor) -> Tensor:
    """(h, N, d / h) of a table (N, d)."""
    return x.view(len(x), block.heads, -1).transpose(0, 1)


def _finish(graph: Builder, block: Block, x: str, mixed: str) -> str:
    """Rows `x` (N, d) after a block whose attention gave `mixed` (h, N, d / h)."""
    joined = graph.reshape(graph.transpose(mixed, (1, 0, 2)), -1, block.query.in_features)
    return add_mlp(graph, block, graph.add("Add", x, graph.project(joined, block.out.weight, block.out.bias)))
