"""The keys that every stage has which trains a reasoner on lists, and those of every stage that re-ranks with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gr2.config import INCIDENTAL, MOST_THREADS, refuse_below
from gr2.prompts.render import PromptConfig

__all__ = ["RankedConfig", "ReasonerConfig"]


@dataclass(frozen=True)
class ReasonerConfig(PromptConfig):
    """The prompts (see `PromptConfig`), the lists, the optimiser, and how answers are made.

    Attributes:
        lists: the stage whose lists are used, `midtrain` or `prerank`.
        list_size: candidates a list, the first ones.
        limit: lists or traces to learn from, drawn with the seed; 0 is all that can be learnt from.
        batch: examples or answers of one forward pass.
        lora_rank: of the adapters; 0 trains all weights.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW, on matrices.
        warmup: share of the steps in which the learning rate rises.
        clip: largest norm of a gradient.
        precision: of matrix products; `auto` is bfloat16 where the device multiplies it in hardware.
        checkpoint_seconds: time between two checkpoints.
        tracker: `none`, or where figures go besides the screen: `tensorboard` and whatever else transformers knows.
        max_reasoning: tokens of an explanation.
        answer_batch: answers that are generated at once.
        threads: of torch; 0 leaves torch's own choice.
    """

    lists: Literal["midtrain", "prerank"] = "midtrain"
    list_size: int = 10
    limit: int = 0
    batch: int = 8
    lora_rank: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    checkpoint_seconds: float = field(default=60.0, metadata=INCIDENTAL)
    tracker: str = field(default="none", metadata=INCIDENTAL)
    max_reasoning: int = 200
    answer_batch: int = 64
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, 1, "batch", "max_reasoning", "answer_batch")
        refuse_below(self, 0, "limit", "lora_rank", "weight_decay", "checkpoint_seconds", "threads")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
        if self.list_size < 2:
            raise ValueError(f"list_size must be at least 2, got {self.list_size}")


@dataclass(frozen=True)
class RankedConfig(PromptConfig):
    """Which lists are re-ranked in the end.

    Attributes:
        validation_lists: how many validation lists are re-ranked, drawn with the seed; 0 is none, -1 all.
        test_lists: as `validation_lists`, for the test lists.
    """

    validation_lists: int = 500
    test_lists: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validation_lists", "test_lists"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name} must be -1 for all, 0 for none, or a number, got {getattr(self, name)}")
