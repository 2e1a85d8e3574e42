"""The two losses that shape an RQ-VAE's latents beside reconstruction: even use of the codes, and co-interaction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["diversity_loss", "info_nce"]


def diversity_loss(distances: Tensor) -> Tensor:
    """C * sum_j p_j^2 of one level, with p = mean over the batch of softmax(-distances); 1 where all codes are even.

    `distances` (B, C) are squared, from residuals to codes.
    """
    shares = torch.softmax(-distances, dim=1).mean(dim=0)  # (C,)
    return distances.shape[1] * shares.square().sum()


def info_nce(anchors: Tensor, partners: Tensor, partner_items: Tensor, temperature: float) -> Tensor:
    """Mean over rows of -log softmax_j(cos(anchor_i, partner_j) / temperature) at j = i.

    `anchors` and `partners` (B, D) are latents; row i of one belongs with row i of the other. `partner_items` (B,) are
    the partners' item numbers: another row with the same partner is no negative.
    """
    logits = functional.normalize(anchors, dim=1) @ functional.normalize(partners, dim=1).T / temperature
    same = partner_items[:, None] == partner_items[None, :]
    same.fill_diagonal_(False)
    return functional.cross_entropy(
        logits.masked_fill(same, float("-inf")), torch.arange(len(logits), device=logits.device)
    )
