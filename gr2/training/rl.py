"""The stage `rl`: a reasoner learns to re-rank by trying, with verifiable rewards (DAPO).

It learns on training lists whose target it did not see in mid-training. Each step it answers a few lists many times
over, and answers that earn more than the others of their list become likelier. Monitors of a policy that games its
reward are written for every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gr2.artifact import Artifact
from gr2.training.loop.workers import leave
from gr2.training.policy.trying import Trying, read_by
from gr2.training.policy.trying_settings import TryingConfig
from gr2.training.reasoner.contexts import context_sources

__all__ = ["RlConfig", "follow", "inputs", "leave", "run", "sources"]


@dataclass(frozen=True)
class RlConfig(TryingConfig):
    """See `TryingConfig`.

    Attributes:
        start: the stage whose model is trained: `midtrain`, `sft` or `opd`.
    """

    start: Literal["midtrain", "sft", "opd"] = "sft"


def inputs(config: RlConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return read_by(config, config.start)


def sources(config: RlConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads: another run's contexts."""
    return context_sources(config)


def run(config: RlConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train the model of `start`; see `Trying.learn` for what is written and raised."""
    return Trying("rl", config, artifacts, seed, config.start).learn(out)


def follow(config: RlConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> None:
    """What the other processes of a launch do; see `Trying.follow`."""
    Trying("rl", config, artifacts, seed, config.start).follow(out)
