"""What the kernels are compared with: STATIC's retrieval in PyTorch, and generation as PyTorch operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.kernels.valid import Beams
from gr2.decoding import CatalogTrie

__all__ = ["CsrIndex", "csr_search", "generate_by_operations"]


@dataclass(frozen=True)
class CsrIndex:
    """Dense tables for the first two codes, CSR rows below, as arXiv 2602.22647 has them.

    Children are consecutive, so that a child's place is its state: one gather less than the published index needs.
    """

    never_first: torch.Tensor  # (V,) bool: not a child of the root
    never_second: torch.Tensor  # (V, V) bool: not a prefix of two codes
    states: torch.Tensor  # (V, V) int32
    rows: list[torch.Tensor]  # of each level from the third: (n + 1,) int32
    codes: list[torch.Tensor]  # (e + widest,) int32
    widest: list[int]  # the most children of a node

    @classmethod
    def build(cls, trie: CatalogTrie, device: torch.device) -> CsrIndex:
        """From the trie's levels."""
        size = trie.level_size
        first = trie.level(0)[1].astype(np.int64)
        offsets, second = trie.level(1)
        above = first.repeat(np.diff(offsets))
        never_first, never_second = np.ones(size, np.bool_), np.ones((size, size), np.bool_)
        states = np.zeros((size, size), np.int32)
        never_first[first], never_second[above, second] = False, False
        states[above, second] = np.arange(len(second))
        rows, codes, widest = [], [], []
        for level in range(2, trie.levels):
            offsets, edges = trie.level(level)
            widest.append(int(np.diff(offsets).max()))
            rows.append(torch.from_numpy(offsets.astype(np.int32)).to(device))
            codes.append(torch.from_numpy(np.pad(edges.astype(np.int32), (0, widest[-1]))).to(device))
        tables = (torch.from_numpy(each).to(device) for each in (never_first, never_second, states))
        return cls(*tables, rows, codes, widest)


def csr_search(index: CsrIndex, logits: Sequence[torch.Tensor], beams: int) -> list[Beams]:
    """The beams of each level, the first's nodes being codes; `logits[d]` is (B, M, V), (B, 1, V) at first."""
    likely = torch.log_softmax(logits[0][:, 0], dim=-1).masked_fill(index.never_first, -torch.inf)
    scores, codes = torch.topk(likely, beams, dim=-1)
    state, found = codes, [(torch.zeros_like(codes), codes, scores)]
    for level in range(1, len(logits)):
        likely = torch.log_softmax(logits[level], dim=-1)
        if level == 1:
            likely = likely.masked_fill(index.never_second[codes], -torch.inf)
        else:
            rows = index.rows[level - 2]
            places = rows[state].unsqueeze(-1) + torch.arange(index.widest[level - 2], device=state.device)
            children = index.codes[level - 2][places].long()
            likely = likely.gather(2, children).masked_fill(places >= rows[state + 1].unsqueeze(-1), -torch.inf)
        width = likely.shape[-1]
        scores, chosen = torch.topk((likely + scores.unsqueeze(-1)).flatten(1), beams, dim=-1)
        parents = chosen // width
        if level == 1:
            state = index.states[codes.gather(1, parents), chosen % width].long()
        else:
            state = places.flatten(1).gather(1, chosen)
        found.append((parents, state, scores))
    return found


def generate_by_operations(
    nodes: torch.Tensor, codes: torch.Tensor, positions: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """The order (B, K) in which greedy generation emits candidates that are all known.

    `nodes` and `codes` (B, L, K) and `positions` (B, K) are CandidateTables', int64; `logits` is (B, K * L, V). A code
    a step, for all requests at once, forced or not.
    """
    requests, levels, size = nodes.shape
    alive = torch.ones((requests, size), dtype=torch.bool, device=logits.device)
    order: list[torch.Tensor] = []
    for _ in range(size):
        node, allowed = nodes[:, 0, :1], alive
        for level in range(levels):
            allowed = allowed & (nodes[:, level] == node)
            wish = logits[:, len(order) * levels + level].gather(1, codes[:, level]).masked_fill(~allowed, -torch.inf)
            # Of the best code the candidate that came first, which also settles ties between codes.
            best = wish == wish.amax(dim=1, keepdim=True)
            first = positions.masked_fill(~(allowed & best), size).argmin(dim=1, keepdim=True)
            allowed = allowed & (codes[:, level] == codes[:, level].gather(1, first))
            if level + 1 < levels:
                node = nodes[:, level + 1].gather(1, first)
        order.append(positions.gather(1, first))
        alive = alive.scatter(1, first, value=False)
    return torch.cat(order, dim=1)
