"""What the scenarios of `benchmarks.server.faults` share: the bundles, the servers, the load, and an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.server.faults_load import Load, Question, Replica, Tally
from gr2.v1 import management_pb2, management_pb2_grpc

__all__ = ["QUICK", "SETTLE", "Bench", "Outcome", "Sizes", "reload"]

RATE = 200.0  # calls a second, so that some are at work whenever something happens
SETTLE = 1.0  # seconds of load before and after a fault


@dataclass(frozen=True)
class Sizes:
    """How often each fault happens."""

    kills: int = 10
    swaps: int = 50
    malformed: int = 10_000
    sockets: int = 200
    hold: float = 12.0  # seconds that slow callers hold on; the server's patience is 10


QUICK = Sizes(kills=1, swaps=10, malformed=1_000, sockets=50, hold=3.0)


@dataclass(frozen=True)
class Outcome:
    """A scenario: what the load saw, whether what must hold besides did, and a note."""

    fault: str
    tally: Tally
    holds: bool
    note: str


@dataclass(frozen=True)
class Bench:
    """Two bundles of one catalogue, in a repository as versions 1 and 2 with version 1 pinned, and the questions."""

    folder: Path
    bundles: Sequence[Path]
    questions: Sequence[Question]
    sizes: Sizes

    @property
    def shop(self) -> Path:
        """The folder of the versions."""
        return self.folder / "models" / "shop"

    def pin(self, label: str) -> None:
        """Make a version the wanted one."""
        (self.shop / ".current").write_text(label)
        (self.shop / ".current").rename(self.shop / "current")

    def serve(
        self, *arguments: str, port: int = 0, env: dict[str, str] | None = None, output: Path | None = None
    ) -> Replica:
        """A server of the repository that looks for versions when it is told to."""
        return Replica(self.folder / "models", "--poll", "0", *arguments, port=port, env=env, output=output)

    def load(self, *replicas: Replica) -> Load:
        """The load on these servers."""
        return Load([replica.address for replica in replicas], self.questions, rate=RATE)


def reload(replica: Replica) -> management_pb2.BundleInfo:
    """Have the server look for versions; returns what it says of the bundle."""
    with grpc.insecure_channel(replica.address) as channel:
        stub = management_pb2_grpc.ManagementStub(channel)
        return stub.Reload(management_pb2.ReloadRequest(), timeout=60).bundles[0]
