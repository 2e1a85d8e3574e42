"""What a row of the graph's sequence sees: the history without its padding, a node's ancestors; as additive masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from gr2.export.builder import Builder
from gr2.models.student import MASKED

__all__ = ["History", "add_history", "masks", "tree_mask"]


@dataclass(frozen=True)
class History:
    """Names of values about the history: its width T (1,) and max_history - T (1,), both int64; `longest` is
    max_history. In a batch also which columns hold an item, `present` (B, T) float32, and the sizes of the batch (1,).
    """

    width: str
    first: str
    longest: int
    present: str = ""
    batch: str = ""

    def recent(self, graph: Builder, table: str) -> str:
        """The last T along an axis of a table whose last entry is the most recent item's."""
        return graph.slice(table, self.first, graph.integers(self.longest))


def add_history(graph: Builder, longest: int) -> History:
    """The values about the input `history`, whose padding has -1 for its first code."""
    width = graph.add("Shape", "history", start=-2, end=-1)
    first = graph.add("Sub", graph.integers(longest), width)
    if not graph.batched:
        return History(width, first, longest)
    code = graph.add("Gather", "history", graph.constant(np.array(0)), axis=-1)
    present = graph.add("Cast", graph.add("Greater", code, graph.integers(-1)), to=TensorProto.FLOAT)
    return History(width, first, longest, present, graph.add("Shape", "history", start=0, end=1))


def tree_mask(graph: Builder, levels: int) -> str:
    """(B, n, n): 0 where a node sees a node, that is itself and its ancestors; of `parents` (B, n), the root's is 0."""
    count = graph.add("Squeeze", graph.add("Shape", "parents", start=-1), graph.integers(0))
    nodes = graph.add("Range", graph.constant(np.array(0)), count, graph.constant(np.array(1)))
    seen = graph.add("Equal", graph.add("Unsqueeze", nodes, graph.integers(-1)), nodes)
    ancestors = "parents"
    for depth in range(1, max(2, levels)):
        if depth > 1:
            ancestors = graph.add("GatherElements", "parents", ancestors, axis=-1)
        above = graph.add("Equal", graph.add("Unsqueeze", ancestors, graph.integers(-1)), nodes)
        seen = graph.add("Or", seen, above)
    zero, masked = (graph.constant(np.array([value], dtype=np.float32)) for value in (0, MASKED))
    return graph.add("Where", seen, zero, masked)


def masks(graph: Builder, context: str, tree: str, history: History) -> tuple[str, str]:
    """The additive masks (S, S) of all rows and (n, S) of the nodes' rows; history is causal, nodes see all of it."""
    count = graph.add("Shape", tree, start=-1)
    longest = 1 + history.longest
    causal = graph.constant(np.triu(np.full((longest, longest), MASKED, dtype=np.float32), 1))
    both = graph.add("Concat", context, context, axis=0)
    past = graph.add("Slice", causal, graph.integers(0, 0), both, graph.integers(0, 1))
    batch = [history.batch] if graph.batched else []
    shape = graph.add("Concat", *batch, context, count, axis=0)
    unseen = graph.add("Expand", graph.constant(np.array([[MASKED]], dtype=np.float32)), shape)
    turned = graph.add("Concat", *batch, count, context, axis=0)
    if graph.batched:
        padded = _padded(graph, history)
        past, seen = graph.add("Add", past, padded), graph.add("Expand", padded, turned)
    else:
        seen = graph.add("Expand", graph.constant(np.zeros((1, 1), dtype=np.float32)), turned)
    below = graph.add("Concat", seen, tree, axis=-1)
    above = graph.add("Concat", past, unseen, axis=-1)
    full = graph.add("Concat", above, below, axis=-2)
    return graph.facing(full, -3), graph.facing(below, -3)


def _padded(graph: Builder, history: History) -> str:
    """(B, 1, 1 + T): 0 for the begin token and the history's items, MASKED for what only pads the history."""
    absent = graph.add("Sub", graph.constant(np.ones(1, dtype=np.float32)), history.present)
    absent = graph.add("Mul", absent, graph.constant(np.array([MASKED], dtype=np.float32)))
    sizes = graph.add("Concat", history.batch, graph.integers(1), axis=0)
    begin = graph.add("Expand", graph.constant(np.zeros((1, 1), dtype=np.float32)), sizes)
    return graph.facing(graph.add("Concat", begin, absent, axis=-1), -2)
