"""What a step of DAPO is, and how that is said to TRL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from trl.trainer.grpo_config import GRPOConfig

from gr2.errors import ConfigError
from gr2.models.policy import Divergence
from gr2.training.loop.resumable import checkpointing, tracker_callbacks
from gr2.training.policy.rollouts import Scale

__all__ = ["Recipe", "arguments"]


@dataclass(frozen=True)
class Recipe:
    """What a step is; see `RlConfig`, whose keys these are. `policy` weighs the clipped surrogate, `kl` the anchor."""

    steps: int
    groups: int
    samples: int
    updates: int
    batch: int
    redraws: int
    learning_rate: float
    weight_decay: float
    warmup: float
    clip: float
    clip_low: float
    clip_high: float
    temperature: float
    scale: Scale
    checkpoint_seconds: float
    minutes: float
    tracker: str
    idle_steps: int = 20
    policy: float = 1.0
    kl: float = 0.0
    divergence: Divergence = "reverse"

    def local(self, processes: int) -> int:
        """Answers of one process in a step. Raises ConfigError if they cannot be divided as they must be."""
        groups, rest = divmod(self.groups, processes)
        answers = groups * self.samples
        if rest:
            raise ConfigError(f"groups {self.groups} must be a multiple of the {processes} processes")
        if answers % (self.batch * self.updates):
            raise ConfigError(
                f"a process has groups x samples = {answers} answers a step; batch {self.batch} times updates "
                f"{self.updates} must divide that"
            )
        return answers

    def refuse(self, tasks: int, processes: int) -> None:
        """Raise ConfigError if a step cannot be made of so many tasks by so many processes."""
        self.local(processes)
        if tasks < self.groups:
            raise ConfigError(
                f"a step draws groups = {self.groups} lists, but there are {tasks} to learn from: lower groups, or "
                "give more lists (limit, list_size)"
            )


def arguments(recipe: Recipe, folder: Path, *, seed: int, cpu: bool, bfloat16: bool = False) -> GRPOConfig:
    """TRL's settings for a recipe; checkpoints go to `folder`."""
    batches = recipe.local(PartialState(cpu=cpu).num_processes) // recipe.batch
    return GRPOConfig(
        output_dir=str(folder),
        seed=seed,
        use_cpu=cpu,
        bf16=bfloat16,
        **checkpointing(GRPOConfig, on=False),
        dataloader_pin_memory=not cpu,
        loss_type="dapo",
        beta=0.0,
        epsilon=recipe.clip_low,
        epsilon_high=recipe.clip_high,
        temperature=recipe.temperature,
        num_generations=recipe.samples,
        per_device_train_batch_size=recipe.batch,
        steps_per_generation=batches,
        gradient_accumulation_steps=batches // recipe.updates,
        max_steps=recipe.steps * recipe.updates,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=math.ceil(recipe.warmup * recipe.steps * recipe.updates),
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to=tracker_callbacks(recipe.tracker, folder / "logs")[0],
    )
