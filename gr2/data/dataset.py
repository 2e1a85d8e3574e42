"""The prepared data set: the catalogue and every user's events, oldest first, addressed by dense indices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.catalog import Catalog, ItemId
from gr2.errors import DataError

__all__ = ["Dataset"]

ARRAYS = {"offsets": np.int64, "items": np.int32, "timestamps": np.float64, "tied": np.bool_}


@dataclass(frozen=True)
class Dataset:
    """Events of U users in chronological order, E in all, over a catalogue.

    Leave-one-out: a user's training events are `events[:-2]`, the validation target is `events[-2]`, the test target
    is `events[-1]`. Every user has at least three events.

    Attributes:
        catalog: the items, by index.
        user_ids: (U,) the users' own IDs, by user index.
        offsets: (U + 1,) int64: user u's events are `items[offsets[u]:offsets[u + 1]]`.
        items: (E,) int32 item indices.
        timestamps: (E,) float64 Unix seconds, NaN where unknown.
        tied: (U,) bool: the last event has the timestamp of another event of the user, so which of them came last
            is a guess.
    """

    catalog: Catalog
    user_ids: list[ItemId]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    timestamps: NDArray[np.float64]
    tied: NDArray[np.bool_]

    @property
    def users(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(U,) int64: the number of events of each user."""
        return np.diff(self.offsets)

    def events(self, user: int) -> NDArray[np.int32]:
        """(n,) int32: all item indices of a user, oldest first; a view."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def history(self, user: int, position: int) -> NDArray[np.int32]:
        """(position,) int32: the item indices that came before the event at `position`; a view."""
        return self.events(user)[:position]

    def train_length(self, user: int) -> int:
        """The number of a user's events that belong to the training split."""
        return int(self.offsets[user + 1] - self.offsets[user]) - 2

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write items.parquet, users.parquet, offsets.npy, items.npy, timestamps.npy and tied.npy."""
        target = Path(folder)
        self.catalog.save(target / "items.parquet")
        key = pa.string() if self.user_ids and isinstance(self.user_ids[0], str) else pa.int64()
        pq.write_table(pa.table({"user_id": pa.array(self.user_ids, key)}), target / "users.parquet")
        for name, dtype in ARRAYS.items():
            np.save(target / f"{name}.npy", np.asarray(getattr(self, name), dtype), allow_pickle=False)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Dataset:
        """The data set that `save` wrote. Raises DataError if a file is missing, damaged or does not fit the others."""
        source = Path(folder)
        catalog = Catalog.load(source / "items.parquet")
        try:
            user_ids = pq.read_table(source / "users.parquet").column("user_id").to_pylist()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"not a user table written by gr2: {error}", path=source / "users.parquet") from error
        arrays: dict[str, Any] = {name: _load_array(source / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        dataset = cls(catalog, user_ids, **arrays)
        dataset._check(source)
        return dataset

    def _check(self, source: Path) -> None:
        users, events = len(self.user_ids), len(self.items)
        for name, expected in (("offsets", users + 1), ("timestamps", events), ("tied", users)):
            found = len(getattr(self, name))
            if found != expected:
                raise DataError(f"{expected} entries expected, found {found}", path=source / f"{name}.npy")
        if self.offsets[0] != 0 or self.offsets[-1] != events or (np.diff(self.offsets) < 3).any():
            raise DataError("does not divide the events into runs of three or more", path=source / "offsets.npy")
        if events and not (self.items.min() >= 0 and self.items.max() < len(self.catalog)):
            raise DataError(f"item indices outside 0..{len(self.catalog) - 1}", path=source / "items.npy")


def _load_array(path: Path, dtype: type[np.generic]) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"not an array written by gr2: {error}", path=path) from error
    if array.dtype != dtype or array.ndim != 1:
        raise DataError(f"expected {np.dtype(dtype)} of 1 dimension, got {array.dtype} of {array.ndim}", path=path)
    return array
