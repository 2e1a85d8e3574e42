"""The import of candidate lists that another ranker made, with their scores and dense features."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.list_file import ListFile, is_list
from gr2.errors import DataError

__all__ = ["SPLITS", "Split", "import_lists"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
REQUIRED = ("user_id", "candidates")
OPTIONAL = ("position", "scores", "features", "ranker")
DROPPED = (
    ": not in the prepared data; if it is in the log, the stage prepare has filtered it out: "
    "prepare with core = 0 (and min_events = 3), or leave it out of the lists"
)


def import_lists(
    path: str | os.PathLike[str], dataset: Dataset, *, split: Split = "test", ranker: str | None = None
) -> CandidateLists:
    """The candidate lists of a Parquet file for targets of one split, in the order of users and positions.

    Columns, one row a list:
        user_id: the user's ID.
        candidates: a list of item IDs, best first.
        position: the target's place among the user's prepared events, from 0. A user with n events has the training
            positions 0 to n - 3, the validation position n - 2 and the test position n - 1. Needed for "train";
            the others have one position a user, which is the default.
        scores: optional, a list of numbers that do not increase; by default minus the rank.
        features: optional, a list of K lists of F numbers, or of K * F numbers, candidate by candidate.
        ranker: optional, a name; the argument `ranker` selects one, and is needed if there are several.

    Raises DataError with file, row and column on whatever does not fit: a type, a null, an unknown user or item, a
    position outside the split, a position or a candidate that comes twice, scores or features that are not finite, not
    one a candidate or not of one width.
    """
    file = _of_ranker(ListFile.read(path, required=REQUIRED, optional=OPTIONAL), ranker)
    user_ids = file.column("user_id")
    user = file.indices("user_id", user_ids, dataset.user_ids, unknown="unknown user {}" + DROPPED)
    position = _positions(file, dataset, user, split)
    order = _distinct(file, dataset, user, position, split)
    items, lengths = _items(file, dataset)
    kept = np.arange(lengths.max()) < lengths[:, None]
    candidates = np.full(kept.shape, PADDING, dtype=np.int32)
    candidates[kept] = items
    scores = np.full(kept.shape, -np.inf, dtype=np.float32)
    scores[kept] = _scores(file, lengths)
    features = None
    if "features" in file:
        rows = _features(file, lengths)
        features = np.zeros((*kept.shape, rows.shape[1]), dtype=np.float32)
        features[kept] = rows
    target = dataset.items[dataset.offsets[user] + position]
    lists = CandidateLists(user, position.astype(np.int32), target, candidates, scores, features)
    return lists.take(order)


def _of_ranker(file: ListFile, ranker: str | None) -> ListFile:
    if "ranker" not in file:
        if ranker is not None:
            message = f"no such column, so the ranker {ranker!r} cannot be chosen"
            raise DataError(message, path=file.path, column="ranker")
        return file
    rankers = file.strings("ranker")
    known = sorted(set(rankers))
    if ranker is None and len(known) > 1:
        raise file.error(f"lists of several rankers; choose one of {', '.join(known)}", "ranker")
    if ranker is None:
        return file
    if ranker not in known:
        raise file.error(f"no ranker {ranker!r}; the file has {', '.join(known)}", "ranker")
    return file.keep(np.array([name == ranker for name in rankers]))


def _positions(file: ListFile, dataset: Dataset, user: NDArray[np.int32], split: Split) -> NDArray[np.int64]:
    """(R,) int64: each list's position, which belongs to the split."""
    length = dataset.lengths[user]
    last = {"train": length - 3, "val": length - 2, "test": length - 1}[split]
    if "position" not in file:
        if split == "train":
            raise DataError(
                "training lists need it: which of the user's prepared events, from 0, the list is for",
                path=file.path,
                column="position",
            )
        return last
    position = file.integers("position")
    first = np.zeros_like(last) if split == "train" else last
    outside = np.flatnonzero((position < first) | (position > last))
    if len(outside):
        row = int(outside[0])
        own = f"0 to {last[row]}" if split == "train" else str(last[row])
        raise file.error(
            f"position {position[row]} is not in the {split} split: of the {length[row]} events of user "
            f"{dataset.user_ids[user[row]]!r}, expected {own}",
            "position",
            row,
        )
    return position


def _distinct(
    file: ListFile, dataset: Dataset, user: NDArray[np.int32], position: NDArray[np.int64], split: Split
) -> NDArray[np.int64]:
    """(R,) int64: the rows in the order of users and positions, none of which comes twice."""
    order = np.lexsort((position, user))
    equal = (np.diff(user[order]) == 0) & (np.diff(position[order]) == 0)
    again = np.flatnonzero(equal)
    if len(again):
        place = again[np.argmin(order[again + 1])]
        earlier, row = int(order[place]), int(order[place + 1])
        event = f" for position {position[row]}" if split == "train" else ""
        name = dataset.user_ids[user[row]]
        raise file.error(f"user {name!r} has a list{event} in row {file.rows[earlier]} already", "user_id", row)
    return order


def _items(file: ListFile, dataset: Dataset) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All lists' item indices in one array, and (R,) int64 the length of each list."""
    values, lengths = file.lists("candidates")
    if not lengths.all():
        raise file.error("no candidates", "candidates", int(np.flatnonzero(lengths == 0)[0]))
    owner = np.repeat(np.arange(len(file)), lengths)
    items = file.indices("candidates", values, dataset.catalog.ids, unknown="unknown item {}" + DROPPED, owner=owner)
    order = np.lexsort((items, owner))
    again = np.flatnonzero((np.diff(owner[order]) == 0) & (np.diff(items[order]) == 0))
    if len(again):
        place = order[again[0]]
        name = dataset.catalog.ids[items[place]]
        raise file.error(f"candidate {name!r} comes twice", "candidates", int(owner[place]))
    return items, lengths


def _scores(file: ListFile, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """The scores of all lists' candidates in one array."""
    owner = np.repeat(np.arange(len(file)), lengths)
    rank = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
    if "scores" not in file:
        return -rank.astype(np.float32)
    values, counts = file.lists("scores")
    wrong = np.flatnonzero(counts != lengths)
    if len(wrong):
        row = int(wrong[0])
        raise file.error(f"{counts[row]} scores for {lengths[row]} candidates", "scores", row)
    scores = file.floats("scores", values, owner)
    rising = np.flatnonzero((np.diff(scores) > 0) & (rank[1:] > 0))
    if len(rising):
        place = int(rising[0])
        message = f"must not increase along the list, whose best comes first; got {scores[place]}, {scores[place + 1]}"
        raise file.error(message, "scores", int(owner[place]))
    return scores


def _features(file: ListFile, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """(C, F) float32: the features of all lists' candidates."""
    values, counts = file.lists("features")
    if is_list(values.type):
        wrong = np.flatnonzero(counts != lengths)
        if len(wrong):
            row = int(wrong[0])
            raise file.error(f"features of {counts[row]} candidates for {lengths[row]}", "features", row)
        owner = np.repeat(np.arange(len(file)), lengths)
        values, widths = file.vectors("features", values, owner)
    else:
        wrong = np.flatnonzero(counts % lengths)
        if len(wrong):
            row = int(wrong[0])
            message = f"{counts[row]} values cannot be divided among {lengths[row]} candidates"
            raise file.error(message, "features", row)
        owner, widths = np.arange(len(file)), counts // lengths
    width = int(widths[0])
    other = np.flatnonzero(widths != width)
    if len(other):
        found, row = widths[other[0]], int(owner[other[0]])
        message = f"{found} features a candidate, where row {file.rows[0]} has {width}"
        raise file.error(message, "features", row)
    if not width:
        raise file.error("holds no features; leave the column out", "features", 0)
    return file.floats("features", values, np.repeat(np.arange(len(file)), lengths * width)).reshape(-1, width)
