"""Depth pruning: a student of fewer blocks that learns from the deeper one what its path likelihoods were."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gr2.models.slate import Slates
from gr2.models.student import Student, attention_mask

__all__ = ["path_divergence", "prune"]


def prune(student: Student, layers: int) -> Student:
    """The student with `layers` of its blocks, evenly spaced and the last among them, and all of its other weights.

    Raises ValueError if it has fewer.
    """
    held = len(student.blocks)
    if not 1 <= layers <= held:
        raise ValueError(f"layers must be from 1 to the student's {held}, got {layers}")
    kept = [held - 1 - (layers - 1 - place) * held // layers for place in range(layers)]
    shallow = Student(replace(student.config, layers=layers))
    own = student.state_dict()
    others = {name: value for name, value in own.items() if not name.startswith("blocks.")}
    blocks = {
        f"blocks.{place}.{name}": value
        for place, block in enumerate(kept)
        for name, value in student.blocks[block].state_dict().items()
    }
    shallow.load_state_dict(others | blocks)
    return shallow


def path_divergence(teacher: Student, student: Student, slates: Slates) -> Tensor:
    """(B,) KL(teacher || student) of the codes along the path of each slate's target, summed over the levels.

    The teacher must be in evaluation mode, and gets no gradient.
    """
    with torch.no_grad():
        wanted = _target_logits(teacher, slates).log_softmax(-1)
    found = _target_logits(student, slates).log_softmax(-1)
    return F.kl_div(found, wanted, log_target=True, reduction="none").sum((1, 2))


def _target_logits(student: Student, slates: Slates) -> Tensor:
    """(B, L, V): the logits at the nodes of each target's path."""
    history, lengths = torch.from_numpy(slates.history), torch.from_numpy(slates.lengths)
    nodes = [torch.from_numpy(codes) for codes in slates.tries.nodes]
    tree = torch.from_numpy(slates.tries.mask)
    mask = attention_mask(lengths, history.shape[1], tree, tokens=student.config.tokens)
    logits: Tensor = student(history, nodes, mask)
    rows = torch.arange(len(lengths))
    path = torch.from_numpy(slates.tries.path)[rows, torch.from_numpy(slates.label)]
    return logits[rows[:, None], path]
