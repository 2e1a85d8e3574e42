"""Cross-entropy over a large catalogue without ever storing the matrix of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["fast_logits_dtype", "linear_cross_entropy"]

# Rows of logits that exist at a time: enough to keep the matrix products busy, few enough for the cache.
CHUNK = 128


def fast_logits_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware (AVX512-BF16, AMX), float32 elsewhere."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The mean over rows n of -log softmax(weight @ hidden[n])[target[n]]: a scalar, differentiable once.

    `hidden` (N, D) float32, `weight` (V, D) float32, `target` (N,) int64. Products and probabilities are computed in
    `dtype`; losses and gradients are float32. At most `CHUNK` x V logits exist at a time: the gradient,
    (softmax - onehot) / N times the other factor, is taken in the forward pass, while a chunk is still in the cache.
    A target's loss is capped at 85, where its probability leaves the range of float32; its gradient is not.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (hidden, weight, target))
        raise ValueError(f"hidden (N, D), weight (V, D) and target (N,) expected, got {shapes}")
    if not len(target):
        raise ValueError("no rows: the mean of no losses is undefined")
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, target, dtype)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
        rows, items = len(hidden), len(weight)
        left, right = hidden.to(dtype), weight.to(dtype)
        hidden_gradient = torch.empty_like(left)
        weight_gradient = torch.zeros_like(weight)
        logits = left.new_empty(min(CHUNK, rows), items)
        probabilities = torch.empty_like(logits)
        likelihood = hidden.new_empty(rows, 1)
        for start in range(0, rows, CHUNK):
            chunk = slice(start, min(start + CHUNK, rows))
            count = chunk.stop - start
            column = target[chunk, None]
            torch.mm(left[chunk], right.t(), out=logits[:count])
            gradient = torch.softmax(logits[:count], 1, out=probabilities[:count])
            likelihood[chunk] = gradient.gather(1, column).to(likelihood.dtype)
            gradient.scatter_(1, column, (likelihood[chunk] - 1).to(dtype))
            torch.mm(gradient, right, out=hidden_gradient[chunk])
            weight_gradient += gradient.t() @ left[chunk]
        ctx.save_for_backward(hidden_gradient.to(hidden.dtype).div_(rows), weight_gradient.div_(rows))
        return likelihood.clamp_(min=torch.finfo(likelihood.dtype).tiny).log_().mean().neg()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], weight_gradient * gradients[0], None, None
