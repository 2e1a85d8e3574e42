"""Rows for the semantic IDs' tokens that say from the start which codes stand for similar items."""

from __future__ import annotations

import torch
from torch import Tensor

from gr2.models.reasoner import Reasoner, vocabulary_rows

__all__ = ["start_from_centroids"]


@torch.no_grad()
def start_from_centroids(reasoner: Reasoner, centroids: Tensor) -> None:
    """Set the tokens' rows to the codebook's `centroids` (L, V, E) float32, projected on their principal axes.

    Rows of a level have the mean norm of those that they take the place of. What a width of D > E leaves is 0.
    """
    levels = centroids - centroids.mean(1, keepdim=True)
    axes = torch.linalg.svd(levels.flatten(0, 1), full_matrices=False).Vh
    tokens = torch.from_numpy(reasoner.vocabulary.tokens).reshape(-1)
    for weight in vocabulary_rows(reasoner.model):
        kept = levels @ axes[: weight.shape[1]].T
        norm = weight[tokens].float().norm(dim=1).mean()
        rows = torch.zeros(len(tokens), weight.shape[1])
        rows[:, : kept.shape[2]] = torch.nn.functional.normalize(kept, dim=2).flatten(0, 1) * norm
        weight[tokens] = rows.to(weight)
