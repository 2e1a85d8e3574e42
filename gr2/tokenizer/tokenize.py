"""The stage `tokenize`: a semantic ID for every item, from what the catalogue says of it; interactions are not read."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.catalog import Catalog
from gr2.decoding import write_codebook
from gr2.tokenizer.assign import assign_codes
from gr2.tokenizer.embedding import SentenceEmbedder, cache_folder, default_model, embed, model_files
from gr2.tokenizer.order import content_order
from gr2.tokenizer.quality import code_metrics
from gr2.tokenizer.residual_kmeans import fit_residual_kmeans, standardise
from gr2.tokenizer.text import item_texts
from gr2.tokenizer.vectors import load_vectors

__all__ = ["INPUTS", "TokenizeConfig", "run", "sources"]

INPUTS: tuple[str, ...] = ("prepare",)


@dataclass(frozen=True)
class TokenizeConfig:
    """Settings of the stage.

    Attributes:
        model: a folder with a sentence-transformers model; by default all-MiniLM-L6-v2, which is installed with gr2.
        vectors: a Parquet or `.npz` file with a vector for every item, used instead of texts and a model.
        levels: codes of an item.
        level_size: values of a code; a small catalogue uses fewer (`fit_residual_kmeans`).
        iterations: the most k-means steps a level.
        max_tokens: texts are cut after this many tokens; the time of a text grows with its length.
        batch_size: texts that the model takes at once.
        device: where the model runs, for example `cpu` or `cuda`.
    """

    model: str | None = None
    vectors: str | None = None
    levels: int = 4
    level_size: int = 256
    iterations: int = 25
    max_tokens: int = 96
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.model is not None and self.vectors is not None:
            raise ValueError("model and vectors exclude each other: set one of them")
        if not 2 <= self.levels <= 8:
            raise ValueError(f"levels must be 2 to 8, got {self.levels}")
        if not 2 <= self.level_size <= 65_536:
            raise ValueError(f"level_size must be 2 to 65536, got {self.level_size}")
        for name in ("iterations", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def sources(config: TokenizeConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads, by the name they have among its parents."""
    if config.vectors is not None:
        return {"file:vectors": Path(config.vectors)}
    folder = default_model() if config.model is None else Path(config.model)
    return {f"file:model/{name}": path for name, path in sorted(model_files(folder).items())}


def run(config: TokenizeConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write `codes.npy`, `centroids.npy`, `standard.npy` and the serving file `codebook.bin` to the artefact `out`.

    codes (N, L) uint16 by item index; centroids (L, V, D) float32 of the standardised vectors; standard (2, D) float32,
    the mean and scale that standardise a vector. Codes depend on the items' content, the config and the seed only.
    """
    catalog = Catalog.load(inputs["prepare"].file("items.parquet"))
    parents = {name: inputs[name].digest for name in INPUTS}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "tokenize", config, parents, seed) as work:
        started = time.monotonic()
        contents, vectors = _contents(config, catalog)
        embedded = time.monotonic()
        order = content_order(contents, catalog.ids, seed)
        points, standard = standardise(vectors[order])
        codebook = fit_residual_kmeans(
            points, levels=config.levels, level_size=config.level_size, iterations=config.iterations, seed=seed
        )
        assignment = assign_codes(points, codebook)
        codes = np.empty_like(assignment.codes)
        codes[order] = assignment.codes
        np.save(work.path / "codes.npy", codes, allow_pickle=False)
        np.save(work.path / "centroids.npy", codebook.centroids, allow_pickle=False)
        np.save(work.path / "standard.npy", standard, allow_pickle=False)
        write_codebook(work.path / "codebook.bin", catalog.keys(), codes, config.level_size)
        categories = [catalog.categories[row] for row in order.tolist()]
        work.metrics |= {
            "items": len(catalog),
            "without_content": sum(not content for content in contents),
            **code_metrics(assignment, points, categories, config.level_size),
            "embed_seconds": embedded - started,
            "cluster_seconds": time.monotonic() - embedded,
        }
        _report(work.metrics)
    return Artifact.load(out, "tokenize")


def _contents(config: TokenizeConfig, catalog: Catalog) -> tuple[list[bytes], NDArray[np.float32]]:
    """What each item's code depends on, as bytes, and its vector (N, D) float32."""
    if config.vectors is not None:
        vectors = load_vectors(config.vectors, catalog)
        return [vector.tobytes() for vector in vectors], vectors
    texts = item_texts(catalog)
    embedder = SentenceEmbedder(
        config.model, max_tokens=config.max_tokens, batch_size=config.batch_size, device=config.device
    )
    return [text.encode() for text in texts], embed(texts, embedder, cache=cache_folder())


def _report(metrics: Mapping[str, object]) -> None:
    lines = [
        "tokenize: {items:,} items, {unique:.2%} unique semantic IDs, {collisions:,} collisions; "
        "plain nearest codes: {nearest_unique:.2%}".format_map(metrics)
    ]
    if metrics["overflow"]:
        lines.append("tokenize: {overflow:,} items moved to another prefix, theirs was full".format_map(metrics))
    if metrics["without_content"]:
        lines.append(
            "tokenize: {without_content:,} items have no text, their IDs say nothing of them; "
            "give titles, or vectors of your own".format_map(metrics)
        )
    print("\n".join(lines), file=sys.stderr)
