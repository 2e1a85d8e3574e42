"""The configuration of stages in which a reasoner learns by trying."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from gr2.config import INCIDENTAL
from gr2.models.policy import Divergence
from gr2.prompts.render import PromptConfig
from gr2.training.dapo import Recipe
from gr2.training.rewards import FORMAT_BONUS, RewardName
from gr2.training.rollouts import Scale

__all__ = ["TryingConfig"]


@dataclass(frozen=True)
class TryingConfig(PromptConfig):
    """The prompts (see `PromptConfig`), what is learnt from, the reward, DAPO, and the evaluation.

    Attributes:
        lists: the stage whose lists are learnt from and re-ranked, `midtrain` or `prerank`.
        list_size: candidates a list, the first ones.
        limit: training lists to learn from, drawn with the seed; 0 is all that hold their target.
        reward: `default`, `conditional`, `unconditional` or `identity_gate` (see `rewards`).
        format_bonus: what the last three pay for a valid answer.
        overlong_tokens: the last tokens that an explanation may have, over which a penalty grows; 0 is none.
        overlong_penalty: at the most.
        shuffle: list the candidates in random order. With `incoming_rank` the order is a feature, without it is
            withheld.
        balance: weigh rewards so that targets of every incoming rank count alike. Only where the order is withheld.
        constrained: sample rankings that hold each candidate once; without it, answers are free and can be refused.
        steps: batches of answers to learn from.
        groups: lists a step.
        samples: answers a list.
        updates: steps of the optimiser on one batch of answers.
        batch: answers of one forward pass; where it is a multiple of `samples`, a list's prompt is read once for all.
        redraws: times that lists without a difference in reward are replaced by others.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup: share of the steps in which the learning rate rises.
        clip: largest norm of a gradient.
        clip_low: how far below 1 a ratio of probabilities counts.
        clip_high: how far above 1.
        scale: divide advantages by the standard deviation of their group (`group`), or do not (`none`).
        temperature: of sampling.
        kl: weight of the divergence from the start; 0 is none, and no second model.
        divergence: `reverse`, KL(policy || start), or `forward`.
        copy_limit: a run whose near copies are more than this share of its answers ends; 1 ends none.
        copy_patience: over so many steps.
        precision: of matrix products; `auto` is bfloat16 where the device multiplies it in hardware.
        checkpoint_seconds: time between two checkpoints.
        tracker: `none`, or where figures go besides the screen: `tensorboard` and whatever else transformers knows.
        evaluate_start: re-rank the lists before the training, too.
        validation_lists: how many validation lists are re-ranked, drawn with the seed; 0 is none, -1 all.
        test_lists: as `validation_lists`, for the test lists.
        max_reasoning: tokens of an explanation.
        answer_batch: answers that are generated at once.
        threads: of torch; 0 leaves torch's own choice.
    """

    lists: Literal["midtrain", "prerank"] = "midtrain"
    list_size: int = 10
    limit: int = 0
    reward: RewardName = "default"
    format_bonus: float = FORMAT_BONUS
    overlong_tokens: int = 40
    overlong_penalty: float = 0.1
    shuffle: bool = False
    balance: bool = False
    constrained: bool = True
    steps: int = 200
    groups: int = 8
    samples: int = 8
    updates: int = 1
    batch: int = 8
    redraws: int = 3
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
    copy_limit: float = field(default=0.95, metadata=INCIDENTAL)
    copy_patience: int = field(default=20, metadata=INCIDENTAL)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    checkpoint_seconds: float = field(default=60.0, metadata=INCIDENTAL)
    tracker: str = field(default="none", metadata=INCIDENTAL)
    evaluate_start: bool = False
    validation_lists: int = 500
    test_lists: int = -1
    max_reasoning: int = 200
    answer_batch: int = 64
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "steps", "groups", "updates", "batch", "max_reasoning", "answer_batch", "copy_patience",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "limit", "format_bonus", "overlong_tokens", "overlong_penalty", "redraws", "weight_decay", "kl",
            "checkpoint_seconds", "threads",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("validation_lists", "test_lists"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name} must be -1 for all, 0 for none, or a number, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "clip_high", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("clip_low", "copy_limit"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        for name in ("list_size", "samples"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.balance and (not self.shuffle or self.incoming_rank):
            raise ValueError(
                "balance takes what the incoming order knows from the reward, so the prompt must not tell it: "
                "shuffle = true and incoming_rank = false"
            )

    def recipe(self) -> Recipe:
        """What `DapoTrainer` needs to know."""
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        return Recipe(**{name: getattr(self, name) for name in names})
