"""The configuration of the stage `sft`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gr2.training.language.weighted import Recipe
from gr2.training.reasoner.contexts import STAGE
from gr2.training.reasoner.settings import RankedConfig, ReasonerConfig

__all__ = ["SftConfig"]


@dataclass(frozen=True)
class SftConfig(ReasonerConfig, RankedConfig):
    """Prompts, lists and optimiser (see `ReasonerConfig`), the weights, and the evaluation (see `RankedConfig`).

    Attributes:
        reasoning_weight: of a token of the explanation in the loss.
        ranking_weight: of a token of the ranking; only the ratio of both matters.
        epochs: passes over the traces.
        accumulate: batches a step and process.
        dropout: on embeddings and block outputs.
        activation_checkpointing: compute activations twice instead of storing them.
    """

    reasoning_weight: float = 0.3
    ranking_weight: float = 1.0
    epochs: int = 3
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    dropout: float = 0.0
    activation_checkpointing: bool = False
    answer_batch: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("reasoning_weight", "ranking_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.compressor == STAGE:
            raise ValueError("compressor: compress comes after sft in a run; name the folder of another run's")
        if self.ranking_weight == 0 and (self.reasoning_weight == 0 or not self.reasoning):
            raise ValueError("ranking_weight 0 leaves nothing to learn, since there is no reasoning with a weight")

    def recipe(self) -> Recipe:
        """What `weighted_trainer` needs to know."""
        return Recipe(**{each.name: getattr(self, each.name) for each in fields(Recipe)})
