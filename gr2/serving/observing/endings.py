"""How calls ended that ended without a status of ours: nobody hears of it, but they are counted."""

from __future__ import annotations

import grpc

__all__ = ["lost_code"]

WAY = 0.01  # seconds


def lost_code(seconds: float) -> grpc.StatusCode:
    """The status of a call that was over when it had so many `seconds` left here.

    The caller's time is over before ours, by as long as the call took to come.
    """
    return grpc.StatusCode.DEADLINE_EXCEEDED if seconds <= WAY else grpc.StatusCode.CANCELLED
