"""The tries of a batch of requests' candidates as tables of fixed shape, from NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CANDIDATES", "MAX_LEVELS", "CandidateTables"]

MAX_CANDIDATES, MAX_LEVELS = 1024, 8

Table = NDArray[np.int16]


@dataclass(frozen=True)
class CandidateTables:
    """The tries of B requests, nodes numbered as CandidateTrie numbers them.

    Lane i of a request is its i-th candidate by code path and then by position; unknown ones are last. Inner nodes are
    followed by the leaves: edge e leads to node e + 1.
    """

    level_size: int
    counts: NDArray[np.int32]  # (B, 2): inner nodes, known candidates
    positions: Table  # (B, K): of each lane
    path_nodes: Table  # (B, L, K): the node at which the code of each level is chosen
    path_codes: Table  # (B, L, K)
    starts: Table  # (B, L, K): the first lane that shares the codes down to this level
    first_child: Table  # (B, n + 1): the first edge below each inner node
    child_codes: Table  # (B, n + K): the code of each edge

    @property
    def nodes(self) -> int:
        """The most inner nodes of a request, n."""
        return int(self.first_child.shape[1]) - 1

    @property
    def candidates(self) -> int:
        """The most candidates of a request, K."""
        return int(self.positions.shape[1])

    @property
    def shape(self) -> dict[str, int]:
        """What requests that take the place of these must have, too."""
        requests, levels, candidates = self.path_codes.shape
        sizes = {"requests": requests, "candidates": candidates, "levels": levels}
        return {**sizes, "nodes": self.nodes, "level_size": self.level_size}

    def check_shape(self, expected: dict[str, int]) -> None:
        """Raises ValueError if `shape` is another."""
        if self.shape != expected:
            raise ValueError(f"tables must be of {expected}, got {self.shape}")

    @classmethod
    def build(
        cls, codes: NDArray[np.uint16], known: NDArray[np.bool_], level_size: int, *, nodes: int | None = None
    ) -> CandidateTables:
        """From `codes` (B, K, L) and `known` (B, K); a request with fewer candidates is filled up with unknown ones.

        `nodes` is n, by default the most that a request has. Raises TypeError and ValueError on arrays that
        CandidateTrie would not take, naming request and candidate, and on more nodes than n.
        """
        _check(codes, known, level_size)
        requests, size, levels = codes.shape
        order = _sorted(codes, known, level_size)
        flat = (order + np.arange(requests)[:, None] * size).ravel()
        paths = codes.reshape(-1, levels)[flat].T.reshape(levels, requests, size).astype(np.int16)
        inside = known.ravel()[flat].reshape(requests, size)
        fresh = _first_lanes(paths, inside)
        numbers = fresh.cumsum(axis=2, dtype=np.int32)  # of the node of depth d + 1, among those, from 1
        sizes = numbers[:, :, -1] if size else np.zeros((levels, requests), np.int32)
        bases = np.zeros((levels + 1, requests), np.int32)
        sizes.cumsum(axis=0, out=bases[1:])
        below = numbers + bases[:-1, :, None]  # (L, B, K): the node of depth d + 1
        inner, edges = bases[levels - 1] + 1, bases[levels]
        most = int(inner.max(initial=1))
        if nodes is not None and most > nodes:
            raise ValueError(f"request {int(inner.argmax())} has {most} nodes, there is room for {nodes}")
        most = most if nodes is None else nodes
        child_codes = np.zeros((requests, most + size), np.int16)
        first_child = np.repeat(edges.astype(np.int16)[:, None], most + 1, axis=1)
        first_child[:, 0] = 0
        at = np.flatnonzero(fresh)
        request, node = at // max(1, size) % max(1, requests), below.ravel()
        child_codes.ravel()[request * (most + size) + node[at] - 1] = paths.ravel()[at]
        # A node's first child begins at the node's own first lane, one level down.
        at = at[: np.count_nonzero(fresh[:-1])]
        first_child.ravel()[request[: len(at)] * (most + 1) + node[at]] = below[1:].ravel()[at] - 1
        starts = np.maximum.accumulate(np.where(fresh, np.arange(size, dtype=np.int16), 0), axis=2)
        above = np.zeros(paths.shape, np.int16)
        np.multiply(below[:-1], inside, out=above[1:], casting="unsafe")
        paths *= inside
        counts = np.stack([inner, known.sum(axis=1, dtype=np.int32)], axis=1)
        nodes_of, codes_of, starts = (np.ascontiguousarray(each.transpose(1, 0, 2)) for each in (above, paths, starts))
        return cls(level_size, counts, order.astype(np.int16), nodes_of, codes_of, starts, first_child, child_codes)


def _first_lanes(paths: Table, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(L, B, K): the first lane of each node of depth d + 1, from sorted `paths` (L, B, K)."""
    fresh = np.ones(paths.shape, dtype=np.bool_)
    np.not_equal(paths[:, :, 1:], paths[:, :, :-1], out=fresh[:, :, 1:])
    for depth in range(1, len(fresh)):
        fresh[depth] |= fresh[depth - 1]
    fresh &= inside
    return fresh


def _check(codes: NDArray[np.uint16], known: NDArray[np.bool_], level_size: int) -> None:
    for name, values, dtype, rank in (("codes", codes, np.uint16, "(B, K, L)"), ("known", known, np.bool_, "(B, K)")):
        if not isinstance(values, np.ndarray) or values.dtype != dtype:
            found = getattr(values, "dtype", type(values).__name__)
            raise TypeError(f"{name} must be {np.dtype(dtype)} {rank}, got {found}")
    if codes.ndim != 3 or known.shape != codes.shape[:2]:
        raise ValueError(f"codes must be (B, K, L) and known (B, K), got {codes.shape} and {known.shape}")
    if codes.shape[1] > MAX_CANDIDATES:
        raise ValueError(f"at most {MAX_CANDIDATES} candidates, got {codes.shape[1]}")
    if not 1 <= codes.shape[2] <= MAX_LEVELS:
        raise ValueError(f"codes must have 1 to {MAX_LEVELS} levels, got {codes.shape[2]}")
    if not 1 <= level_size <= 32768:
        raise ValueError(f"level_size must be 1 to 32768, got {level_size}")
    bad = np.argwhere((codes >= level_size) & known[:, :, None])
    if len(bad):
        request, candidate, level = bad[0].tolist()
        raise ValueError(
            f"codes of request {request} candidate {candidate} at level {level} are "
            f"{codes[request, candidate, level]}, level_size is {level_size}"
        )


def _sorted(codes: NDArray[np.uint16], known: NDArray[np.bool_], level_size: int) -> NDArray[np.int64]:
    """The candidates of each request by code path and then by position, the unknown ones last, (B, K)."""
    bits = max(1, (level_size - 1).bit_length())
    if bits * codes.shape[2] < 63:
        key = np.zeros(known.shape, np.int64)
        for level in range(codes.shape[2]):
            key = key << bits | codes[:, :, level]
        return np.argsort(np.where(known, key, np.iinfo(np.int64).max), axis=1, kind="stable")
    columns = [np.where(known, codes[:, :, level], 0) for level in range(codes.shape[2])]
    return np.lexsort((*columns[::-1], ~known), axis=1)
