"""What one process of a load test is told, and what it tells back: two files in one folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2.load.frames import read_frames, write_frames

__all__ = ["EXPIRED", "OK", "Calls", "Job"]

OK = 0
EXPIRED = -1
"""The code of a request whose deadline had passed before there was a slot to send it; the others are gRPC's."""


@dataclass(frozen=True)
class Job:
    """The share of process `place` of `places` in one step; `rate` is the process's own, None in a closed loop.

    Every `stride`-th reply is kept. `requests` is a file of frames; process `place` sends number `place`,
    `place + places`, ..., and begins again at the end. `tls` are PEM files: the server's authority, and the caller's
    certificate and key; empty without.
    """

    target: str
    requests: str
    place: int
    places: int
    rate: float | None
    slots: int
    connections: int
    warmup: float
    seconds: float
    deadline: float
    pin: list[int]
    stride: int
    seed: int
    tls: list[str] = field(default_factory=lambda: ["", "", ""])

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        """The job that `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def due(self) -> NDArray[np.int64]:
        """When each request of an open loop is due: nanoseconds from the start of the warm-up, Poisson."""
        assert self.rate is not None
        length = self.warmup + self.seconds
        rng = np.random.default_rng([self.seed, self.place])
        count = int(self.rate * length + 6 * np.sqrt(self.rate * length) + 20)
        times = np.cumsum(rng.exponential(1 / self.rate, count))
        return (1e9 * times[times < length]).astype(np.int64)


@dataclass(frozen=True)
class Calls:
    """Every call of a step. Times are nanoseconds from the start of the warm-up; all arrays have one row a call.

    `due` is when the request should have been sent, `sent` when it was, `done` when its answer was there; `crowded`
    says that no slot was free when it was due. `cpu` is the processor time of the sending processes after the warm-up,
    in seconds, and `replies` some of the answers.
    """

    due: NDArray[np.int64]
    sent: NDArray[np.int64]
    done: NDArray[np.int64]
    code: NDArray[np.int8]
    crowded: NDArray[np.bool_]
    cpu: float
    replies: list[bytes]

    def save(self, stem: Path) -> None:
        """Write the arrays to STEM.npz and the replies to STEM.replies."""
        arrays = {name: getattr(self, name) for name in ("due", "sent", "done", "code", "crowded")}
        np.savez(stem.with_suffix(".npz"), cpu=np.float64(self.cpu), **arrays)
        write_frames(stem.with_suffix(".replies"), self.replies)

    @classmethod
    def load(cls, stem: Path) -> Calls:
        """The calls that `save` wrote."""
        with np.load(stem.with_suffix(".npz")) as arrays:
            columns = {name: arrays[name] for name in ("due", "sent", "done", "code", "crowded")}
            return cls(**columns, cpu=float(arrays["cpu"]), replies=read_frames(stem.with_suffix(".replies")))

    @classmethod
    def join(cls, parts: list[Calls]) -> Calls:
        """The calls of several processes as one."""
        names = ("due", "sent", "done", "code", "crowded")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        replies = [reply for part in parts for reply in part.replies]
        return cls(**columns, cpu=sum(part.cpu for part in parts), replies=replies)
