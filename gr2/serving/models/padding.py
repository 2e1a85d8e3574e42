"""A batch of requests as arrays of one shape, in one block of memory that goes to the device in one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import ModelSpec
from gr2.serving.models.memory import run_bytes
from gr2.serving.models.query import Query

__all__ = ["Batch", "Sizes", "pad", "split"]

# Sizes are rounded up to a multiple of this, so that the device's memory is asked for in fewer different sizes.
STEP = 8
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of the graph for batches, as views into `block` (bytes,) uint8, which they fill; `offsets` say where.

    `codes` (B, K, L) and `known` (B, K) are the candidates', those that only pad are unknown and last; `nodes` (B,) are
    the numbers of rows of the logits that count, and `rows` is n, the most of them.
    """

    block: NDArray[np.uint8]
    arrays: dict[str, NDArray[Any]]
    offsets: dict[str, int]
    codes: NDArray[np.uint16]
    known: NDArray[np.bool_]
    nodes: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Rows of the logits that each request has."""
        return int(self.arrays["rows"].shape[1])


@dataclass(frozen=True, slots=True)
class Sizes:
    """What requests are padded to: history items, nodes of each depth from the root's, and candidates."""

    history: int
    nodes: tuple[int, ...]
    candidates: int

    @classmethod
    def of(cls, query: Query) -> Sizes:
        """Those of a request alone."""
        depths = range(1, query.codes.shape[1])
        nodes = (1, *(_rounded(len(query.trie.nodes(depth))) for depth in depths))
        return cls(_rounded(len(query.past)), nodes, _rounded(len(query.codes)))

    def cover(self, other: Sizes) -> Sizes:
        """Those of both together."""
        nodes = tuple(map(max, self.nodes, other.nodes))
        return Sizes(max(self.history, other.history), nodes, max(self.candidates, other.candidates))

    def run_bytes(self, model: ModelSpec) -> int:
        """About the bytes of memory that `model` takes for each request."""
        return run_bytes(model, history=self.history, nodes=sum(self.nodes), candidates=self.candidates)


def split(queries: Sequence[Query], model: ModelSpec, limit: int) -> list[list[int]]:
    """The requests' places, in order, in batches that `model` takes about `limit` bytes for, or of a single request."""
    parts: list[list[int]] = []
    sizes: Sizes | None = None  # of the last part
    for place, own in enumerate(map(Sizes.of, queries)):
        both = own if sizes is None else sizes.cover(own)
        if parts and (len(parts[-1]) + 1) * both.run_bytes(model) <= limit:
            parts[-1].append(place)
            sizes = both
        else:
            parts.append([place])
            sizes = own
    return parts


def pad(
    queries: Sequence[Query], allocate: Callable[[int], NDArray[np.uint8]], *, max_history: int, candidates: bool
) -> Batch:
    """The batch of at least one request; `allocate(bytes)` gives its block of memory.

    `candidates` says that the graph takes the candidates' codes. Padding repeats nothing of a request: histories begin
    with codes of -1, candidates end with them, and a depth's nodes end with code 0 below the root.
    """
    count, levels = len(queries), queries[0].codes.shape[1]
    together = reduce(Sizes.cover, map(Sizes.of, queries))
    width, size, sizes = min(max_history, together.history), together.candidates, together.nodes
    levels_of = [[query.trie.nodes(depth) for depth in range(1, levels)] for query in queries]
    nodes = np.array([query.trie.node_count for query in queries])
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "history": (np.int64, (count, width, levels)),
        **{f"nodes_{depth}": (np.int64, (count, sizes[depth])) for depth in range(1, levels)},
        "parents": (np.int64, (count, sum(sizes))),
        "rows": (np.int64, (count, int(nodes.max()))),
        "features": (np.float32, (count, size, queries[0].features.shape[1])),
        "candidates": (np.int64, (count, size, levels)),
    }
    if not candidates:
        del shapes["candidates"]
    block, arrays, offsets = _lay_out(shapes, allocate)
    codes = np.zeros((count, size, levels), dtype=np.uint16)
    known = np.zeros((count, size), dtype=np.bool_)
    for name, array in arrays.items():
        array.fill(-1 if name in {"history", "candidates"} else 0)
    places = np.arange(sum(sizes))
    for place, query in enumerate(queries):
        held = len(query.codes)
        codes[place, :held], known[place, :held] = query.codes, query.known
        arrays["history"][place, width - len(query.past) :] = query.past
        arrays["features"][place, :held] = query.features
        if candidates:
            arrays["candidates"][place, :held] = query.codes
        _place_nodes(arrays, place, query.trie.parents(), levels_of[place], sizes, places)
    arrays["rows"] += np.arange(count)[:, None] * sum(sizes)
    return Batch(block, arrays, offsets, codes, known, nodes)


def _place_nodes(
    arrays: dict[str, NDArray[Any]],
    place: int,
    of: NDArray[np.int32],
    levels: list[NDArray[np.int64]],
    sizes: tuple[int, ...],
    places: NDArray[np.int64],
) -> None:
    """Move a trie's nodes, numbered without gaps, to where each depth has `sizes` of the `places` 0, 1, ...

    `of` are their parents.
    """
    parents, rows = arrays["parents"][place], arrays["rows"][place]
    first = base = 1  # of the depth's nodes: their number in the trie, and their place in the batch
    above = 0  # base - first, one depth up
    for depth, codes in enumerate(levels, 1):
        last, end = first + len(codes), base + len(codes)
        arrays[f"nodes_{depth}"][place, : len(codes)] = codes
        np.add(of[first:last], above, out=parents[base:end])
        rows[first:last] = places[base:end]
        above = base - first
        first, base = last, base + sizes[depth]


def _lay_out(
    shapes: dict[str, tuple[type, tuple[int, ...]]], allocate: Callable[[int], NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]], dict[str, int]]:
    offsets, total = {}, 0
    for name, (kind, shape) in shapes.items():
        offsets[name] = total
        length = np.dtype(kind).itemsize * prod(shape)
        total += -(-length // ALIGNMENT) * ALIGNMENT
    block = allocate(total)
    arrays: dict[str, NDArray[Any]] = {
        name: block[offsets[name] :][: np.dtype(kind).itemsize * prod(shape)].view(kind).reshape(shape)
        for name, (kind, shape) in shapes.items()
    }
    return block, arrays, offsets


def _rounded(size: int) -> int:
    return max(STEP, -(-size // STEP) * STEP)
