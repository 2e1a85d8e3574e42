"""RQ-VAE: an autoencoder whose latents are quantised residually, so that codes follow what the losses ask for."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gr2.artifact import write_atomic
from gr2.checkpoint import load_checkpoint, save_checkpoint
from gr2.errors import ArtifactError, Gr2Error
from gr2.progress import track
from gr2.tokenizer.losses import diversity_loss, info_nce
from gr2.tokenizer.pairs import Partners
from gr2.tokenizer.quantizer import Quantized, ResidualQuantizer
from gr2.tokenizer.residual_kmeans import SAMPLE_PER_CLUSTER, Codebook, cluster_count, fit_residual_kmeans
from gr2.tokenizer.settings import RqvaeSettings

__all__ = ["Rqvae", "fit_rqvae"]

BLOCK = 16_384
INIT_ITERATIONS = 10


class Rqvae(nn.Module):
    """Encoder, codebooks and decoder for standardised vectors of `dim` columns."""

    def __init__(self, dim: int, codes: Tensor, settings: RqvaeSettings) -> None:
        super().__init__()
        widths = [dim, *settings.hidden, settings.latent_dim]
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.quantizer = ResidualQuantizer(codes, settings)

    def loss(self, points: Tensor, quantized: Quantized, latents: Tensor) -> dict[str, Tensor]:
        """The terms of a batch that its items alone decide, weighted; `points` (B, D), `latents` (B, Z)."""
        settings = self.quantizer.settings
        rebuilt = self.decoder(latents + (quantized.total - latents).detach())
        terms = {
            "reconstruction": functional.mse_loss(rebuilt, points),
            "commitment": settings.commitment * self.quantizer.commitment_loss(quantized),
        }
        if settings.codebook_update != "ema":
            terms["codebook"] = self.quantizer.codebook_loss(quantized)
        if settings.diversity:
            terms["diversity"] = settings.diversity * torch.stack(list(map(diversity_loss, quantized.distances))).sum()
        return terms

    @torch.no_grad()
    def encode(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, Z) float32 latents of standardised (N, D) float32."""
        return _blocks(self.encoder, points)

    @torch.no_grad()
    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) float32 standardised vectors of (N, Z) float32, of the sums of codes as of latents."""
        return _blocks(self.decoder, latents)

    def codebook(self, level_size: int) -> Codebook:
        """The codes (L, level_size, Z) of all levels; rows that were not trained repeat the first."""
        codes = self.quantizer.codes.detach().numpy()
        levels, used, _ = codes.shape
        padding = codes[:, :1].repeat(level_size - used, axis=1)
        return Codebook(np.concatenate([codes, padding], axis=1), (used,) * levels)

    def save(self, path: Path) -> None:
        """Write all tensors as safetensors; equal models give equal bytes."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(path, safetensors.torch.save(tensors))

    @classmethod
    def load(cls, path: Path, settings: RqvaeSettings) -> Rqvae:
        """The model that `save` wrote, with the settings it was trained with. Raises ArtifactError."""
        try:
            tensors = safetensors.torch.load_file(path)
            model = cls(tensors["encoder.0.weight"].shape[1], tensors["quantizer.codes"], settings)
            model.load_state_dict(tensors)
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{path}: not an RQ-VAE of these settings: {error}") from error
        return model.eval()


def fit_rqvae(
    vectors: NDArray[np.float32],
    settings: RqvaeSettings,
    *,
    levels: int,
    level_size: int,
    seed: int,
    partners: Partners | None = None,
    checkpoint: Path | None = None,
) -> Rqvae:
    """The RQ-VAE of standardised `vectors` (N, D) float32, in an order that says nothing of the items.

    A level gets the number of codes that `fit_residual_kmeans` gives it, and the same sample of the items is trained
    on. `partners` number items by row and are needed with a contrastive loss only. `checkpoint` holds the state after
    the last finished epoch; a killed run that finds it arrives at the same bits.
    """
    if settings.contrastive and partners is None:
        raise ValueError("a contrastive loss needs partners")
    clusters = cluster_count(len(vectors), level_size)
    points = torch.from_numpy(vectors)
    items = min(len(vectors), SAMPLE_PER_CLUSTER * clusters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(seed))
        model = Rqvae(vectors.shape[1], torch.zeros(levels, clusters, settings.latent_dim), settings)
        optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        saved = load_checkpoint(checkpoint) if checkpoint is not None else None
        if saved is None:
            _initialise(model, model.encode(vectors[:items]), seed)
        else:
            model.load_state_dict(saved["model"])
            optimiser.load_state_dict(saved["optimiser"])
        first = 0 if saved is None else int(saved["epoch"])
        with track(settings.epochs, "train RQ-VAE", unit="epochs", start=first) as bar:
            for epoch in range(first, settings.epochs):
                torch.manual_seed(_seed(seed, epoch))
                steps = math.ceil(items / settings.train_batch)
                for rows in torch.randperm(items).tensor_split(steps):
                    shown = _step(model, optimiser, points, rows, partners if settings.contrastive else None)
                if not all(map(math.isfinite, shown.values())):
                    raise Gr2Error(
                        f"the RQ-VAE diverged in epoch {epoch + 1} ({shown}); lower [tokenize] learning_rate, "
                        f"which is {settings.learning_rate:g}"
                    )
                if checkpoint is not None:
                    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
                    save_checkpoint(checkpoint, state)
                bar.advance(1, **shown)
    return model.eval()


def _step(
    model: Rqvae, optimiser: torch.optim.Optimizer, points: Tensor, rows: Tensor, partners: Partners | None
) -> dict[str, float]:
    """One optimiser step on the items `rows` and whatever the switches do to the codes after it; the loss terms."""
    quantizer, settings = model.quantizer, model.quantizer.settings
    latents = model.encoder(points[rows])
    quantized = quantizer(latents)
    terms = model.loss(points[rows], quantized, latents)
    if partners is not None:
        has, items = _draw_partners(partners, rows)
        if len(items) > 1:
            loss = info_nce(latents[has], model.encoder(points[items]), items, settings.temperature)
            terms["contrastive"] = settings.contrastive * loss
    before = quantizer.codes.detach().clone()
    optimiser.zero_grad()
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    if settings.codebook_update == "ema":
        quantizer.ema_update(quantized)
    elif settings.codebook_update == "ema_step":
        quantizer.damp_step(before)
    if settings.dead_after:
        quantizer.reset_dead(quantized)
    return {name: float(term.detach()) for name, term in terms.items()}


def _draw_partners(partners: Partners, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `rows` have a partner, (B,) bool, and one of them for each, drawn as often as it was met."""
    offsets = torch.from_numpy(partners.offsets)
    starts, counts = offsets[rows], offsets[rows + 1] - offsets[rows]
    has = counts > 0
    drawn = (torch.rand(int(has.sum()), dtype=torch.float64) * counts[has]).long()
    return has, torch.from_numpy(partners.items)[starts[has] + drawn]


@torch.no_grad()
def _initialise(model: Rqvae, latents: NDArray[np.float32], seed: int) -> None:
    quantizer = model.quantizer
    levels, codes, _ = quantizer.codes.shape
    if quantizer.settings.kmeans_init:
        fitted = fit_residual_kmeans(
            latents, levels=levels, level_size=codes, iterations=INIT_ITERATIONS, seed=seed, clusters=codes
        )
        quantizer.codes.copy_(torch.from_numpy(fitted.centroids))
    else:
        quantizer.codes.normal_().mul_(torch.from_numpy(latents.std(axis=0)))
    quantizer.sums.copy_(quantizer.codes)


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _blocks(network: nn.Module, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = [network(block) for block in torch.split(torch.from_numpy(rows), BLOCK)]
    made: NDArray[np.float32] = torch.cat(parts).numpy()
    return made


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence([value % 2**64 for value in entropy]).generate_state(1, np.uint64)[0] >> 1)
