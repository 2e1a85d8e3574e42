"""Calls that are begun and have not ended, and those among them whose answer its caller does not take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

__all__ = ["OpenCalls"]

logger = logging.getLogger(__name__)

# With what the transport keeps of it, a call takes some 25 KB: 100 MB in all. Of callers who read, answers are on their
# way for less than a millisecond, so that there are few.
MOST_UNTAKEN = 4096
LIMIT, PRESSED = 10.0, 0.5  # seconds to take an answer, and while there is no room for more of them


class OpenCalls:
    """The calls begun, by any key of theirs.

    Transports keep an answer for as long as its caller leaves no window for it, which costs a caller nothing: those
    calls are cancelled in the end.
    """

    def __init__(self) -> None:
        self._open: dict[object, Callable[[], Any]] = {}
        self._untaken: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def crowded(self) -> bool:
        """Whether so many answers are not taken that there should be no more."""
        return len(self._untaken) >= MOST_UNTAKEN

    def begin(self, call: object, cancel: Callable[[], Any]) -> None:
        """A call is begun; `cancel` would end it."""
        self._open[call] = cancel

    def answered(self, call: object) -> None:
        """Its answer is there."""
        self._untaken[call] = time.monotonic()
        # It may have ended meanwhile, in another thread.
        if call not in self._open:
            self._untaken.pop(call, None)

    def end(self, call: object) -> None:
        """The call is over."""
        self._open.pop(call, None)
        self._untaken.pop(call, None)

    def look(self) -> None:
        """Cancel the calls whose answer was there for too long."""
        oldest = time.monotonic() - (PRESSED if self.crowded else LIMIT)
        for call, since in list(self._untaken.items()):
            cancel = self._open.get(call)
            if since > oldest or cancel is None:
                continue
            try:
                cancel()
            except Exception:
                logger.exception("a call whose answer is not taken could not be cancelled")
                self._untaken.pop(call, None)
