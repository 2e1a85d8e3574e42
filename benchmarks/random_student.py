"""A bundle of a student with random weights, made in seconds: speed and agreement do not need a trained one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from gr2.bundle import FeatureSpec, ModelSpec, write_bundle
from gr2.catalog import Catalog
from gr2.decoding import write_codebook
from gr2.export.builder import OPSET
from gr2.export.onnx import export_graph, graph_names
from gr2.features import SCORE_FEATURES
from gr2.models.evidence import EVIDENCE, CoPurchase
from gr2.models.student import Student, StudentConfig

__all__ = ["write_random_bundle"]

NEIGHBOURS = 32


def write_random_bundle(
    folder: Path,
    *,
    items: int = 12_000,
    levels: int = 4,
    level_size: int = 256,
    dim: int = 64,
    layers: int = 1,
    max_history: int = 50,
    width: int = 0,
    batched: bool = True,
    spread: float = 0.1,
    seed: int = 0,
) -> Path:
    """`folder`, with a bundle of items 0..`items` - 1 that have distinct random codes and no titles.

    The weights are normal with the standard deviation `spread`.
    """
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, level_size, (2 * items, levels)).astype(np.uint16), axis=0)
    codes = rng.permutation(codes)[:items]
    torch.manual_seed(seed)
    columns = len(SCORE_FEATURES) + width
    student = Student(
        StudentConfig(
            items=items,
            features=columns + len(EVIDENCE),
            levels=levels,
            level_size=level_size,
            dim=dim,
            layers=layers,
            max_history=max_history,
        )
    ).eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    student.weights.copy_(torch.tensor([1.0, 1.0]))
    table = CoPurchase(
        rng.integers(-1, items, (items, NEIGHBOURS)).astype(np.int32),
        rng.integers(0, 20, (items, NEIGHBOURS)).astype(np.float32),
        rng.integers(0, 500, items).astype(np.float32),
    )
    ids = list(range(items))
    blank = [None] * items
    inputs, outputs = graph_names(levels)
    with tempfile.TemporaryDirectory() as work:
        graph, batch, codebook = (Path(work) / name for name in ("model.onnx", "batch.onnx", "codebook.bin"))
        export_graph(student, table, codes, graph)
        if batched:
            export_graph(student, table, codes, batch, batched=True)
        write_codebook(codebook, np.arange(items), codes, level_size)
        write_bundle(
            folder,
            graph=graph,
            batch_graph=batch if batched else None,
            codebook=codebook,
            catalog=Catalog(ids, [""] * items, blank, [[] for _ in ids], blank, blank),
            model=ModelSpec(levels, level_size, max_history, dim, layers, OPSET, inputs=inputs, outputs=outputs),
            features=FeatureSpec(width, tuple(f"feature_{column}" for column in range(width))),
        )
    return folder
