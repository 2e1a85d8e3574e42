"""Candidate lists: what a pre-ranker proposes for each position, and the import of lists that others made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.catalog import ItemId
from gr2.data.dataset import Dataset
from gr2.errors import DataError

__all__ = ["PADDING", "CandidateLists", "import_lists"]

PADDING = -1
DROPPED = ": not in the prepared data; if it is in the log, the stage prepare has filtered it out (core, min_events)"
COLUMNS = ("user", "position", "target", "candidates", "scores")


@dataclass(frozen=True)
class CandidateLists:
    """R lists of up to K candidates, best first. Row r ranks what may follow `events[:position[r]]` of `user[r]`.

    `user`, `position`, `target` are (R,) int32: a user's index, the number of events in the history, the item that
    followed. `candidates` (R, K) int32 are item indices, padded with -1 at the end; `scores` (R, K) float32 do not
    increase along a row, and are -inf in the padding. `features` (R, K, F) float32, where there are any, belong to
    the candidates. Raises ValueError if a shape, a dtype or a row breaks this.
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


def import_lists(path: str | os.PathLike[str], dataset: Dataset, *, ranker: str | None = None) -> CandidateLists:
    """The candidate lists of a Parquet file for the test targets of `dataset`, one row a user, in the users' order.

    Columns: `user_id`, `candidates` (a list of item IDs, best first), and optionally `scores` (a list of float, not
    increasing) and `ranker`, of which `ranker` selects one. Without scores a candidate's score is minus its rank.
    Raises DataError with file, row and column on an unknown user or item, a user or candidate that comes twice, and
    scores that do not fit.
    """
    try:
        table = pq.read_table(Path(path))
        user_ids = table.column("user_id").to_pylist()
        lists = table.column("candidates").to_pylist()
        scored = table.column("scores").to_pylist() if "scores" in table.column_names else None
        rankers = table.column("ranker").to_pylist() if "ranker" in table.column_names else None
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"cannot read candidate lists: {error}", path=path) from error
    chosen = _rows_of(ranker, rankers, len(user_ids), path)
    users = {user_id: user for user, user_id in enumerate(dataset.user_ids)}
    row_of: dict[int, int] = {}
    for row in chosen:
        user = users.get(user_ids[row])
        if user is None:
            raise DataError(f"unknown user {user_ids[row]!r}{DROPPED}", path=path, row=row + 1, column="user_id")
        if user in row_of:
            message = f"user {user_ids[row]!r} has a list in row {row_of[user] + 1} already"
            raise DataError(message, path=path, row=row + 1, column="user_id")
        row_of[user] = row
    order = sorted(row_of)
    indexed = [_item_indices(lists[row_of[user]], dataset, path, row_of[user] + 1) for user in order]
    width = max((len(items) for items in indexed), default=0)
    candidates = np.full((len(order), width), PADDING, dtype=np.int32)
    scores = np.full((len(order), width), -np.inf, dtype=np.float32)
    for place, (user, items) in enumerate(zip(order, indexed, strict=True)):
        candidates[place, : len(items)] = items
        row = row_of[user]
        given = None if scored is None else scored[row]
        scores[place, : len(items)] = _scores(given, len(items), path, row + 1)
    events = [dataset.events(user) for user in order]
    return CandidateLists(
        np.array(order, dtype=np.int32),
        np.array([len(sequence) - 1 for sequence in events], dtype=np.int32),
        np.array([sequence[-1] for sequence in events], dtype=np.int32),
        candidates,
        scores,
    )


def _expect(name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")


def _refuse(what: str, cells: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(cells.any(axis=1))
    if len(rows):
        raise ValueError(f"candidate list {rows[0]} holds {what}")


def _ragged(values: NDArray[np.generic], lengths: NDArray[np.int64]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def _flat(table: pa.Table, column: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    array = table.column(column)
    lengths = pc.list_value_length(array).to_numpy().astype(np.int64)
    return pc.list_flatten(array).to_numpy(), lengths


def _rows_of(ranker: str | None, rankers: list[str] | None, rows: int, path: str | os.PathLike[str]) -> list[int]:
    if rankers is None:
        if ranker is not None:
            raise DataError(f"no such column, so the ranker {ranker!r} cannot be chosen", path=path, column="ranker")
        return list(range(rows))
    known = sorted(set(rankers))
    if ranker is None and len(known) > 1:
        raise DataError(f"lists of several rankers; choose one of {', '.join(known)}", path=path, column="ranker")
    if ranker is not None and ranker not in known:
        raise DataError(f"no ranker {ranker!r}; the file has {', '.join(known)}", path=path, column="ranker")
    return [row for row, name in enumerate(rankers) if ranker is None or name == ranker]


def _item_indices(
    item_ids: Sequence[ItemId] | None, dataset: Dataset, path: str | os.PathLike[str], row: int
) -> list[int]:
    if not item_ids:
        raise DataError("no candidates", path=path, row=row, column="candidates")
    index = dataset.catalog.index
    unknown = [item for item in item_ids if item not in index]
    if unknown:
        raise DataError(f"unknown item {unknown[0]!r}{DROPPED}", path=path, row=row, column="candidates")
    if len(set(item_ids)) != len(item_ids):
        twice = next(item for place, item in enumerate(item_ids) if item in item_ids[:place])
        raise DataError(f"candidate {twice!r} comes twice", path=path, row=row, column="candidates")
    return [index[item] for item in item_ids]


def _scores(given: Sequence[float] | None, count: int, path: str | os.PathLike[str], row: int) -> NDArray[np.float32]:
    if given is None:
        return -np.arange(count, dtype=np.float32)
    scores = np.array([np.nan if score is None else score for score in given], dtype=np.float32)
    if len(scores) != count:
        raise DataError(f"{len(scores)} scores for {count} candidates", path=path, row=row, column="scores")
    if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
        raise DataError("scores must be finite and not increase along the list", path=path, row=row, column="scores")
    return scores
