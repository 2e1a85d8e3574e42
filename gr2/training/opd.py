"""The stage `opd`: on-policy distillation, in which a frozen teacher judges every token of the student's own answers.

Fine-tuning supervises states that the student does not come to by itself; here the student samples, and is told what
the teacher would have done at each step. With S a token's set (see `policy`), of a student p and a teacher q,

    task     clipped surrogate of the rewards, as in `rl`, + kl * sum_S p (log p - log q)    (technical report, Eq. 4)
    reverse  sum_S p (log p - log q) alone
    forward  sum_S q (log q - log p) alone                                                   (arXiv 2607.01170)

Divergences are sums over the set, not over the sampled token, and their gradient is that of the token's own
distribution: which states come next is taken as given, as in GKD (arXiv 2306.13649).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gr2.artifact import Artifact
from gr2.errors import ConfigError
from gr2.models.reasoner import RECORD
from gr2.training.loop.workers import leave
from gr2.training.policy.recipe import Recipe
from gr2.training.policy.trying import Teacher, Trying, read_by
from gr2.training.policy.trying_settings import TryingConfig
from gr2.training.reasoner.contexts import context_sources

__all__ = ["OpdConfig", "follow", "inputs", "leave", "run", "sources"]


@dataclass(frozen=True)
class OpdConfig(TryingConfig):
    """See `TryingConfig`; `kl` weighs the divergence from the teacher under `form = "task"`.

    Attributes:
        start: the stage whose model is the student: `midtrain`, `sft` or `rl`.
        teacher: a folder with a reasoner, `runs/big/rl/model` say, of any size and of the same semantic IDs and
            tokenizer.
        form: `task`, `reverse` or `forward`.
    """

    samples: int = 4
    kl: float = 0.1
    start: Literal["midtrain", "sft", "rl"] = "sft"
    teacher: str = ""
    form: Literal["task", "reverse", "forward"] = "task"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher.strip():
            raise ValueError("teacher must name a folder with a reasoner, such as runs/big/rl/model")
        if self.form == "task" and not self.kl:
            raise ValueError("kl must be positive: without it the teacher is not heard, and the stage is rl")
        if self.divergence != "reverse":
            raise ValueError("divergence is chosen by form here: leave it out, and set form = 'forward'")

    def recipe(self) -> Recipe:
        """What `DapoTrainer` needs to know."""
        recipe = super().recipe()
        if self.form == "task":
            return recipe
        return replace(recipe, policy=0.0, kl=1.0, divergence=self.form)


def inputs(config: OpdConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return read_by(config, config.start)


def sources(config: OpdConfig) -> dict[str, Path]:
    """The teacher's files, and those of another run's contexts. Raises ConfigError if it holds no reasoner."""
    return _teacher_files(config) | context_sources(config)


def run(config: OpdConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train the model of `start`; see `Trying.learn` for what is written and raised."""
    return Trying("opd", config, artifacts, seed, config.start, _teacher(config)).learn(out)


def follow(config: OpdConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> None:
    """What the other processes of a launch do; see `Trying.follow`."""
    Trying("opd", config, artifacts, seed, config.start, _teacher(config)).follow(out)


def _teacher(config: OpdConfig) -> Teacher:
    return Teacher(Path(config.teacher), _teacher_files(config))


def _teacher_files(config: OpdConfig) -> dict[str, Path]:
    folder = Path(config.teacher)
    if not folder.is_dir():
        raise ConfigError(
            f"[opd] teacher: no such folder: {folder}; give one with a reasoner, such as runs/big/rl/model"
        )
    if not (folder / RECORD).is_file():
        inside = folder / "model"
        meant = inside if (inside / RECORD).is_file() else "runs/big/rl/model"
        raise ConfigError(f"[opd] teacher: {folder} holds no reasoner ({RECORD} is missing); give one, such as {meant}")
    return {f"teacher:{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
