"""Constrained decoding over semantic IDs: the C++ core. `gr2.decoding.reference` says what it must compute."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

try:
    from gr2._core import (
        CandidateDecoder,
        CandidateTrie,
        CatalogTrie,
        Codebook,
        CodebookBuilder,
        CoreStudent,
        ItemFilter,
        ItemMemory,
        PrefixCache,
        Retriever,
        simd_level,
        simd_levels,
        use_simd_level,
    )
except ImportError as error:
    raise ImportError(
        f"gr2's C++ core cannot be loaded ({error}). Install the package with `pip install .`, which needs a C++20 "
        "compiler (on Debian or Ubuntu: apt install g++); in a checkout run `make dev`."
    ) from error

__all__ = [
    "CandidateDecoder",
    "CandidateTrie",
    "CatalogTrie",
    "Codebook",
    "CodebookBuilder",
    "CoreStudent",
    "ItemFilter",
    "ItemMemory",
    "PrefixCache",
    "Retriever",
    "simd_level",
    "simd_levels",
    "use_simd_level",
    "write_codebook",
]


def write_codebook(
    path: str | os.PathLike[str],
    item_ids: NDArray[np.int64] | Sequence[str],
    codes: NDArray[np.uint16],
    level_size: int,
) -> None:
    """Write the codebook file of items that fit in memory, by `CodebookBuilder`, whose errors it raises.

    `codes` is (n, L); `item_ids` is an int64 array, or a sequence of str for a codebook of strings.
    """
    shape = np.shape(codes)
    builder = CodebookBuilder(
        path,
        levels=shape[1] if len(shape) == 2 else 1,
        level_size=level_size,
        id_type="int64" if isinstance(item_ids, np.ndarray) else "string",
    )
    builder.add(item_ids, codes)
    builder.finish()
