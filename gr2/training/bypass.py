"""The stage `bypass`: the second pass of `rl`, in which the model learns to rank without reasoning first.

Dropping the explanation of a model that has learnt to rank after one costs quality; learning by the same rewards,
without it, recovers that (technical report). What the model is worth before the pass is measured with the same prompts.
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

__all__ = ["BypassConfig", "follow", "inputs", "leave", "run", "sources"]


@dataclass(frozen=True)
class BypassConfig(TryingConfig):
    """See `TryingConfig`; there is no reasoning.

    Attributes:
        start: the stage whose model is trained: `midtrain`, `sft`, `opd` or `rl`.
    """

    reasoning: bool = False
    evaluate_start: bool = True
    start: Literal["midtrain", "sft", "opd", "rl"] = "rl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reasoning:
            raise ValueError("reasoning must be false: this stage is the pass without it; [rl] is the one with it")


def inputs(config: BypassConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return read_by(config, config.start)


def sources(config: BypassConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads: another run's contexts."""
    return context_sources(config)


def run(config: BypassConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train the model of `start`; see `Trying.learn` for what is written and raised."""
    return Trying("bypass", config, artifacts, seed, config.start).learn(out)


def follow(config: BypassConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> None:
    """What the other processes of a launch do; see `Trying.follow`."""
    Trying("bypass", config, artifacts, seed, config.start).follow(out)
