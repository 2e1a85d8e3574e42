"""How likely a reasoner finds items to come next, by what mid-training taught it: sequences of semantic IDs alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.models.answer_decoding import evaluating
from gr2.models.reasoner import Reasoner

__all__ = ["item_likelihoods"]

Codes = Sequence[tuple[int, ...]]


@torch.no_grad()
def item_likelihoods(
    reasoner: Reasoner, histories: Sequence[Codes], candidates: Sequence[Codes], *, batch: int = 512
) -> list[NDArray[np.float32]]:
    """For each history, (K,) float32 the log-likelihood of each candidate's codes after the history's items.

    sum_l log p(c_l | items, <|sid_begin|>, c_1 .. c_{l-1}), over the whole vocabulary. `batch` sequences are read at
    once.
    """
    rows = [(number, place) for number, each in enumerate(candidates) for place in range(len(each))]
    sequences = [_sequence(reasoner, histories[number], candidates[number][place]) for number, place in rows]
    order = sorted(range(len(rows)), key=lambda row: (-len(sequences[row]), row))
    found = [np.zeros(len(each), dtype=np.float32) for each in candidates]
    with evaluating(reasoner.model):
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            scores = _score(reasoner, [sequences[row] for row in chosen])
            for row, score in zip(chosen, scores, strict=True):
                number, place = rows[row]
                found[number][place] = score
    return found


def _sequence(reasoner: Reasoner, history: Codes, candidate: tuple[int, ...]) -> NDArray[np.int64]:
    """The tokens of the history and of the candidate up to its last code."""
    return reasoner.item_tokens(np.array([*history, candidate], dtype=np.int64)).reshape(-1)[:-1]


def _score(reasoner: Reasoner, sequences: Sequence[NDArray[np.int64]]) -> list[float]:
    """The log-likelihood of the last codes of each sequence."""
    model, levels = reasoner.model, reasoner.sids.levels
    width = max(map(len, sequences))
    # On the left, so that all codes are in the last columns.
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.from_numpy(sequence)
        mask[row, width - len(sequence) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=levels + 1
    ).logits
    log_probs = logits[:, :-1].float().log_softmax(-1)
    scores: list[float] = log_probs.gather(-1, ids[:, -levels:, None]).sum((1, 2)).tolist()
    return scores
