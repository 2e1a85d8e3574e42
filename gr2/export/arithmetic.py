"""Graphs whose layers compute in fewer bits: `Builder.project`, the transformer's products with weights, otherwise.

Everything else stays in float32: attention, norms, the evidence, and the small layers that a score is sensitive to. The
int8 graphs use onnxruntime's own operators (domain com.microsoft).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from gr2.export.builder import ORT, Builder

__all__ = ["HalfBuilder", "Int8Builder", "WatchingBuilder"]

# Weights have 7 bits: on processors without VNNI two products of 8-bit weights overflow 16 bits, and saturate.
LARGEST = 63
STEPS = 255


class WatchingBuilder(Builder):
    """Writes the graph in float32 and notes what goes into `project`, in order: `watched` are names of values."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[str] = []

    def project(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        """As the base does, noted."""
        self.watched.append(x)
        return super().project(x, weight, bias)

    def project_parts(self, x: str, sizes: str, weights: Sequence[Tensor]) -> list[str]:
        """As the base does; the parts are noted as one."""
        self.watched.append(x)
        parts = self.add_many("Split", len(weights), x, sizes, axis=-2)
        return [
            super(WatchingBuilder, self).project(part, each, None) for part, each in zip(parts, weights, strict=True)
        ]


class Int8Builder(Builder):
    """Rows are rounded to 8 bits and weights to 7, each column of a weight by its own scale; sums are exact.

    With `ranges`, the least and largest value of each input of `project` in order, rows are scaled by these (static);
    without, by their own (dynamic).
    """

    def __init__(self, ranges: Sequence[tuple[float, float]] | None = None) -> None:
        super().__init__()
        self._ranges = None if ranges is None else list(ranges)
        self._rounded: dict[str, tuple[str, str, str]] = {}
        self._count = 0

    def project(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        """The product of rounded rows and a rounded weight."""
        return self._product(*self._round(x), weight, bias)

    def project_parts(self, x: str, sizes: str, weights: Sequence[Tensor]) -> list[str]:
        """Products of parts of rows that were rounded together."""
        rows, scale, zero = self._round(x)
        parts = self.add_many("Split", len(weights), rows, sizes, axis=-2)
        return [self._product(part, scale, zero, weight, None) for part, weight in zip(parts, weights, strict=True)]

    def _product(self, rows: str, scale: str, zero: str, weight: Tensor, bias: Tensor | None) -> str:
        columns, steps = _round_weight(weight.detach().numpy().astype(np.float32).T)
        inputs = [rows, self.constant(columns), scale, self.constant(steps), zero]
        if bias is not None:
            inputs += ["", self.weight(bias)]
        return self.add("MatMulIntegerToFloat", *inputs, domain=ORT)

    def _round(self, x: str) -> tuple[str, str, str]:
        """Names of `x` in 8 bits, of its scale and of its zero."""
        place, self._count = self._count, self._count + 1
        if x not in self._rounded:
            self._rounded[x] = self._dynamic(x) if self._ranges is None else self._static(x, *self._ranges[place])
        return self._rounded[x]

    def _dynamic(self, x: str) -> tuple[str, str, str]:
        rows, scale, zero = self.add_many("DynamicQuantizeLinear", 3, x)
        return rows, scale, zero

    def _static(self, x: str, least: float, most: float) -> tuple[str, str, str]:
        least, most = min(least, 0.0), max(most, 0.0)
        step = np.float32((most - least) / STEPS or 1.0)
        zero = self.constant(np.array(round(-least / float(step)), dtype=np.uint8))
        scale = self.constant(np.array(step))
        return self.add("QuantizeLinear", x, scale, zero), scale, zero


class HalfBuilder(Builder):
    """Products with weights in float16, as a GPU's tensor cores do them; sums and all else in float32."""

    def project(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        """The product in float16."""
        half = self.add("Cast", x, to=TensorProto.FLOAT16)
        product = self.add("MatMul", half, self.constant(weight.detach().numpy().astype(np.float16).T))
        full = self.add("Cast", product, to=TensorProto.FLOAT)
        return full if bias is None else self.add("Add", full, self.weight(bias))


def _round_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight (in, out) in 7 bits and each column's step (out,)."""
    steps = np.abs(weight).max(axis=0) / LARGEST
    steps[steps == 0] = 1.0
    return np.round(weight / steps).astype(np.int8), steps.astype(np.float32)
