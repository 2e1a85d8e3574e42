"""Semantic IDs for items that came after the stage `tokenize`; the IDs that were given before stay as they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2 import config as configuration
from gr2.artifact import Artifact, file_digest, open_stage, recover
from gr2.catalog import Catalog, ItemId
from gr2.data.items import read_items
from gr2.decoding import write_codebook
from gr2.errors import ArtifactError, ConfigError, DataError
from gr2.tokenizer.assign import Assignment, extend_codes
from gr2.tokenizer.order import content_order
from gr2.tokenizer.quality import overflow_prefixes
from gr2.tokenizer.residual_kmeans import Codebook, are_finite
from gr2.tokenizer.tokenize import TokenizeConfig, decoded_errors, item_vectors, sources

__all__ = ["add_items", "ids_before", "require_model"]

STAGE = "tokenize-add"


def add_items(
    inputs: Mapping[str, Artifact], items: str | os.PathLike[str], out: Path, wanted: TokenizeConfig | None = None
) -> Artifact:
    """Write the IDs of `inputs`' items and of those in the file `items` to the artefact `out`, older ones unchanged.

    `inputs` has the artefacts `prepare` and `tokenize`. Where `out` holds earlier additions to the same IDs, they are
    kept. Items that have an ID already are passed over. Of the settings `wanted`, `vectors` names the file with those
    of the new items, where the IDs were made from such a file; by default it is the same one. The others must be those
    that the IDs were made with, the device and the batch size aside. Raises ConfigError if they are not, ArtifactError
    if the embedding model has changed since or earlier additions are damaged, and DataError for items that are wrong.

    Files: `items.parquet`, `codes.npy` (N, L) uint16 in its order, and `codebook.bin`. Metrics: `added`, `overflow`
    and `overflow_prefixes`, `reconstruction_error` after the last level that is not random, and `drift`, that error
    over the one that the items of `tokenize` had: well above 1 says that the codes no longer fit and should be learnt
    anew.
    """
    base = inputs["tokenize"]
    config = _settings(configuration.build(TokenizeConfig, base.config, "tokenize"), wanted)
    require_model(config, base)
    known, taken, parents = _known(inputs, out)
    fresh, passed_over = _fresh(Path(items), known)
    parents["file:items"] = file_digest(Path(items))
    if not len(fresh) and "earlier" in parents:
        nothing = {"added": 0, "passed_over": passed_over, "without_content": 0, "overflow": 0, "drift": None}
        earlier = Artifact.load(out, STAGE)
        return dataclasses.replace(earlier, metrics=earlier.metrics | nothing)
    mean, scale = base.array("standard.npy")
    contents, embedded = item_vectors(config, fresh) if len(fresh) else ([], np.empty((0, len(mean)), np.float32))
    order = content_order(contents, fresh.ids, base.seed)
    fresh = fresh.take(order)
    if embedded.shape[1:] != mean.shape:
        raise DataError(f"vectors of {embedded.shape[1]} columns, but the codes were learnt from {len(mean)}")
    points = _standardised(embedded[order], mean, scale, fresh)
    assignment = _extend(config, base, points, taken)
    per_item = max(1, int(np.isfinite(scale).sum()))
    last = config.levels - 1 - (config.random_levels if config.last_level == "random" else 0)
    error = float(assignment.errors[:, last].mean(dtype=np.float64)) / per_item if len(points) else None
    before = float(base.metrics["levels"][last]["reconstruction_error"])
    with open_stage(out, STAGE, config, parents, base.seed) as work:
        columns = (getattr(known, field.name) + getattr(fresh, field.name) for field in dataclasses.fields(Catalog))
        catalog = Catalog(*columns)
        codes = np.concatenate([taken, assignment.codes])
        catalog.save(work.path / "items.parquet")
        work.save_array("codes.npy", codes)
        write_codebook(work.path / "codebook.bin", catalog.keys(), codes, config.level_size)
        work.metrics |= {
            "items": len(catalog),
            "added": len(fresh),
            "passed_over": passed_over,
            "without_content": sum(not content for content in contents),
            "overflow": assignment.overflow,
            "overflow_prefixes": overflow_prefixes(assignment),
            "reconstruction_error": error,
            "drift": error / before if before and error is not None else None,
        }
    return Artifact.load(out, STAGE)


def ids_before(folder: Path, stage: str | None = None) -> Artifact | None:
    """The artefact in the folder, whose IDs are to stay as they are; None if there is none. Raises ArtifactError."""
    recover(folder)
    if not (folder / "artifact.json").exists():
        return None
    try:
        return Artifact.load(folder, stage, verify=True)
    except ArtifactError as error:
        raise ArtifactError(
            f"{folder}: holds the only IDs of items that were added before, and cannot be gone on from ({error}); "
            "restore it from a copy, or delete it and add them again, which may give them other IDs"
        ) from error


def _known(inputs: Mapping[str, Artifact], out: Path) -> tuple[Catalog, NDArray[np.uint16], dict[str, str]]:
    """The items that have an ID, their IDs, and what says so."""
    parents = {name: inputs[name].digest for name in ("prepare", "tokenize")}
    if inputs["tokenize"].parents.get("prepare") != parents["prepare"]:
        raise ArtifactError(f"{inputs['tokenize'].path} was made from another prepare; run tokenize again first")
    source, catalog = inputs["tokenize"], inputs["prepare"]
    earlier = ids_before(out, STAGE)
    if earlier is not None and earlier.parents["tokenize"] == parents["tokenize"]:
        source = catalog = earlier
        parents["earlier"] = earlier.digest
    return Catalog.load(catalog.file("items.parquet")), source.array("codes.npy"), parents


def _standardised(
    vectors: NDArray[np.float32], mean: NDArray[np.float32], scale: NDArray[np.float32], items: Catalog
) -> NDArray[np.float32]:
    """(N, D) float32. Raises DataError with an item whose distances cannot be computed."""
    with np.errstate(over="ignore", invalid="ignore"):
        points = ((vectors - mean) / scale).astype(np.float32)
    good = are_finite(points)
    if not good.all():
        item = items.ids[int(good.argmin())]
        raise DataError(f"the vector of item {item!r} has a value too large for what the codes were learnt from")
    return points


def _settings(learnt: TokenizeConfig, wanted: TokenizeConfig | None) -> TokenizeConfig:
    """The settings that the IDs were made with, for the file of vectors, the device and the batch size that are wanted.

    Raises ConfigError if another setting is wanted than was.
    """
    if wanted is None:
        return learnt
    vectors = learnt.vectors if learnt.vectors is None or wanted.vectors is None else wanted.vectors
    made = dataclasses.replace(learnt, device=wanted.device, batch_size=wanted.batch_size, vectors=vectors)
    for name in (field.name for field in dataclasses.fields(made)):
        own, other = getattr(made, name), getattr(wanted, name)
        if own != other and not (name == "vectors" and other is None):
            raise ConfigError(
                f"[tokenize] {name} is {other!r}, but the IDs were made with {own!r}: "
                "set it back, or run tokenize again"
            )
    return made


def require_model(config: TokenizeConfig, base: Artifact) -> None:
    """Raise ArtifactError unless the embedding model is the one that the IDs of the artefact `base` were made with."""
    if config.vectors is not None:
        return
    for name, path in sources(config).items():
        if base.parents.get(name) != file_digest(path):
            raise ArtifactError(f"{path}: changed since the IDs were made; restore the model, or run tokenize again")


def _fresh(path: Path, known: Catalog) -> tuple[Catalog, int]:
    """The items of the file that have no ID yet, and how many have one."""
    table = read_items(path)
    if table.ids.kind not in {"text", known.id_type} or (known.id_type == "int64" and not table.ids.is_integral()):
        raise DataError(f"item IDs must be {known.id_type}, as the catalogue's", path=path, column="item_id")
    table = dataclasses.replace(table, ids=table.ids.as_kind(known.id_type))
    ids: list[ItemId] = table.ids.values.to_pylist()
    rows = [row for row, code in enumerate(table.ids.codes.tolist()) if ids[code] not in known.index]
    return table.catalog(np.array(rows, dtype=np.int64)), len(table.ids.codes) - len(rows)


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
