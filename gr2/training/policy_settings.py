"""The keys that every stage has whose model learns from its own rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from gr2.config import INCIDENTAL
from gr2.models.policy import Divergence
from gr2.prompts.render import PromptConfig
from gr2.training.dapo import Recipe
from gr2.training.rollouts import Scale

__all__ = ["PolicyConfig"]


@dataclass(frozen=True)
class PolicyConfig(PromptConfig):
    """The prompts (see `PromptConfig`), what is learnt from, and DAPO.

    Attributes:
        lists: the stage whose lists are learnt from and re-ranked, `midtrain` or `prerank`.
        list_size: candidates a list, the first ones.
        limit: training lists to learn from, drawn with the seed; 0 is all that hold their target.
        steps: batches of answers to learn from.
        groups: lists a step.
        samples: answers a list.
        updates: steps of the optimiser on one batch of answers.
        batch: answers of one forward pass; where it is a multiple of `samples`, a list's prompt is read once for all.
        redraws: times that lists without a difference in reward are replaced by others.
        lora_rank: of the adapters; 0 trains all weights.
        learning_rate: of AdamW.
        weight_decay: of AdamW; with adapters there is none.
        warmup: share of the steps in which the learning rate rises.
        clip: largest norm of a gradient.
        clip_low: how far below 1 a ratio of probabilities counts.
        clip_high: how far above 1.
        scale: divide advantages by the standard deviation of their group (`group`), or do not (`none`).
        temperature: of sampling.
        kl: weight of the divergence from the start; 0 is none, and no second model.
        divergence: `reverse`, KL(policy || start), or `forward`.
        precision: of matrix products; `auto` is bfloat16 where the device multiplies it in hardware.
        checkpoint_seconds: time between two checkpoints.
        minutes: of training, at the end of which it ends whatever steps are left; 0 is no end.
        tracker: `none`, or where figures go besides the screen: `tensorboard` and whatever else transformers knows.
        max_reasoning: tokens of an explanation.
        answer_batch: answers that are generated at once.
        threads: of torch; 0 leaves torch's own choice.
    """

    lists: Literal["midtrain", "prerank"] = "midtrain"
    list_size: int = 10
    limit: int = 0
    steps: int = 200
    groups: int = 8
    samples: int = 8
    updates: int = 1
    batch: int = 8
    redraws: int = 3
    lora_rank: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    scale: Scale = "group"
    temperature: float = 1.0
    kl: float = 0.0
    divergence: Divergence = "reverse"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    checkpoint_seconds: float = field(default=60.0, metadata=INCIDENTAL)
    minutes: float = field(default=0.0, metadata=INCIDENTAL)
    tracker: str = field(default="none", metadata=INCIDENTAL)
    max_reasoning: int = 200
    answer_batch: int = 64
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "groups", "updates", "batch", "max_reasoning", "answer_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("limit", "redraws", "lora_rank", "weight_decay", "kl", "checkpoint_seconds", "minutes", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "clip_high", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"clip_low must be in (0, 1], got {self.clip_low}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        for name in ("list_size", "samples"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")

    def recipe(self) -> Recipe:
        """What `DapoTrainer` needs to know."""
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        return Recipe(**{name: getattr(self, name) for name in names})
