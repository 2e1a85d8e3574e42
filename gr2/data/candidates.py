"""Candidate lists: what a pre-ranker proposes for each position."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.errors import DataError

__all__ = ["PADDING", "CandidateLists"]

PADDING = -1
COLUMNS = ("user", "position", "target", "candidates", "scores")
GRADED: dict[str, type[np.generic]] = {"grades": np.int8, "places": np.int32}
HIGHEST = 2


@dataclass(frozen=True)
class CandidateLists:
    """R lists of up to K candidates, best first. Row r ranks what may follow `events[:position[r]]` of `user[r]`.

    `user`, `position`, `target` are (R,) int32: a user's index, the number of events in the history, the item that
    followed. `candidates` (R, K) int32 are item indices, padded with -1 at the end; `scores` (R, K) float32 do not
    increase along a row, and are -inf in the padding. `features` (R, K, F) float32, where there are any, belong to
    the candidates, and are finite.

    Lists of what was shown (impressions) may have several positives: `grades` (R, K) int8 are 0 for none, 1 for a
    click and 2 for a conversion, and `places` (R, K) int32 where each candidate stood, from 1; both are 0 in the
    padding. Such lists have both, and their target is the first candidate of the best grade.

    Raises ValueError if a shape, a dtype or a row breaks this.
    """

    user: NDArray[np.int32]
    position: NDArray[np.int32]
    target: NDArray[np.int32]
    candidates: NDArray[np.int32]
    scores: NDArray[np.float32]
    features: NDArray[np.float32] | None = None
    grades: NDArray[np.int8] | None = None
    places: NDArray[np.int32] | None = None

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
        if (self.grades is None) != (self.places is None):
            raise ValueError("grades and places come together")
        if self.grades is not None and self.places is not None:
            _expect("grades", self.grades, np.int8, (rows, width))
            _expect("places", self.places, np.int32, (rows, width))
            _refuse("a grade that is not 0, 1 or 2", (self.grades < 0) | (self.grades > HIGHEST))
            _refuse("padding with a grade", padded & (self.grades != 0))
            _refuse("a place below 1", (self.places < 1) & ~padded)
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
        cut = {name: column[:, :k] for name, column in self._columns().items() if column.ndim > 1}
        return replace(self, **cut)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> CandidateLists:
        """The rows that an index array or a mask selects, in its order."""
        return CandidateLists(**{name: column[rows] for name, column in self._columns().items()})

    @classmethod
    def join(cls, parts: Sequence[CandidateLists]) -> CandidateLists:
        """The rows of all parts, in order; lists are of one width, and of what is optional all have as much."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0]._columns()})

    def _columns(self) -> dict[str, NDArray[Any]]:
        """The arrays that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in named.items() if column is not None}

    def label(self) -> NDArray[np.int64]:
        """(R,) int64: the column of the target, -1 where the list does not hold it.

        Of graded lists it is the first of the best grade among the candidates, -1 where none is a positive.
        """
        if self.grades is not None:
            best: NDArray[np.int64] = np.where(self.grades.any(axis=1), self.grades.argmax(axis=1), -1).astype(np.int64)
            return best
        found = self.candidates == self.target[:, None]
        label: NDArray[np.int64] = np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int64)
        return label

    def with_target(self) -> CandidateLists:
        """The rows that an order can be judged by: the target is among the candidates.

        Graded lists also need a candidate that is no positive.
        """
        held = self.label() >= 0
        if self.grades is not None:
            held &= ((self.grades == 0) & (self.candidates != PADDING)).any(axis=1)
        return self.take(held)

    def gains(self, propensities: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """(R, K) float64: what each candidate is worth, 2^grade - 1; of lists that are not graded, 1 for the target.

        With `propensities` (P,) of the places from 1, the gains of graded lists are divided by them; places beyond the
        last have its propensity.
        """
        if self.grades is None:
            found: NDArray[np.float64] = (self.candidates == self.target[:, None]).astype(np.float64)
            return found
        worth: NDArray[np.float64] = np.exp2(self.grades.astype(np.float64)) - 1.0
        if propensities is None or self.places is None:
            return worth
        return worth / propensities[np.clip(self.places - 1, 0, len(propensities) - 1)]

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
        for name in GRADED:
            column = getattr(self, name)
            if column is not None:
                columns[name] = _ragged(column[kept], lengths)
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
            graded = {
                name: _filled(_flat(table, name)[0], kept, dtype)
                for name, dtype in GRADED.items()
                if name in table.column_names
            }
            return cls(user, position, target, candidates, padded, features, **graded)
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


def _filled(values: NDArray[np.generic], kept: NDArray[np.bool_], dtype: type[np.generic]) -> NDArray[Any]:
    """The values of the kept cells, 0 elsewhere."""
    cells = np.zeros(kept.shape, dtype=dtype)
    cells[kept] = values
    return cells


def _flat(table: pa.Table, column: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    array = table.column(column)
    lengths = pc.list_value_length(array).to_numpy().astype(np.int64)
    return pc.list_flatten(array).to_numpy(), lengths
