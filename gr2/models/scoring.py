"""The student's scores and losses on batches of slates."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gr2.models.slate import Slates
from gr2.models.student import Student, attention_mask

__all__ = ["path_and_prior", "slate_losses", "slate_scores"]


def path_and_prior(student: Student, slates: Slates) -> tuple[Tensor, Tensor]:
    """(B, K) log p(path) and (B, K) prior of every candidate; their sum is its score. Padding has scores, too."""
    history, lengths = torch.from_numpy(slates.history), torch.from_numpy(slates.lengths)
    nodes = [torch.from_numpy(codes) for codes in slates.tries.nodes]
    mask = attention_mask(lengths, history.shape[1], torch.from_numpy(slates.tries.mask))
    states = student.states(history, nodes, mask)
    logits = student.project(states, [codes.shape[1] for codes in nodes])
    codes, path = torch.from_numpy(slates.codes), torch.from_numpy(slates.tries.path)
    size = logits.shape[-1]
    chosen = logits.flatten(1).gather(1, (path * size + codes).flatten(1)).view(path.shape)
    normaliser = logits.logsumexp(-1).gather(1, path.flatten(1)).view(path.shape)
    features = torch.from_numpy(slates.features)
    return (chosen - normaliser).sum(-1), student.bonus(features, codes, history, lengths, states)


def slate_losses(student: Student, slates: Slates) -> tuple[Tensor, Tensor]:
    """The listwise loss, a mean over the rows whose list holds the target (0 without any), and the generative loss, a
    mean over all rows.
    """
    paths, prior = path_and_prior(student, slates)
    label, listed = torch.from_numpy(slates.label)[:, None], torch.from_numpy(slates.listed)
    generative = -paths.gather(1, label).mean()
    if not slates.listed.any():
        return generative.new_zeros(()), generative
    scores = (paths + prior).masked_fill(~torch.from_numpy(slates.valid), -torch.inf)
    return F.cross_entropy(scores[listed], label[listed, 0]), generative


def slate_scores(student: Student, slates: Slates) -> NDArray[np.float32]:
    """(B, K) float32 scores, -inf in the padding; the student must be in evaluation mode."""
    with torch.inference_mode():
        paths, prior = path_and_prior(student, slates)
    scores: NDArray[np.float32] = (paths + prior).numpy()
    return np.where(slates.valid, scores, np.float32(-np.inf))
