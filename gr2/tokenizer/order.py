"""An order of items that their IDs and their places in the catalogue cannot influence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gr2.catalog import ItemId

__all__ = ["content_order"]


def content_order(contents: Sequence[bytes], ids: Sequence[ItemId], seed: int) -> NDArray[np.int64]:
    """(N,) int64: the permutation that sorts items by a seeded hash of their content.

    Clustering and assignment break ties by place, so they work in this order. Only where two items have the same
    content does the (hashed) ID decide.
    """
    key = seed.to_bytes(8, "little", signed=True)

    def digest(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=16, key=key).digest()

    keys = [(digest(content), digest(repr(item).encode())) for content, item in zip(contents, ids, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
