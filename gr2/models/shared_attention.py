"""Attention of many sequences that begin with the same prompt, whose keys and values exist once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

# Queries whose scores exist at a time.
BLOCK = 16
NAME = "gr2_shared_prompt"

__all__ = ["attending_by", "can_share_prompts", "shared_attention", "sharing_prompts"]


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether the model attends by plain softmax attention, which can be put in parts."""
    return bool(model.config.get_text_config()._attn_implementation == "sdpa")


@contextmanager
def attending_by(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Inside the block `model` attends by an implementation that `transformers` knows by name, after it as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def sharing_prompts(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside the block `model` attends by `shared_attention`, and is called with its argument `shared_prompt`."""
    return attending_by(model, NAME)


def shared_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    shared_prompt: Sequence[tuple[Tensor, Tensor]],
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """The (B, n, H, E) output for `query` (B, H, n, D), as the interface of `transformers` has it.

    Row b goes on after prompt b // (B / P), whose keys (P, G, T, D) and values (P, G, T, E) a layer finds at its place
    in `shared_prompt`; `key` (B, G, t, D) and `value` (B, G, t, E) are each row's own, of G heads that H / G queries
    read. `attention_mask` (B, 1, n, T + t) is added to the scores.

    A prompt's keys are read once for all its rows, where copies of them would be read once each: the bytes, not the
    products, are what decoding waits for.
    """
    before = shared_prompt[int(module.layer_idx)]  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = [
        _attend(block, before, (key, value), mask, scale)
        for block, mask in zip(torch.split(query, BLOCK, 2), torch.split(attention_mask, BLOCK, 2), strict=True)
    ]
    return torch.cat(parts, 1), None


def _attend(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor, scale: float
) -> Tensor:
    rows, heads, length, size = query.shape
    prompts, groups, width = prompt[0].shape[:3]
    samples, readers = rows // prompts, heads // groups * length

    def together(each: Tensor) -> Tensor:
        """Rows of a prompt side by side: (B, G, R, X) as (P, G, S R, X)."""
        by_row = each.reshape(prompts, samples, groups, readers, each.shape[-1])
        return by_row.transpose(1, 2).reshape(prompts, groups, samples * readers, each.shape[-1])

    def apart(each: Tensor) -> Tensor:
        """The other way round."""
        beside = each.reshape(prompts, groups, samples, readers, each.shape[-1])
        return beside.transpose(1, 2).reshape(rows, groups, readers, each.shape[-1])

    asking = query.reshape(rows, groups, readers, size)
    scores = torch.cat([apart(together(asking) @ prompt[0].mT), asking @ own[0].mT], -1) * scale
    masked = scores.reshape(rows, groups, -1, length, scores.shape[-1]) + mask[:, :, None]
    weights = torch.softmax(masked, -1, dtype=torch.float32).to(query.dtype).flatten(2, 3)
    found = apart(together(weights[..., :width]) @ prompt[1]) + weights[..., width:] @ own[1]
    return found.reshape(rows, heads, length, -1).transpose(1, 2)


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, eager_mask)
