"""How good a set of semantic IDs is: uniqueness, use of the codes, reconstruction, and what a shared prefix means."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.tokenizer.assign import Assignment

__all__ = ["category_agreement", "code_metrics", "overflow_prefixes", "uniqueness"]

LARGEST = 20


def code_metrics(
    assignment: Assignment, vectors: NDArray[np.float32], categories: list[list[str]], level_size: int
) -> dict[str, Any]:
    """The stage's metrics, JSON values; `vectors` (N, D) are the standardised inputs, rows aligned with the codes."""
    codes = assignment.codes
    total = float(np.square(vectors).sum(dtype=np.float64)) or 1.0
    levels = []
    for level in range(codes.shape[1]):
        shares = np.bincount(codes[:, level], minlength=level_size) / max(len(codes), 1)
        shares = shares[shares > 0]
        levels.append(
            {
                "codes_used": len(shares),
                "entropy_bits": float(-(shares * np.log2(shares)).sum()),
                "prefixes": len(np.unique(codes[:, : level + 1], axis=0)),
                "reconstruction_error": float(assignment.errors[:, level].sum(dtype=np.float64)) / total,
            }
        )
    return {
        **uniqueness(codes),
        "largest_prefix": _largest(codes[:, :-1]),
        "nearest_unique": uniqueness(assignment.nearest)["unique"],
        "reassigned": float((codes != assignment.nearest).any(axis=1).mean()),
        "overflow": assignment.overflow,
        "overflow_prefixes": overflow_prefixes(assignment),
        "levels": levels,
        "category_agreement": category_agreement(codes, categories),
    }


def overflow_prefixes(assignment: Assignment) -> list[dict[str, Any]]:
    """The prefixes that most items were moved from, at most 20, as JSON values: `codes` and how many `items`."""
    return [{"codes": codes, "items": items} for codes, items in assignment.overflow_prefixes()[:LARGEST]]


def uniqueness(codes: NDArray[np.uint16]) -> dict[str, Any]:
    """`unique`: distinct IDs / items; `collisions`: items - distinct IDs; `largest_group`: most items with one ID."""
    distinct = len(np.unique(codes, axis=0))
    return {
        "unique": distinct / max(len(codes), 1),
        "collisions": len(codes) - distinct,
        "largest_group": _largest(codes),
    }


def category_agreement(codes: NDArray[np.uint16], categories: list[list[str]]) -> dict[str, float] | None:
    """The share of item pairs with the same leaf category, among all pairs and among those that share a prefix.

    Keys: `all_pairs`, then `prefix_1` to `prefix_{L-1}` (those that any two items share). Items without a category are
    left out; None where fewer than two have one. A category is its whole path.
    """
    rows = [row for row, path in enumerate(categories) if path]
    if len(rows) < 2:
        return None
    names = {path: number for number, path in enumerate(sorted({tuple(categories[row]) for row in rows}))}
    leaves = np.array([names[tuple(categories[row])] for row in rows])[:, None]
    result = {"all_pairs": _pairs(leaves) / _pairs(np.zeros_like(leaves))}
    for length in range(1, codes.shape[1]):
        prefixes = codes[rows, :length].astype(np.int64)
        if pairs := _pairs(prefixes):
            result[f"prefix_{length}"] = _pairs(np.concatenate([prefixes, leaves], axis=1)) / pairs
    return result


def _pairs(rows: NDArray[np.int64]) -> int:
    """How many pairs of rows are equal."""
    counts = np.unique(rows, axis=0, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _largest(rows: NDArray[np.uint16]) -> int:
    return int(np.unique(rows, axis=0, return_counts=True)[1].max(initial=0))
