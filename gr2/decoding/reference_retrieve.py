"""The NumPy reference of retrieval: what the C++ core, and every other implementation of it, must compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReferenceBeam", "ReferenceRetriever", "reference_levels"]

Prefix = tuple[int, ...]


def reference_levels(codes: NDArray[np.uint16]) -> list[list[Prefix]]:
    """The nodes of each depth 0 to L, as prefixes in lexicographic order, of the trie over `codes` (N, L)."""
    rows = [tuple(row) for row in codes.tolist()]
    return [[()], *(sorted({row[:depth] for row in rows}) for depth in range(1, codes.shape[1] + 1))]


@dataclass(frozen=True)
class ReferenceBeam:
    """A live beam: the rank of its parent, the path of codes to its node, and its score."""

    parent: int
    prefix: Prefix
    score: np.float32


@dataclass
class ReferenceRetriever:
    """One search over the items whose sorted codes are `codes` (N, L), as Retriever does a batch of them.

    With `allow` only those rows may be returned, and those in `deny` never. `beams` holds the live ones, best first.
    """

    codes: NDArray[np.uint16]
    width: int
    normalization: str = "raw"
    allow: NDArray[np.int64] | None = None
    deny: NDArray[np.int64] | None = None
    beams: list[ReferenceBeam] = field(default_factory=lambda: [ReferenceBeam(0, (), np.float32(0))])
    candidates: list[ReferenceBeam] = field(default_factory=list)  # of the last step, best first: more than the beams

    def __post_init__(self) -> None:
        rows = set(range(len(self.codes))) if self.allow is None else set(self.allow.tolist())
        permitted = sorted(rows - (set() if self.deny is None else set(self.deny.tolist())))
        paths = [tuple(row) for row in self.codes.tolist()]
        self.items: dict[Prefix, list[int]] = {}
        self.children: dict[Prefix, list[int]] = {}
        for row in permitted:
            self.items.setdefault(paths[row], []).append(row)
            for depth, code in enumerate(paths[row]):
                known = self.children.setdefault(paths[row][:depth], [])
                if code not in known:
                    known.append(code)

    def step(self, logits: NDArray[np.float32]) -> None:
        """Choose the next beams from `logits` (M, V) at the old ones, (1, V) at first.

        score = (logit - top) + float32(parent's - log(sum(exp(logits - top)))) in float32; the top and the sum are over
        all codes (`raw`), or over the permitted children (`local`).
        """
        self.candidates = []
        for rank, beam in enumerate(self.beams):
            row = logits[rank]
            self._require_usable(row, rank)
            codes = self.children.get(beam.prefix, [])
            over = row if self.normalization == "raw" else row[codes]
            top = np.max(over, initial=-np.inf)
            if top == -np.inf:
                continue
            base = np.float32(np.float64(beam.score) - np.log(np.exp((over - top).astype(np.float64)).sum()))
            scores = [(row[code] - top) + base for code in codes]
            self.candidates += [
                ReferenceBeam(rank, (*beam.prefix, code), score)
                for code, score in zip(codes, scores, strict=True)
                if score > -np.inf
            ]
        self.candidates.sort(key=lambda beam: (-beam.score, beam.parent, beam.prefix[-1]))
        self.beams = self.candidates[: self.width]

    @staticmethod
    def _require_usable(row: NDArray[np.float32], rank: int) -> None:
        bad = np.flatnonzero(~(row < np.inf))
        if len(bad):
            raise ValueError(f"logits beam {rank} column {bad[0]} is {'NaN' if np.isnan(row[bad[0]]) else '+infinity'}")

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Parents, codes and scores (M,) of the beams as Retriever.step returns them: 0, 0 and -inf of dead ones."""
        return (
            self._filled([beam.parent for beam in self.beams], 0),
            self._filled([beam.prefix[-1] for beam in self.beams], 0),
            self._filled([beam.score for beam in self.beams], -np.inf).astype(np.float32),
        )

    def nodes(self) -> NDArray[np.int64]:
        """(M,) the beams' nodes, numbered breadth-first over the trie of all items; -1 of dead ones."""
        numbers = {prefix: i for i, prefix in enumerate(p for level in reference_levels(self.codes) for p in level)}
        return self._filled([numbers[beam.prefix] for beam in self.beams], -1)

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best items (M,) and their scores (M,), the items of a leaf in row order; -1 and -inf fill up."""
        found = [(item, beam.score) for beam in self.beams for item in self.items[beam.prefix]][: self.width]
        return (
            self._filled([item for item, _ in found], -1),
            self._filled([score for _, score in found], -np.inf).astype(np.float32),
        )

    def _filled(self, values: Sequence[float | np.float32], blank: float) -> NDArray[np.int64]:
        """`values` and blanks behind them, (M,)."""
        return np.array([*values, *[blank] * (self.width - len(values))])
