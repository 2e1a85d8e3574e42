"""The interactions file: who met which item when; the order of a user's events; the k-core."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2.catalog import ItemId
from gr2.data.columns import Ids, TableFile
from gr2.data.tables import read_table
from gr2.errors import DataError

__all__ = ["Interactions", "chronological_order", "k_core", "read_interactions"]


@dataclass(frozen=True)
class Interactions:
    """E events in file order. Every user has a timestamp at all events, or a position at all events."""

    users: Ids
    items: Ids
    timestamps: NDArray[np.float64]  # (E,) Unix seconds, NaN where unknown
    positions: NDArray[np.float64] | None  # (E,) NaN where unknown; None if the file has no such column
    file: TableFile

    @property
    def timed(self) -> NDArray[np.bool_]:
        """(E,) bool: the event's user has a timestamp at every event, so that timestamps order the events."""
        unknown = np.bincount(self.users.codes, np.isnan(self.timestamps), len(self.users.values))
        complete: NDArray[np.bool_] = (unknown == 0)[self.users.codes]
        return complete


def read_interactions(path: Path) -> Interactions:
    """The interactions file at `path`: `user_id`, `item_id` and `timestamp`, `position` or both.

    A timestamp is a number of Unix seconds or a date-time; a position is a number. A user's events are ordered by
    timestamp if all of them have one, and by position otherwise. Raises DataError with the row and column of a missing
    ID, of a value that is not a number, and of an event that cannot be ordered.
    """
    file = read_table(path, required=("user_id", "item_id"), numeric=("timestamp", "position"))
    if "timestamp" not in file and "position" not in file:
        raise DataError(
            "needs a column 'timestamp' or 'position' to order the events by", path=path, column="timestamp"
        )
    users, items = file.ids("user_id"), file.ids("item_id")
    if users.kind == "text":
        users = users.as_kind("int64" if users.is_integral() else "string")
    unknown = np.full(len(users.codes), np.nan)
    timestamps = file.numbers("timestamp", dates=True) if "timestamp" in file else unknown
    positions = file.numbers("position") if "position" in file else None
    log = Interactions(users, items, timestamps, positions, file)
    stuck = np.flatnonzero(~log.timed & np.isnan(unknown if positions is None else positions))
    if len(stuck):
        row, user = int(stuck[0]), users.values[users.codes[stuck[0]]].as_py()
        column = "timestamp" if positions is None else "position"
        raise file.error(f"is missing, and user {user!r} has not a timestamp at every event to order by", row, column)
    return log


def chronological_order(log: Interactions, *, ties: str, seed: int) -> NDArray[np.int64]:
    """(E,) int64: the rows grouped by user, each user's events oldest first.

    Events with equal timestamps are ordered by a hash of seed, user, item and timestamp (`ties="shuffle"`), which does
    not depend on the order of the rows, or by position, or row where there is none (`ties="stored"`).
    Raises DataError at an event that repeats another: same user, item and timestamp, or same user and position.
    """
    users, timed = log.users.codes, log.timed
    positions = np.full(len(users), np.nan) if log.positions is None else log.positions
    times = np.where(timed, log.timestamps, positions)
    shuffled = _tie_hash(log, seed)
    order = np.lexsort((shuffled, times, users))
    _refuse_duplicates(log, order, times, timed)
    if log.positions is not None:
        by_position = np.lexsort((positions, users))
        _refuse_duplicates(log, by_position, positions, np.zeros_like(timed))
    if ties == "stored":
        stored = np.where(np.isnan(positions), np.arange(len(users)), positions)
        order = np.lexsort((stored, times, users))
    return order


def k_core(users: NDArray[np.int64], items: NDArray[np.int64], *, user_core: int, item_core: int) -> NDArray[np.bool_]:
    """(E,) bool: the largest set of events where every user has `user_core` of them and every item `item_core`."""
    keep = np.ones(len(users), np.bool_)
    rows = np.arange(len(users))
    while len(rows):
        inside = np.bincount(users[rows])[users[rows]] >= user_core
        inside &= np.bincount(items[rows])[items[rows]] >= item_core
        if inside.all():
            break
        keep[rows[~inside]] = False
        rows = rows[inside]
    return keep


def _refuse_duplicates(
    log: Interactions, order: NDArray[np.int64], times: NDArray[np.float64], timed: NDArray[np.bool_]
) -> None:
    here, there = order[1:], order[:-1]
    same = (log.users.codes[here] == log.users.codes[there]) & (times[here] == times[there])
    same &= (log.items.codes[here] == log.items.codes[there]) | ~timed[here]
    pairs = np.sort(np.stack([here[same], there[same]]), axis=0)
    if pairs.shape[1]:
        first, second = (int(row) for row in pairs[:, np.argmin(pairs[1])])
        user = log.users.values[log.users.codes[second]].as_py()
        item = log.items.values[log.items.codes[second]].as_py()
        column = "timestamp" if timed[second] else "position"
        what = "user, item and timestamp" if timed[second] else "user and position"
        message = f"repeats row {first + 1}: same {what} (user {user!r}, item {item!r}); {pairs.shape[1]} such events"
        raise log.file.error(message, second, column)


def _tie_hash(log: Interactions, seed: int) -> NDArray[np.uint64]:
    user_keys, item_keys = (_keys(ids.values.to_pylist(), seed) for ids in (log.users, log.items))
    times = np.where(np.isnan(log.timestamps), 0.0, log.timestamps + 0.0).view(np.uint64)
    return _mix(_mix(_mix(user_keys[log.users.codes]) ^ item_keys[log.items.codes]) ^ times)


def _keys(ids: list[ItemId], seed: int) -> NDArray[np.uint64]:
    key = seed.to_bytes(8, "little", signed=True)
    digests = [hashlib.blake2b(repr(value).encode(), digest_size=8, key=key).digest() for value in ids]
    return np.frombuffer(b"".join(digests), "<u8")


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): every input bit changes every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
