"""Durations counted in buckets of half an octave: cheap to fill, and the same wherever they are filled."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BUCKETS", "Histogram", "Recorder", "bucket", "upper"]

BUCKETS = 96


def bucket(ns: int) -> int:
    """The bucket of a duration: two for each power of two, cut at one and a half times it."""
    bits = ns.bit_length()
    index = 2 * bits + (ns >> (bits - 2) & 1 if bits > 1 else 0)
    return index if index < BUCKETS else BUCKETS - 1


def upper(index: int) -> int:
    """The first duration in nanoseconds that is above bucket `index`."""
    bits, half = divmod(index, 2)
    if bits < 2:
        return 1 << bits
    return (1 << bits) if half else 3 << (bits - 2)


@dataclass(frozen=True)
class Histogram:
    """Counts by bucket (BUCKETS) and the sum of all durations in nanoseconds."""

    counts: Sequence[int]
    sum_ns: int

    @property
    def total(self) -> int:
        """How many durations there are."""
        return sum(self.counts)


class Recorder:
    """A histogram that several threads fill."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._sum = 0
        self._lock = threading.Lock()

    def add(self, ns: int) -> None:
        """Count one duration."""
        index = bucket(ns)
        with self._lock:
            self._counts[index] += 1
            self._sum += ns

    def read(self) -> Histogram:
        """What has been counted so far."""
        with self._lock:
            return Histogram(tuple(self._counts), self._sum)
