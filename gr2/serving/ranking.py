"""The answer to a request as plain values: the same in process and through the client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gr2.catalog import ItemId

__all__ = ["CandidateStatus", "RankedItem", "Ranking", "Timings"]


class CandidateStatus(IntEnum):
    """How a candidate was ranked; the numbers are those of `gr2.v1.CandidateStatus`.

    A number that a newer server may send reads as UNSPECIFIED.
    """

    UNSPECIFIED = 0
    SCORED = 1
    UNKNOWN_ITEM = 2
    NOT_RANKED = 3

    @classmethod
    def _missing_(cls, _: object) -> CandidateStatus:
        return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One candidate. `index` is its position in the request; `score` is 0 for an item that was not scored."""

    index: int
    item_id: ItemId
    score: float
    status: CandidateStatus


@dataclass(frozen=True, slots=True)
class Timings:
    """Nanoseconds spent in each phase inside the engine or server; `total_ns` covers all of them.

    `queue_ns` is the wait for a free worker of the server.
    """

    parse_ns: int
    lookup_ns: int
    trie_ns: int
    model_ns: int
    rank_ns: int
    total_ns: int
    queue_ns: int = 0

    @classmethod
    def between(cls, stamps: Sequence[int], now: int) -> Timings:
        """The timings from six clock readings: the start and the end of each phase."""
        parse, lookup, trie, model, rank = (after - before for before, after in pairwise(stamps))
        return cls(parse, lookup, trie, model, rank, now - stamps[0])


@dataclass(frozen=True, slots=True)
class Ranking:
    """The re-ranked slate, best first. `unknown_history` counts history items that the catalogue does not know.

    With `fallback` a server had no time to rank: the items are in incoming order.
    """

    items: list[RankedItem]
    bundle_version: str
    timings: Timings
    unknown_history: int
    request_id: str = ""
    fallback: bool = False
