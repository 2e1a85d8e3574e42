"""Candidate lists: what a pre-ranker proposes for each position."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.errors import DataError

__all__ = ["PADDING", "CandidateLists"]

PADDING = -1
COLUMNS = ("user", "position", "target", "candidates", "scores")


@dataclass(frozen=True)
class CandidateLists:
    """R lists of up to K candidates, best first. Row r ranks what may follow `events[:position[r]]` of `user[r]`.

    `user`, `position`, `target` are (R,) int32: a user's index, the number of events in the history, the item that
    followed. `candidates` (R, K) int32 are item indices, padded with -1 at the end; `scores` (R, K) float32 do not
    increase along a row, and are -inf in the padding. `features` (R, K, F) float32, where there are any, belong to
    the candidates, and are finite. Raises ValueError if a shape, a dtype or a row breaks this.
    """

    user: NDArray[np.int32]
    position: NDArray[np.int32]
    target: NDArray[np.int32]
    candidates: NDArray[np.int32]
    scores: NDArray[np.float32]
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        rows = len(self.user)
        width = self.candidates.shape[1] if self.candidates.ndim == 2 else -1
        _expect("user", self.user, np.int32, (rows,))
        _expect("position", self.position, np.int32, (rows,))
        _expect("target", self.target, np.int32, (rows,))
        _expect("candidates", self.candidates, np.int32, (rows, width))
        _expect("scores", self.scores, np.float32, (rows, width))
        if self.features is not None:
            _expect("features", self.features, np.float32, (rows, width, self.features.shape[-1]))
            _refuse("a feature that is not finite", ~np.isfinite(self.features))
        for name in ("user", "position", "target"):
            _refuse(f"a negative {name}", getattr(self, name)[:, None] < 0)
        padded = self.candidates == PADDING
        ordered = np.sort(self.candidates, axis=1)
        _refuse("an index below -1", self.candidates < PADDING)
        _refuse("a candidate after padding", padded[:, :-1] & ~padded[:, 1:])
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)
        _refuse("a candidate twice", repeated)
        _refuse("a score that is not finite", ~np.isfinite(self.scores) & ~padded)
        _refuse("padding whose score is not -inf", padded & (self.scores != -np.inf))
        _refuse("a score above the one before it", self.scores[:, 1:] > self.scores[:, :-1])

    def __len__(self) -> int:
        return len(self.user)

    @property
    def width(self) -> int:
        """K: the number of candidates of the longest list, or more where rows are padded."""
        return int(self.candidates.shape[1])

    @property
    def feature_width(self) -> int:
        """F: the number of dense features a candidate, 0 where there are none."""
        return 0 if self.features is None else int(self.features.shape[2])

    def top(self, k: int) -> CandidateLists:
        """The same rows with their first `k` candidates."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        features = None if self.features is None else self.features[:, :k]
        return replace(self, candidates=self.candidates[:, :k], scores=self.scores[:, :k], features=features)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> CandidateLists:
        """The rows that an index array or a mask selects, in its order."""
        features = None if self.features is None else self.features[rows]
        return CandidateLists(
            self.user[rows],
            self.position[rows],
            self.target[rows],
            self.candidates[rows],
            self.scores[rows],
            features,
        )

    @classmethod
    def join(cls, parts: Sequence[CandidateLists]) -> CandidateLists:
        """The rows of all parts, in order; lists are of one width, and none has features or all have as many."""
        columns = {
            column.name: np.concatenate([getattr(part, column.name) for part in parts])
            for column in fields(cls)
            if getattr(parts[0], column.name) is not None
        }
        return cls(**columns)

    def label(self) -> NDArray[np.int64]:
        """(R,) int64: the column of the target, -1 where the list does not hold it."""
        found = self.candidates == self.target[:, None]
        label: NDArray[np.int64] = np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int64)
        return label

    def with_target(self) -> CandidateLists:
        """The rows whose target is among the candidates."""
        return self.take(self.label() >= 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one Parquet row a list, without the padding; features are row-major, K * F values."""
        kept = self.candidates != PADDING
        lengths = kept.sum(axis=1)
        columns = {
            "user": pa.array(self.user),
            "position": pa.array(self.position),
            "target": pa.array(self.target),
            "candidates": _ragged(self.candidates[kept], lengths),
            "scores": _ragged(self.scores[kept], lengths),
        }
        metadata = {}
        if self.features is not None:
            depth = self.features.shape[2]
            columns["features"] = _ragged(self.features[kept].reshape(-1), lengths * depth)
            metadata["features"] = str(depth)
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CandidateLists:
        """The lists that `save` wrote. Raises DataError if the file is missing, damaged or breaks the contract."""
        try:
            table = pq.read_table(Path(path)).combine_chunks()
            user, position, target = (table.column(name).to_numpy().astype(np.int32) for name in COLUMNS[:3])
            items, lengths = _flat(table, "candidates")
            scores, score_lengths = _flat(table, "scores")
            if not np.array_equal(lengths, score_lengths):
                row = int(np.flatnonzero(lengths != score_lengths)[0])
                raise ValueError(f"row {row} has {lengths[row]} candidates and {score_lengths[row]} scores")
            kept = np.arange(lengths.max(initial=0)) < lengths[:, None]
            candidates = np.full(kept.shape, PADDING, dtype=np.int32)
            candidates[kept] = items
            padded = np.full(kept.shape, -np.inf, dtype=np.float32)
            padded[kept] = scores
            features = None
            if "features" in table.column_names:
                depth = int((table.schema.metadata or {})[b"features"])
                features = np.zeros((*kept.shape, depth), dtype=np.float32)
                features[kept] = _flat(table, "features")[0].reshape(-1, depth)
            return cls(user, position, target, candidates, padded, features)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise DataError(f"not candidate lists written by gr2: {error}", path=path) from error


def _expect(name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")


def _refuse(what: str, cells: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(cells.any(axis=tuple(range(1, cells.ndim))))
    if len(rows):
        raise ValueError(f"candidate list {rows[0]} holds {what}")


def _ragged(values: NDArray[np.generic], lengths: NDArray[np.int64]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def _flat(table: pa.Table, column: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    array = table.column(column)
    lengths = pc.list_value_length(array).to_numpy().astype(np.int64)
    return pc.list_flatten(array).to_numpy(), lengths
