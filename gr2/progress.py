"""Progress on stderr: a bar with the time left on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn

__all__ = ["Bar", "track"]

LINE_SECONDS = 10.0
REFRESH_SECONDS = 0.1


class Bar:
    """What a loop tells of its progress; `track` makes it."""

    def __init__(self, total: int | None, description: str, unit: str, start: int, to: TextIO | Progress) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = start
        self._start = start
        self._metrics: dict[str, float | int | str] = {}
        self._stream = to if not isinstance(to, Progress) else None
        self._progress = progress = to if isinstance(to, Progress) else None
        self._began = self._shown = time.monotonic()
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(description, total=total, completed=start, unit=unit, metrics="")
            progress.refresh()

    def advance(self, n: int = 1, **metrics: float | int | str) -> None:
        """Count `n` more units as done; `metrics` are shown until newer ones of the same name come."""
        self.done += n
        self._metrics.update(metrics)
        now = time.monotonic()
        if now - self._shown < (LINE_SECONDS if self._progress is None else REFRESH_SECONDS):
            return
        self._shown = now
        self._show(now)

    def finish(self) -> None:
        """Show the final count. `track` calls it when its block ends without an exception."""
        self._show(time.monotonic(), final=True)

    def _show(self, now: float, *, final: bool = False) -> None:
        shown = "  ".join(f"{name} {_number(value)}" for name, value in self._metrics.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self.done, metrics=shown)
            self._progress.refresh()
            return
        spent = now - self._began
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{count} {self.unit}", f"{_duration(spent)} spent"]
        if not final and self.total is not None and self.done > self._start:
            parts.append(f"{_duration(spent * (self.total - self.done) / (self.done - self._start))} left")
        if shown:
            parts.append(shown)
        print(f"{self.description}: {', '.join(parts)}", file=self._stream, flush=True)


@contextmanager
def track(
    total: int | None, description: str, unit: str = "step", *, start: int = 0, stream: TextIO | None = None
) -> Iterator[Bar]:
    """A `Bar` to `advance` from 0 to `total` (None where unknown); a resumed loop says where it starts with `start`.

    It draws on the caller's thread, from `advance`: nothing runs in the background and nothing is left behind.
    """
    stream = stream if stream is not None else sys.stderr
    if not stream.isatty():
        bar = Bar(total, description, unit, start, stream)
        yield bar
        bar.finish()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        RemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    with Progress(*columns, console=Console(file=stream), auto_refresh=False) as progress:
        bar = Bar(total, description, unit, start, progress)
        yield bar
        bar.finish()


def _number(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
