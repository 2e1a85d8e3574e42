"""Retrieval from a million items: ours against the published STATIC approach in eager PyTorch, one thread each.

STATIC (arXiv 2602.22647) keeps the catalogue's trie as dense tables for the first levels and as CSR arrays below,
gathers every beam's children padded to the level's widest node, and ranks beam x children of the whole batch at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.decoding import CatalogTrie, Retriever

__all__ = ["retrieve"]

ITEMS, LEVELS, BEAMS = 1_000_000, 4, 10
LEVEL_SIZES, SHAPES, BATCHES = (256, 2048), ("uniform", "skewed"), (1, 32)
REQUESTS, ROUNDS, BUILD_ROUNDS, CHECKED = 8, 15, 5, 3


@dataclass(frozen=True)
class StaticIndex:
    """The published index: V x V tables for the first two codes, and (code, next state) pairs in CSR order below.

    A state is a prefix of at least one code: 1 + code at depth 1, numbers behind those in lexicographic order below.
    """

    start: torch.Tensor  # (V,) bool: the root's children
    mask: torch.Tensor  # (V, V) bool: the prefixes of two codes
    states: torch.Tensor  # (V, V) int32
    pairs: torch.Tensor  # (e + V, 2) int32, V rows of padding behind
    rows: torch.Tensor  # (states + 1,) int32
    widest: list[int]  # the most children of a node at each level

    @classmethod
    def build(cls, codes: NDArray[np.uint16], level_size: int) -> StaticIndex:
        """From the sorted codes (N, L) of the items."""
        levels = codes.shape[1]
        fresh = np.ones(codes.shape, dtype=bool)  # row i is the first with its prefix of d + 1 codes
        np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1, out=fresh[1:])
        state = codes[:, 0].astype(np.int32) + 1
        parents, tokens, children, bounds = [], [], [], [1, level_size + 1]
        for level in range(1, levels):
            chosen = fresh[:, level]
            parents.append(state[chosen])
            tokens.append(codes[chosen, level].astype(np.int32))
            if level < levels - 1:
                state = np.cumsum(chosen, dtype=np.int32) + np.int32(bounds[-1] - 1)
                children.append(state[chosen])
                bounds.append(bounds[-1] + len(tokens[-1]))
            else:
                children.append(np.zeros(len(tokens[-1]), np.int32))
            if level == 1:
                mask, states = cls._tables(codes[chosen], children[0], level_size)
        degrees = np.bincount(np.concatenate(parents), minlength=bounds[-1])
        rows = np.zeros(len(degrees) + 1, np.int32)
        np.cumsum(degrees, out=rows[1:])
        padding = np.zeros(level_size, np.int32)
        pairs = np.stack([np.concatenate([*tokens, padding]), np.concatenate([*children, padding])], axis=1)
        start = np.zeros(level_size, dtype=bool)
        start[codes[fresh[:, 0], 0]] = True
        widest = [int(start.sum()), *(int(degrees[low:high].max()) for low, high in itertools.pairwise(bounds))]
        return cls(*map(torch.from_numpy, (start, mask, states, pairs, rows)), widest)

    @staticmethod
    def _tables(
        prefixes: NDArray[np.uint16], children: NDArray[np.int32], level_size: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        mask = np.zeros((level_size, level_size), dtype=bool)
        states = np.zeros((level_size, level_size), np.int32)
        mask[prefixes[:, 0], prefixes[:, 1]] = True
        states[prefixes[:, 0], prefixes[:, 1]] = children
        return mask, states

    def byte_size(self) -> int:
        """Bytes of all its tensors."""
        tensors = (self.start, self.mask, self.states, self.pairs, self.rows)
        return sum(each.numel() * each.element_size() for each in tensors)


@torch.inference_mode()
def static_search(index: StaticIndex, logits: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The code rows (B, M, L) and scores (B, M) of a beam search over the index; `logits[d]` is (B, M, V)."""
    batch = len(logits[0])
    likely = torch.log_softmax(logits[0][:, 0], dim=-1).masked_fill_(~index.start, -torch.inf)
    scores, codes = torch.topk(likely, BEAMS, dim=-1)  # (B, M)
    rows = codes.unsqueeze(-1)
    for level in range(1, len(logits)):
        likely = torch.log_softmax(logits[level], dim=-1)
        if level == 1:
            likely.masked_fill_(~index.mask[codes], -torch.inf)
            likely, children = torch.topk(likely, BEAMS, dim=-1)
            following = index.states[codes.unsqueeze(-1), children]
        else:
            begin, end = index.rows[state], index.rows[state + 1]
            places = begin.unsqueeze(-1) + torch.arange(index.widest[level], dtype=torch.int32)
            pairs = index.pairs[places]
            children, following = pairs[..., 0].long(), pairs[..., 1]
            likely = likely.gather(2, children).masked_fill_(places >= end.unsqueeze(-1), -torch.inf)
        width = likely.shape[-1]
        scores, chosen = torch.topk(likely.add_(scores.unsqueeze(-1)).view(batch, -1), BEAMS, dim=-1)
        parents, codes = chosen // width, children.view(batch, -1).gather(1, chosen)
        state = following.view(batch, -1).gather(1, chosen)
        rows = torch.cat([rows.gather(1, parents.unsqueeze(-1).expand(-1, -1, level)), codes.unsqueeze(-1)], dim=-1)
    return rows, scores


def our_search(
    retriever: Retriever, trie: CatalogTrie, logits: list[NDArray[np.float32]]
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """The same by Retriever."""
    retriever.start(trie, len(logits[0]))
    for values in logits:
        _, _, scores = retriever.step(values)
    return retriever.paths(), scores
