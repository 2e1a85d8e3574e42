"""When a call to an endpoint may begin, and how long to wait before it is tried again."""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Mapping

__all__ = ["LONGEST_WAIT", "Pace", "backoff", "retry_after"]

FIRST_WAIT, MOST_WAIT = 0.5, 30.0  # seconds of back-off
LONGEST_WAIT = 600.0  # seconds that a server may ask to wait for


class Pace:
    """Spreads calls evenly, `per_minute` of them (0: as they come), and holds all of them back when the server asks."""

    def __init__(self, per_minute: int) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = self._held = 0.0

    async def turn(self) -> None:
        """Return when a call may begin."""
        while (wait := max(self._next, self._held) - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        self._next = time.monotonic() + self._interval

    def hold(self, seconds: float) -> None:
        """Let no call begin for so long."""
        self._held = max(self._held, time.monotonic() + seconds)


def backoff(tried: int) -> float:
    """Seconds to wait after `tried` failures, from 1: twice as long each time, and up to half of it less by chance."""
    return min(FIRST_WAIT * 2.0 ** (tried - 1), MOST_WAIT) * random.uniform(0.5, 1.0)  # noqa: S311


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks to wait (a number, or a date), None where it does not."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
