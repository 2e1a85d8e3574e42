"""Parts of the student as operators of a graph: what its whole form, its encoder and its scorer have in common."""

from __future__ import annotations

import torch
from torch import nn

from gr2.export.builder import Builder
from gr2.export.visibility import History
from gr2.models.student import Block, CodeSum, Head, Prior, Student

__all__ = [
    "add_items",
    "add_mlp",
    "add_norm",
    "add_prior",
    "add_query",
    "add_tokens",
    "attention_weights",
]


def attention_weights(block: Block) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight (d, d) and bias (d,) of queries, keys and values; attention's scale is folded into the queries'."""
    dim = block.query.in_features
    scale = (dim // block.heads) ** -0.5
    weight, bias = block.key_value.weight, block.key_value.bias
    return [
        (block.query.weight * scale, block.query.bias * scale),
        (weight[:dim], bias[:dim]),
        (weight[dim:], bias[dim:]),
    ]


def add_norm(graph: Builder, norm: nn.LayerNorm, x: str) -> str:
    """Rows `x`, normalised."""
    return graph.add("LayerNormalization", x, graph.weight(norm.weight), graph.weight(norm.bias), epsilon=norm.eps)


def add_code_sum(graph: Builder, codes: CodeSum, name: str) -> str:
    """(N, d): the sum of the vectors of codes (N, L)."""
    index = graph.add("Add", name, graph.constant(codes.offsets.numpy()))
    return graph.reduce("Sum", graph.add("Gather", graph.weight(codes.table.weight), index), 1)


def add_tokens(graph: Builder, student: Student, history: History) -> str:
    """(C, d): the transformer's tokens of the history."""
    recency = history.recent(graph, graph.weight(student.position))
    if history.tokens == 1:
        return graph.add("Add", add_code_sum(graph, student.item, "history"), recency)
    index = graph.add("Add", "history", graph.constant(student.item.offsets.numpy()))
    each = graph.add("Gather", graph.weight(student.item.table.weight), index)  # (T, L, d)
    each = graph.add("Add", each, graph.add("Unsqueeze", recency, graph.integers(1)))
    return graph.reshape(each, -1, student.config.dim)


def add_mlp(graph: Builder, block: Block, x: str) -> str:
    """Rows `x` after the second half of a block."""
    hidden = graph.project(add_norm(graph, block.norm_mlp, x), block.up.weight, block.up.bias)
    return graph.add("Add", x, graph.project(graph.add("Gelu", hidden), block.down.weight, block.down.bias))


def add_prior(graph: Builder, prior: Prior, features: str, weight: float) -> str:
    """(K, 1): the part of the score that comes from features (K, F), times its weight."""
    linear = graph.add("MatMul", features, graph.weight(weight * prior.linear.weight.T))
    hidden = graph.add("Gelu", graph.dense(features, prior.up.weight, prior.up.bias))
    return graph.add("Add", linear, graph.add("MatMul", hidden, graph.weight(weight * prior.down.weight.T)))


def add_items(graph: Builder, head: Head, codes: str, rows: str) -> str:
    """(N, d): the head's vectors of items with `codes` (N, L) and `rows` (N,), the row past the last is no item's."""
    memory = graph.weight(torch.cat([head.memory.weight, torch.zeros_like(head.memory.weight[:1])]))
    return graph.add("Add", add_code_sum(graph, head.codes, codes), graph.add("Gather", memory, rows))


def add_query(graph: Builder, head: Head, items: str, history: History, weight: float) -> str:
    """(1, d): what the head multiplies a candidate's vector with, times the head's weight.

    `items` (T, d) are its vectors of the history.
    """
    weighted = graph.add("Mul", items, history.recent(graph, graph.weight(head.recency.exp())))
    if graph.batched:
        weighted = graph.add("Mul", weighted, graph.facing(history.present, -1))
    pooled = graph.reduce("Sum", weighted, 0, keep=True)
    pooled = add_norm(graph, head.norm_pool, graph.add("Add", pooled, graph.weight(head.begin)))
    hidden = graph.add("Gelu", graph.dense(pooled, head.up.weight, head.up.bias))
    query = graph.add("Add", pooled, graph.dense(hidden, head.down.weight, head.down.bias))
    norm = head.norm_query
    scale, bias = graph.weight(weight * norm.weight), graph.weight(weight * (norm.bias + head.bias.weight[0]))
    return graph.add("LayerNormalization", query, scale, bias, epsilon=norm.eps)
