"""Semantic IDs for items that came after the stage `tokenize`; the IDs that were given before stay as they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2 import config as configuration
from gr2.artifact import Artifact, file_digest, open_stage
from gr2.catalog import Catalog, ItemId
from gr2.data.items import read_items
from gr2.decoding import write_codebook
from gr2.errors import ArtifactError, DataError
from gr2.tokenizer.assign import Assignment, extend_codes
from gr2.tokenizer.order import content_order
from gr2.tokenizer.quality import overflow_prefixes
from gr2.tokenizer.residual_kmeans import Codebook
from gr2.tokenizer.tokenize import TokenizeConfig, decoded_errors, item_vectors

__all__ = ["add_items"]

STAGE = "tokenize-add"


def add_items(
    inputs: Mapping[str, Artifact], items: str | os.PathLike[str], out: Path, *, vectors: str | None = None
) -> Artifact:
    """Write the IDs of `inputs`' items and of those in the file `items` to the artefact `out`, older ones unchanged.

    `inputs` has the artefacts `prepare` and `tokenize`. Where `out` holds earlier additions to the same IDs, they are
    kept. Items that have an ID already are passed over. Where the IDs were made from a file of vectors, `vectors` is
    the file with those of the new items, by default the same one.

    Files: `items.parquet`, `codes.npy` (N, L) uint16 in its order, and `codebook.bin`. Metrics: `added`, `overflow`
    and `overflow_prefixes`, `reconstruction_error` after the last level that is not random, and `drift`, that error
    over the one that the items of `tokenize` had: well above 1 says that the codes no longer fit and should be learnt
    anew.
    """
    base = inputs["tokenize"]
    config = configuration.build(TokenizeConfig, base.config, "tokenize")
    if vectors is not None and config.vectors is not None:
        config = dataclasses.replace(config, vectors=vectors)
    known, taken, parents = _known(inputs, out)
    fresh = _fresh(Path(items), known)
    parents["file:items"] = file_digest(Path(items))
    mean, scale = base.array("standard.npy")
    contents, embedded = item_vectors(config, fresh) if len(fresh) else ([], np.empty((0, len(mean)), np.float32))
    order = content_order(contents, fresh.ids, base.seed)
    fresh = fresh.take(order)
    if embedded.shape[1:] != mean.shape:
        raise DataError(f"vectors of {embedded.shape[1]} columns, but the codes were learnt from {len(mean)}")
    points = ((embedded[order] - mean) / scale).astype(np.float32)
    assignment = _extend(config, base, points, taken)
    per_item = max(1, int(np.isfinite(scale).sum()))
    last = config.levels - 1 - (config.random_levels if config.last_level == "random" else 0)
    error = float(assignment.errors[:, last].mean(dtype=np.float64)) / per_item if len(points) else 0.0
    before = float(base.metrics["levels"][last]["reconstruction_error"])
    with open_stage(out, STAGE, config, parents, base.seed) as work:
        columns = (getattr(known, field.name) + getattr(fresh, field.name) for field in dataclasses.fields(Catalog))
        catalog = Catalog(*columns)
        codes = np.concatenate([taken, assignment.codes])
        catalog.save(work.path / "items.parquet")
        np.save(work.path / "codes.npy", codes, allow_pickle=False)
        write_codebook(work.path / "codebook.bin", catalog.keys(), codes, config.level_size)
        work.metrics |= {
            "items": len(catalog),
            "added": len(fresh),
            "overflow": assignment.overflow,
            "overflow_prefixes": overflow_prefixes(assignment),
            "reconstruction_error": error,
            "drift": error / before if before else None,
        }
    return Artifact.load(out, STAGE)


def _known(inputs: Mapping[str, Artifact], out: Path) -> tuple[Catalog, NDArray[np.uint16], dict[str, str]]:
    """The items that have an ID, their IDs, and what says so."""
    parents = {name: inputs[name].digest for name in ("prepare", "tokenize")}
    if inputs["tokenize"].parents.get("prepare") != parents["prepare"]:
        raise ArtifactError(f"{inputs['tokenize'].path} was made from another prepare; run tokenize again first")
    source, catalog = inputs["tokenize"], inputs["prepare"]
    if (out / "artifact.json").exists():
        earlier = Artifact.load(out, STAGE)
        if earlier.parents["tokenize"] == parents["tokenize"]:
            source = catalog = earlier
            parents["earlier"] = earlier.digest
    return Catalog.load(catalog.file("items.parquet")), source.array("codes.npy"), parents


def _fresh(path: Path, known: Catalog) -> Catalog:
    """The items of the file that have no ID yet."""
    table = read_items(path)
    if table.ids.kind not in {"text", known.id_type} or (known.id_type == "int64" and not table.ids.is_integral()):
        raise DataError(f"item IDs must be {known.id_type}, as the catalogue's", path=path, column="item_id")
    table = dataclasses.replace(table, ids=table.ids.as_kind(known.id_type))
    ids: list[ItemId] = table.ids.values.to_pylist()
    rows = [row for row, code in enumerate(table.ids.codes.tolist()) if ids[code] not in known.index]
    return table.catalog(np.array(rows, dtype=np.int64))


def _extend(
    config: TokenizeConfig, base: Artifact, points: NDArray[np.float32], taken: NDArray[np.uint16]
) -> Assignment:
    centroids = base.array("centroids.npy")
    codebook = Codebook(centroids, (config.level_size,) * config.levels)
    if config.method == "kmeans":
        return extend_codes(points, taken, codebook)
    from gr2.tokenizer.rqvae import Rqvae

    model = Rqvae.load(base.file("rqvae.safetensors"), config)
    assignment = extend_codes(model.encode(points), taken, codebook)
    return dataclasses.replace(assignment, errors=decoded_errors(model, points, assignment.codes, centroids))
