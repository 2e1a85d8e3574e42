"""From items to codes by what the stage `tokenize` learnt, a batch at a time."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gr2 import config as configuration
from gr2.artifact import Artifact
from gr2.decoding import Codebook
from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait
from gr2.tokenizer.bulk.batches import Batch
from gr2.tokenizer.bulk.groups import match
from gr2.tokenizer.bulk.nearest import Centroids
from gr2.tokenizer.bulk.source import Contents
from gr2.tokenizer.embedding import SentenceEmbedder
from gr2.tokenizer.tokenize import TokenizeConfig

if TYPE_CHECKING:
    from gr2.tokenizer.rqvae import Rqvae

__all__ = ["NEAREST", "Encoded", "Encoder", "content_keys"]

NEAREST = 16


@dataclass(frozen=True)
class Encoded:
    """Items with their nearest codes (n, L) uint16.

    `near` (n, M) uint16 and `distances` (n, M) float32, squared: the M = 16 (or all) nearest last codes, in order.
    `errors` (n,) float32: what the metrics take for the reconstruction error of the level before the last.
    """

    codes: NDArray[np.uint16]
    near: NDArray[np.uint16]
    distances: NDArray[np.float32]
    errors: NDArray[np.float32]


class Encoder:
    """The tokenizer in the artefact `tokenize`; its parts are loaded when first used.

    `codebook` is the file of the items that have an ID already. Equal contents get equal codes and distances whatever
    is encoded beside them, up to the rounding of the text encoder where there is one. `device` and `batch_size` are
    those of the text encoder.
    """

    def __init__(
        self, base: Artifact, codebook: Path, *, device: str | None = None, batch_size: int | None = None
    ) -> None:
        self.base, self._codebook = base, codebook
        self.learnt = learnt = configuration.build(TokenizeConfig, base.config, "tokenize")
        self.config = dataclasses.replace(
            learnt, device=device or learnt.device, batch_size=batch_size or learnt.batch_size
        )
        self.centroids: NDArray[np.float32] = base.array("centroids.npy")
        self._mean, self._scale = base.array("standard.npy")

    @cached_property
    def known(self) -> Codebook:
        """The items that have an ID already."""
        return Codebook(self._codebook)

    @property
    def contents(self) -> Contents:
        """What an item must come with."""
        return Contents(self.known.id_type, None if self.config.vectors is None else len(self._mean))

    def check_ready(self) -> None:
        """Raise MissingExtraError or ConfigError if a worker could not use the tokenizer on this machine."""
        if self.config.vectors is None:
            _ = self._embedder
        if self.config.method == "rqvae":
            _ = self._rqvae
        match(np.zeros((1, 1)))

    @property
    def measured(self) -> int:
        """The level, from 0, whose reconstruction error the metrics tell, as `gr2 tokenize --add` does.

        With an RQ-VAE it is never the last one: that would take decoding when the last codes have been decided.
        """
        config = self.config
        last = config.levels - 1 - (config.random_levels if config.last_level == "random" else 0)
        return min(last, config.levels - 2) if config.method == "rqvae" else last

    @property
    def measures_last(self) -> bool:
        """True if the error after the last level is told."""
        return self.measured == self.config.levels - 1

    @property
    def dimensions(self) -> int:
        """How many columns of a vector vary, by which errors are divided."""
        return max(1, int(np.isfinite(self._scale).sum()))

    def vectors(self, batch: Batch) -> NDArray[np.float32]:
        """(n, D) float32: a batch's vectors, or those of its texts."""
        if isinstance(batch.contents, np.ndarray):
            return batch.contents
        return self._embedder.encode(batch.contents)

    def points(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, D) float32, standardised; rows that hold anything but finite numbers are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            points: NDArray[np.float32] = (vectors - self._mean) / self._scale
        return points

    def encode(self, points: NDArray[np.float32]) -> Encoded:
        """The codes of standardised points, which must be finite."""
        codes = np.empty((len(points), self.config.levels), dtype=np.uint16)
        residuals, errors = self._latents(points), np.zeros(len(points), dtype=np.float32)
        for level, centroids in enumerate(self._levels[:-1]):
            codes[:, level] = centroids.nearest(residuals)
            residuals -= self.centroids[level, codes[:, level]]
            if level == self.measured:
                errors = self._errors(points, residuals, codes[:, : level + 1])
        near, distances = self._levels[-1].neighbours(residuals, NEAREST)
        codes[:, -1] = near[:, 0]
        return Encoded(codes, near, distances, errors)

    def residuals(self, points: NDArray[np.float32], codes: NDArray[np.uint16]) -> NDArray[np.float32]:
        """(n, D) float32: what the first L - 2 codes leave of standardised points."""
        residuals = self._latents(points)
        for level in range(self.config.levels - 2):
            residuals -= self.centroids[level, codes[:, level]]
        return residuals

    def _latents(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the points, or their latents: computed in double precision, whose rounding does not show."""
        if self.config.method == "kmeans":
            return points.copy()
        import torch

        with torch.no_grad():
            latents: NDArray[np.float32] = self._rqvae.encoder(torch.from_numpy(points).double()).float().numpy()
        return latents

    def _errors(
        self, points: NDArray[np.float32], residuals: NDArray[np.float32], codes: NDArray[np.uint16]
    ) -> NDArray[np.float32]:
        """(n,) float32: squared distance of the points to what their first codes say of them."""
        if self.config.method == "rqvae":
            import torch

            decoded = np.stack([self.centroids[level, column] for level, column in enumerate(codes.T)]).sum(axis=0)
            with torch.no_grad():
                residuals = points - self._rqvae.decoder(torch.from_numpy(decoded).double()).float().numpy()
        errors: NDArray[np.float32] = np.square(residuals).sum(axis=1)
        return errors

    @cached_property
    def _levels(self) -> list[Centroids]:
        return [Centroids(centroids) for centroids in self.centroids]

    @cached_property
    def _embedder(self) -> SentenceEmbedder:
        config = self.config
        return SentenceEmbedder(
            config.model, max_tokens=config.max_tokens, batch_size=config.batch_size, device=config.device
        )

    @cached_property
    def _rqvae(self) -> Rqvae:
        try:
            with interrupts_wait():
                import torch

                from gr2.tokenizer.rqvae import Rqvae
        except ImportError as error:
            raise MissingExtraError("encoding by an RQ-VAE", "train", error) from error
        torch.set_num_threads(1)
        return Rqvae.load(self.base.file("rqvae.safetensors"), self.config).double()


def content_keys(contents: NDArray[np.float32] | list[str], seed: int) -> NDArray[np.uint64]:
    """(n,) uint64: a seeded hash of each item's content, which orders items where costs do not.

    Texts are hashed as `content_order` does. A digest for each vector would take as long as a level of codes, so
    theirs is a sum of 32-bit words times random numbers.
    """
    if isinstance(contents, np.ndarray):
        words = np.ascontiguousarray(contents).view(np.uint32).astype(np.uint64)
        factors = np.random.default_rng(seed).integers(0, 2**64, size=words.shape[1], dtype=np.uint64)
        return words @ factors
    key = seed.to_bytes(8, "little", signed=True)
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16, key=key).digest()[:8] for text in contents)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)
