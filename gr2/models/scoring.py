"""The student's scores of batches of slates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.models.slate import Slates
from gr2.models.student import Student, attention_mask

__all__ = ["Parts", "path_likelihood", "score_parts", "slate_scores"]


@dataclass(frozen=True)
class Parts:
    """What a score is made of, each (B, K) float32: path + weights[0] * prior + weights[1] * head."""

    path: NDArray[np.float32]
    prior: NDArray[np.float32]
    head: NDArray[np.float32]


def path_likelihood(student: Student, slates: Slates) -> Tensor:
    """(B, K) log p(path) of every candidate's codes; padding has one, too."""
    history, lengths = torch.from_numpy(slates.history), torch.from_numpy(slates.lengths)
    nodes = [torch.from_numpy(codes) for codes in slates.tries.nodes]
    tree = torch.from_numpy(slates.tries.mask)
    mask = attention_mask(lengths, history.shape[1], tree, tokens=student.config.tokens)
    logits: Tensor = student(history, nodes, mask)
    codes, path = torch.from_numpy(slates.codes), torch.from_numpy(slates.tries.path)
    size = logits.shape[-1]
    chosen = logits.flatten(1).gather(1, (path * size + codes).flatten(1)).view(path.shape)
    normaliser = logits.logsumexp(-1).gather(1, path.flatten(1)).view(path.shape)
    return (chosen - normaliser).sum(-1)


def score_parts(student: Student, slates: Slates) -> Parts:
    """The three parts of every candidate's score; the student must be in evaluation mode."""
    with torch.inference_mode():
        past, history = torch.from_numpy(slates.past), torch.from_numpy(slates.history)
        query = student.head.query(past, history, torch.from_numpy(slates.lengths))
        head = student.head(query, torch.from_numpy(slates.items), torch.from_numpy(slates.codes))
        prior = student.prior(torch.from_numpy(slates.features))
        return Parts(path_likelihood(student, slates).numpy(), prior.numpy(), head.numpy())


def slate_scores(student: Student, slates: Slates) -> NDArray[np.float32]:
    """(B, K) float32 scores, -inf in the padding; the student must be in evaluation mode."""
    parts = score_parts(student, slates)
    first, second = student.weights.tolist()
    scores = parts.path + np.float32(first) * parts.prior + np.float32(second) * parts.head
    return np.where(slates.valid, scores, np.float32(-np.inf))
