"""One step of a load test: how requests are sent, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from gr2.errors import ConfigError

__all__ = ["Generator", "Step"]

MOST_SLOTS = 512


@dataclass(frozen=True)
class Step:
    """Requests for `seconds`, after `warmup` seconds that are not counted.

    An open loop has a `rate`, requests a second that arrive at random (Poisson), whatever became of those before. A
    closed loop has a `concurrency`, callers that ask again once they are answered. `deadline` is in seconds.
    """

    rate: float | None = None
    concurrency: int | None = None
    seconds: float = 10.0
    warmup: float = 2.0
    deadline: float = 1.0

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise ConfigError("a step has a rate (open loop) or a concurrency (closed loop), one of the two")
        if self.rate is not None and not 0 < self.rate <= 1e6:
            raise ConfigError(f"a rate must be above 0 and at most 1,000,000 requests a second, got {self.rate:g}")
        if self.concurrency is not None and not 1 <= self.concurrency <= MOST_SLOTS:
            raise ConfigError(f"a concurrency must be in 1..{MOST_SLOTS}, got {self.concurrency}")
        if not 0 < self.seconds < inf or not 0 <= self.warmup < inf or not 0 < self.deadline < inf:
            raise ConfigError("seconds and deadline must be above 0, warmup must not be negative, all of them finite")

    @property
    def name(self) -> str:
        """How a table and a bar call it."""
        if self.rate is None:
            return f"closed {self.concurrency}"
        return f"open {self.rate:.0f}/s" if self.rate >= 1000 else f"open {self.rate:.4g}/s"


@dataclass(frozen=True)
class Generator:
    """Where the load comes from: `processes` on the CPUs `pin` (any, if empty), each with `connections`.

    In an open loop each process has at most `slots` requests under way; by default as many as the rate can leave
    unanswered within a deadline, MOST_SLOTS at most. `tls` are the PEM files of `gr2.load.job.Job`.
    """

    processes: int = 1
    connections: int = 1
    pin: Sequence[int] = ()
    slots: int | None = None
    tls: Sequence[str] = ("", "", "")

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= 64 or not 1 <= self.connections <= MOST_SLOTS:
            raise ConfigError(f"processes must be in 1..64 and connections in 1..{MOST_SLOTS}")
        if self.slots is not None and not 1 <= self.slots <= 4096:
            raise ConfigError(f"slots must be in 1..4096, got {self.slots}")

    def slots_for(self, step: Step) -> list[int]:
        """Requests that each process may have under way."""
        if step.rate is None:
            assert step.concurrency is not None
            whole, rest = divmod(step.concurrency, self.processes)
            return [whole + (place < rest) for place in range(self.processes)]
        needed = int(1.2 * step.rate * step.deadline / self.processes) + 8
        return [self.slots or min(MOST_SLOTS, needed)] * self.processes
