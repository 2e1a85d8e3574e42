"""Whether a beam search is one, whoever made it: every level of every row against float64.

Two right searches may differ: scores that are nearer than rounding change places, and as logits come by rank, what
follows is then of other logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gr2.kernels.device_catalog import DeviceCatalog

__all__ = ["Beams", "worst_error"]

# Of one level: parents' ranks, nodes of the next depth and scores, each (B, M).
Beams = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def worst_error(catalog: DeviceCatalog, logits: Sequence[torch.Tensor], levels: Sequence[Beams]) -> float:
    """The largest difference of a score from float64's, given the beams before.

    The i-th score is compared with the i-th best of all children, and with that of the child that the beam says it is.
    Asserts that no beam is there twice and that every one is a child of its parent.
    """
    worst = 0.0
    batch = len(logits[0])
    nodes = torch.zeros((batch, 1), dtype=torch.int64, device=catalog.device)
    scores = torch.zeros((batch, 1), dtype=torch.float64, device=catalog.device)
    for level, (parents, found, claimed) in enumerate(levels):
        offsets = catalog.offsets[level].long()
        begin = offsets[nodes.clamp(min=0)]
        degree = (offsets[nodes.clamp(min=0) + 1] - begin).where(nodes >= 0, 0)
        places = torch.arange(catalog.widest[level], device=catalog.device)
        edges = (begin.unsqueeze(-1) + places).clamp(max=len(catalog.codes[level]) - 1)
        likely = torch.log_softmax(logits[level].double(), dim=-1).gather(2, catalog.codes[level][edges].long())
        likely = (likely + scores.unsqueeze(-1)).masked_fill(places >= degree.unsqueeze(-1), -torch.inf).flatten(1)
        best = likely.topk(claimed.shape[1], dim=1).values
        nodes, scores, parents = found.long(), claimed.double(), parents.long()
        live = nodes >= 0
        position = nodes - begin.gather(1, parents)
        assert bool(((position >= 0) & (position < degree.gather(1, parents)) | ~live).all()), "not a child"
        ordered = nodes.sort(dim=1).values
        assert not bool(((ordered.diff(dim=1) == 0) & (ordered[:, 1:] >= 0)).any()), "a beam twice"
        own = likely.gather(1, (parents * len(places) + position).where(live, 0))
        assert bool(((scores == best) | (best > -torch.inf)).all()), "a beam of nothing"
        worst = max(worst, float((scores - best).where(live, 0.0).abs().max()))
        worst = max(worst, float((scores - own).where(live, 0.0).abs().max()))
    return worst
