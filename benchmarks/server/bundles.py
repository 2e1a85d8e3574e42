"""The bundles that servers are compared with, all of one student: as `gr2 export` writes it, and one graph alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gr2.bundle import Bundle, write_bundle
from gr2.export.random_bundle import write_random_bundle

__all__ = ["alone", "write_bundles"]


def alone(bundle: Bundle, folder: Path) -> Path:
    """`folder`, with a bundle of the whole graph in fp32 and nothing else of `bundle`; FOLDER.npz has the codes."""
    manifest = bundle.manifest
    write_bundle(
        folder,
        graph=bundle.path / "model.onnx",
        codebook=bundle.path / "codebook.bin",
        catalog=bundle.catalog(),
        model=manifest.model,
        features=manifest.features,
        limits=manifest.limits,
    )
    ids = np.sort(np.array(bundle.catalog().ids))
    np.savez(folder.with_suffix(".npz"), ids=ids, codes=bundle.codebook().lookup(ids)[0])
    return folder


def write_bundles(folder: Path, *, dim: int, layers: int) -> tuple[Path, Path, Path]:
    """The default bundle, its whole graph alone, and the same graph whose last layer computes every row."""
    options = {"dim": dim, "layers": layers, "batched": False}
    default = write_random_bundle(folder / "default", **options)
    full = write_random_bundle(folder / "full", pruned=False, **options)
    return default, alone(Bundle.load(default), folder / "whole"), alone(Bundle.load(full), folder / "exported")
