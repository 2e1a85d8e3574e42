"""What a row of the graph's sequence sees: the history without its padding, a node's ancestors; as additive masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from gr2.export.builder import Builder
from gr2.models.student import MASKED, StudentConfig

__all__ = ["History", "add_history", "masks", "tree_mask"]


@dataclass(frozen=True)
class History:
    """Names of values about the history: its width T (1,), max_history - T (1,) and its tokens C = T * `tokens` (1,),
    all int64; `longest` is max_history. In a batch also which columns hold an item, `present` (B, T) float32, and zeros
    (B, 1) float32 to broadcast with: what is made of shapes and constants alone, onnxruntime computes in memory and
    copies to a GPU.
    """

    width: str
    first: str
    columns: str
    longest: int
    tokens: int
    present: str = ""
    zero: str = ""

    def recent(self, graph: Builder, table: str) -> str:
        """The last T along an axis of a table whose last entry is the most recent item's."""
        return graph.slice(table, self.first, graph.integers(self.longest))


def add_history(graph: Builder, config: StudentConfig) -> History:
    """The values about the input `history`, whose padding has -1 for its first code."""
    longest, tokens = config.max_history, config.tokens
    width = graph.add("Shape", "history", start=-2, end=-1)
    columns = width if tokens == 1 else graph.add("Mul", width, graph.integers(tokens))
    first = graph.add("Sub", graph.integers(longest), width)
    if not graph.batched:
        return History(width, first, columns, longest, tokens)
    code = graph.add("Gather", "history", graph.constant(np.array(0)), axis=-1)
    present = graph.add("Cast", graph.add("Greater", code, graph.integers(-1)), to=TensorProto.FLOAT)
    newest = graph.slice(present, graph.integers(-1), graph.integers(np.iinfo(np.int64).max), axis=-1)
    zero = graph.add("Mul", newest, graph.constant(np.zeros(1, dtype=np.float32)))
    return History(width, first, columns, longest, tokens, present, zero)


def tree_mask(graph: Builder, levels: int) -> str:
    """(B, n, n): 0 where a node sees a node, that is itself and its ancestors; of `parents` (B, n), the root's is 0."""
    ones = graph.add("Cast", graph.add("Greater", "parents", graph.integers(-1)), to=TensorProto.INT64)
    nodes = graph.add("CumSum", ones, graph.constant(np.array(1)), exclusive=1)  # (B, n): 0, 1, ...
    seen = graph.add("Equal", graph.add("Unsqueeze", nodes, graph.integers(-1)), graph.facing(nodes, -2))
    ancestors = "parents"
    for depth in range(1, max(2, levels)):
        if depth > 1:
            ancestors = graph.add("GatherElements", "parents", ancestors, axis=-1)
        above = graph.add("Equal", graph.add("Unsqueeze", ancestors, graph.integers(-1)), graph.facing(nodes, -2))
        seen = graph.add("Or", seen, above)
    zero, masked = (graph.constant(np.array([value], dtype=np.float32)) for value in (0, MASKED))
    return graph.add("Where", seen, zero, masked)


def masks(graph: Builder, context: str, tree: str, history: History) -> tuple[str, str]:
    """The additive masks (S, S) of all rows and (n, S) of the nodes' rows; history is causal, nodes see all of it."""
    count = graph.add("Shape", tree, start=-1)
    longest = 1 + history.longest * history.tokens
    causal = graph.constant(np.triu(np.full((longest, longest), MASKED, dtype=np.float32), 1))
    both = graph.add("Concat", context, context, axis=0)
    past = graph.add("Slice", causal, graph.integers(0, 0), both, graph.integers(0, 1))
    unseen, one = graph.constant(np.array([[MASKED]], dtype=np.float32)), [graph.integers(1)] if graph.batched else []
    if not graph.batched:
        seen = graph.constant(np.zeros((1, 1), dtype=np.float32))
    else:
        seen = _padded(graph, history)
        past, unseen = graph.add("Add", past, seen), graph.add("Add", graph.facing(history.zero, -1), unseen)
    unseen = graph.add("Expand", unseen, graph.add("Concat", *one, context, count, axis=0))
    seen = graph.add("Expand", seen, graph.add("Concat", *one, count, context, axis=0))
    below = graph.add("Concat", seen, tree, axis=-1)
    above = graph.add("Concat", past, unseen, axis=-1)
    full = graph.add("Concat", above, below, axis=-2)
    return graph.facing(full, -3), graph.facing(below, -3)


def _padded(graph: Builder, history: History) -> str:
    """(B, 1, 1 + C): 0 for the begin token and the history's items, MASKED for what only pads the history."""
    absent = graph.add("Sub", graph.constant(np.ones(1, dtype=np.float32)), history.present)
    absent = graph.add("Mul", absent, graph.constant(np.array([MASKED], dtype=np.float32)))
    if history.tokens > 1:
        absent = graph.add("Expand", graph.facing(absent, -1), graph.integers(1, 1, history.tokens))
        absent = graph.add("Reshape", absent, graph.integers(0, -1))
    return graph.facing(graph.add("Concat", history.zero, absent, axis=-1), -2)
