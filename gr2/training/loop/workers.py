"""The processes of `accelerate launch`, of which only the first writes; without it, the one process there is."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from numpy.typing import NDArray

from gr2.errors import ConfigError
from gr2.training.loop.optimisation import threads

__all__ = ["TRAIN", "Workers", "follow_first", "leave"]

# What the first process tells those that follow it.
LEAVE, TRAIN = 0, 1

# The others wait while the first hashes inputs and writes the artefact.
PATIENCE = timedelta(hours=2)


class Workers:
    """All processes at work on one stage; `stream` is where each shows its progress. Without a launcher there is one.

    The ways to wait for each other are methods here, and every process must call them in the same order.
    """

    def __init__(self, *, tracker: str = "none", folder: Path | None = None) -> None:
        self.tracked = tracker != "none"
        try:
            self.accelerator = Accelerator(
                log_with=tracker if self.tracked else None,
                project_dir=str(folder) if folder else None,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
            )
        except ValueError as error:
            if not self.tracked:
                raise
            raise ConfigError(f"tracker {tracker!r} is not one that accelerate knows: {error}") from error
        self.stream: TextIO = sys.stderr if self.rank == 0 else io.StringIO()
        if self.tracked:
            self.accelerator.init_trackers("midtrain")

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this one."""
        return int(self.accelerator.process_index)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def agree(self, value: int) -> int:
        """The value of the first process, in all of them."""
        if self.count == 1:
            return value
        box = torch.tensor([value], device=self.device)
        torch.distributed.broadcast(box, 0)
        return int(box.item())

    def mean(self, value: float) -> float:
        """The mean of every process's value, in all of them."""
        if self.count == 1:
            return value
        box = torch.tensor([value], device=self.device)
        torch.distributed.all_reduce(box)
        return box.item() / self.count

    def log(self, values: dict[str, float], step: int) -> None:
        """Tell the tracker, if there is one."""
        if self.tracked:
            self.accelerator.log(values, step=step)

    def wait(self) -> None:
        """Go on when all have come here."""
        self.accelerator.wait_for_everyone()

    def release(self) -> None:
        """Let go of what was prepared for training."""
        self.accelerator.free_memory()

    def end(self) -> None:
        """Close the tracker and the connection between the processes."""
        # A trainer that is left in a cycle keeps the connection's threads, which abort an interpreter that ends first.
        self.release()
        self.accelerator.end_training()

    def share(self, rows: int) -> NDArray[np.int64]:
        """The row numbers, of `rows`, that are this process's."""
        return np.arange(self.rank, rows, self.count)

    def collect(self, parts: Sequence[Any]) -> list[Any]:
        """What every process gives, in the order of the processes, in all of them."""
        return list(gather_object(list(parts))) if self.count > 1 else list(parts)


def follow_first(out: Path, count: int, train: Callable[[Workers, Path], object]) -> None:
    """What the other processes of a launch do while the first makes the artefact `out`, or has told them to `leave`.

    If it trains, so do they: `train` takes the processes and the checkpoints' folder. `count` is torch's threads.
    """
    workers = Workers()
    with threads(count):
        if workers.agree(LEAVE) == TRAIN:
            train(workers, out.resolve().with_name(out.name + ".partial") / "checkpoints")
    workers.end()


def leave() -> None:
    """Tell the processes that follow the first one into a stage that there is nothing to do."""
    workers = Workers()
    workers.agree(LEAVE)
    workers.end()
