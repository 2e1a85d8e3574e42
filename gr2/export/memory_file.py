"""The memory as the file that the serving core maps: `csrc/core/item_memory.h` defines it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import write_atomic
from gr2.models.evidence import DECAY
from gr2.models.memory import ItemMemory

__all__ = ["write_memory"]

MAGIC, VERSION, ALIGNMENT = b"GR2MEMOR", 1, 64
HEADER = struct.Struct("<8sIIQ3I2If")


def write_memory(path: Path, memory: ItemMemory, codes: NDArray[np.integer]) -> None:
    """Write the memory of items with codes (N, L), atomically; equal arguments give equal bytes."""
    near = (
        (memory.copurchase.neighbours, memory.copurchase.counts),
        (memory.following.items, memory.following.weights),
        (memory.titles.items, memory.titles.weights),
    )
    header = HEADER.pack(
        MAGIC,
        VERSION,
        codes.shape[1],
        len(codes),
        *(items.shape[1] for items, _ in near),
        memory.together.shape[1],
        memory.text.shape[1],
        DECAY,
    )
    arrays: list[NDArray[Any]] = [codes.astype("<u2"), memory.copurchase.popularity.astype("<f4")]
    for items, weights in near:
        arrays += [items.astype("<i4"), weights.astype("<f4")]
    arrays += [memory.together.astype("<f4"), memory.text.astype("<f4")]
    parts, size = [header], len(header)
    for array in arrays:
        gap = -size % ALIGNMENT
        parts += [bytes(gap), array.tobytes()]
        size += gap + array.nbytes
    write_atomic(path, b"".join(parts))
