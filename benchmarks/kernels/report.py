"""A record that is stored after each of its parts: what was measured is there, wherever the run ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import Figure, Record, store

__all__ = ["Report"]


class Report:
    """Of `parts`, in their order; one that has not come yet is said not to be measured."""

    def __init__(self, record: Record, parts: Sequence[str], folder: Path) -> None:
        """`record` has a name, a title and a command, and `folder` takes it."""
        self.record, self._empty, self._folder = record, record, folder
        self._parts: dict[str, Record | None] = dict.fromkeys(parts)

    def put(
        self,
        part: str,
        figures: Sequence[Figure] = (),
        tables: Sequence[dict[str, Any]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Store what the part has found, in place of what it had found before."""
        if part not in self._parts:
            raise KeyError(part)
        self._parts[part] = replace(self._empty, figures=[*figures], tables=[*tables], notes=[*notes])
        found = [each for each in self._parts.values() if each is not None]
        missing = [
            Figure(f"{self._empty.title}: {name}", "the run ended before it", "measured", "not-measured")
            for name, each in self._parts.items()
            if each is None
        ]
        self.record = replace(
            self._empty,
            figures=[figure for each in found for figure in each.figures] + missing,
            tables=[table for each in found for table in each.tables],
            notes=[note for each in found for note in each.notes],
        )
        store(self.record, self._folder)
