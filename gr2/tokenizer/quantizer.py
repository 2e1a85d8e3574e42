"""Residual vector quantisation in torch: codebooks that follow the residuals they are nearest to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gr2.tokenizer.settings import RqvaeSettings

__all__ = ["Quantized", "ResidualQuantizer"]

# Laplace smoothing of the cluster sizes, so that the mean of an empty cluster is defined.
SMOOTHING = 1e-5


@dataclass(frozen=True)
class Quantized:
    """A batch through the codebooks of L levels.

    `codes` (B, L) int64; `residuals` (B, L, D), what each level was given; `distances` L times (B, C), squared.
    `total` (B, D) is the sum of the codes' vectors.
    """

    codes: Tensor
    residuals: Tensor
    distances: list[Tensor]
    total: Tensor


class ResidualQuantizer(nn.Module):
    """Codebooks `codes` (L, C, D): z_k = argmin_j ||r_k - e_j||, r_{k+1} = r_k - e_{z_k}."""

    codes: Tensor
    sizes: Tensor
    sums: Tensor
    idle: Tensor

    def __init__(self, codes: Tensor, settings: RqvaeSettings) -> None:
        super().__init__()
        self.settings = settings
        if settings.codebook_update == "ema":
            self.register_buffer("codes", codes.clone())
        else:
            self.codes = nn.Parameter(codes.clone())
        self.register_buffer("sizes", torch.ones(codes.shape[:2]))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("idle", torch.zeros(codes.shape[:2], dtype=torch.int64))

    def forward(self, latents: Tensor) -> Quantized:
        """The nearest codes of latents (B, D), level by level; ties go to the lower code."""
        residual, codes, residuals, distances = latents, [], [], []
        for book in self.codes:
            distance = residual.square().sum(1, keepdim=True) - 2.0 * residual @ book.T + book.square().sum(1)
            code = distance.argmin(dim=1)
            codes.append(code)
            residuals.append(residual)
            distances.append(distance)
            residual = residual - book[code].detach()
        total = latents - residual
        return Quantized(torch.stack(codes, 1), torch.stack(residuals, 1), distances, total.detach())

    def codebook_loss(self, quantized: Quantized) -> Tensor:
        """Sum over levels of ||sg(r_k) - e_{z_k}||^2 / D, a mean over the batch: what moves the codes by gradient."""
        return self._distance(quantized.residuals.detach(), self._chosen(quantized))

    def commitment_loss(self, quantized: Quantized) -> Tensor:
        """Sum over levels of ||r_k - sg(e_{z_k})||^2 / D, a mean over the batch: what keeps latents at their codes."""
        return self._distance(quantized.residuals, self._chosen(quantized).detach())

    @torch.no_grad()
    def ema_update(self, quantized: Quantized) -> None:
        """N_j and m_j become running counts and sums of code j's residuals; e_j = m_j / N_j, N_j Laplace-smoothed."""
        decay = self.settings.ema_decay
        for level in range(len(self.codes)):
            chosen = functional.one_hot(quantized.codes[:, level], self.codes.shape[1]).to(self.sums.dtype)
            self.sizes[level].lerp_(chosen.sum(0), 1.0 - decay)
            self.sums[level].lerp_(chosen.T @ quantized.residuals[:, level], 1.0 - decay)
            total, codes = self.sizes[level].sum(), self.codes.shape[1]
            smoothed = (self.sizes[level] + SMOOTHING) / (total + codes * SMOOTHING) * total
            self.codes[level] = self.sums[level] / smoothed[:, None]

    @torch.no_grad()
    def damp_step(self, before: Tensor) -> None:
        """Shorten the optimiser's step: e = decay * before + (1 - decay) * after."""
        self.codes.copy_(torch.lerp(before, self.codes, 1.0 - self.settings.ema_decay))

    @torch.no_grad()
    def reset_dead(self, quantized: Quantized) -> int:
        """Codes unused for `dead_after` batches take the residuals that are farthest from theirs; returns how many.

        At each level the dead codes, lowest first, take different residuals of the batch, worst first.
        """
        count = 0
        for level in range(len(self.codes)):
            used = torch.bincount(quantized.codes[:, level], minlength=self.codes.shape[1]) > 0
            self.idle[level] = torch.where(used, 0, self.idle[level] + 1)
            dead = torch.nonzero(self.idle[level] >= self.settings.dead_after)[:, 0]
            if not len(dead):
                continue
            errors = quantized.distances[level].min(dim=1).values
            worst = torch.sort(errors, descending=True, stable=True).indices[: len(dead)]
            dead = dead[: len(worst)]
            self.codes[level, dead] = quantized.residuals[worst, level]
            self.sums[level, dead] = quantized.residuals[worst, level]
            self.sizes[level, dead] = 1.0
            self.idle[level, dead] = 0
            count += len(dead)
        return count

    def _chosen(self, quantized: Quantized) -> Tensor:
        """(B, L, D): the vectors of the codes."""
        return self.codes[torch.arange(len(self.codes)), quantized.codes]

    @staticmethod
    def _distance(residuals: Tensor, codes: Tensor) -> Tensor:
        return (residuals - codes).square().sum(dim=1).mean()
