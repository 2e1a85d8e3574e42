"""Clocks of the phases of a batch: the processor's, or the device's, which runs behind it."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Clock", "DeviceClock", "HostClock"]


class Clock(Protocol):
    """Marks moments of a computation."""

    def mark(self) -> None:
        """Note the moment at which everything asked for so far is done."""

    def durations(self) -> list[int]:
        """Nanoseconds between the marks; all of them must be over."""


class HostClock:
    """A clock of what the calling thread does itself."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def mark(self) -> None:
        """See Clock."""
        self._marks.append(perf_counter_ns())

    def durations(self) -> list[int]:
        """See Clock."""
        return [after - before for before, after in pairwise(self._marks)]


class DeviceClock:
    """A clock of a CUDA stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """See Clock."""
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._marks.append(event)

    def durations(self) -> list[int]:
        """See Clock."""
        # A copy that has come back says nothing of the mark behind it.
        self._marks[-1].synchronize()
        return [round(before.elapsed_time(after) * 1e6) for before, after in pairwise(self._marks)]
