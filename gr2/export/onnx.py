"""The student as an ONNX graph without a batch axis: one request, any number of history items, nodes and candidates.

The graph is written operator by operator rather than traced: it has a third of the nodes of a traced one, nothing in it
depends on an example input (no history, no candidates and one candidate all work), and the same weights give the same
bytes. Constant sums and the attention's scale are folded into the weights. `gr2.export.parity` proves it equal to the
torch model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from gr2.artifact import write_atomic
from gr2.models.student import MASKED, Block, Head, ItemEmbedding, Prior, Student
from gr2.version import __version__

__all__ = ["OPSET", "export_graph", "graph_names", "student_graph"]

OPSET = 20
IR_VERSION = 9


def graph_names(student: Student) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the graph's inputs and outputs, in order."""
    nodes = tuple(f"nodes_{depth}" for depth in range(1, student.config.levels))
    extra = ("candidates",) if student.head is not None else ()
    return ("history", *nodes, "mask", "features", *extra), ("logits", "prior")


def export_graph(student: Student, path: Path) -> None:
    """Write the student's graph to `path`, atomically."""
    write_atomic(path, student_graph(student).SerializeToString(deterministic=True))


def student_graph(student: Student) -> onnx.ModelProto:
    """The graph: history (T, L), nodes_1..nodes_{L-1} (n_d,), mask (n, n), features (K, 3 + F) and, where the student
    has a head, candidates (K, L) -> logits (n, V), prior (K,). Raises onnx.checker.ValidationError if it is malformed.
    """
    config = student.config
    graph = _Builder()
    length = graph.add("Shape", "history", start=0, end=1)
    items = _items(graph, student.item, "history")
    first = graph.add("Sub", graph.integers(config.max_history), length)
    recency = graph.slice(graph.weight(student.position), first, graph.integers(config.max_history))
    items = graph.add("Add", items, recency)
    begin = graph.weight(student.begin)
    nodes = [f"nodes_{depth}" for depth in range(1, config.levels)]
    parts = [begin, items, graph.weight(student.root + student.depth[0])]
    for depth, name in enumerate(nodes, 1):
        rows = student.node.weight[(depth - 1) * config.level_size : depth * config.level_size]
        parts.append(graph.add("Gather", graph.weight(rows + student.depth[depth]), name, axis=0))
    x = graph.add("Concat", *parts, axis=0)  # (S, d)

    context = graph.add("Add", length, graph.integers(1))
    count = graph.add("Shape", "mask", start=0, end=1)
    full, below = _masks(graph, context, count, 1 + config.max_history)
    last = len(student.blocks) - 1
    for place, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        x = _block(graph, block, x, below if place == last else full, context if place == last else None)
    states = _norm(graph, student.norm, x)

    sizes = graph.add("Concat", graph.integers(1), *(graph.add("Shape", name) for name in nodes), axis=0)
    split = graph.add_many("Split", config.levels, states, sizes, axis=0)
    weights = [graph.weight(student.logits[depth].T) for depth in range(config.levels)]
    logits = [graph.add("MatMul", part, weight) for part, weight in zip(split, weights, strict=True)]
    graph.add("Concat", *logits, axis=0, output="logits")

    prior = _prior(graph, student.prior)
    if student.head is not None:
        past = graph.add("Concat", begin, items, axis=0)
        candidates = _items(graph, student.item, "candidates")
        prior = graph.add("Add", prior, _head(graph, student.head, candidates, past, split[0]))
    graph.add("Squeeze", prior, graph.integers(1), output="prior")
    return graph.model(student)


def _items(graph: _Builder, item: ItemEmbedding, codes: str) -> str:
    """(N, d): an item's vector from its codes (N, L)."""
    index = graph.add("Add", codes, graph.constant(item.offsets.numpy()))
    axis = graph.integers(1)
    total = graph.add("ReduceSum", graph.add("Gather", graph.weight(item.codes.weight), index), axis, keepdims=0)
    if item.memory is None:
        return total
    table = graph.weight(item.memory.weight)
    for place, primes in enumerate((item.primes, item.primes.flip(0))):
        product = graph.add("Mul", graph.add("Add", codes, graph.integers(1)), graph.constant(primes.numpy()))
        row = graph.add("Mod", graph.add("ReduceSum", product, axis, keepdims=0), graph.integers(item.rows))
        row = graph.add("Add", row, graph.integers(place * item.rows))
        total = graph.add("Add", total, graph.add("Gather", table, row))
    return total


def _masks(graph: _Builder, context: str, count: str, longest: int) -> tuple[str, str]:
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


def _block(graph: _Builder, block: Block, x: str, mask: str, start: str | None) -> str:
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


def _norm(graph: _Builder, norm: nn.LayerNorm, x: str) -> str:
    return graph.add("LayerNormalization", x, graph.weight(norm.weight), graph.weight(norm.bias), epsilon=norm.eps)


def _prior(graph: _Builder, prior: Prior) -> str:
    """(K, 1): the features' part of the prior."""
    linear = graph.add("MatMul", "features", graph.weight(prior.linear.weight.T))
    hidden = graph.add("Gelu", graph.gemm("features", prior.up.weight, prior.up.bias))
    return graph.add("Add", linear, graph.add("MatMul", hidden, graph.weight(prior.down.weight.T)))


def _head(graph: _Builder, head: Head, candidates: str, past: str, root: str) -> str:
    """(K, 1): the candidate-scoring head."""
    scale = float(head.query.in_features) ** -0.5
    query = graph.gemm(candidates, head.query.weight * scale, head.query.bias * scale)
    key = graph.add("Transpose", graph.gemm(past, head.key.weight, head.key.bias), perm=(1, 0))
    weights = graph.add("Softmax", graph.add("MatMul", query, key), axis=-1)
    mixed = graph.add("MatMul", weights, graph.add("MatMul", past, graph.weight(head.value.weight.T)))
    mixed = graph.add("Add", mixed, graph.gemm(root, head.root.weight, head.root.bias))
    product = graph.add("Mul", graph.add("MatMul", candidates, graph.weight(head.output.weight.T)), mixed)
    total = graph.add("ReduceSum", product, graph.integers(1), keepdims=1)
    return graph.add("Add", total, graph.gemm(candidates, head.bias.weight, head.bias.bias))


class _Builder:
    """Nodes and constants under consecutive names; equal constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """The name of the operator's one output."""
        place = len(self.nodes)
        output = output or f"t{place}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{operator}_{place}", **attributes))
        return output

    def add_many(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """The names of the operator's `count` outputs."""
        place = len(self.nodes)
        outputs = [f"t{place}_{number}" for number in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=f"{operator}_{place}", **attributes))
        return outputs

    def constant(self, array: NDArray[Any]) -> str:
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return str(self.constants[key].name)

    def weight(self, tensor: Tensor) -> str:
        return self.constant(tensor.detach().numpy().astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def slice(self, x: str, start: str, end: str) -> str:
        """Rows start..end of `x`."""
        return self.add("Slice", x, start, end, self.integers(0))

    def gemm(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """`x @ weight.T + bias` for two-dimensional `x`."""
        return self.add("Gemm", x, self.weight(weight.T), self.weight(bias))

    def model(self, student: Student) -> onnx.ModelProto:
        config = student.config
        integer, real = TensorProto.INT64, TensorProto.FLOAT
        shapes: dict[str, tuple[int, Sequence[int | str]]] = {
            "history": (integer, ("T", config.levels)),
            **{f"nodes_{depth}": (integer, (f"n_{depth}",)) for depth in range(1, config.levels)},
            "mask": (real, ("n", "n")),
            "features": (real, ("K", config.features)),
            "candidates": (integer, ("K", config.levels)),
            "logits": (real, ("n", config.level_size)),
            "prior": (real, ("K",)),
        }
        inputs, outputs = (
            [helper.make_tensor_value_info(name, *shapes[name]) for name in names] for names in graph_names(student)
        )
        graph = helper.make_graph(self.nodes, "student", inputs, outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gr2", producer_version=__version__
        )
        onnx.checker.check_model(model, full_check=True)
        return model
