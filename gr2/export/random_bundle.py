"""A bundle of a student with random weights, to measure serving before there is a trained one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.bundle import write_bundle
from gr2.catalog import Catalog
from gr2.decoding import write_codebook
from gr2.export.bundle import feature_spec, model_spec
from gr2.export.memory_file import write_memory
from gr2.export.onnx import student_graph
from gr2.export.variants import export_variant
from gr2.features import SCORE_FEATURES
from gr2.graphs import WEIGHTS, Graphs, GraphVariant, graph_file
from gr2.manifest import MEMORY as MEMORY_FILE
from gr2.models.evidence import CoPurchase
from gr2.models.memory import MEMORY, ItemMemory
from gr2.models.pairs import Neighbours
from gr2.models.student import Encoding, Student, StudentConfig

__all__ = ["write_random_bundle"]

NEIGHBOURS, VECTORS = 64, 64


def write_random_bundle(
    folder: Path,
    *,
    items: int = 12_000,
    levels: int = 4,
    level_size: int = 256,
    dim: int = 64,
    layers: int = 1,
    encoding: Encoding = "item",
    max_history: int = 50,
    width: int = 0,
    batched: bool = True,
    pruned: bool = True,
    split: bool = True,
    native: bool = True,
    arithmetic: str = "fp32",
    spread: float = 0.1,
    seed: int = 0,
) -> Path:
    """`folder`, with a bundle of items 0..`items` - 1 that have distinct random codes and no titles.

    The weights are normal with the standard deviation `spread`; `pruned` is as for `student_graph`. A CPU serves
    the weights in "fp32" or "int8", without `native` encoder and scorer, or without `split` the whole graph. Raises
    ValueError if there are too few codes.
    """
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, level_size, (2 * items, levels)).astype(np.uint16), axis=0)
    if len(codes) < items:
        raise ValueError(f"{levels} levels of {level_size} codes are too few for {items} items")
    codes = rng.permutation(codes)[:items]
    config = StudentConfig(
        items=items,
        features=len(SCORE_FEATURES) + width + len(MEMORY),
        levels=levels,
        level_size=level_size,
        dim=dim,
        layers=layers,
        encoding=encoding,
        max_history=max_history,
    )
    student, memory = _student(config, spread, seed), _memory(items, rng)
    with tempfile.TemporaryDirectory() as work:
        paths = export_variant("fp32", student, memory, codes, Path(work), batched=batched)
        if not pruned:
            paths["whole"].write_bytes(student_graph(student, memory, codes, pruned=False).SerializeToString())
        others = {role: path for role, path in paths.items() if _held(role, split, native)}
        variants = {"fp32": GraphVariant(("whole", *(role for role in others if role != "whole")))}
        graphs = {path.name: path for path in others.values()}
        if arithmetic != "fp32":
            rounded = export_variant(arithmetic, student, memory, codes, Path(work))
            rounded = {role: path for role, path in rounded.items() if _held(role, split, native)}
            variants[arithmetic] = GraphVariant(tuple(rounded))
            graphs |= {path.name: path for path in rounded.values()}
        graphs.pop(graph_file("whole"), None)
        if split:
            graphs[MEMORY_FILE] = Path(work) / MEMORY_FILE
            write_memory(graphs[MEMORY_FILE], memory, codes)
        codebook = Path(work) / "codebook.bin"
        write_codebook(codebook, np.arange(items), codes, level_size)
        write_bundle(
            folder,
            graph=paths["whole"],
            others=graphs,
            graphs=Graphs(variants, default=arithmetic),
            codebook=codebook,
            catalog=_catalog(items),
            model=model_spec(student),
            features=feature_spec(student),
        )
    return folder


def _held(role: str, split: bool, native: bool) -> bool:
    return role == "batch" or (split and (native or role != WEIGHTS))


def _student(config: StudentConfig, spread: float, seed: int) -> Student:
    student = Student(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
    student.weights.copy_(torch.tensor([1.0, 1.0]))
    return student


def _memory(items: int, rng: np.random.Generator) -> ItemMemory:
    together, text = (rng.normal(0, VECTORS**-0.5, (items, VECTORS)).astype(np.float32) for _ in range(2))
    copurchase = CoPurchase(
        _neighbours(items, NEIGHBOURS, rng),
        rng.integers(0, 20, (items, NEIGHBOURS)).astype(np.float32),
        rng.integers(0, 500, items).astype(np.float32),
    )
    following, titles = (
        Neighbours(_neighbours(items, NEIGHBOURS // 2, rng), rng.random((items, NEIGHBOURS // 2), dtype=np.float32))
        for _ in range(2)
    )
    return ItemMemory(copurchase, following, titles, together, text)


def _neighbours(items: int, width: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """(N, M) random items, -1 where an item has been drawn for its row before."""
    near = np.sort(rng.integers(-1, items, (items, width)).astype(np.int32), axis=1)
    near[:, 1:][near[:, 1:] == near[:, :-1]] = -1
    return near


def _catalog(items: int) -> Catalog:
    """Items of which nothing is known but their IDs."""
    return Catalog(
        list(range(items)), [""] * items, [None] * items, [[] for _ in range(items)], [None] * items, [None] * items
    )
