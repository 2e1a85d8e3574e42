"""A small real bundle for the tests and benchmarks of serving: a one-layer model that keeps the graph's contract."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gr2

# Processes that tests start must import the gr2 under test, and not the sources in the folder they start in.
os.environ["PYTHONPATH"] = str(Path(gr2.__file__).parents[1])
os.environ["PYTHONSAFEPATH"] = "1"

MakeBundle = Callable[..., Path]


def item_ids(id_type: str, items: int) -> list[Any]:
    """IDs of the small bundle's catalogue."""
    return [1000 + 7 * item if id_type == "int64" else f"artículo-{item:04d}" for item in range(items)]


def write_graph(
    path: Path, *, levels: int, level_size: int, columns: int, dim: int = 16, scale: float = 1.0, head: bool = False
) -> None:
    """A random model: history as a mean of item embeddings, each node as a mean over itself and its ancestors."""
    onnx = pytest.importorskip("onnx")
    helper, floats, ints = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    rng = np.random.default_rng(7)
    node = helper.make_node
    nodes, constants = [], {"one": np.float32([1]), "axis_0": np.int64([0]), "axis_1": np.int64([1])}
    for level in range(levels):
        constants[f"embedding_{level}"] = rng.normal(size=(level_size, dim)).astype(np.float32)
        constants[f"column_{level}"] = np.int64(level)
        nodes += [
            node("Gather", ["history", f"column_{level}"], [f"codes_{level}"], axis=1),
            node("Gather", [f"embedding_{level}", f"codes_{level}"], [f"history_{level}"], axis=0),
        ]
    nodes += [
        node("Sum", [f"history_{level}" for level in range(levels)], ["events"]),
        node("ReduceSum", ["events", "axis_0"], ["event_sum"], keepdims=1),
        node("Shape", ["history"], ["event_count"], start=0, end=1),
        node("Cast", ["event_count"], ["event_count_float"], to=floats),
        node("Add", ["event_count_float", "one"], ["divisor"]),
        node("Div", ["event_sum", "divisor"], ["context"]),
    ]
    constants["root"] = rng.normal(size=(1, dim)).astype(np.float32)
    for depth in range(1, levels):
        constants[f"depth_{depth}"] = rng.normal(size=(1, dim)).astype(np.float32)
        nodes += [
            node("Gather", [f"embedding_{depth - 1}", f"nodes_{depth}"], [f"token_{depth}"], axis=0),
            node("Add", [f"token_{depth}", f"depth_{depth}"], [f"tree_{depth}"]),
        ]
    constants["head"] = scale * rng.normal(size=(dim, level_size)).astype(np.float32)
    constants["prior_weights"] = rng.normal(size=(columns, 1)).astype(np.float32)
    nodes += [
        node("Concat", ["root", *[f"tree_{depth}" for depth in range(1, levels)]], ["tree"], axis=0),
        node("Softmax", ["mask"], ["attention"], axis=-1),
        node("MatMul", ["attention", "tree"], ["mixed"]),
        node("Add", ["mixed", "context"], ["joined"]),
        node("Tanh", ["joined"], ["hidden"]),
        node("MatMul", ["hidden", "head"], ["logits"]),
        node("MatMul", ["features", "prior_weights"], ["prior_column"]),
    ]
    if head:
        constants["head_weights"] = rng.normal(scale=0.1, size=(levels, 1)).astype(np.float32)
        nodes += [
            node("Cast", ["candidates"], ["candidates_float"], to=floats),
            node("MatMul", ["candidates_float", "head_weights"], ["head_column"]),
            node("Add", ["prior_column", "head_column"], ["sum_column"]),
        ]
    nodes.append(node("Squeeze", ["sum_column" if head else "prior_column", "axis_1"], ["prior"]))
    inputs = {
        "history": (ints, ["T", levels]),
        **{f"nodes_{depth}": (ints, [f"n_{depth}"]) for depth in range(1, levels)},
        "mask": (floats, ["n", "n"]),
        "features": (floats, ["K", columns]),
        **({"candidates": (ints, ["K", levels])} if head else {}),
    }
    outputs = {"logits": (floats, ["n", level_size]), "prior": (floats, ["K"])}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Writes a bundle of `items` items and returns its folder; equal arguments give the same folder."""
    from gr2.bundle import FeatureSpec, Limits, ModelSpec, graph_inputs, write_bundle
    from gr2.catalog import Catalog
    from gr2.decoding import write_codebook

    made: dict[tuple[Any, ...], Path] = {}

    def make(
        id_type: str = "int64",
        *,
        items: int = 300,
        width: int = 0,
        levels: int = 4,
        level_size: int = 16,
        max_history: int = 20,
        max_candidates: int = 1024,
        scale: float = 1.0,
        normalization: str = "raw",
        head: bool = False,
    ) -> Path:
        key = (id_type, items, width, levels, level_size, max_history, max_candidates, scale, normalization, head)
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("bundle")
        ids = item_ids(id_type, items)
        codes = np.random.default_rng(3).integers(0, level_size, size=(items, levels)).astype(np.uint16)
        codes[1] = codes[0]  # two items share all codes
        keys = np.array(ids, dtype=np.int64) if id_type == "int64" else ids
        write_codebook(str(folder / "codes.bin"), keys, codes, level_size)
        features = FeatureSpec(width, tuple(f"feature_{column}" for column in range(width)))
        write_graph(
            folder / "graph.onnx",
            levels=levels,
            level_size=level_size,
            columns=features.columns,
            scale=scale,
            head=head,
        )
        blank: list[Any] = [None] * items
        inputs = tuple(graph_inputs(levels, candidates=head))
        write_bundle(
            folder / "bundle",
            graph=folder / "graph.onnx",
            codebook=folder / "codes.bin",
            catalog=Catalog(ids, [f"Title {item}" for item in ids], blank, [[] for _ in ids], blank, blank),
            model=ModelSpec(levels, level_size, max_history, 16, 1, 18, normalization=normalization, inputs=inputs),  # type: ignore[arg-type]
            features=features,
            limits=Limits(max_candidates=max_candidates),
        )
        made[key] = folder / "bundle"
        return made[key]

    return make
