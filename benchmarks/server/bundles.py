"""The bundles that servers are compared with, all of one student: as `gr2 export` writes it, and one graph alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gr2.bundle import Bundle, write_bundle
from gr2.export.gate import INT8_PAYS
from gr2.export.random_bundle import write_random_bundle

__all__ = ["Bundles", "alone", "arithmetic", "write_bundles"]


class Bundles(NamedTuple):
    """`default` in the arithmetic that `gr2 export` chooses for the width, `exact` in fp32, its graph alone as `whole`.

    The last layer of `exported`, which is otherwise as `whole`, computes every row.
    """

    default: Path
    exact: Path
    whole: Path
    exported: Path


def arithmetic(dim: int) -> str:
    """What `gr2 export` has a CPU compute a student of the width in, if that ranks as the student does."""
    return "int8" if dim >= INT8_PAYS else "fp32"


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


def write_bundles(folder: Path, *, dim: int, layers: int) -> Bundles:
    """The bundles, with random weights."""
    options = {"dim": dim, "layers": layers, "batched": False}
    default = write_random_bundle(folder / "default", arithmetic=arithmetic(dim), **options)
    exact = write_random_bundle(folder / "exact", **options)
    full = write_random_bundle(folder / "full", pruned=False, **options)
    return Bundles(
        default, exact, alone(Bundle.load(exact), folder / "whole"), alone(Bundle.load(full), folder / "exported")
    )
