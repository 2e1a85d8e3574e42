"""The stage `tokenize`: a semantic ID for every item, from what the catalogue says of it.

Interactions are read for the contrastive loss of the RQ-VAE only, and of them the training split only.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import Artifact, Workspace, file_digest, open_stage
from gr2.catalog import Catalog
from gr2.config import refuse_below
from gr2.data.dataset import Dataset
from gr2.decoding import write_codebook
from gr2.tokenizer.assign import Assignment, LastLevel, assign_codes
from gr2.tokenizer.embedding import SentenceEmbedder, cache_folder, default_model, embed, model_files
from gr2.tokenizer.order import content_order
from gr2.tokenizer.pairs import training_partners
from gr2.tokenizer.quality import code_metrics
from gr2.tokenizer.residual_kmeans import Codebook, fit_residual_kmeans, standardise
from gr2.tokenizer.settings import RqvaeSettings
from gr2.tokenizer.text import item_texts
from gr2.tokenizer.vectors import load_vectors, vector_files

if TYPE_CHECKING:
    from gr2.tokenizer.rqvae import Rqvae

__all__ = ["INPUTS", "TokenizeConfig", "decoded_errors", "item_vectors", "run", "sources"]

INPUTS: tuple[str, ...] = ("prepare",)


@dataclass(frozen=True)
class TokenizeConfig(RqvaeSettings):
    """Settings of the stage; those of the RQ-VAE (`RqvaeSettings`) are keys of the same table.

    Attributes:
        model: a folder with a sentence-transformers model; by default all-MiniLM-L6-v2, which is installed with gr2.
        vectors: a file with a vector for every item, used instead of texts and a model (`vectors.load_vectors`).
        method: "kmeans" clusters the vectors' residuals, "rqvae" those of an autoencoder's latents.
        last_level: how the last code is chosen (`assign_codes`): "assign" and "random" make IDs unique, "nearest" not.
        random_levels: how many of the last codes "random" draws.
        levels: codes of an item.
        level_size: values of a code; a small catalogue uses fewer (`fit_residual_kmeans`).
        iterations: the most k-means steps a level, of the method "kmeans".
        max_tokens: texts are cut after this many tokens; the time of a text grows with its length.
        batch_size: texts that the model takes at once.
        device: where the embedding model runs, for example `cpu` or `cuda`.
    """

    model: str | None = None
    vectors: str | None = None
    method: Literal["kmeans", "rqvae"] = "kmeans"
    last_level: LastLevel = "assign"
    random_levels: int = 1
    levels: int = 4
    level_size: int = 256
    iterations: int = 25
    max_tokens: int = 96
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.vectors is not None:
            raise ValueError("model and vectors exclude each other: set one of them")
        if not 2 <= self.levels <= 8:
            raise ValueError(f"levels must be 2 to 8, got {self.levels}")
        if not 2 <= self.level_size <= 65_536:
            raise ValueError(f"level_size must be 2 to 65536, got {self.level_size}")
        if not 1 <= self.random_levels < self.levels:
            raise ValueError(f"random_levels must be 1 to {self.levels - 1}, got {self.random_levels}")
        if self.level_size**self.random_levels >= 2**63:
            raise ValueError(
                f"random_levels {self.random_levels} of {self.level_size} codes are too many to draw from; lower it"
            )
        refuse_below(self, 1, "iterations", "max_tokens", "batch_size")


def sources(config: TokenizeConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads, by the name they have among its parents."""
    if config.vectors is not None:
        return {f"file:{name}": path for name, path in vector_files(config.vectors).items()}
    folder = default_model() if config.model is None else Path(config.model)
    return {f"file:model/{name}": path for name, path in sorted(model_files(folder).items())}


def run(config: TokenizeConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write `codes.npy`, `centroids.npy`, `standard.npy` and the serving file `codebook.bin` to the artefact `out`.

    codes (N, L) uint16 by item index; centroids (L, V, D) float32 of the standardised vectors, or of their latents
    where there is an RQ-VAE (`rqvae.safetensors`); standard (2, D) float32, the mean and scale that standardise a
    vector. Codes depend on the items' content, the config and the seed only; with a contrastive loss also on the
    training split.
    """
    catalog = Catalog.load(inputs["prepare"].file("items.parquet"))
    parents = {name: inputs[name].digest for name in INPUTS}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "tokenize", config, parents, seed) as work:
        started = time.monotonic()
        contents, vectors = item_vectors(config, catalog)
        embedded = time.monotonic()
        order = content_order(contents, catalog.ids, seed)
        points, standard = standardise(vectors[order])
        if config.method == "rqvae":
            codebook, assignment = _learn(config, inputs["prepare"], points, order, work)
        else:
            codebook = fit_residual_kmeans(
                points, levels=config.levels, level_size=config.level_size, iterations=config.iterations, seed=seed
            )
            assignment = _assign(config, points, codebook, seed)
        codes = np.empty_like(assignment.codes)
        codes[order] = assignment.codes
        work.save_array("codes.npy", codes)
        work.save_array("centroids.npy", codebook.centroids)
        work.save_array("standard.npy", standard)
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


def _assign(config: TokenizeConfig, vectors: NDArray[np.float32], codebook: Codebook, seed: int) -> Assignment:
    return assign_codes(vectors, codebook, last_level=config.last_level, random_levels=config.random_levels, seed=seed)


def _learn(
    config: TokenizeConfig,
    prepare: Artifact,
    points: NDArray[np.float32],
    order: NDArray[np.int64],
    work: Workspace,
) -> tuple[Codebook, Assignment]:
    """Codebook and assignment of an RQ-VAE's latents; `errors` of the assignment are those of the decoded vectors."""
    from gr2.tokenizer.rqvae import fit_rqvae

    model = fit_rqvae(
        points,
        config,
        levels=config.levels,
        level_size=config.level_size,
        seed=work.seed,
        partners=training_partners(Dataset.load(prepare.path), order) if config.contrastive else None,
        checkpoint=work.checkpoints / "rqvae.pt",
    )
    model.save(work.path / "rqvae.safetensors")
    codebook, latents = model.codebook(config.level_size), model.encode(points)
    assignment = _assign(config, latents, codebook, work.seed)
    errors = decoded_errors(model, points, assignment.codes, codebook.centroids)
    return codebook, dataclasses.replace(assignment, errors=errors)


def decoded_errors(
    model: Rqvae, points: NDArray[np.float32], codes: NDArray[np.uint16], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N, L) float32: squared distance of `points` (N, D) to what the decoder makes of the codes up to each level."""
    errors, decoded = np.empty(codes.shape, dtype=np.float32), np.zeros((len(points), centroids.shape[2]), np.float32)
    for level in range(codes.shape[1]):
        decoded += centroids[level, codes[:, level]]
        errors[:, level] = np.square(points - model.decode(decoded)).sum(axis=1)
    return errors


def item_vectors(config: TokenizeConfig, catalog: Catalog) -> tuple[list[bytes], NDArray[np.float32]]:
    """What each item's code depends on, as bytes, and its vector (N, D) float32."""
    if config.vectors is not None:
        vectors = load_vectors(config.vectors, catalog)
        return [vector.tobytes() for vector in vectors], vectors
    texts = item_texts(catalog)
    embedder = SentenceEmbedder(
        config.model, max_tokens=config.max_tokens, batch_size=config.batch_size, device=config.device
    )
    return [text.encode() for text in texts], embed(texts, embedder, cache=cache_folder())


def _report(metrics: Mapping[str, Any]) -> None:
    lines = [
        "tokenize: {items:,} items, {unique:.2%} unique semantic IDs, {collisions:,} collisions; "
        "plain nearest codes: {nearest_unique:.2%}".format_map(metrics)
    ]
    if metrics["overflow"]:
        worst = metrics["overflow_prefixes"][:3]
        fullest = ", ".join(f"{'-'.join(map(str, each['codes']))} ({each['items']:,})" for each in worst)
        lines.append(
            f"tokenize: {metrics['overflow']:,} items moved to another prefix, theirs was full: {fullest}; "
            "a larger level_size or one more level gives them room"
        )
    if metrics["without_content"]:
        lines.append(
            "tokenize: {without_content:,} items have no text, their IDs say nothing of them; "
            "give titles, or vectors of your own".format_map(metrics)
        )
    print("\n".join(lines), file=sys.stderr)
