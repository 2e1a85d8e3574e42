"""The next-token loss of any causal language model, over the tokens that are learnt alone."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from gr2.models.linear_cross_entropy import linear_cross_entropy

__all__ = ["CausalLoss", "has_plain_head", "keeps_rows_apart"]

# Above this the softmax of a chunk no longer stays in the cache, and a GPU needs none of it.
FUSED_VOCABULARY = 32_768
# Of the largest logit: far above what rounding makes of it in float32, far below what a row's neighbour would.
APART = 1e-4


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


@torch.no_grad()
def keeps_rows_apart(model: PreTrainedModel) -> bool:
    """True if rows that lie side by side are read as if each lay alone, told apart by their positions only.

    Not every architecture looks at positions for that, nor does every kernel of attention.
    """
    device = model.device
    packed, positions = torch.arange(16, device=device).view(2, 8), torch.arange(4, device=device).repeat(2, 2)
    training = model.training
    model.train(False)
    alone = model(input_ids=packed.view(4, 4), use_cache=False).logits.float()
    try:
        beside = model(input_ids=packed, position_ids=positions, use_cache=False).logits.float()
    except TypeError:  # it knows no positions
        return False
    finally:
        model.train(training)
    return bool((alone.view_as(beside) - beside).abs().max() <= APART * alone.abs().max())


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

    def forward(self, ids: Tensor, learnt: Tensor, positions: Tensor | None = None) -> Tensor:
        """The mean loss of the tokens of `ids` (B, T) int64 that are `learnt` (B, T) bool: at least one.

        With `positions` (B, T) int64 a sequence holds several rows, each of which begins at 0 and of which the first
        token is not learnt. Padding at the end needs no mask: nothing that is learnt attends to it.
        """
        wanted = learnt[:, 1:]
        read = {"input_ids": ids, "use_cache": False} | ({} if positions is None else {"position_ids": positions})
        target = ids[:, 1:][wanted]
        with self._precision(ids.device.type):
            if not self.fused:
                logits = self.model(**read).logits[:, :-1][wanted]
                return F.cross_entropy(logits.float(), target)
            hidden = self.model.base_model(**read).last_hidden_state
        rows = hidden[:, :-1][wanted].float()
        dtype = torch.bfloat16 if self.low_precision else torch.float32
        return linear_cross_entropy(rows, self.model.get_output_embeddings().weight, target, dtype=dtype)  # type: ignore[no-untyped-call]

    def _precision(self, device: str) -> AbstractContextManager[None]:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.low_precision)
