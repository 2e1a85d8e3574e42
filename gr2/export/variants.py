"""The graphs of a student in every arithmetic, and the calibration of those whose rounding is fixed in advance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gr2.artifact import write_atomic
from gr2.decoding import ItemMemory as MappedMemory
from gr2.export.arithmetic import HalfBuilder, Int8Builder, WatchingBuilder
from gr2.export.builder import Builder
from gr2.export.onnx import student_graph
from gr2.export.served import encoder_feed, open_graph, scorer_feed
from gr2.export.split import encoder_graph, scorer_graph
from gr2.export.weights_file import write_weights
from gr2.graphs import NATIVE, WEIGHTS, graph_file
from gr2.models.memory import ItemMemory
from gr2.models.student import Student
from gr2.serving.models.query import Query

__all__ = ["Ranges", "export_variant", "find_ranges"]

# The least and the largest value that goes into each product with a weight, of the encoder and of the scorer.
Ranges = dict[str, list[tuple[float, float]]]


def export_variant(
    variant: str,
    student: Student,
    memory: ItemMemory,
    codes: NDArray[np.integer],
    folder: Path,
    *,
    batched: bool = False,
    ranges: Ranges | None = None,
) -> dict[str, Path]:
    """Write the variant's graphs, and the weights if the core computes it; their paths by role.

    `batched` adds a graph for batches; `ranges` are for int8-static.
    """
    models: dict[str, onnx.ModelProto] = {}
    if variant == "fp32":
        models["whole"] = student_graph(student, memory, codes)
    if variant == "fp16":
        models["batch"] = student_graph(student, memory, codes, graph=HalfBuilder(batched=True))
    else:
        builders = [_builder(variant, role, ranges) for role in ("encoder", "scorer")]
        models["encoder"] = encoder_graph(student, graph=builders[0])
        models["scorer"] = scorer_graph(student, graph=builders[1])
    if batched and variant == "fp32":
        models["batch"] = student_graph(student, memory, codes, graph=Builder(batched=True))
    paths = {role: folder / graph_file(role, variant) for role in models}
    for role, model in models.items():
        write_atomic(paths[role], model.SerializeToString(deterministic=True))
    if variant in NATIVE:
        paths[WEIGHTS] = folder / graph_file(WEIGHTS)
        write_weights(paths[WEIGHTS], student)
    return paths


def _builder(variant: str, role: str, ranges: Ranges | None) -> Builder:
    if variant == "fp32":
        return Builder()
    return Int8Builder(None if variant == "int8" else (ranges or {})[role])


def find_ranges(student: Student, memory: MappedMemory, queries: Sequence[Query]) -> Ranges:
    """What goes into the products of encoder and scorer when these requests are ranked."""
    watching = {"encoder": WatchingBuilder(), "scorer": WatchingBuilder()}
    models = {
        "encoder": encoder_graph(student, graph=watching["encoder"]),
        "scorer": scorer_graph(student, graph=watching["scorer"]),
    }
    outputs = [value.name for value in models["encoder"].graph.output]
    sessions = {role: open_graph(_watched(models[role], watching[role].watched)) for role in models}
    ranges: Ranges = {role: [(0.0, 0.0)] * len(watching[role].watched) for role in models}
    for query in queries:
        feed = encoder_feed(query, memory)
        for role in models:
            if role == "scorer":
                encoded = dict(zip(outputs, sessions["encoder"].run(outputs, feed), strict=True))
                feed = scorer_feed(query, memory, encoded)
            values = sessions[role].run(watching[role].watched, feed)
            ranges[role] = [_wider(old, value) for old, value in zip(ranges[role], values, strict=True)]
    return ranges


def _watched(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model with more outputs."""
    for name in dict.fromkeys(names):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())


def _wider(old: tuple[float, float], values: NDArray[np.float32]) -> tuple[float, float]:
    if not values.size:
        return old
    return min(old[0], float(values.min())), max(old[1], float(values.max()))
