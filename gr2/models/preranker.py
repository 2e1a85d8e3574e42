"""The pre-ranker: SASRec (Kang and McAuley, 2018) with full cross-entropy over the catalogue."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from gr2.models.linear_cross_entropy import linear_cross_entropy

__all__ = ["PreRanker"]

INITIAL_STD = 0.02


class PreRanker(nn.Module):
    """A causal transformer over item indices; its output at a position scores every item as the next event.

    Item embeddings are shared between input and output. Positions are counted from the oldest event of the window, so
    that appending an event changes no earlier output and one pass trains every position of a sequence.
    """

    def __init__(
        self, items: int, *, dim: int = 64, layers: int = 2, heads: int = 2, dropout: float = 0.5, max_history: int = 50
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {dim} and heads {heads}")
        self.max_history = max_history
        self.item = nn.Embedding(items, dim)
        self.position = nn.Embedding(max_history, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, items: Tensor) -> Tensor:
        """(B, T, D) float32: the query after each event.

        `items` (B, T) int64, oldest first, T <= max_history. Rows shorter than T are padded at the end with any valid
        index: attention is causal, so padding changes nothing before it.
        """
        length = items.shape[1]
        if length > self.max_history:
            raise ValueError(f"at most {self.max_history} events expected, got {length}")
        x = self.dropout(self.input_norm(self.item(items) + self.position.weight[:length]))
        hidden = torch.ones(length, length, dtype=torch.bool, device=items.device).triu(1)
        for block in self.blocks:
            x = block(x, hidden)
        return torch.as_tensor(x)

    def loss(self, sequences: Tensor, lengths: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, int]:
        """The mean cross-entropy of every event but the first given those before it, and the number of such events.

        `sequences` (B, T + 1) int64, padded at the end with any valid index; `lengths` (B,) int64 events a row, >= 2.
        """
        queries = self(sequences[:, :-1])
        real = torch.arange(1, sequences.shape[1], device=sequences.device) < lengths[:, None]
        target = sequences[:, 1:][real]
        return linear_cross_entropy(queries[real], self.item.weight, target, dtype=dtype), len(target)

    def last_query(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) float32: the query after the last event of each row of `items` (B, T); `lengths` (B,) int64, >= 1."""
        queries: Tensor = self(items)
        return queries[torch.arange(len(items), device=items.device), lengths - 1]


class _Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and a layer norm (post-norm)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.output_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, T, D) from (B, T, D); `hidden` (T, T) bool is True where a row may not see a column."""
        x = self.attention_norm(x + self.dropout(self._attend(x, hidden)))
        return torch.as_tensor(self.output_norm(x + self.dropout(self.down(functional.gelu(self.up(x))))))

    def _attend(self, x: Tensor, hidden: Tensor) -> Tensor:
        batch, length, dim = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: with dropout on a CPU, torch's fused attention falls back to the same products.
        affinity = (query @ key.transpose(-1, -2)) * (dim // self.heads) ** -0.5
        weights = self.dropout(affinity.masked_fill(hidden, -torch.inf).softmax(-1))
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, dim)
        return torch.as_tensor(self.out(mixed))
