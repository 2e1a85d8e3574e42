"""How calls ended that ended without a status of ours: nobody hears of it, but they are counted."""

from __future__ import annotations

import math

import grpc

__all__ = ["lost_code"]

WAY = 0.01  # seconds


def lost_code(seconds: float, given: float = math.inf) -> grpc.StatusCode:
    """The status of a call that was over when it had so many `seconds` left here, of those that it was `given`.

    The caller's time is over before ours, by as long as the call took to come: no more than a part of a short time.
    """
    late = seconds <= min(WAY, given / 4)
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
