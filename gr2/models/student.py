"""The student: a small transformer over semantic IDs that scores a slate in one pass over the candidates' trie.

The sequence is a begin token, the history (one token an item, or one a code) and the trie's inner nodes in
breadth-first order. History tokens are causal; a node sees the whole history, its ancestors and itself. The node at
depth d predicts level d's code, so

    score(c) = sum_d log softmax(logits[node_d(c)])[code_d(c)] + prior(c)

where node_d(c) is the prefix of length d of candidate c's codes: one pass gives what K separate passes would. The prior
is a weighted sum of two parts: a function of the candidate's features and evidence, and a head that compares the
candidate with the pooled history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gr2.config import refuse_below
from gr2.features import SCORE_FEATURES
from gr2.manifest import MODEL_LIMITS

__all__ = ["MASKED", "Encoding", "Student", "StudentConfig", "attention_mask"]

# A token of the history is an item, the sum of its codes' vectors, or a code.
Encoding = Literal["item", "code"]
MASKED = -1e9  # finite: a row of padding must not turn into NaN
# Tokens of a history: attention takes their square in memory, and no bundle may have more.
LONGEST = MODEL_LIMITS["max_history"]
# The head's own: it overfits sooner than the transformer.
POOL_DROPOUT, QUERY_DROPOUT = 0.3, 0.5


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the student: `items` of the catalogue, `features` columns a candidate (evidence included)."""

    items: int
    features: int
    levels: int = 4
    level_size: int = 256
    dim: int = 64
    layers: int = 1
    heads: int = 2
    max_history: int = 50
    prior_hidden: int = 32
    dropout: float = 0.2
    encoding: Encoding = "item"

    @property
    def tokens(self) -> int:
        """Tokens of the history that an item has."""
        return self.levels if self.encoding == "code" else 1

    def __post_init__(self) -> None:
        refuse_below(
            self,
            1,
            "items",
            "levels",
            "level_size",
            "dim",
            "layers",
            "heads",
            "max_history",
            "features",
            "prior_hidden",
        )
        if self.max_history * self.tokens > LONGEST:
            most = LONGEST // self.tokens
            raise ValueError(
                f"max_history must be at most {most} with one token a {self.encoding}, got {self.max_history}"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got {self.dim} and {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def attention_mask(lengths: Tensor, width: int, tree: Tensor, *, tokens: int = 1) -> Tensor:
    """(B, S, S) additive mask over begin token, `width` history items of `tokens` each and n nodes;
    S = 1 + width * tokens + n.

    `lengths` (B,) int64 are the histories' lengths, right-aligned; `tree` (B, n, n) is 0 where a node sees a node and
    MASKED elsewhere.
    """
    lengths, width = lengths * tokens, width * tokens
    batch, nodes = tree.shape[0], tree.shape[1]
    context = 1 + width
    column = torch.arange(context)
    present = _present(lengths, width)
    causal = column[None, :] <= column[:, None]
    seen = present[:, None, :] & causal
    mask = tree.new_full((batch, context + nodes, context + nodes), MASKED)
    mask[:, :context, :context] = torch.where(seen, 0.0, MASKED)
    mask[:, context:, :context] = torch.where(present, 0.0, MASKED)[:, None, :]
    mask[:, context:, context:] = tree
    return mask


def _present(lengths: Tensor, width: int) -> Tensor:
    """(B, 1 + width) bool: the begin token and the columns of right-aligned histories that hold an item."""
    column = torch.arange(1 + width)
    return (column == 0) | (column > width - lengths[:, None])


class CodeSum(nn.Module):
    """An item's vector: the sum of its codes' vectors, of one table a level."""

    offsets: Tensor

    def __init__(self, levels: int, level_size: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(levels * level_size, dim)
        self.register_buffer("offsets", torch.arange(levels) * level_size, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """(..., d) of codes (..., L) int64."""
        return self.each(codes).sum(-2)

    def each(self, codes: Tensor) -> Tensor:
        """(..., L, d): the codes' own vectors."""
        vectors: Tensor = self.table(codes + self.offsets)
        return vectors


class Block(nn.Module):
    """A pre-norm transformer block whose queries may be restricted to the last rows."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor, start: Tensor | int = 0) -> Tensor:
        """(B, S - start, d): rows `start`.. of the block's output for x (B, S, d); mask (B, 1, S - start, S)."""
        batch, dim = x.shape[0], x.shape[2]
        normed = self.norm_attention(x)
        rows, x = normed[:, start:], x[:, start:]
        query = self.query(rows).view(batch, -1, self.heads, dim // self.heads).transpose(1, 2)
        pair = self.key_value(normed).view(batch, -1, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = query @ pair[0].transpose(-1, -2) * (dim // self.heads) ** -0.5 + mask
        mixed = (weights.softmax(-1) @ pair[1]).transpose(1, 2).reshape(batch, -1, dim)
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        hidden = F.gelu(self.up(self.norm_mlp(x)))
        return x + F.dropout(self.down(hidden), self.dropout, self.training)


class Head(nn.Module):
    """Compares a candidate with the pooled history: q . e(c) + bias . e(c).

    e(i) is the sum of item i's code vectors and a vector of its own; with the history h_1..h_T,
    p = norm(begin + sum_t exp(recency_{T-t}) * e(h_t)) and q = norm(p + mlp(p)).
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        dim = config.dim
        self.codes, self.memory = CodeSum(config.levels, config.level_size, dim), nn.Embedding(config.items, dim)
        # Row -1 is the most recent item's, as in `Student.position`.
        age = torch.arange(config.max_history - 1, -1, -1)
        self.recency = nn.Parameter((-0.2 * age).clamp(min=-4)[:, None].repeat(1, dim))
        self.begin = nn.Parameter(torch.zeros(1, dim))
        self.norm_pool, self.norm_query = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.up, self.down, self.bias = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), nn.Linear(dim, 1, bias=False)
        for weight in (self.codes.table.weight, self.memory.weight, self.up.weight, self.down.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.bias.weight)

    def item(self, items: Tensor, codes: Tensor) -> Tensor:
        """(..., d) of items (...) int64 and their codes (..., L)."""
        vectors: Tensor = self.codes(codes) + self.memory(items)
        return vectors

    def query(self, items: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
        """(B, d) of histories (B, T), (B, T, L), right-aligned, of which the last `lengths` (B,) count."""
        width = items.shape[1]
        present = torch.arange(width) >= width - lengths[:, None]
        weighted = self.item(items, codes) * self.recency[len(self.recency) - width :].exp() * present[..., None]
        pooled = F.dropout(self.norm_pool(weighted.sum(1) + self.begin), POOL_DROPOUT, self.training)
        hidden = F.dropout(self.down(F.gelu(self.up(pooled))), QUERY_DROPOUT, self.training)
        query: Tensor = self.norm_query(pooled + hidden)
        return query

    def forward(self, query: Tensor, items: Tensor, codes: Tensor) -> Tensor:
        """(B, K) of query (B, d) and candidates (B, K), (B, K, L)."""
        vectors = self.item(items, codes)
        return (vectors @ (query[:, :, None] + self.bias.weight.T)).squeeze(-1)


class Prior(nn.Module):
    """The part of the score that comes from a candidate's features: a linear term and a small correction of it.

    At first it is exactly -log2(1 + rank), so an untrained student keeps the incoming order.
    """

    def __init__(self, features: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(features, 1, bias=False)
        self.up, self.down = nn.Linear(features, hidden), nn.Linear(hidden, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[0, SCORE_FEATURES.index("log_rank")] = -1.0
            self.down.weight.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """(...,) float32 from features (..., F)."""
        hidden = F.dropout(F.gelu(self.up(features)), self.dropout, self.training)
        out: Tensor = (self.linear(features) + self.down(hidden)).squeeze(-1)
        return out


class Student(nn.Module):
    """The model. All shapes carry a batch axis B; the exported graph drops it.

    `weights` (2,) are those of prior and head, in units of the path log-likelihood.
    """

    weights: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        dim, levels, size = config.dim, config.levels, config.level_size
        self.item = CodeSum(levels, size, dim)
        # Row -1 is the most recent item's, so that the last T rows belong to a history of length T.
        self.position = nn.Parameter(torch.empty(config.max_history, dim))
        self.begin, self.root = nn.Parameter(torch.empty(1, dim)), nn.Parameter(torch.empty(1, dim))
        self.node, self.depth = nn.Embedding((levels - 1) * size + 1, dim), nn.Parameter(torch.empty(levels, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.logits = nn.Parameter(torch.zeros(levels, size, dim))
        self.prior = Prior(config.features, config.prior_hidden)
        self.head = Head(config)
        self.register_buffer("weights", torch.tensor([1.0, 0.0]))
        for module in (self.item, self.node, self.blocks):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.02)
        for extra in (self.position, self.begin, self.root, self.depth):
            nn.init.normal_(extra, std=0.02)

    def embed(self, history: Tensor, nodes: Sequence[Tensor]) -> Tensor:
        """(B, 1 + C + n, d) input vectors of history (B, T, L), which has C = T * tokens of its own, and nodes, the
        (B, n_d) codes at depths 1..L-1.
        """
        batch, width = history.shape[0], history.shape[1]
        position = self.position[self.config.max_history - width :]
        if self.config.encoding == "code":
            past = (self.item.each(history) + position[:, None]).flatten(1, 2)
        else:
            past = self.item(history) + position
        parts = [self.begin.expand(batch, 1, -1), past, (self.root + self.depth[0]).expand(batch, 1, -1)]
        for depth, codes in enumerate(nodes, 1):
            parts.append(self.node(codes + (depth - 1) * self.config.level_size) + self.depth[depth])
        return F.dropout(torch.cat(parts, 1), self.config.dropout, self.training)

    def forward(self, history: Tensor, nodes: Sequence[Tensor], mask: Tensor) -> Tensor:
        """(B, n, V) logits, one row a node: the scores of the next level's codes.

        history (B, T, L) int64, right-aligned; nodes: L-1 tensors (B, n_d) int64; mask (B, S, S) from `attention_mask`.
        """
        return self.project(self.states(history, nodes, mask), [codes.shape[1] for codes in nodes])

    def states(self, history: Tensor, nodes: Sequence[Tensor], mask: Tensor) -> Tensor:
        """(B, n, d) the nodes' last hidden states; the last block computes no others."""
        x = self.embed(history, nodes)
        start = 1 + history.shape[1] * self.config.tokens
        mask = mask[:, None]
        for block in self.blocks[:-1]:
            x = block(x, mask)
        out: Tensor = self.norm(self.blocks[-1](x, mask[:, :, start:], start))
        return out

    def project(self, states: Tensor, counts: Sequence[int]) -> Tensor:
        """(B, n, V) logits of states (B, n, d) with one root and then `counts` nodes at depths 1..L-1."""
        rows = torch.split(states, [1, *counts], 1)
        return torch.cat([part @ self.logits[depth].T for depth, part in enumerate(rows)], 1)
