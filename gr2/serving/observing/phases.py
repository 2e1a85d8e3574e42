"""The time of each phase of the requests that were answered, as the core counts it."""

from __future__ import annotations

from gr2._core import Admission
from gr2.serving.observing.histogram import Histogram

__all__ = ["PHASES", "read_phases"]

PHASES = ("queue", "parse", "lookup", "trie", "model", "rank")
# In the core's order.
COUNTED = ("parse", "lookup", "trie", "model", "rank", "total", "queue")


def read_phases(core: Admission) -> dict[str, Histogram]:
    """Phase to what has been counted so far."""
    found = dict(zip(COUNTED, core.stats()["phases"], strict=True))
    return {name: Histogram(*found[name]) for name in PHASES}
