"""What becomes of a request in the C++ core, and the exception that says so."""

from __future__ import annotations

from concurrent.futures import CancelledError
from enum import IntEnum

from gr2.errors import Gr2Error, OverloadError, RequestError

__all__ = ["Outcome", "error_of"]


class Outcome(IntEnum):
    """As numbered in csrc/core/engine.h."""

    ANSWERED = 0
    FALLBACK = 1
    INVALID = 2
    FULL = 3
    LATE = 4
    EXPIRED = 5
    CANCELLED = 6
    OVERFLOW = 7
    UNRANKABLE = 8
    FAILED = 9


def error_of(outcome: Outcome, reason: str, *, version: str, bound: int) -> Exception:
    """The exception for an outcome without a reply; `bound` is how many requests may work or wait."""
    match outcome:
        case Outcome.FULL:
            return OverloadError(f"{bound} requests are at work or wait already")
        case Outcome.LATE:
            return OverloadError("too many requests wait for this one to be answered within its deadline")
        case Outcome.EXPIRED | Outcome.CANCELLED:
            return CancelledError("the call ended while the request waited")
        case Outcome.OVERFLOW:
            return RequestError("features", "too large: the model's score is not finite")
        case Outcome.UNRANKABLE:
            return Gr2Error(f"bundle {version}: the model's output cannot be ranked: {reason}")
        case _:
            return Gr2Error(f"bundle {version}: the model failed: {reason}")
