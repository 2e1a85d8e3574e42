"""The time of each phase of the requests that the Python path answered."""

from __future__ import annotations

from gr2.serving.histogram import Histogram, Recorder
from gr2.serving.ranking import Timings

__all__ = ["PHASES", "PhaseRecorder"]

PHASES = ("queue", "parse", "lookup", "trie", "model", "rank")


class PhaseRecorder:
    """Counts phases by their durations. Safe to share between threads."""

    def __init__(self) -> None:
        self._recorders = {name: Recorder() for name in PHASES}

    def add(self, timings: Timings) -> None:
        """Count the phases of one request."""
        for name in PHASES[1:]:
            self._recorders[name].add(getattr(timings, f"{name}_ns"))

    def waited(self, ns: int) -> None:
        """Count the time that one request waited for its turn."""
        self._recorders["queue"].add(ns)

    def read(self) -> dict[str, Histogram]:
        """Phase to what has been counted so far."""
        return {name: recorder.read() for name, recorder in self._recorders.items()}
