"""The settings of the RQ-VAE: one switch for each technique."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gr2.config import refuse_below

__all__ = ["RqvaeSettings"]


@dataclass(frozen=True)
class RqvaeSettings:
    """How an RQ-VAE is trained; used by the method "rqvae" only.

    Attributes:
        hidden: widths of the encoder's hidden layers; the decoder has the same, reversed.
        latent_dim: width of what is quantised.
        epochs: passes over the items.
        train_batch: items of a step; a code's statistics are those of a batch.
        learning_rate: of AdamW.
        kmeans_init: codebooks start as k-means of the first latents' residuals, else as Gaussian noise of their scale.
        codebook_update: "ema" moves a code to the running mean of its residuals (van den Oord 2017, appendix A.1),
            "gradient" by its squared distance to them, "ema_step" like "gradient" with every step times 1 - ema_decay.
        ema_decay: of "ema" and "ema_step".
        commitment: weight of the latents' squared distance to their codes.
        diversity: weight of the diversity loss (`losses.diversity_loss`); 0 is off.
        dead_after: a code that no item of so many batches took is reset to a residual that is served badly; 0 is off.
        contrastive: weight of the contrastive loss over co-interacted items (`losses.info_nce`); 0 is off.
        temperature: of the contrastive loss.
    """

    hidden: tuple[int, ...] = (256,)
    latent_dim: int = 64
    epochs: int = 60
    train_batch: int = 1024
    learning_rate: float = 1e-3
    kmeans_init: bool = True
    codebook_update: Literal["ema", "ema_step", "gradient"] = "ema"
    ema_decay: float = 0.95
    commitment: float = 0.25
    diversity: float = 0.0
    dead_after: int = 0
    contrastive: float = 0.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        refuse_below(self, 1, "latent_dim", "epochs", "train_batch")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("commitment", "diversity", "dead_after", "contrastive"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths of at least 1, got {list(self.hidden)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
