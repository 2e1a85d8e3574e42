"""What of a model trains: everything, the rows of the semantic IDs alone, or these and low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gr2.models.reasoner import Reasoner, vocabulary_rows

__all__ = ["adapters", "only_new_rows"]


@contextmanager
def only_new_rows(reasoner: Reasoner) -> Iterator[None]:
    """Within the block, only the rows of the semantic IDs train. Weight decay must be 0, or other rows shrink."""
    model = reasoner.model
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    hooks = _train_rows(reasoner)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, trains in before.items():
            parameter.requires_grad_(trains)


@contextmanager
def adapters(reasoner: Reasoner, rank: int, seed: int) -> Iterator[None]:
    """Within the block, only LoRA's adapters of all linear layers and the rows of the semantic IDs train.

    `seed` draws the adapters. Leaving the block without an exception merges them into the weights.
    """
    from peft import LoraConfig, get_peft_model

    # The adapters are injected into the model itself; the wrapper is needed to merge them.
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapper = get_peft_model(reasoner.model, config)
    hooks = _train_rows(reasoner)
    try:
        yield
        wrapper.merge_and_unload()
    finally:
        for hook in hooks:
            hook.remove()
        reasoner.model.requires_grad_(True)


def _train_rows(reasoner: Reasoner) -> list[torch.utils.hooks.RemovableHandle]:
    """Let the vocabulary's rows train, with gradients of the semantic IDs' alone."""
    hooks = []
    for weight in vocabulary_rows(reasoner.model):
        keep = torch.zeros(len(weight), 1, device=weight.device)
        keep[torch.from_numpy(reasoner.new_tokens)] = 1.0
        weight.requires_grad_(True)

        def mask(gradient: Tensor, keep: Tensor = keep) -> Tensor:
            return gradient * keep.to(gradient)

        hooks.append(weight.register_hook(mask))  # type: ignore[no-untyped-call]
    return hooks
