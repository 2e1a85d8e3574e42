"""Writing an ONNX graph operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from gr2.version import __version__

__all__ = ["OPSET", "ORT", "Builder", "Shape"]

OPSET = 20
ORT = "com.microsoft"  # onnxruntime's own operators
IR_VERSION = 9

Shape = tuple[int, Sequence[int | str]]  # an element type of onnx.TensorProto, and sizes or names of dimensions


class Builder:
    """Nodes and constants under consecutive names; equal constants are stored once.

    With `batched`, what the methods call rows of `x` has a batch axis before it.
    """

    def __init__(self, *, batched: bool = False) -> None:
        self.batched = batched
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
        """The name of a stored array."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return str(self.constants[key].name)

    def weight(self, tensor: Tensor) -> str:
        """The name of a stored tensor."""
        return self.constant(tensor.detach().numpy().astype(np.float32))

    def integers(self, *values: int) -> str:
        """The name of a stored (n,) int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def slice(self, x: str, start: str, end: str, *, axis: int = 0) -> str:
        """The part start..end of `x` along an axis."""
        return self.add("Slice", x, start, end, self.integers(axis))

    def dense(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """`x @ weight.T + bias` for rows `x`."""
        if self.batched:
            return self.add("Add", self.add("MatMul", x, self.weight(weight.T)), self.weight(bias))
        return self.add("Gemm", x, self.weight(weight.T), self.weight(bias))

    def project(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        """As `dense`, for the large products with weights, which another arithmetic may compute in fewer bits."""
        if bias is None:
            return self.add("MatMul", x, self.weight(weight.T))
        return self.dense(x, weight, bias)

    def project_parts(self, x: str, sizes: str, weights: Sequence[Tensor]) -> list[str]:
        """The products of parts of `x`, split by `sizes` along the rows, each with its own weight."""
        parts = self.add_many("Split", len(weights), x, sizes, axis=-2)
        return [self.project(part, weight, None) for part, weight in zip(parts, weights, strict=True)]

    def transpose(self, x: str, perm: Sequence[int], *, output: str = "") -> str:
        """`x` with its axes in the order of `perm`, which counts none for the batch."""
        axes = (0, *(axis + 1 for axis in perm)) if self.batched else tuple(perm)
        return self.add("Transpose", x, output=output, perm=axes)

    def reshape(self, x: str, *sizes: int) -> str:
        """`x` in another shape, which names no batch."""
        return self.add("Reshape", x, self.integers(*((0, *sizes) if self.batched else sizes)))

    def reduce(self, how: str, x: str, axis: int, *, keep: bool = False) -> str:
        """The sum, mean, minimum or maximum of `x` along an axis, counted without the batch."""
        # Not counted from the end: onnxruntime then gets the shape wrong where the axis or another is empty.
        axes = self.integers(axis + self.batched)
        return self.add(f"Reduce{how}", x, axes, keepdims=int(keep))

    def facing(self, x: str, axis: int) -> str:
        """`x` (..., a, b), to be broadcast over a new axis that follows the batch; one without a batch needs none."""
        return self.add("Unsqueeze", x, self.integers(axis)) if self.batched else x

    def model(self, name: str, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> onnx.ModelProto:
        """The checked model of all nodes that were added."""
        first, last = (
            [helper.make_tensor_value_info(each, *shape) for each, shape in side.items()] for side in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, name, first, last, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == ORT for node in self.nodes):
            opsets.append(helper.make_opsetid(ORT, 1))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gr2", producer_version=__version__
        )
        onnx.checker.check_model(model, full_check=True)
        return model
