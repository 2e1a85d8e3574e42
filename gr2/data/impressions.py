"""Impressions: slates as they were shown, what became of them, and the lists that they make.

A slate belongs to the training split, and may be learnt from, as its events do: the history is what its user did
before it, and the split is that of the first event that may follow it. With n events of a user, a slate after n - 1 or
more of them is a test slate, one after n - 2 a validation slate, and the others are training slates. So whatever a
slate led to is never among the events that statistics were counted on, unless the slate is one of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.catalog import ItemId
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.columns import TableFile
from gr2.data.dataset import Dataset
from gr2.data.imported_lists import Split
from gr2.data.tables import read_table
from gr2.errors import DataError

__all__ = ["Impressions", "read_impressions"]

REQUIRED = ("request_id", "user_id", "item_id", "timestamp", "position", "label")
NUMBERS = ("timestamp", "position", "label", "score")
FEATURE = "feature_"
GRADES = (0.0, 1.0, 2.0)
LAST_PLACE = 10_000


@dataclass(frozen=True)
class Impressions:
    """R slates of known users as graded lists, in the order of users and times, those without a positive included.

    Attributes:
        lists: the slates; the target of one without a positive is its first candidate.
        requests: (R,) the ID of each.
        events: (R,) int64: how many of its user's events came before it, whatever the guard hides of them.
        features: the names of the dense features, without `feature_`.
        unknown_users: slates that were left out because their user is not in the prepared data.
    """

    lists: CandidateLists
    requests: list[ItemId]
    events: NDArray[np.int64]
    features: tuple[str, ...]
    unknown_users: int

    def rows(self, dataset: Dataset, split: Split) -> NDArray[np.int64]:
        """The rows of one split, judged or not."""
        left = dataset.lengths[self.lists.user] - self.events
        inside = {"train": left > 2, "val": left == 2, "test": left < 2}[split]
        return np.flatnonzero(inside)

    def splits(self, dataset: Dataset) -> tuple[dict[Split, CandidateLists], dict[str, Any]]:
        """The lists of each split that an order can be judged by, and how many slates were left out and why.

        A slate without a positive, or without a negative, says nothing of an order. Raises DataError if all are such.
        """
        lists, counts = self.lists, {"requests": len(self.lists), "unknown_users": self.unknown_users}
        assert lists.grades is not None
        positive = lists.grades.any(axis=1)
        negative = ((lists.grades == 0) & (lists.candidates != PADDING)).any(axis=1)
        counts |= {"without_positive": int((~positive).sum()), "without_negative": int((~negative).sum())}
        if not (positive & negative).any():
            said = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
            raise DataError(f"no slate of the impressions has a positive and a negative: {said}")
        kept: dict[Split, CandidateLists] = {}
        for split in ("train", "val", "test"):
            rows = self.rows(dataset, split)
            kept[split] = lists.take(rows[(positive & negative)[rows]])
        return kept, {**counts, "positives": float(lists.grades.astype(bool).sum(axis=1)[positive & negative].mean())}


def read_impressions(path: Path, dataset: Dataset, *, guard: float = 0.0) -> Impressions:
    """The slates of a Parquet file with one row a candidate that was shown.

    Columns: `request_id`, `user_id`, `timestamp` (Unix seconds or a date-time) and `item_id`; `position`, where the
    item stood, from 1; `label`, 0 none, 1 click, 2 conversion; optionally `score`, the pre-ranker's, higher is better;
    and any `feature_NAME`. Candidates are in the order of their scores, or of positions where there are none. The
    history of a slate is its user's events of more than `guard` seconds before it.

    Slates of users that are not in the prepared data are left out and counted. Raises DataError with row and column at
    whatever else does not fit: an unknown item, a grade or a position that is none, an item or a position that comes
    twice in a slate, a slate of two users or times, or an event without a timestamp.
    """
    names = _features(path)
    file = read_table(path, required=REQUIRED, numeric=[*NUMBERS, *(FEATURE + name for name in names)])
    columns = {name: _known(file, name) for name in ("timestamp", "position", "label")}
    request, user, item = file.ids("request_id"), file.ids("user_id"), file.ids("item_id")
    users = _indices(user.values, dataset.user_ids)[user.codes]
    known = users >= 0
    slates = np.unique(request.codes).size
    if not known.any():
        raise file.error("no user of the impressions is in the prepared data", 0, "user_id")
    items = _indices(item.values, dataset.catalog.ids)[item.codes]
    _refuse(file, "item_id", known & (items < 0), "unknown item: prepare with core = 0, or leave the slate out")
    grade, place = columns["label"], columns["position"]
    _refuse(file, "label", ~np.isin(grade, GRADES), "must be 0 (none), 1 (click) or 2 (conversion)")
    outside = (place < 1) | (place > LAST_PLACE) | (place != np.floor(place))
    _refuse(file, "position", outside, f"must be an integer from 1 to {LAST_PLACE:,}")
    score = _known(file, "score") if "score" in file else -place
    order = np.lexsort((place, -score, request.codes))
    order = order[known[order]]
    first = _slate_starts(file, order, request.codes, {"user_id": user.codes, "timestamp": columns["timestamp"]})
    _distinct(file, request.codes, {"item_id": item.codes, "position": place})
    heads = order[first]
    lengths = np.diff([*first, len(order)])
    dense = np.stack([_known(file, FEATURE + name) for name in names], axis=1) if names else None
    cells = {"candidates": items, "scores": score, "grades": grade, "places": place}
    shaped = {name: _shape(values[order], lengths, name) for name, values in cells.items()}
    events, position = _histories(file, dataset, heads, users[heads], columns["timestamp"][heads], guard)
    best = shaped["grades"].argmax(axis=1)
    lists = CandidateLists(
        users[heads].astype(np.int32),
        position.astype(np.int32),
        shaped["candidates"][np.arange(len(heads)), best],
        **shaped,
        features=None if dense is None else _shape(dense[order], lengths, "features"),
    )
    rows = np.lexsort((columns["timestamp"][heads], lists.user))
    requests = request.values.take(pa.array(request.codes[heads][rows])).to_pylist()
    return Impressions(lists.take(rows), requests, events[rows], names, int(slates - len(heads)))


def _features(path: Path) -> tuple[str, ...]:
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"is not a readable Parquet file: {error}", path=path) from error
    return tuple(name.removeprefix(FEATURE) for name in present if name.startswith(FEATURE))


def _known(file: TableFile, name: str) -> NDArray[np.float64]:
    """A column of numbers, none of them missing."""
    values = file.numbers(name, dates=name == "timestamp")
    _refuse(file, name, np.isnan(values), "is missing")
    return values


def _indices(values: Any, ids: list[ItemId]) -> NDArray[np.int64]:
    """Where each value stands in `ids`, -1 for one that is not there; IDs of another type are not there."""
    text = isinstance(ids[0], str)
    if text != bool(pa.types.is_string(values.type)):
        return np.full(len(values), -1, dtype=np.int64)
    found = pc.index_in(values, value_set=pa.array(ids, pa.string() if text else pa.int64()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _refuse(file: TableFile, column: str, rows: NDArray[np.bool_], message: str) -> None:
    if rows.any():
        raise file.error(f"{message} ({int(rows.sum())} such rows)", int(np.argmax(rows)), column)


def _slate_starts(
    file: TableFile, order: NDArray[np.int64], request: NDArray[np.int64], same: Mapping[str, NDArray[Any]]
) -> NDArray[np.int64]:
    """Where each slate begins in `order`, whose rows are grouped by request; a slate is of one user and one time."""
    starts = np.flatnonzero(np.diff(request[order], prepend=-1))
    head = np.repeat(order[starts], np.diff([*starts, len(order)]))
    for name, values in same.items():
        differs = np.zeros(len(request), dtype=np.bool_)
        differs[order] = values[order] != values[head]
        _refuse(file, name, differs, "is not that of the other rows of its request")
    return starts


def _distinct(file: TableFile, request: NDArray[np.int64], once: Mapping[str, NDArray[Any]]) -> None:
    for name, values in once.items():
        order = np.lexsort((values, request))
        equal = (np.diff(request[order]) == 0) & (np.diff(values[order]) == 0)
        again = np.zeros(len(request), dtype=np.bool_)
        again[order[1:][equal]] = True
        _refuse(file, name, again, "comes twice in its request")


def _shape(values: NDArray[Any], lengths: NDArray[np.int64], name: str) -> NDArray[Any]:
    """The rows of all slates as (R, K) or (R, K, F), padded as `CandidateLists` wants it."""
    padding, dtype = {
        "candidates": (PADDING, np.int32), "scores": (-np.inf, np.float32), "grades": (0, np.int8),
        "places": (0, np.int32), "features": (0, np.float32),
    }[name]  # fmt: skip
    kept = np.arange(lengths.max(initial=0)) < lengths[:, None]
    cells = np.full((*kept.shape, *values.shape[1:]), padding, dtype=dtype)
    cells[kept] = values
    return cells


def _histories(
    file: TableFile,
    dataset: Dataset,
    rows: NDArray[np.int64],
    users: NDArray[np.int64],
    times: NDArray[np.float64],
    guard: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R,) how many events came before each slate, and how many of them the history may hold."""
    events, position = np.zeros(len(users), dtype=np.int64), np.zeros(len(users), dtype=np.int64)
    for place, (user, moment) in enumerate(zip(users.tolist(), times.tolist(), strict=True)):
        own = dataset.timestamps[dataset.offsets[user] : dataset.offsets[user + 1]]
        if np.isnan(own).any():
            who = dataset.user_ids[user]
            message = f"the events of user {who!r} have no timestamps, so a slate's history is unknown"
            raise file.error(message, int(rows[place]), "timestamp")
        events[place] = np.searchsorted(own, moment, side="left")
        position[place] = np.searchsorted(own, moment - guard, side="left") if guard else events[place]
    return events, position
