"""The rules a request must keep. Whatever passes here, the engine can rank."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gr2.errors import RequestError

if TYPE_CHECKING:
    from gr2.bundle import Manifest
    from gr2.catalog import ItemId

__all__ = ["Ids", "RequestRules", "Slate", "float_array", "split_ids", "text", "whole_number"]

Ids = tuple[list[int], list[str]]
"""Item IDs as they travel: integers and strings apart; at least one of the two is empty in a valid request."""

MAX_REQUEST_ID_BYTES = 128
NAMED_DUPLICATES = 3


@dataclass(frozen=True, slots=True)
class Slate:
    """A request that keeps the rules. `scores` is (K,) float32, `features` (K, F) float32; `top_n` is in 1..K.

    `history` and `keys` are what the codebook looks up; `candidates` are the same IDs as `keys`, as they came.
    """

    history: NDArray[np.int64] | list[str]
    candidates: list[int] | list[str]
    keys: NDArray[np.int64] | list[str]
    scores: NDArray[np.float32] | None
    features: NDArray[np.float32] | None
    top_n: int


def split_ids(field: str, values: Sequence[ItemId] | NDArray[Any]) -> Ids:
    """`values` as IDs of one kind. Raises RequestError for anything but a list of integers or of strings."""
    items = _listed(field, values)
    kinds = set(map(type, items))
    if kinds <= {int}:
        return items, []
    if kinds <= {str}:
        return [], items
    ints = [int(item) for item in items if isinstance(item, int | np.integer) and not isinstance(item, bool)]
    strings = [str(item) for item in items if isinstance(item, str)]
    if len(ints) + len(strings) < len(items):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise RequestError(field, f"item IDs must be all int or all str, got {names}")
    return ints, strings


def _listed(field: str, values: object) -> list[Any]:
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise RequestError(field, f"must be a list of item IDs, got an array of shape {values.shape}")
        return list(values.tolist())
    # A string would be taken apart into characters; a set or a mapping has no order to rely on.
    if isinstance(values, str | bytes | bytearray | Mapping | Set) or not isinstance(values, Iterable):
        raise RequestError(field, f"must be a list of item IDs, got {type(values).__name__}")
    return list(values)


def float_array(field: str, values: ArrayLike) -> NDArray[np.float32]:
    """`values` as float32 of the same shape. Raises RequestError if they are not numbers; text is none."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and not (array.dtype == object and _all_real(array)):
            raise TypeError(f"got {array.dtype}")
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(field, f"must be numbers: {error}") from error


def _all_real(array: NDArray[Any]) -> bool:
    return all(isinstance(value, numbers.Real) for value in array.flat)


def whole_number(field: str, value: object) -> int:
    """`value` as an int. Raises RequestError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RequestError(field, f"must be an integer, got {value!r}")
    return int(value)


def text(field: str, value: object) -> str:
    """`value` if it is a str. Raises RequestError if it is none."""
    if not isinstance(value, str):
        raise RequestError(field, f"must be a string, got {value!r}")
    return value


class RequestRules:
    """The rules of one bundle."""

    def __init__(self, manifest: Manifest) -> None:
        self.id_type = manifest.codebook.id_type
        self.width = manifest.features.width
        self.max_candidates = manifest.limits.max_candidates
        self.max_history = manifest.limits.max_history

    def check(
        self,
        history: Ids,
        candidates: Ids,
        *,
        scores: NDArray[np.float32] | None = None,
        features: NDArray[np.float32] | None = None,
        top_n: int = 0,
        request_id: str = "",
    ) -> Slate:
        """The request as a slate. Raises RequestError that names the field and the reason.

        Empty `scores` and `features` count as absent. `top_n` above the number of candidates lists them all, as 0 does.
        """
        size = len(request_id.encode(errors="replace"))
        if size > MAX_REQUEST_ID_BYTES:
            raise RequestError("request_id", f"at most {MAX_REQUEST_ID_BYTES} bytes, got {size}")
        past = self._ids("history", history, self.max_history)
        slate = self._ids("candidates", candidates, self.max_candidates)
        count = len(slate)
        if count == 0:
            raise RequestError("candidates", "at least one is needed, got none")
        if len(set(slate)) != count:
            raise RequestError("candidates", f"must be distinct; {_duplicates(slate)}")
        if top_n < 0:
            raise RequestError("top_n", f"must not be negative, got {top_n}")
        return Slate(
            self._keys("history", past),
            slate,
            self._keys("candidates", slate),
            self._scores(scores, count),
            self._features(features, count),
            min(top_n or count, count),
        )

    def _ids(self, field: str, ids: Ids, limit: int) -> list[Any]:
        ints, strings = ids
        if len(ints) + len(strings) > limit:
            raise RequestError(field, f"at most {limit} items, got {len(ints) + len(strings)}")
        if ints and strings:
            raise RequestError(field, f"fill ints or strings, not both; got {len(ints)} ints, {len(strings)} strings")
        if self.id_type == "string":
            if ints:
                raise RequestError(field, "this catalogue's item IDs are strings, got ints")
            return strings
        if strings:
            raise RequestError(field, "this catalogue's item IDs are int64, got strings")
        return ints

    def _keys(self, field: str, ids: list[Any]) -> NDArray[np.int64] | list[str]:
        if self.id_type == "string":
            return ids
        try:
            return np.array(ids, dtype=np.int64)
        except OverflowError as error:
            raise RequestError(field, "item IDs must fit into int64") from error

    @staticmethod
    def _scores(scores: NDArray[np.float32] | None, count: int) -> NDArray[np.float32] | None:
        if scores is None or scores.size == 0:
            return None
        if scores.shape != (count,):
            raise RequestError("scores", f"none or one a candidate ({count}), got {scores.size}")
        if not np.isfinite(scores).all():
            position = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise RequestError("scores", f"must be finite float32; number {position} is {scores[position]}")
        return scores

    def _features(self, features: NDArray[np.float32] | None, count: int) -> NDArray[np.float32] | None:
        if features is None or features.size == 0:
            return None
        if features.size != count * self.width or (features.ndim > 1 and features.shape != (count, self.width)):
            if features.ndim > 1:
                came = f"shape {features.shape}"
            else:
                each = f" ({features.size // count} a candidate)" if features.size % count == 0 else ""
                came = f"{features.size} values{each}"
            need = f"{count * self.width} values ({self.width} a candidate)" if self.width else "none"
            raise RequestError("features", f"this bundle's feature width is {self.width}: expected {need}, got {came}")
        rows = features.reshape(count, self.width)
        if not np.isfinite(rows).all():
            row, column = (int(place) for place in np.argwhere(~np.isfinite(rows))[0])
            value = rows[row, column]
            raise RequestError("features", f"must be finite float32; column {column} of candidate {row} is {value}")
        return rows


def _duplicates(ids: list[Any]) -> str:
    places: dict[ItemId, list[int]] = {}
    for position, item in enumerate(ids):
        places.setdefault(item, []).append(position)
    repeated = [(item, where) for item, where in places.items() if len(where) > 1]
    first = repeated[:NAMED_DUPLICATES]
    named = [f"{_short(item)} at positions {', '.join(map(str, where[:5]))}" for item, where in first]
    more = f" and {len(repeated) - NAMED_DUPLICATES} more" if len(repeated) > NAMED_DUPLICATES else ""
    return "; ".join(named) + more


def _short(item: ItemId) -> str:
    text = repr(item)
    return text if len(text) <= 40 else text[:37] + "..."
