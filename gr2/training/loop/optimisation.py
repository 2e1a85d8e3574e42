"""What the stages that train share: optimiser, precision, torch's threads, and the end of a training that diverges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gr2.errors import Gr2Error
from gr2.models.linear_cross_entropy import fast_logits_dtype

__all__ = ["adamw", "in_bfloat16", "refuse_divergence", "refuse_lost_weights", "threads"]


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over what of the model trains, with weight decay on matrices and embeddings only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def refuse_divergence(stage: str, what: str, *values: float) -> None:
    """Raise Gr2Error if a value is not finite; `what` says whose they are: no later step can mend such weights."""
    for value in values:
        if not math.isfinite(value):
            raise Gr2Error(
                f"{what} is {value}, so the training has diverged: lower [{stage}] learning_rate, or raise warmup"
            )


def refuse_lost_weights(stage: str, step: int, model: nn.Module) -> None:
    """Raise Gr2Error if a weight is not finite after a step, whose own loss was that of the weights before."""
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(_own(each), dtype=torch.float32) for each in model.parameters()]
        refuse_divergence(stage, f"the norm of the weights after step {step}", float(torch.stack(norms).sum()))


def _own(weight: Any) -> torch.Tensor:
    """What this process holds of a weight."""
    own: torch.Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return own


def in_bfloat16(precision: str, device: str) -> bool:
    """Whether matrix products are in bfloat16 under a `precision` of `bfloat16`, `float32` or `auto`.

    `auto` is bfloat16 where the device, "cpu" or "cuda", multiplies it in hardware.
    """
    if precision != "auto":
        return precision == "bfloat16"
    return torch.cuda.is_bf16_supported() if device == "cuda" else fast_logits_dtype() == torch.bfloat16


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The block runs with `count` threads of torch, 0 for as many as before it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
