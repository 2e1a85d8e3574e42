"""The student's weights as the file that the serving core maps: `csrc/core/student.h` defines its header.

After it come arrays of float32: the tables of codes, positions, begin token, root and nodes; of each block the norm and
weight and bias of query, of key and value, and of the attention's output, the second norm and both layers after it; the
last norm and the logits' weights; the prior's; the head's. Constant sums and factors are folded in, as in the graphs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gr2.artifact import write_atomic
from gr2.export.layers import attention_weights
from gr2.models.student import Block, Student

__all__ = ["write_weights"]

MAGIC, VERSION, ALIGNMENT = b"GR2STUDE", 1, 64
HEADER = struct.Struct("<8s9IfQ")


def write_weights(path: Path, student: Student) -> None:
    """Write the weights, atomically; equal students give equal bytes."""
    config = student.config
    header = HEADER.pack(
        MAGIC,
        VERSION,
        config.levels,
        config.level_size,
        config.dim,
        config.layers,
        config.heads,
        config.max_history,
        config.features,
        config.prior_hidden,
        student.norm.eps,
        config.items,
    )
    parts, size = [header], len(header)
    with torch.no_grad():
        for tensor in _arrays(student):
            gap = -size % ALIGNMENT
            data = tensor.detach().contiguous().numpy().astype("<f4").tobytes()
            parts += [bytes(gap), data]
            size += gap + len(data)
    write_atomic(path, b"".join(parts))


def _arrays(student: Student) -> Sequence[Tensor]:
    config, head, prior = student.config, student.head, student.prior
    first, second = student.weights.tolist()
    size = config.level_size
    nodes = [
        student.node.weight[at * size : (at + 1) * size] + student.depth[at + 1] for at in range(config.levels - 1)
    ]
    arrays = [student.item.table.weight, student.position, student.begin, student.root + student.depth[0]]
    arrays.append(torch.cat(nodes) if nodes else torch.empty(0, config.dim))
    for block in student.blocks:
        assert isinstance(block, Block)
        arrays += _block(block)
    arrays += [*_norm(student.norm), *student.logits]
    arrays += [first * prior.linear.weight, prior.up.weight, prior.up.bias, first * prior.down.weight]
    arrays += [head.codes.table.weight, head.memory.weight, head.recency.exp(), head.begin, *_norm(head.norm_pool)]
    arrays += [*_dense(head.up), *_dense(head.down)]
    scale, bias = _norm(head.norm_query)
    return [*arrays, second * scale, second * (bias + head.bias.weight[0])]


def _block(block: Block) -> Sequence[Tensor]:
    query, key, value = attention_weights(block)
    pair = [torch.cat(each) for each in zip(key, value, strict=True)]
    return [
        *_norm(block.norm_attention),
        *query,
        *pair,
        *_dense(block.out),
        *_norm(block.norm_mlp),
        *_dense(block.up),
        *_dense(block.down),
    ]


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias


def _dense(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias
