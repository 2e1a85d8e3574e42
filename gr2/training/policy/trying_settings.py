"""The keys that every stage has which learns to re-rank by trying."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gr2.config import INCIDENTAL, refuse_below
from gr2.training.policy.rewards import FORMAT_BONUS, RewardName
from gr2.training.policy.settings import MOST, PolicyConfig
from gr2.training.reasoner.settings import RankedConfig

__all__ = ["TryingConfig"]


@dataclass(frozen=True)
class TryingConfig(PolicyConfig, RankedConfig):
    """Prompts and DAPO (see `PolicyConfig`), the reward, and the evaluation (see `RankedConfig`).

    Attributes:
        reward: `default`, `auc`, `ndcg`, `conditional`, `unconditional` or `identity_gate` (see `rewards`).
        format_bonus: what the last three pay for a valid answer.
        overlong_tokens: the last tokens that an explanation may have, over which a penalty grows; 0 is none.
        overlong_penalty: at the most.
        shuffle: list the candidates in random order. With `incoming_rank` the order is a feature, without it is
            withheld.
        balance: weigh rewards so that targets of every incoming rank count alike. Only where the order is withheld.
        engine: who writes explanations in training: `transformers`, or `vllm` on a GPU, for constrained answers.
        engine_memory: share of the GPU's memory that vLLM takes.
        constrained: sample rankings that hold each candidate once; without it, answers are free and can be refused.
        copy_limit: a run whose near copies are more than this share of its answers ends; 1 ends none.
        copy_patience: over so many steps.
        evaluate_start: re-rank the lists before the training, too.
    """

    reward: RewardName = "default"
    format_bonus: float = FORMAT_BONUS
    overlong_tokens: int = 40
    overlong_penalty: float = 0.1
    shuffle: bool = False
    balance: bool = False
    engine: Literal["transformers", "vllm"] = "transformers"
    engine_memory: float = field(default=0.3, metadata=INCIDENTAL)
    constrained: bool = True
    copy_limit: float = field(default=0.95, metadata=INCIDENTAL)
    copy_patience: int = field(default=20, metadata=INCIDENTAL)
    evaluate_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "vllm" and not (self.constrained and self.reasoning):
            raise ValueError(
                "engine = 'vllm' writes the explanations of constrained answers: without them, leave it out"
            )
        if not 0 < self.engine_memory < 1:
            raise ValueError(f"engine_memory must be between 0 and 1, got {self.engine_memory}")
        if self.copy_patience < 1:
            raise ValueError(f"copy_patience must be at least 1, got {self.copy_patience}")
        refuse_below(self, 0, "format_bonus", "overlong_tokens", "overlong_penalty")
        for name in ("format_bonus", "overlong_penalty"):
            if getattr(self, name) > MOST:
                raise ValueError(
                    f"{name} must be at most {MOST:g}, got {getattr(self, name)}: ranks are worth 1 at the most"
                )
        if not 0 < self.copy_limit <= 1:
            raise ValueError(f"copy_limit must be in (0, 1], got {self.copy_limit}")
        if self.balance and (not self.shuffle or self.incoming_rank):
            raise ValueError(
                "balance takes what the incoming order knows from the reward, so the prompt must not tell it: "
                "shuffle = true and incoming_rank = false"
            )
