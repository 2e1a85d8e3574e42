"""The next-token loss of any causal language model, over the tokens that are learnt alone."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from gr2.models.linear_cross_entropy import linear_cross_entropy

__all__ = ["CausalLoss", "has_plain_head"]

# Above this the softmax of a chunk no longer stays in the cache, and a GPU needs none of it.
FUSED_VOCABULARY = 32_768


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """True if the logits are the last hidden states times the output rows: no bias, no scale, no soft cap."""
    head, body = model.get_output_embeddings(), model.base_model  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear) or body is model:
        return False
    ids = torch.arange(4, device=head.weight.device)[None]
    training = model.training
    model.train(False)
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    return bool(torch.allclose(hidden @ head.weight.T, logits, rtol=1e-2, atol=1e-3))


class CausalLoss(nn.Module):
    """A model whose forward pass is its loss, so that wrappers for several devices see one call.

    With `bfloat16` matrix products are computed in it, weights and losses stay as they are.
    """

    def __init__(self, model: PreTrainedModel, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.model, self.low_precision = model, bfloat16
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        on_processor = head.weight.device.type == "cpu"
        self.fused = on_processor and len(head.weight) <= FUSED_VOCABULARY and has_plain_head(model)

    def forward(self, ids: Tensor, learnt: Tensor) -> Tensor:
        """The mean loss of the tokens of `ids` (B, T) int64 that are `learnt` (B, T) bool: at least one.

        Padding at the end needs no mask: nothing that is learnt attends to it.
        """
        wanted = learnt[:, 1:]
        target = ids[:, 1:][wanted]
        with self._precision(ids.device.type):
            if not self.fused:
                logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1][wanted]
                return F.cross_entropy(logits.float(), target)
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        rows = hidden[:, :-1][wanted].float()
        dtype = torch.bfloat16 if self.low_precision else torch.float32
        return linear_cross_entropy(rows, self.model.get_output_embeddings().weight, target, dtype=dtype)  # type: ignore[no-untyped-call]

    def _precision(self, device: str) -> AbstractContextManager[None]:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.low_precision)
