"""Dropout for architectures that have none: on token embeddings and on what each block adds to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["dropout"]

ADDENDS = ("self_attn", "mlp")


@contextmanager
def dropout(model: PreTrainedModel, rate: float) -> Iterator[None]:
    """Within the block, `model` in training mode drops this share, to 1/256; the model itself is not changed."""
    kept = 256 - round(256 * rate)

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, Tensor):
            return output * _scale(output, kept)
        return (output[0] * _scale(output[0], kept), *output[1:])

    places = [module for name, module in model.named_modules() if name.rpartition(".")[2] in ADDENDS]
    hooks = [place.register_forward_hook(drop) for place in [model.get_input_embeddings(), *places] if kept < 256]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _scale(values: Tensor, kept: int) -> Tensor:
    """0 or 256 / kept for each value. One random number serves eight: on a CPU, drawing them is what dropout costs."""
    draws = torch.empty((values.numel() + 7) // 8, dtype=torch.int64, device=values.device).random_(-(2**63), None)
    keep = draws.view(torch.uint8)[: values.numel()] < kept
    return keep.view(values.shape).to(values.dtype) * (256 / kept)
